"""A folder job in a storm: processes join, leave and are killed, one is slow, the store fails.

    python scripts/job_storm.py --records 20000 --kills 100 --terms 40 --processes 8 --store gcs

Runs `leapjax decode` in 1 to `--processes` processes, sends SIGKILL and SIGTERM to processes that
it picks at random while the job goes on, and starts others. At the end it compares every byte with
what one quiet process wrote, counts the rows that were decoded more than once, and says how long
the shards of killed processes waited for others that had nothing to do. Each process takes itself
for one on a machine of its own, so that only missing signs of life tell that it is dead. With
`--store gcs` the output is in an emulated object store (gcp-storage-emulator), behind a proxy that
fails `--failing` of all calls and delays as many. Prints one line of JSON; exit status 1 if
something is not as it must be.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import http.server
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from _command import installed

with installed():
    from leapjax.cli.main import main as leapjax

ROOT = Path(__file__).parents[1]
BAD_EVERY = 37  # one record in so many is bad
SLOTS = 4  # rows that a process decodes at once
PATIENCE = 30.0  # seconds within which an idle process takes over a lost one's shard
# Processes are forked from one that has imported these, which saves most of their start.
PRELOAD = ["leapjax.cli.main", "leapjax.cli.decode", "leapjax.lm", "leapjax.jobs.job", "tokenizers"]


def main() -> int:
    """Run a storm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--records", type=int, default=2000)
    add("--kills", type=int, default=20, help="SIGKILLs")
    add("--terms", type=int, default=5, help="SIGTERMs")
    add("--processes", type=int, default=4, help="at most at a time")
    add("--shard-size", type=int, default=50)
    add("--gen-length", type=int, default=2)
    add("--slow", type=float, default=10.0, help="how many times slower one process is")
    add("--store", choices=("local", "gcs"), default="local")
    add("--failing", type=float, default=0.05, help="share of calls of the store that fail")
    add("--model", default=str(ROOT / "tests" / "golden" / "llada-a"))
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return Storm(args, Path(folder)).run()


def child(environ: dict[str, str], log: Path, slowness: float, argv: list[str]) -> None:
    """`leapjax` with a log of the shards that it takes, the rows that it decodes and saves."""
    os.environ |= environ
    from leapjax.jobs import members
    from leapjax.jobs.claims import Claims
    from leapjax.jobs.shards import Shards

    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    write, settle, take = Shards.write, Shards.settle, Claims.take
    ids: list[str] = []
    last = [time.perf_counter()]

    def say(what: str, *which: Any) -> None:
        now = time.monotonic()
        lines = "".join(f"{what} {one} {os.getpid()} {now}\n" for one in which)
        os.write(file, lines.encode())

    def written(self, completion):
        ids.append(str(completion.id))
        say("decoded", completion.id)
        time.sleep((slowness - 1) * min(time.perf_counter() - last[0], 1.0))
        last[0] = time.perf_counter()
        write(self, completion)

    def settled(self, item):
        settle(self, item)  # saves, with --save-every 0
        say("saved", *ids)
        ids.clear()

    def taken(self, shard, files):
        claim = take(self, shard, files)
        if claim is not None:
            say("took", shard)
        return claim

    Shards.write, Shards.settle, Claims.take = written, settled, taken  # type: ignore
    mine = f"machine of {os.getpid()}"
    members._machine = lambda: mine
    sys.exit(leapjax(argv))


class Storm:
    """One storm, with what it needs in a folder of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.random = args, folder, random.Random(args.seed)
        self.log, self.source = folder / "log", folder / "in.jsonl"
        self.rows = Log(self.log)
        self.running: list[Any] = []
        self.killed: dict[int, float] = {}  # process -> when
        self.events: collections.Counter[str] = collections.Counter()
        self.environ: dict[str, str] = {}  # of processes
        os.environ |= {  # and of the one that they are forked from
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            # The emulator has no gRPC, which gcsfs asks for when it is imported.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOAD + ["gcsfs"] * (args.store == "gcs"))
        lines = []
        for n in range(1, args.records + 1):
            record = {"id": f"r{n}", "prompt": f"Tom has {n} pens. " * (n % 4 + 1)}
            lines.append("{" if n % BAD_EVERY == 0 else json.dumps(record))
        self.source.write_text("\n".join(lines))

    def run(self) -> int:
        """The storm; gives the exit status."""
        quiet, began = self.folder / "quiet", time.monotonic()
        process = self.start(str(quiet), self.folder / "quiet-log", 1.0, save_every=30)
        process.join()
        if process.exitcode:
            return 1
        quiet_seconds, began = time.monotonic() - began, time.monotonic()
        store = Store(self) if self.args.store == "gcs" else None
        try:
            out = "gs://jobs/out" if store else str(self.folder / "out")
            self.blow(out)
            seconds = time.monotonic() - began
            found = store.files("jobs/out") if store else contents(self.folder / "out")
        finally:
            for process in self.running:
                process.kill()
            if store:
                store.close()
        return self.report(contents(quiet), found, quiet_seconds, seconds)

    def start(self, out: str, log: Path, slowness: float, save_every: float = 0):
        """One more process of the job."""
        args = self.args
        argv = ["decode", "--model", args.model, "--input", str(self.source), "--output", out]
        argv += ["--gen-length", str(args.gen_length), "--block-length", str(args.gen_length)]
        argv += ["--batch-size", str(SLOTS), "--details", "--resume"]
        argv += ["--max-errors", str(args.records)]
        argv += ["--shard-size", str(args.shard_size), "--save-every", str(save_every)]
        process = self.processes.Process(target=child, args=(self.environ, log, slowness, argv))
        process.start()
        return process

    def blow(self, out: str) -> None:
        """Processes come and go until one says that the job is complete."""
        args, wanted = self.args, 1
        signals = [signal.SIGKILL] * args.kills + [signal.SIGTERM] * args.terms
        self.random.shuffle(signals)
        due = [(n + 1) / (len(signals) + 1) * args.records for n in range(len(signals))]
        while True:
            for process in [p for p in self.running if not p.is_alive()]:
                self.running.remove(process)
                self.events[str(process.exitcode)] += 1
            self.rows.read()
            done, at_work = len(self.rows.saved), self.rows.processes
            if self.events["0"] and not self.running:
                return
            if signals and done >= due[0]:
                busy = [p for p in self.running if p.pid in at_work] or self.running
                if busy:
                    process, number = self.random.choice(busy), signals.pop()
                    os.kill(process.pid, number)
                    if number == signal.SIGKILL:
                        self.killed[process.pid] = time.monotonic()
                    due.pop(0)
                    wanted = self.random.randint(1, args.processes)
            while len(self.running) < wanted and not self.events["0"]:
                last = self.events["started"] % args.processes == args.processes - 1
                slow = args.slow if last else 1.0  # not the first: it is alone for a while
                self.events["started"] += 1
                self.running.append(self.start(out, self.log, slow))
            time.sleep(0.05)

    def report(self, expected, found, quiet_seconds: float, seconds: float) -> int:
        """Print what was found; gives the exit status."""
        self.rows.read()
        waits = self.rows.takeovers(self.killed)
        same = {n for n in expected if n.startswith("part-") or n == "errors.jsonl"}
        differing = sorted(n for n in same if expected[n] != found.get(n))
        left = sorted(found.keys() - expected.keys())
        result = {
            "records": self.args.records,
            "signals": self.args.kills + self.args.terms,
            "events": dict(self.events),
            "rows_decoded_again": self.rows.again,
            "journalled_rows_decoded_again": self.rows.journalled_again,
            "shards_taken_over": len(waits),
            "longest_wait_of_an_idle_process": round(max(waits, default=0.0), 1),
            "differing_files": differing,
            "files_left": left,
            "seconds": round(seconds, 1),
            "seconds_of_one_quiet_process": round(quiet_seconds, 1),
        }
        print(json.dumps(result), flush=True)
        good = self.rows.again <= SLOTS * self.args.kills and max(waits, default=0.0) <= PATIENCE
        good = good and not (self.rows.journalled_again or differing or left)
        return 0 if good and self.events.keys() <= {"started", "0", "-9", "143"} else 1


class Log:
    """What the processes of a storm said, read as it grows."""

    def __init__(self, path: Path):
        self._path, self._at = path, 0
        self.decoded: set[str] = set()
        self.saved: set[str] = set()
        self.processes: set[int] = set()  # that have decoded anything
        self.again = self.journalled_again = 0
        self._takes: list[tuple[str, int, float]] = []  # shard, process, time
        self._worked: dict[int, list[float]] = collections.defaultdict(list)

    def read(self) -> None:
        """Read the lines that have come."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._at)
            *lines, rest = file.read().split(b"\n")
            self._at = file.tell() - len(rest)
            for line in lines:
                self._line(*line.decode().split())

    def _line(self, what: str, which: str, process: str, when: str) -> None:
        self._worked[int(process)].append(float(when))
        if what == "took":
            self._takes.append((which, int(process), float(when)))
        elif what == "saved":
            self.saved.add(which)
        else:
            self.again += which in self.decoded
            self.journalled_again += which in self.saved
            self.decoded.add(which)
            self.processes.add(int(process))

    def takeovers(self, killed: dict[int, float]) -> list[float]:
        """For each shard that a killed process had: how long the one that took it had no work."""
        owners: dict[str, int] = {}
        waits = []
        for shard, process, when in self._takes:
            if (before := owners.get(shard)) in killed:
                worked = (t for t in self._worked[process] if t < when)
                waits.append(when - max(killed[before], max(worked, default=when)))
            owners[shard] = process
        return waits


class Store:
    """An emulated object store, behind a proxy that fails."""

    def __init__(self, storm: Storm):
        import gcsfs

        behind, port = free_port(), free_port()
        argv = ["start", "--host", "127.0.0.1", "--port", str(behind), "--in-memory"]
        program = str(Path(sys.executable).with_name("gcp-storage-emulator"))
        self._server = subprocess.Popen(
            [program, *argv, "--default-bucket", "jobs"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(behind)
        handler = type("_Handler", (_Proxy,), {"behind": behind, "storm": storm})
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        storm.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
        self._files = gcsfs.GCSFileSystem(
            endpoint_url=f"http://127.0.0.1:{behind}", token="anon", use_listings_cache=False
        )

    def files(self, folder: str) -> dict[str, Any]:
        """Files of a folder by name."""
        names = [str(name) for name in self._files.ls(folder, detail=False)]
        return {Path(name).name: self._files.cat_file(name) for name in names}

    def close(self) -> None:
        """End the store."""
        self._server.kill()
        self._server.wait()


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on, fails some of them, before or after they had their effect.

    It also keeps the condition of a creation, which the emulator ignores.
    """

    behind: int
    storm: Storm
    creating = threading.Lock()
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Take requests until the client is done, or killed."""
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rng, failing = self.storm.random, self.storm.args.failing
        luck = rng.random()
        if failing <= luck < 2 * failing:
            time.sleep(rng.uniform(0.2, 2.0))
        if luck < failing / 2:
            return self._answer(503, [], b"unavailable")
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        with self.creating if "ifGenerationMatch=0" in self.path else contextlib.nullcontext():
            name = re.search(rb'"name": *"([^"]+)"', body)
            if "ifGenerationMatch=0" in self.path and name:
                path = f"/storage/v1/b/jobs/o/{urllib.parse.quote(name[1], safe='')}"
                if self._ask("GET", path, b"", {})[0] == 200:
                    return self._answer(412, [], b"there is one")
            status, given, data = self._ask(self.command, self.path, body, headers)
        if luck < failing:  # it was done, but nobody hears of it
            return self._answer(503, [], b"unavailable")
        skipped = ("transfer-encoding", "content-length", "connection", "server", "date")
        self._answer(status, [(k, v) for k, v in given if k.lower() not in skipped], data)

    def _ask(self, command: str, path: str, body: bytes, headers: dict[str, str]):
        there = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        there.request(command, path, body, headers)
        answer = there.getresponse()
        data = answer.read()
        there.close()
        return answer.status, answer.getheaders(), data

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client was killed
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for_port(port: int) -> None:
    """Wait until a server listens."""
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the emulated store does not start")


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    sys.exit(main())
