"""A checkpoint is known by its content, and what was changed in it is noticed."""

import json
import shutil

import pytest

import leapjax
from leapjax import UserError, checkpoint, converters
from leapjax.cli import convert

GOLDEN = "tests/golden/"


@pytest.fixture
def made(tmp_path):
    """A converted checkpoint."""
    converters.convert(GOLDEN + "llada-c-tied", tmp_path / "it")
    return tmp_path / "it"


def one_line(capsys, *words):
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_every_hash_is_compared(made, capsys):
    assert convert.main(["--check", str(made)]) == 0
    assert "every hash is right" in capsys.readouterr().out
    for leaf, file in (("layers.q", "1.0.0"), ("embed", "0.0")):
        path = made / "params" / leaf / file
        good = path.read_bytes()
        path.write_bytes(good[:100] + bytes(2000) + good[2100:])
        assert convert.main(["--check", str(made)]) == 2
        one_line(capsys, f"params/{leaf}/{file} is damaged")
        path.write_bytes(good)
    assert convert.main(["--check", str(made), "--dtype", "float32"]) == 2


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_loading_compares_what_is_small(name, made):
    good = (made / name).read_bytes()
    for bad in (good + b" ", good.replace(b" ", b"\t", 1)):
        (made / name).write_bytes(bad)
        with pytest.raises(UserError, match=f"{name} is damaged"):
            leapjax.load(made)
    (made / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        leapjax.load(made)


def test_a_chunk_may_not_be_a_link_to_elsewhere(made, tmp_path):
    chunk = made / "params" / "embed" / "0.0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside the folder"):
        leapjax.load(made)


@pytest.mark.parametrize(
    "change", [{"files": {"../x": {"bytes": 1, "sha256": ""}}}, {"files": [1]}, {"source": [1]}]
)
def test_a_manifest_may_not_point_elsewhere(change, made):
    file = made / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match="manifest.json is damaged"):
        leapjax.load(made)


@pytest.mark.parametrize("text", ["{}", '{"format": "x"}', "[]", "{"])
def test_a_foreign_manifest_leaves_a_hub_folder_one(text, tmp_path):
    shutil.copytree(GOLDEN + "llada-a", tmp_path / "hub")
    (tmp_path / "hub" / "manifest.json").write_text(text)
    (tmp_path / "hub" / "params").mkdir()
    assert not checkpoint.is_checkpoint(tmp_path / "hub")
    digest = leapjax.load(tmp_path / "hub").model_hash
    assert converters.convert(tmp_path / "hub", tmp_path / "it").weights_sha256 == digest
    assert checkpoint.is_checkpoint(tmp_path / "it")


@pytest.mark.parametrize("dst", ["-", ""])
def test_a_folder_needs_a_name(dst, capsys):
    assert convert.main([GOLDEN + "llada-c-tied", dst]) == 2
    one_line(capsys, "name a")


def test_a_link_is_not_replaced(made, tmp_path, capsys):
    (tmp_path / "link").symlink_to(made)
    for more in ([], ["--overwrite"]):
        assert convert.main([GOLDEN + "llada-c-tied", str(tmp_path / "link"), *more]) == 2
        one_line(capsys, "symbolic link")
    assert (tmp_path / "link").is_symlink()
