"""Where an answer ends, and why."""

import dataclasses
import json
from pathlib import Path

import pytest

from leapjax.models import parse_config
from leapjax.text import finish, load_codec

FOLDER = Path(__file__).parents[1] / "golden" / "llada-a"
MODEL = parse_config(json.loads((FOLDER / "config.json").read_text()))
CODEC = load_codec(FOLDER, MODEL)
EOS, EOT, BOS = 321, 324, 320


def ids(text):
    return CODEC.encode(text, control=False)


@pytest.mark.parametrize(
    "output, stop, expected",
    [
        (ids("one two"), (), ("one two", "length")),
        ([*ids("one"), EOS, *ids("two")], (), ("one", "stop")),
        ([*ids("one"), EOT, EOT, EOS], (), ("one", "stop")),
        ([*ids("one"), BOS, *ids(" two")], (), ("one two", "length")),
        (ids("one\n\ntwo"), ("two", "\n\n"), ("one", "stop")),
        (ids("one\n\ntwo"), ("three",), ("one\n\ntwo", "length")),
        ([*ids("one"), EOS, *ids("two")], ("two",), ("one", "stop")),
        ([EOS] * 4, (), ("", "stop")),
        ([], (), ("", "length")),
    ],
)
def test_text_and_reason(output, stop, expected):
    assert finish(output, CODEC, MODEL, stop) == expected


def test_without_a_tokenizer():
    assert finish([5, EOS], None, MODEL) == ("", "stop")
    assert finish([5, EOT], None, MODEL) == ("", "length")


def test_stop_ids_end_an_answer():
    """The model's own, or those of the request; eos and end-of-turn always."""
    one = ids("one")
    model = dataclasses.replace(MODEL, stop_ids=(BOS, 5))
    for own, given, stop in (
        (model, None, BOS),
        (model, (7,), 7),
        (MODEL, (7,), 7),
        (model, (7,), EOS),
        (MODEL, (7,), EOT),
    ):
        assert finish([*one, stop, 9], CODEC, own, stop_ids=given) == ("one", "stop")
    assert finish([*one, BOS], CODEC, model, stop_ids=(7,)) == ("one", "length")


def test_eos_comes_from_the_model():
    other = dataclasses.replace(MODEL, eos_token_id=5)
    assert finish([*ids("one"), 5, *ids("x")], CODEC, other) == ("one", "stop")
