"""Block-causal decodes written out in plain Python give those of the originals."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.models import transformer
from leapjax.models.attention import Bidirectional
from leapjax.testing import golden_config
from tests.decoding import block_causal_oracle as oracle
from tests.decoding.cached_oracle import NumpyModel
from tests.decoding.test_golden import GOLDEN, load

LENGTH = 192  # columns of the forward passes of the goldens
FILES = ("decode-sdar.jsonl", "decode-fast-dllm-v2.jsonl")
CASES = [json.loads(line) for name in FILES for line in (GOLDEN / name).read_text().splitlines()]


@functools.cache
def forward(name):
    """Ids (1, T), block -> (T, V) logits; the block is traced, so all cases share a program."""
    model, params, _ = load(name)
    runs = (dataclasses.replace(run, attention=Bidirectional()) for run in model.layer_runs)
    free = dataclasses.replace(model, attention=Bidirectional(), layer_runs=(*runs,))
    place = np.arange(LENGTH, dtype=np.int32)[None, :]

    @jax.jit
    def run(ids, block):
        mask = place[:, None, :] // block <= place[:, :, None] // block
        hidden = transformer.hidden_states(params, free, ids, place, mask)
        return transformer.head(params, free, hidden)[0]

    return run


def logits_of(name, block):
    def run(tokens):
        ids = np.zeros((1, LENGTH), np.int32)
        ids[0, : len(tokens)] = tokens
        return np.asarray(forward(name)(ids, jnp.int32(block)))[: len(tokens)]

    return run


def kind(case):
    """What a case exercises."""
    o = case["options"]
    return case["model"], o["policy"], o["early_stop"], o.get("block_cache")


# The shortest case of each kind.
QUICK = {min((c["steps"], c["id"]) for c in CASES if kind(c) == k)[1] for k in map(kind, CASES)}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c["id"], marks=() if c["id"] in QUICK else pytest.mark.slow)
        for c in CASES
    ],
)
def test_transcription_gives_the_originals_decodes(case):
    model, _, eot = load(case["model"])
    o = golden_config(model, case["options"]).to_dict()
    prompt = case["prompt_ids"]
    if o["sub_block_cache"]:
        run = NumpyModel(load(case["model"])[1], model)
    else:
        run = logits_of(case["model"], o["block_length"])
    got = oracle.decode(run, *oracle.canvas(prompt, o, model), o, model, eot, origin=len(prompt))
    n = len(case["output_ids"])
    assert got["output_ids"][:n] == case["output_ids"]
    assert got["commit_step"][:n] == case["commit_step"]
    assert got["steps"] == case["steps"]
    rest = len(got["output_ids"]) - n
    assert not rest or (case["options"]["early_stop"] and model.canvas == "whole_blocks")
    assert got["output_ids"][n:] == [model.eos_token_id] * rest
    assert got["commit_step"][n:] == [-1] * rest
