"""Ray Data decodes what `leapjax decode` decodes, also when an actor is killed on the way."""

import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from leapjax.cli.decode import main
from leapjax.errors import UserError

pa = pytest.importorskip("pyarrow", reason="needs Ray Data (extra ray)")
pa_json = pytest.importorskip("pyarrow.json", reason="needs Ray Data (extra ray)")

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
PAGE = Path(__file__).parents[2] / "docs" / "ray.md"
DRIVER = str(Path(__file__).with_name("ray_driver.py"))
OPTIONS = {"gen_length": 16, "block_length": 8}
RECORDS = [
    {"id": "a", "prompt_ids": [1, 2, 3], "options": {"threshold": 0.8}, "topic": "pens"},
    {"id": "b", "prompt": "Hal has 4 pens.", "stop": ["e"]},
    {"id": "c", "messages": [{"role": "user", "content": "Hi"}], "topic": None},
    {"id": "d", "prompt_ids": [5], "more": {"n": 7, "of": [1, 2]}},
]
BAD = [
    ({"id": "x", "prompt_ids": [9999]}, "outside the vocabulary"),
    ({"id": "y", "topic": "none"}, "has no prompt"),
    ({"prompt_ids": [1]}, "has no id"),
    ({"id": "a", "prompt_ids": [1]}, "occurs twice"),
    ({"id": "z", "prompt_ids": [1], "options": {"threshold": 2.0}}, "threshold is 2"),
]


def decoder(**changes):
    from leapjax.integrations.ray import Decoder

    return Decoder(LLADA, rows=4, **(OPTIONS | changes))


@pytest.fixture(scope="module")
def decode():
    return decoder()


def arrow_batch(records):
    """A table as Ray's `read_json` reads it."""
    return pa_json.read_json(io.BytesIO(b"".join(json.dumps(r).encode() + b"\n" for r in records)))


def numpy_batch(records):
    """Columns as Ray hands them over by default: from Arrow, with nulls as they come there."""
    table = arrow_batch(records)
    return {n: table[n].to_pandas().to_numpy() for n in table.column_names}


def lines_batch(records):
    return {"text": np.array([json.dumps(r) for r in records], object)}


def by_command(tmp_path, records, *flags):
    """What `leapjax decode` makes of records: (answers, errors) by id."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    argv = ["--model", LLADA, "--input", str(path), "--output", str(out), "--batch-size", "4"]
    argv += ["--gen-length", "16", "--block-length", "8", "--max-errors", "99", *flags]
    assert main(argv) == 0
    errors = out.with_suffix(".errors.jsonl")
    read = [p.read_text().splitlines() if p.exists() else [] for p in (out, errors)]
    return [[json.loads(line) for line in lines] for lines in read]


def as_records(rows):
    """Rows without their nulls, which are what a record does not have."""
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def without_nulls(record):
    if not isinstance(record, dict):
        return record
    made = {k: without_nulls(v) for k, v in record.items() if v is not None}
    return {k: v for k, v in made.items() if v != {}}


@pytest.mark.parametrize("make", [arrow_batch, numpy_batch, lines_batch])
def test_batches_of_every_form_decode_as_the_command_does(decode, make, tmp_path, capsys):
    want, _ = by_command(tmp_path, RECORDS)
    got = decode(make(RECORDS)).to_pylist()
    assert [without_nulls(r) for r in got] == [without_nulls(r) for r in want]


def test_bad_records_are_rows_and_the_rest_is_decoded(decode, tmp_path, capsys):
    records = [RECORDS[0], *(r for r, _ in BAD), RECORDS[3]]
    want, errors = by_command(tmp_path, [r for r in records if "id" in r])
    for make in (arrow_batch, numpy_batch, lines_batch):
        rows = decode(make(records)).to_pylist()
        good = [r for r in rows if r["error"] is None]
        bad = [r for r in rows if r["error"] is not None]
        assert [without_nulls(r) for r in good] == [without_nulls(r) for r in want]
        for row, (record, words) in zip(bad, BAD, strict=True):
            assert words in row["error"] and row["id"] == record.get("id")
            assert row["text"] is None and row["output_ids"] is None
        told = {e["error"].split("(")[0] for e in errors}
        assert told <= {r["error"].split("(")[0] for r in bad}


def test_broken_lines_are_rows_too(decode):
    lines = ['{"id": 1, "prompt_ids": [1]}', '{"id": 2,', "[]", '{"id": 1, "id": 2}', "{}"]
    rows = decode({"text": np.array(lines, object)}).to_pylist()
    assert rows[0]["error"] is None and rows[0]["id"] == 1
    for row, words in zip(rows[1:], ("not valid JSON", "expected", "twice", "no id"), strict=True):
        assert words in row["error"] and row["id"] is None


def test_a_batch_may_come_again_and_columns_stay_the_same(decode):
    batch = arrow_batch(RECORDS)
    first, again = decode(batch), decode(batch)
    assert first.equals(again)
    names = [n for n in first.column_names if n != "metadata"]
    bad = decode(arrow_batch([BAD[0][0]]))
    assert bad.select(names).schema == first.select(names).schema
    assert decode(pa.Table.from_pylist([])).column_names == first.column_names


def test_a_small_batch_compiles_nothing_more(decode, no_compilation):
    decode(arrow_batch(RECORDS))
    with no_compilation():
        decode(arrow_batch(RECORDS[:1]))


def test_ids_and_metadata_of_several_types(decode):
    records = [{"id": 1, "prompt_ids": [1], "n": 1}, {"id": "b", "prompt_ids": [1], "n": "x"}]
    rows = decode(lines_batch(records)).to_pylist()
    assert [r["id"] for r in rows] == ["1", "b"]
    assert [json.loads(r["metadata"]) for r in rows] == [{"n": 1}, {"n": "x"}]


def test_samples_details_and_whole_ids_in_numpy(tmp_path, capsys):
    decode = decoder(num_samples=2, details=True, temperature=0.7, editing_threshold=0.3)
    records = [{"id": 1, "prompt_ids": [1, 2]}, {"id": 2, "prompt_ids": [3]}]
    flags = "--num-samples 2 --details --temperature 0.7 --editing-threshold 0.3"
    want, _ = by_command(tmp_path, records, *flags.split())
    assert all(len(r["edits"]) > 0 for r in want)
    got = as_records(decode({"id": np.array([1.0, 2.0]), "prompt_ids": [[1, 2], [3]]}).to_pylist())
    for one, other in zip(got, want, strict=True):
        sure = one.pop("commit_confidence")
        assert sure == pytest.approx(other.pop("commit_confidence"), rel=1e-5)
        assert one == other


def test_arguments_are_checked():
    with pytest.raises(UserError, match="did you mean 'gen_length'"):
        decoder(gen_lenght=8)
    with pytest.raises(UserError, match="num_samples is 0"):
        decoder(num_samples=0)
    with pytest.raises(UserError, match="batch_format"):
        decoder()([1, 2])


def test_the_page_can_be_pasted(monkeypatch):
    """Each example, with this machine's model in the place of a cluster's, and no cluster."""
    pytest.importorskip("ray.data", reason="needs Ray Data (extra ray)")
    import ray

    from leapjax.integrations.ray import Decoder

    made = []

    class Data:
        def map_batches(self, kind, **given):
            # What Ray's own method takes; what it doesn't know goes to `ray.remote`.
            taken = inspect.signature(ray.data.Dataset.map_batches).bind(self, kind, **given)
            gpus = {"num_gpus": given.get("num_gpus", 0)}
            ray.remote(**gpus, **taken.arguments.get("ray_remote_args", {}))(kind)
            assert kind is Decoder
            options = given["fn_constructor_kwargs"]
            assert options["model"] == "/shared/llada-8b"
            made.append(kind(**options | {"model": LLADA, "gen_length": 16, "block_length": 8}))
            return self

        def write_json(self, path):
            assert path == "gs://bucket/answers"

    for name in ("read_json", "read_text"):
        monkeypatch.setattr(ray.data, name, lambda path: Data())
    space = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S):
        exec(compile(code, str(PAGE), "exec"), space)  # noqa: S102
    assert [d.options.cache for d in made] == ["none", "none", "dual", "dual"]
    assert len(made[0](arrow_batch(RECORDS[:1]))) == 1


def victim_of(folder, job):
    """The process that says that it is in the middle of a batch."""
    file, deadline = folder / "victim", time.monotonic() + 240
    while not (file.exists() and file.read_text()):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.05)
    return int(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["read_json", "read_text"])
def test_two_actors_of_which_one_is_killed_answer_as_the_command(reader, tmp_path, capsys):
    pytest.importorskip("ray.data", reason="needs Ray Data (extra ray)")
    records = [
        {"id": f"r{i:02}", "prompt_ids": [1 + i % 7, 2, 3 + i], "options": {"threshold": 0.9}}
        for i in range(40)
    ]
    records[7]["prompt_ids"] = [9999]  # a bad one does not end the job
    records += RECORDS
    want, errors = by_command(tmp_path, records)
    assert len(errors) == 1
    log, out = tmp_path / "log", tmp_path / "ray.jsonl"
    log.mkdir()
    job = subprocess.Popen(
        [sys.executable, DRIVER, reader, tmp_path / "in.jsonl", out, log, LLADA],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        victim = victim_of(log, job)
        os.kill(victim, signal.SIGKILL)
        said, _ = job.communicate(timeout=300)
        assert job.returncode == 0, said
    finally:
        job.terminate()  # an interrupted test ends its Ray
        job.wait()
    rows = sorted(map(json.loads, out.read_text().splitlines()), key=lambda row: row["id"])

    done = {p.name: json.loads(p.read_text()) for p in log.iterdir() if p.name != "victim"}
    lost = done[f"{victim}-2"]
    others = [ids for name, ids in done.items() if not name.startswith(f"{victim}-")]
    assert any(set(ids) & set(lost) for ids in others)  # another decoded the lost batch
    got = [without_nulls(row) for row in rows if row["error"] is None]
    assert got == sorted(map(without_nulls, want), key=lambda row: row["id"])
    (bad,) = (row for row in rows if row["error"] is not None)
    assert bad["id"] == "r07" and "outside the vocabulary" in bad["error"]
