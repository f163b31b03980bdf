"""Folders here and elsewhere behave alike."""

import fsspec
import pytest

from leapjax import storage
from leapjax.errors import UserError
from leapjax.outputs import OutputFile
from leapjax.types import Completion


@pytest.fixture(params=["local", "file", "remote"])
def path(request, tmp_path):
    yield {"local": f"{tmp_path}/x", "file": f"file://{tmp_path}/x", "remote": "memory://x"}[
        request.param
    ]
    fsspec.filesystem("memory").store.clear()


def test_a_folder(path):
    place = storage.folder(path)
    assert place.sizes() == {} and place.read("a") is None
    place.create()
    place.create()
    place.remove("a")
    place.write("a", b"12")
    place.write("a", b"123")
    assert place.read("a") == b"123" and place.sizes() == {"a": 3}
    assert place.exclusive and not place.create_new("a", b"new") and place.read("a") == b"123"
    place.rename("a", "b")
    assert place.sizes() == {"b": 3}
    assert place.create_new("a", b"new") and place.read("a") == b"new"
    place.remove("a")
    place.remove("b")
    assert place.sizes() == {}


def test_a_growing_file_is_cut_to_what_is_kept(path):
    place = storage.folder(path)
    place.create()
    file = place.grow("a")
    file.write(b"one ")
    file.write(b"two")
    file.sync()
    assert place.read("a") == b"one two"
    file.close()
    file = place.grow("a", keep=4)
    file.write(b"2")
    file.sync()
    file.close()
    assert place.read("a") == b"one 2"
    file = place.grow("a")
    file.sync()
    assert place.read("a") == b""


def test_a_failing_write_keeps_the_old_content(tmp_path, monkeypatch):
    place = storage.folder(str(tmp_path))
    place.write("a", b"old")
    monkeypatch.setattr(storage.os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.write("a", b"new")
    assert place.read("a") == b"old"


def completion(n):
    return Completion(n, "", [1], "length", 1, 1, 1, [0], ["top1"], [0.5])


def test_an_output_file_appears_whole_or_not_at_all(path):
    storage.folder(path).create()
    out, errors = f"{path}/out.jsonl", f"{path}/out.errors.jsonl"
    with pytest.raises(ZeroDivisionError), OutputFile(out) as file:
        file.write(completion(1))
        file.keep_bad({"line": 2})
        1 / 0  # noqa: B018
    assert storage.folder(path).sizes() == {}
    with OutputFile(out) as file:
        file.write(completion(1))
        file.keep_bad({"line": 2})
        assert not storage.exists(out) and not storage.exists(errors)
    assert sorted(storage.folder(path).sizes()) == ["out.errors.jsonl", "out.jsonl"]
    assert storage.open_read(out).read().startswith(b'{"id": 1, "text": ""')
    with pytest.raises(UserError, match="is there already"):
        OutputFile(out)
    with OutputFile(out, overwrite=True) as file:
        pass
    assert storage.folder(path).sizes() == {"out.jsonl": 0}
