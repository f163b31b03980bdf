"""SDAR's block size and stop ids: config.json, else the checkpoint's name and generation_config."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import leapjax
from leapjax import UserError, checkpoint, converters
from leapjax.cli.convert import main as convert
from leapjax.models import parse_config
from leapjax.text import load_codec

GOLDEN = Path(__file__).parents[1] / "golden"


def model(folder):
    return parse_config(checkpoint.read_config(folder))


@pytest.fixture
def folder(tmp_path):
    """Makes a copy of the golden checkpoint under a name, with more keys in config.json."""

    def make(name="it", **more):
        place = shutil.copytree(GOLDEN / "sdar-a", tmp_path / name)
        edit(place / "config.json", more)
        return place

    return make


def edit(file, more, drop=()):
    raw = json.loads(file.read_text()) | more
    file.write_text(json.dumps({k: v for k, v in raw.items() if k not in drop}))


@pytest.mark.parametrize(
    ("name", "more", "block"),
    [
        ("SDAR-8B-Chat", {}, 4),
        ("SDAR-8B-Chat-b32", {}, 32),
        ("models--JetLM--SDAR-4B-Chat-b16/snapshots/0123abc", {}, 16),
        ("it", {"_name_or_path": "JetLM/SDAR-4B-Chat-b8"}, 8),
        ("it", {"_name_or_path": "/models/SDAR-4B-Chat-b8/"}, 8),
        ("SDAR-b64", {"_name_or_path": "JetLM/SDAR-4B-Chat-b8"}, 64),
        ("SDAR-b64", {"block_size": 2}, 2),
        ("SDAR-b64", {"block_size": None}, 64),
        ("it", {"_name_or_path": "JetLM/SDAR-8B"}, 4),
        ("b16", {"_name_or_path": None}, 4),
        ("TraDo-4B-Instruct-b0", {"_name_or_path": ["-b8"]}, 4),
        ("SDAR-b16-step-100", {}, 4),
    ],
)
def test_the_block_of_a_name(folder, name, more, block):
    place = folder(name, **more)
    assert model(place).block_length == block
    link = place.parent / "link"
    link.symlink_to(place, target_is_directory=True)
    assert model(link).block_length == block


def test_other_families_have_no_such_names(tmp_path):
    shutil.copytree(GOLDEN / "fast-dllm-v2-a", tmp_path / "it-b16")
    assert model(tmp_path / "it-b16").block_length == 32


def test_a_conversion_writes_the_block_down(folder, tmp_path, capsys):
    place = folder("SDAR-b8")
    assert convert(["--check", str(place)]) == 0
    said = capsys.readouterr().out
    assert "blocks of 8\n" in said and "block_size 8 is that of the model's name" in said
    converters.convert(place, tmp_path / "plain-b2")
    converters.to_hub(tmp_path / "plain-b2", tmp_path / "back")
    for copy in ("plain-b2", "back"):
        assert model(tmp_path / copy) == model(place)
        assert json.loads((tmp_path / copy / "config.json").read_text())["block_size"] == 8
    # Where nobody tells one, config.json stays as it is, and the copy's name says nothing.
    converters.convert(folder("it"), tmp_path / "other-b2")
    assert model(tmp_path / "other-b2").block_length == 4


@pytest.mark.parametrize(
    ("eos", "stop"), [([322, 320], (322, 320)), (322, (322,)), (None, ()), ([], ())]
)
def test_stop_ids_are_those_of_generation_config(folder, eos, stop, tmp_path):
    place = folder()
    edit(place / "generation_config.json", {"eos_token_id": eos})
    assert model(place).stop_ids == stop and model(place).eos_token_id == 320
    converters.convert(place, tmp_path / "out")
    assert model(tmp_path / "out") == model(place)
    edit(place / "config.json", {"stop_ids": [7]})
    assert model(place).stop_ids == (7,)


def test_without_generation_config_eos_stops(folder):
    place = folder()
    (place / "generation_config.json").unlink()
    assert model(place).stop_ids == ()


@pytest.mark.parametrize(
    ("eos", "words"),
    [
        ("eos", 'generation_config.json: eos_token_id is "eos"'),
        ([True], "generation_config.json: eos_token_id is [true]"),
        ([320, -1], "expected a token id or a list of them"),
        ([336], "stop id 336 is outside the vocabulary of 336"),
    ],
)
def test_unusable_stop_ids(folder, eos, words):
    place = folder()
    edit(place / "generation_config.json", {"eos_token_id": eos})
    with pytest.raises(UserError) as caught:
        model(place)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_generation_config(folder):
    place = folder()
    (place / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config.json"):
        model(place)


def test_the_named_mask_wins(folder):
    """The hub's folders spell one id in two ways."""
    place = folder()
    assert model(place).mask_token_id == 327
    file = place / "tokenizer_config.json"
    edit(file, {"mask_token": "<tool_call>"})
    assert model(place).mask_token_id == 323
    edit(file, {"additional_special_tokens": []}, drop=["mask_token"])
    assert model(place).mask_token_id == 327  # known by its spelling
    # A name that no file gives an id tells none: the library would make one up.
    edit(file, {"mask_token": "<|MASK|>"}, drop=["added_tokens_decoder"])
    with pytest.raises(UserError, match="key 'mask_token_id' is missing"):
        model(place)
    edit(place / "config.json", {"mask_token_id": 5})
    assert model(place).mask_token_id == 5


def test_a_tokenizer_that_the_originals_do_not_read(folder):
    """Their class has no fast twin, so a tokenizer.json with the other spelling says nothing."""
    place = folder()
    whole = load_codec(place, model(place))._full.to_str()
    (place / "tokenizer.json").write_text(whole.replace("<|MASK|>", "<MASK>"))
    assert model(place).mask_token_id == 327
    assert load_codec(place, model(place)).encode("<|MASK|>", control=True) == [327]
    edit(place / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "a.Fast"]}})
    with pytest.raises(UserError, match="the tokenizer files disagree"):
        model(place)


@pytest.mark.parametrize(("name", "mask"), [("sdar-a", 327), ("fast-dllm-v2-a", 325)])
def test_a_folder_without_a_tokenizer(name, mask, tmp_path):
    place = shutil.copytree(GOLDEN / name, tmp_path / "it")
    assert model(place).mask_token_id == mask
    for file in ("vocab.json", "tokenizer_config.json", "added_tokens.json"):
        (place / file).unlink()
    with pytest.raises(UserError) as caught:
        model(place)
    assert "key 'mask_token_id' is missing, and the tokenizer's files don't tell it; add it" in str(
        caught.value
    )


@pytest.fixture(scope="module")
def models():
    return {name: leapjax.load(GOLDEN / name) for name in ("sdar-a", "fast-dllm-v2-a", "dream-a")}


def test_a_block_as_long_as_the_ids_is_bidirectional(models):
    lm = models["sdar-a"]
    ids = np.random.default_rng(0).integers(0, 320, (2, 12))
    blocks = {n: np.asarray(lm.logits(ids, block_length=n)) for n in (None, 4, 12, 500)}
    np.testing.assert_array_equal(blocks[None], blocks[4])
    np.testing.assert_array_equal(blocks[12], blocks[500])
    assert np.abs(blocks[4][:, 0] - blocks[12][:, 0]).max() > 0.1
    # A block sees nothing to its right, so what comes after it changes nothing.
    longer = np.asarray(lm.logits(np.pad(ids, ((0, 0), (0, 4))), block_length=4))
    np.testing.assert_allclose(longer[:, :12], blocks[4], atol=1e-4)


def test_pads_do_not_shift_the_blocks(models):
    lm = models["fast-dllm-v2-a"]
    ids = np.random.default_rng(1).integers(0, 320, (1, 10))
    want = np.asarray(lm.logits(ids, block_length=4))
    left = np.asarray(lm.logits(np.pad(ids, ((0, 0), (3, 0))), [[0] * 3 + [1] * 10], 4))
    right = np.asarray(lm.logits(np.pad(ids, ((0, 0), (0, 3))), [[1] * 10 + [0] * 3], 4))
    np.testing.assert_allclose(left[:, 3:], want, atol=1e-4)
    np.testing.assert_allclose(right[:, :10], want, atol=1e-4)


@pytest.mark.parametrize("block", [0, -1, 2.0, True, "4", [4]])
def test_blocks_that_are_none(models, block):
    with pytest.raises(UserError, match="block_length is .*; expected a whole number of at least"):
        models["sdar-a"].logits([[1, 2]], block_length=block)


def test_a_bidirectional_family_has_no_blocks(models):
    with pytest.raises(UserError, match="block_length: attention of dream is bidirectional"):
        models["dream-a"].logits([[1, 2]], block_length=4)
