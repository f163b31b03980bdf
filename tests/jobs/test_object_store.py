"""A job on `gs://`: a real client, real processes, and a server that emulates Google's storage.

Needs `gcsfs` (extra `gcs`) and `gcp-storage-emulator`; `make extras` installs both.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs (extra gcs)")
pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "golden" / "llada-a"
RECORDS = 60


@pytest.fixture(scope="module")
def store():
    """A server with an empty bucket: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    argv = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    argv += ["--default-bucket", "jobs"]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("gcp-storage-emulator")), *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "no server"
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def prompts():
    lines = [json.dumps({"id": f"r{n}", "prompt": f"Tom has {n} pens."}) for n in range(RECORDS)]
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def start(store, environment):
    environ = environment | {
        "STORAGE_EMULATOR_HOST": store,
        # Its gRPC part asks for what the emulator has not.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }

    def run(source, output, *more):
        argv = [sys.executable, "-m", "leapjax.cli.main", "decode", "--model", str(MODEL)]
        argv += ["--input", str(source), "--output", str(output), "--shard-size", "10"]
        argv += ["--gen-length", "16", "--block-length", "8", "--batch-size", "4", "--details"]
        argv += ["--save-every", "0.05", *more]
        return subprocess.Popen(argv, env=environ, stderr=subprocess.PIPE, text=True)

    return run


def finish(process):
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def shards(files, folder):
    return {
        Path(name).name: files.cat_file(name)
        for name in files.ls(folder, refresh=True)
        if Path(name).name.startswith("part-")
    }


def test_killed_on_an_object_store(store, start, prompts, tmp_path):
    """SIGKILL twice, then --resume: what one run on the local disk writes, byte for byte."""
    local = tmp_path / "in.jsonl"
    local.write_bytes(prompts)
    finish(start(local, tmp_path / "out"))
    expected = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("part-*.jsonl")}
    assert len(expected) == RECORDS // 10

    files = gcsfs.core.GCSFileSystem(endpoint_url=store, token="anon", use_listings_cache=False)
    files.pipe_file("jobs/in.jsonl", prompts)
    for wanted in (1, 3):
        process = start("gs://jobs/in.jsonl", "gs://jobs/out", "--resume")
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if files.exists("jobs/out") and len(shards(files, "jobs/out")) >= wanted:
                break
            time.sleep(0.02)
        ended = process.poll()
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert ended is None, error
    finish(start("gs://jobs/in.jsonl", "gs://jobs/out", "--resume"))
    assert shards(files, "jobs/out") == expected
    summary = json.loads(files.cat_file("jobs/out/summary.json"))
    assert summary["errors"] == 0
