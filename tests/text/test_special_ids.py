"""Special ids that config.json lacks: from the tokenizer's files, or a line that asks for them."""

import json
import shutil
from pathlib import Path

import pytest

import leapjax
from leapjax import UserError, checkpoint, converters
from leapjax.models import parse_config
from leapjax.text.files import special_ids

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN / "a2d-a", tmp_path / "it")
    return tmp_path / "it"


def edit(file, change):
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def ids(folder):
    config = parse_config(checkpoint.read_config(folder))
    return config.mask_token_id, config.eos_token_id, config.pad_token_id


def test_what_config_json_lacks(folder):
    assert ids(folder) == (327, 322, 320)
    for key in ("eos_token_id", "pad_token_id"):
        edit(folder / "config.json", lambda raw, key=key: raw.pop(key))
    assert ids(folder) == (327, 322, 320)
    edit(folder / "config.json", lambda raw: raw.update(eos_token_id=None, pad_token_id=None))
    assert ids(folder) == (327, 322, 320)


def test_config_json_wins(folder):
    edit(folder / "config.json", lambda raw: raw.update(mask_token_id=5, eos_token_id=0))
    assert ids(folder) == (5, 0, 320)


def test_a_converted_copy_has_the_same_ids(folder, tmp_path):
    converters.convert(folder, tmp_path / "out")
    assert leapjax.load(tmp_path / "out").config == leapjax.load(folder).config
    assert "mask_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("spelling", ["<|mask|>", "<|MASK|>", "|<MASK>|"])
def test_a_mask_without_a_name_is_known_by_its_spelling(folder, spelling):
    def rename(raw):
        raw.pop("mask_token")
        raw["added_tokens_decoder"]["327"]["content"] = spelling

    edit(folder / "tokenizer_config.json", rename)
    edit(folder / "tokenizer.json", lambda raw: raw["added_tokens"][-1].update(content=spelling))
    assert special_ids(folder)["mask_token_id"] == 327 == ids(folder)[0]


def test_ids_of_a_folder_in_the_older_style():
    """vocab.json, merges.txt and added_tokens.json alone."""
    assert special_ids(GOLDEN / "dream-a")["mask_token_id"] == 323


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        ids(folder)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_ids_that_nobody_tells(folder):
    def forget(raw):
        raw.pop("mask_token")
        raw["added_tokens_decoder"]["327"]["content"] = "<|hole|>"

    edit(folder / "tokenizer_config.json", forget)
    edit(folder / "tokenizer.json", lambda raw: raw["added_tokens"][-1].update(content="<|hole|>"))
    refused(folder, "config.json: key 'mask_token_id' is missing", "tokenizer's files", "add it")
    for file in ("tokenizer.json", "vocab.json"):
        (folder / file).unlink()
    refused(folder, "key 'mask_token_id' is missing")


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "tokenizer.json", "not")
