"""The conformance suite: decodes and selections of the original implementations.

See tests/golden/README.md. Cases of one structure share a batch and a compiled program.
"""

import collections
import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, Request, checkpoint, converters
from leapjax.decoding import program_for
from leapjax.decoding.proposal import propose
from leapjax.decoding.state import RowOptions
from leapjax.models import parse_config
from leapjax.policies import POLICIES, Pass
from leapjax.testing import golden_config, tiny_config
from leapjax.text import load_codec
from leapjax.types import COMMIT
from tests.decoding import harness

GOLDEN = Path(__file__).parents[1] / "golden"
# Of bidirectional models; `test_golden_blocks.py` has the others.
NAMES = ("decode.jsonl", "decode-a2d.jsonl", "decode-llada-moe.jsonl", "attention-decodes.jsonl")
FILES = [GOLDEN / name for name in NAMES]
CASES = [json.loads(line) for file in FILES for line in file.read_text().splitlines()]
BUCKETS = (64, 128)  # columns for prompts


def static(case):
    """What a compiled program depends on, as a test id."""
    o = case["options"]
    parts = [case["model"], o["policy"], o.get("schedule"), o.get("cache")]
    parts += [f"{o['gen_length']}x{o['block_length']}", "guided" if o.get("cfg_scale") else None]
    return ":".join(p for p in parts if p)


GROUPS = collections.defaultdict(list)
for _case in CASES:
    GROUPS[static(_case)].append(_case)


def features(cases):
    """What these cases exercise."""
    seen = set()
    for case in cases:
        o, model = case["options"], case["model"]
        seen |= {("model", model), ("policy", o["policy"], o.get("schedule"))}
        seen |= {("cache", model.split("-")[0], o.get("cache")), ("early_stop", o["early_stop"])}
        optional = ("cfg_scale", "logits_eos_inf", "confidence_eos_eot_inf")
        seen |= {(k, model.split("-")[0]) for k in optional if o.get(k)}
    return seen


def covering():
    """Few groups that together exercise everything: greedily the one that adds most."""
    left, chosen = features(CASES), set()
    while left:
        best = max(GROUPS, key=lambda g: len(features(GROUPS[g]) & left))
        chosen.add(best)
        left -= features(GROUPS[best])
    return chosen


QUICK = covering()


@functools.cache
def load(name):
    config = parse_config(checkpoint.read_config(GOLDEN / name))
    params = converters.load_hub(GOLDEN / name, config)
    return config, params, load_codec(GOLDEN / name, config).eot_id


def test_all_cases_are_there():
    assert len(CASES) == 203 + 30 + 40 + 68 and sum(map(len, GROUPS.values())) == len(CASES)


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=() if g in QUICK else pytest.mark.slow) for g in GROUPS]
)
def test_decodes_are_the_originals(group):
    cases = GROUPS[group]
    model, params, end_of_turn = load(cases[0]["model"])
    bucket = next(b for b in BUCKETS if b >= max(len(c["prompt_ids"]) for c in cases))
    configs = [golden_config(model, c["options"]) for c in cases]
    programs = {
        program_for(
            c,
            model,
            length=bucket + c.gen_length,
            dtype="float32",
            eot_token_id=end_of_turn,
        )
        for c in configs
    }
    (program,) = programs  # one structure, one compilation
    requests = [
        Request(case["id"], tuple(case["prompt_ids"]), c)
        for case, c in zip(cases, configs, strict=True)
    ]
    for case, got in zip(cases, harness.decode(params, requests, program), strict=True):
        canvas = -program.gen_length
        assert got["tokens"][canvas:] == case["output_ids"], case["id"]
        assert got["tokens"][:canvas] == case["prompt_ids"], case["id"]
        assert got["steps"] == case["steps"], case["id"]
        assert got["commit_step"][canvas:] == case["commit_step"], case["id"]


@pytest.mark.parametrize("name", sorted(p.parent.name for p in GOLDEN.glob("*/config.json")))
def test_logits_are_the_originals(name):
    """The contract's bound, per sequence; block-causal models with several blocks."""
    model, params, _ = load(name)
    lm = leapjax.LM(params, model, codec=None)
    with np.load(GOLDEN / f"{name}.logits.npz") as z:
        numbers = [k.removeprefix("ids_") for k in z if k.startswith("ids_")]
        assert numbers
        for k in numbers:
            block = int(z[f"block_{k}"]) if f"block_{k}" in z else None
            got = np.asarray(lm.logits(z[f"ids_{k}"], block_length=block))
            want = z[f"logits_{k}"]
            assert got.shape == want.shape and got.dtype == np.float32
            for one, original in zip(got, want, strict=True):
                assert np.abs(one - original).max() <= 2e-5 * np.abs(original).max()


@pytest.mark.parametrize("policy", ["localleap", "confidence_threshold"])
def test_single_steps_are_exact(policy):
    with np.load(GOLDEN / "single_step.npz") as z:
        logits, masked, params = z["logits"], z["masked"], z["params"].astype(np.float32)
        commit, tokens = z["commit"], z["tokens"]
    plain = params[:, 1] < 0
    mine = plain if policy == "confidence_threshold" else ~plain
    assert 20 < mine.sum() < 180
    logits, masked, params = logits[mine], masked[mine], params[mine]
    rows, width, vocab = logits.shape
    # The cases know no mask token: a column nobody can choose plays it.
    model = tiny_config(vocab_size=vocab + 1)
    padded = np.concatenate([logits, np.full((rows, width, 1), -np.inf, np.float32)], -1)
    program = program_for(
        DecodeConfig(policy=policy, gen_length=width, block_length=width),
        model,
        length=width,
        dtype="float32",
        eot_token_id=None,
    )
    no = jnp.zeros(rows, bool)
    one, zero = jnp.ones(rows, jnp.float32), jnp.zeros(rows, jnp.float32)
    count = jnp.zeros(rows, jnp.int32)
    options = RowOptions(
        temperature=zero,
        top_p=one,
        top_k=count,
        cfg_scale=zero,
        early_stop=no,
        logits_eos_inf=no,
        confidence_eos_eot_inf=no,
        parameters={},
    )
    radius = params[:, 2].astype(np.int32)
    numbers = {"threshold": params[:, 0], "relaxed_threshold": params[:, 1], "decay": zero}
    numbers |= {"radius_left": radius, "radius_right": radius}
    proposal = propose(padded, options, None, no, program)
    decision = POLICIES[policy].commit(proposal, masked, Pass(count, numbers))
    # Where nothing is masked the golden holds tokens of its own, not proposals.
    np.testing.assert_array_equal(np.asarray(proposal.token)[masked], tokens[mine][masked])
    np.testing.assert_array_equal(decision.action == COMMIT, commit[mine])
