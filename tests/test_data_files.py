"""Packed data files are read wherever data is, or refused by the name of their format."""

import bz2
import gzip
import io
import json
import lzma
import sys
import types

import pytest

from leapjax import tasks
from leapjax.data_files import read_jsonl
from leapjax.errors import UserError
from leapjax.jobs.source import Input
from leapjax.studies.runner import read_records

LINE = json.dumps({"id": "a", "prompt": "ü", "question": "2?", "answer": "#### 2", "text": "ü"})
CONTENT = f"{LINE}\n{LINE.replace('a', 'b', 1)}\n".encode() * 50


def lines(path):
    return [item.given for item in Input(path).items()]


READERS = {
    "decode --input": lambda path: len(lines(path)),
    "calibrate --prompts": lambda path: len(read_records(path)),
    "evaluate --data": lambda path: len(tasks._gsm8k(path, None)),
    "train": lambda path: len(list(read_jsonl(path))),
}
PACKERS = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.GZ"])
def test_packed_whatever_its_name(tmp_path, reader, packer, name):
    path = tmp_path / name
    path.write_bytes(PACKERS[packer](CONTENT))
    assert READERS[reader](str(path)) == 100


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz"])
def test_a_packed_file_that_ends_early(tmp_path, reader, packer):
    path = tmp_path / "in.jsonl"
    path.write_bytes(PACKERS[packer](CONTENT)[:-12])
    with pytest.raises(UserError, match="in.jsonl: can't be read .*(ends early|damaged)"):
        READERS[reader](str(path))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("head, kind", [(b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip")])
def test_other_formats_are_refused_by_name(tmp_path, reader, head, kind):
    path = tmp_path / "in.jsonl"
    path.write_bytes(head + bytes(100))
    with pytest.raises(UserError, match=f"in.jsonl: is {kind}, which is not read; unpack it"):
        READERS[reader](str(path))


def test_stdin(monkeypatch):
    stdin = io.BufferedReader(io.BytesIO(gzip.compress(CONTENT)))
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stdin))
    assert len(lines("-")) == 100
