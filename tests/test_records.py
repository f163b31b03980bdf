"""What a record may hold, and what comes out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.jsonl import parse_line, read_lines, to_line
from leapjax.models import parse_config
from leapjax.records import Intake, to_record, to_request
from leapjax.text import load_codec
from leapjax.types import Completion, Request

FOLDER = Path(__file__).parent / "golden" / "llada-a"
MODEL = parse_config(json.loads((FOLDER / "config.json").read_text()))
CODEC = load_codec(FOLDER, MODEL)
JOB = DecodeConfig(gen_length=64, block_length=16).for_model(MODEL)
MASK = MODEL.mask_token_id


def request(record, **changes):
    return to_request(record, **({"job": JOB, "model": MODEL, "codec": CODEC} | changes))


@pytest.mark.parametrize(
    "given",
    [
        "Why?",
        {"prompt": "Why?"},
        {"messages": [{"role": "user", "content": "Why?"}]},
        [{"role": "user", "content": "Why?"}],
        CODEC.encode_prompt("Why?"),
        tuple(CODEC.encode_prompt("Why?")),
        np.array(CODEC.encode_prompt("Why?"), np.int16),
        {"prompt_ids": CODEC.encode_prompt("Why?")},
    ],
    ids=lambda g: type(g).__name__,
)
def test_every_way_to_ask_is_the_same_request(given):
    got = request(given, line=3)
    assert got == Request(id=3, ids=tuple(CODEC.encode_prompt("Why?")), config=JOB)
    assert all(type(i) is int for i in got.ids)
    assert request(got) is got


def test_all_the_keys_of_a_record():
    got = request(
        {
            "id": "q",
            "prompt_ids": [1, MASK],  # closed, the mask id too
            "options": {"threshold": 0.95, "seed": 7, "policy": "localleap"},
            "stop": "\n",
            "answer": {"final": 3},
            "tags": [1],
        },
        stop=("x",),
    )
    assert got.config == JOB.replace(threshold=0.95, seed=7)
    assert (got.id, got.ids, got.seed, got.stop) == ("q", (1, MASK), 7, ("\n",))
    assert got.metadata == {"answer": {"final": 3}, "tags": [1]}
    assert not got.infill
    assert request("a", stop=("x",)).stop == ("x",)
    # The job's seed is not the record's own: the key then comes from the id too.
    assert request({"prompt": "a", "options": {"radius": 2}}, job=JOB.replace(seed=5)).seed is None


def test_infilling():
    got = request({"infill_ids": [1, MASK, 2]})
    assert got.infill and got.ids == (1, MASK, 2)
    longest = [MASK] * MODEL.max_length
    assert len(request({"infill_ids": longest}).ids) == MODEL.max_length
    with pytest.raises(UserError, match="takes at most 512"):
        request({"infill_ids": [*longest, 1]})
    with pytest.raises(UserError, match="no mask id"):
        request({"infill_ids": [1, 2]})


def test_length():
    fits = MODEL.max_length - JOB.gen_length
    assert len(request([1] * fits).ids) == fits
    with pytest.raises(UserError, match="lower gen_length to at most 63"):
        request([1] * (fits + 1))
    with pytest.raises(UserError, match="shorten the prompt$"):
        request([1] * 600)
    with pytest.raises(UserError, match="shorten the prompt"):
        request(Request(id=1, ids=(1,) * 600, config=JOB))


@pytest.mark.parametrize(
    "record, message",
    [
        ({}, "has no prompt; give one of prompt, messages"),
        ({"promt": "a"}, "did you mean 'prompt' instead of 'promt'"),
        ({"prompt": "a", "prompt_ids": [1]}, "has both prompt and prompt_ids"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 3}, "prompt should be a text, got a number"),
        ({"prompt": ["a"]}, "prompt should be a text, got a list"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "a"}, "messages should be a list"),
        ({"messages": [{"role": "usr", "content": "a"}]}, "role is 'usr'"),
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"prompt_ids": [1, "2"]}, r"prompt_ids\[1\] is '2'"),
        ({"prompt_ids": [True]}, r"prompt_ids\[0\] is True"),
        ({"prompt_ids": [1.0]}, r"prompt_ids\[0\] is 1.0"),
        ({"prompt_ids": [0, 336]}, r"prompt_ids\[1\] is 336, outside the vocabulary of 336"),
        ({"prompt_ids": [-1]}, r"prompt_ids\[0\] is -1, outside"),
        ({"prompt_ids": {"a": 1}}, "prompt_ids should be a list"),
        ({"prompt": "a", "id": 1.5}, "id should be"),
        ({"prompt": "a", "id": True}, "id should be"),
        ({"prompt": "a", "id": []}, "id should be"),
        ({"prompt": "a", "options": 3}, "options must be an object"),
        ({"prompt": "a", "options": {"treshold": 0.5}}, "did you mean 'threshold'"),
        ({"prompt": "a", "options": {"threshold": "x"}}, "threshold is 'x'"),
        ({"prompt": "a", "options": {"threshold": 0.5}}, "relaxed_threshold 0.75 is above"),
        ({"prompt": "a", "options": {"gen_length": 32}}, "same for the whole job"),
        ({"prompt": "a", "options": {"steps": 32}}, "does not read it"),
        ({"prompt": "a", "stop": ""}, "empty text"),
        ({"prompt": "a", "stop": [1]}, "stop should be"),
        (7, "expected a text, messages, token ids or a record, got a number"),
        (None, "got null"),
        (np.zeros((2, 2), int), "shape"),
    ],
)
def test_bad_records_are_one_line_that_names_the_place(record, message):
    with pytest.raises(UserError, match=message) as e:
        request(record, where="in.jsonl line 7")
    assert str(e.value).startswith("in.jsonl line 7: ")
    assert "\n" not in str(e.value)


def test_text_needs_a_tokenizer():
    with pytest.raises(UserError, match="give prompt_ids"):
        request("a", codec=None)
    assert request([1, 2], codec=None).ids == (1, 2)


def test_ids_come_once():
    intake = Intake(JOB, MODEL, CODEC)
    assert [r.id for n in (1, 2) for r in intake.requests("a", n)] == [1, 2]
    assert intake.requests({"id": "x", "prompt": "a"}, 3)[0].id == "x"
    for again in ("x", "2", 2):
        with pytest.raises(UserError, match="occurs twice"):
            intake.requests({"id": again, "prompt": "a"}, 9)


def test_samples():
    intake = Intake(JOB, MODEL, CODEC, samples=3, stop=["x"])
    got = intake.requests({"id": "a", "prompt": "a"}, 1)
    assert [(r.id, r.sample, r.stop) for r in got] == [("a", n, ("x",)) for n in range(3)]
    assert [r.sample for r in Intake(JOB, MODEL, CODEC).requests("a", 1)] == [None]
    with pytest.raises(UserError, match="num_samples is 0"):
        Intake(JOB, MODEL, CODEC, samples=0)


def lines(data):
    return list(read_lines(io.BytesIO(data), "in"))


def test_lines_keep_their_numbers():
    assert lines(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}') == [
        (1, b'{"a": 1}\r\n'),
        (4, b'{"b": 2}'),
    ]
    assert lines(b"") == []


@pytest.mark.parametrize(
    "line, message",
    [
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "Extra data at column 10"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'{"a": "\xff"}', "not UTF-8 .byte 8"),
        (b"[1]", "expected a JSON object, got a list"),
        (b"null", "expected a JSON object, got null"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_broken_lines(line, message):
    with pytest.raises(UserError, match=message) as e:
        parse_line(line, "in.jsonl line 2")
    assert str(e.value).startswith("in.jsonl line 2: ")
    assert "\n" not in str(e.value)


def completion(**changes):
    return Completion(
        **{
            "id": "a",
            "text": "naïve\n",
            "output_ids": [5, 321],
            "finish_reason": "stop",
            "steps": 2,
            "full_passes": 2,
            "nfe": 2,
            "commit_step": [1, 0],
            "commit_kind": ["top1", "anchor"],
            "commit_confidence": [0.5, 0.25],
        }
        | changes
    )


def test_output_records():
    plain = ["id", "text", "output_ids", "finish_reason", "steps", "full_passes", "nfe"]
    plain.append("commit_step")
    assert list(to_record(completion())) == plain
    full = to_record(completion(sample=0, metadata={"k": 1}), details=True)
    assert list(full) == [*plain, "commit_kind", "commit_confidence", "sample", "metadata"]
    assert to_line({"text": "naïve\n"}) == '{"text": "naïve\\n"}\n'
    back = to_line({"text": "\ud800"})
    assert json.loads(back.encode()) == {"text": "\ud800"}
