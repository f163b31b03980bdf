"""Fetching by id, with the hub's library replaced: no network."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from leapjax import converters
from leapjax.loader import model_config

GOLDEN = Path(__file__).parents[1] / "golden" / "llada-a"


class Response:
    """As much of an HTTP response as the library's errors want."""

    headers, status_code, request = {}, 404, None


def failure(kind):
    try:
        return kind("first line\nsecond line", response=Response())
    except TypeError:
        return kind("first line\nsecond line")


@pytest.fixture
def hub_has(monkeypatch, tmp_path):
    """hub_has(files, error=None): what the fake hub holds; returns the calls it gets."""

    def install(files, listing=None, download=None):
        calls = []

        def list_repo_files(self, name, revision=None):
            if listing:
                raise listing
            return files

        def snapshot_download(name, revision=None, allow_patterns=None):
            calls.append((name, revision, allow_patterns))
            if download:
                raise download
            return str(tmp_path / "snapshot")

        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return install


def matched(pattern_list, name):
    from fnmatch import fnmatch

    return any(fnmatch(name, p) for p in pattern_list)


def test_a_folder_is_itself(tmp_path):
    assert converters.resolve(tmp_path) == tmp_path
    assert converters.resolve(str(tmp_path)) == tmp_path


def test_an_id_is_fetched_without_code_and_in_one_format(hub_has, tmp_path):
    calls = hub_has(["model-00001-of-00002.safetensors", "pytorch_model.bin", "modeling_llada.py"])
    assert converters.resolve("org/name", "v2") == tmp_path / "snapshot"
    ((name, revision, patterns),) = calls
    assert (name, revision) == ("org/name", "v2")
    for wanted in ("model-00001-of-00002.safetensors", "config.json", "merges.txt"):
        assert matched(patterns, wanted)
    for unwanted in ("modeling_llada.py", "pytorch_model.bin", "README.md", "x/model.safetensors"):
        assert not matched(patterns, unwanted), unwanted


def test_files_named_by_layers_are_fetched(hub_has):
    """SDAR-30B-A3B's; elsewhere files of other names are second copies."""
    own = ["layer-0-ep-0-of-1.safetensors", "others.safetensors", "model.safetensors.index.json"]
    calls = hub_has([*own, "x/others.safetensors", "config.json"])
    converters.resolve("org/name")
    assert all(matched(calls[0][2], name) for name in [*own, "config.json"])
    assert not matched(calls[0][2], "x/others.safetensors")
    calls = hub_has(["model.safetensors", "consolidated.safetensors"])
    converters.resolve("org/name")
    assert not matched(calls[0][2], "consolidated.safetensors")


def test_bin_is_fetched_where_there_is_nothing_else(hub_has):
    calls = hub_has(["pytorch_model-00001-of-00002.bin", "config.json"])
    converters.resolve("org/name")
    assert matched(calls[0][2], "pytorch_model-00001-of-00002.bin")


def test_a_models_config_comes_without_its_weights(hub_has, tmp_path):
    """Options are checked against it before anything large is fetched."""
    (tmp_path / "snapshot").mkdir()
    raw = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps(raw))
    calls = hub_has(["model.safetensors", "config.json"])
    assert model_config("org/name", "v2") == model_config(GOLDEN)
    assert calls[0][:2] == ("org/name", "v2") and matched(calls[0][2], "config.json")
    assert not matched(calls[0][2], "model.safetensors")


def test_offline_takes_the_cache(hub_has, tmp_path):
    calls = hub_has([], listing=ConnectionError("no network"))
    assert converters.resolve("org/name") == tmp_path / "snapshot"
    assert matched(calls[0][2], "model.safetensors") and matched(calls[0][2], "pytorch_model.bin")


@pytest.mark.parametrize(
    "kind, words",
    [
        (errors.RepositoryNotFoundError, "no such model"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "no revision 'v9'"),
        (errors.LocalEntryNotFoundError, "can't be reached"),
        (ValueError, "first line"),
    ],
)
def test_failures_are_one_line(kind, words, hub_has, refused):
    hub_has([], listing=ConnectionError(), download=failure(kind))
    refused(lambda: converters.resolve("org/name", "v9"), "org/name", words)


@pytest.mark.parametrize(
    "name", ["", "nothing-here", "./org/name", "/org/name", "a/b/c", "org/..", "../x"]
)
def test_neither_folder_nor_id(name, refused, hub_has, monkeypatch, tmp_path):
    calls = hub_has([])
    monkeypatch.chdir(tmp_path)
    refused(lambda: converters.resolve(name), name, "no such folder")
    assert not calls


def test_a_file_is_no_folder(tmp_path, refused):
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(lambda: converters.resolve(tmp_path / "model.safetensors"), "is a file", "folder")
