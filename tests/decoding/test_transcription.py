"""Whole decodes against the rules written out in plain Python, over a NumPy float64 model.

Every policy, both schedules and families, guidance, sampling, the eos options, early stop
and infilling; rows of mixed options and prompt lengths share a batch.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.policies import POLICIES
from tests.decoding import transcription
from tests.decoding.harness import (
    BUCKET,
    EOT,
    MODELS,
    decode,
    params_of,
    request,
    structure,
)
from tests.models.transcription import Model

ROWS = 4
TOLERANCE = 1e-4  # below this distance float32 may decide otherwise
SEEDS = (0, 3, -1)  # models: a random one, a sure one, and one that likes the mask token

# What is compiled: (policy, family, structure, what rows may vary besides).
STRUCTURES = {
    "localleap": ("localleap", "llada", {}, ()),
    "localleap-dream": ("localleap", "dream", {}, ()),
    "localleap-infill": ("localleap", "llada", {"infill": 14}, ()),
    "localleap-infill-dream": ("localleap", "dream", {"infill": 14}, ()),
    "localleap-guided": ("localleap", "llada", {"cfg_scale": 1.0}, ("cfg_scale",)),
    "localleap-sampled": ("localleap", "llada", {"temperature": 1.0}, ("temperature",)),
    "confidence_threshold": ("confidence_threshold", "llada", {}, ()),
    "threshold-sampled-filtered": (
        "confidence_threshold",
        "dream",
        {"temperature": 1.0, "top_p": 0.5, "top_k": 3},
        ("temperature", "top_p", "top_k"),
    ),
    "localleap-editing": (
        "localleap",
        "llada",
        {"editing_threshold": 0.5, "max_post_steps": 2},
        (),
    ),
    "joint_threshold": ("joint_threshold", "dream", {"max_post_steps": 3}, ()),
    "joint_threshold-once": ("joint_threshold", "llada", {"max_post_steps": 0}, ()),
    "joint_threshold-infill": ("joint_threshold", "llada", {"infill": 14}, ()),
    "localleap-editing-sampled": (
        "localleap",
        "dream",
        {"editing_threshold": 0.5, "max_post_steps": 2, "temperature": 1.0, "top_k": 3},
        ("temperature",),
    ),
    "joint_threshold-guided": (
        "joint_threshold",
        "llada",
        {"max_post_steps": 2, "cfg_scale": 1.0},
        ("cfg_scale",),
    ),
    "low_confidence": ("low_confidence", "llada", {}, ()),
    "low_confidence-infill": ("low_confidence", "llada", {"infill": 14}, ()),
    "low_confidence-guided": ("low_confidence", "dream", {"cfg_scale": 1.0}, ("cfg_scale",)),
    "margin": ("margin", "dream", {}, ()),
    "entropy": ("entropy", "llada", {}, ()),
    "random": ("random", "llada", {}, ()),
    "sequential": ("sequential", "dream", {}, ()),
    "low_confidence_dynamic": ("low_confidence_dynamic", "llada", {}, ()),
    "random-sampled-infill": (
        "random",
        "dream",
        {"temperature": 1.0, "infill": 14},
        ("temperature",),
    ),
    "dream-low_confidence": ("low_confidence", "dream", {"schedule": "dream", "block": 12}, ()),
    "dream-margin": ("margin", "dream", {"schedule": "dream", "block": 12}, ()),
    "dream-entropy-sampled": (
        "entropy",
        "dream",
        {"schedule": "dream", "block": 12, "temperature": 1.0},
        ("temperature",),
    ),
    "dream-random": ("random", "llada", {"schedule": "dream", "block": 12}, ()),
}


def test_every_policy_is_transcribed_here_or_in_a_file_of_its_own():
    own = {p.stem.removeprefix("test_") for p in (Path(__file__).parents[1] / "policies").iterdir()}
    here = {s[0] for s in STRUCTURES.values()}
    assert set(POLICIES) <= here | own and here <= set(POLICIES)


@st.composite
def row_options(draw, policy, blocks, varied, editing):
    """One row's own options."""
    o = {
        "early_stop": draw(st.booleans()),
        "logits_eos_inf": draw(st.booleans()) and draw(st.booleans()),
        "confidence_eos_eot_inf": draw(st.booleans()) and draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    reads = POLICIES[policy].reads
    if "threshold" in reads:
        o["threshold"] = draw(st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.9, 1.0]))
    if policy == "localleap":
        share = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
        o["relaxed_threshold"] = o["threshold"] * share
        o["radius"] = draw(st.sampled_from([0, 1, 2, 4, 2**31 - 1]))
    if editing:
        o["editing_threshold"] = draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    if "num_to_transfer" in reads:
        o["num_to_transfer"] = draw(st.integers(1, 5))
    if "steps" in reads:
        o["steps"] = blocks * draw(st.integers(1, 12 // blocks + 2))
    if "cfg_scale" in varied:
        o["cfg_scale"] = draw(st.sampled_from([0.0, 0.5, 2.0]))
    if "temperature" in varied:
        o["temperature"] = draw(st.sampled_from([0.0, 0.3, 1.0, 2.0]))
    if "top_p" in varied:
        o["top_p"] = draw(st.sampled_from([0.05, 0.5, 0.9, 1.0]))
        o["top_k"] = draw(st.sampled_from([None, 1, 2, 7, 100]))
    return o


@st.composite
def batches(draw, policy, blocks, infill, varied, editing):
    """A model seed, and ROWS of (ids, options, own seed)."""
    rows = []
    mask = MODELS["llada"].mask_token_id
    for _ in range(ROWS):
        ids = st.integers(0, 38)  # eos may be given; it must not stop anything
        if infill:
            ids = draw(st.lists(ids | st.just(mask), min_size=2, max_size=infill))
            ids[draw(st.integers(0, len(ids) - 1))] = mask
            ids[draw(st.integers(0, len(ids) - 1))] = 7  # else all is one tie
            ids = ids if mask in ids else [mask, *ids[1:]]
        else:
            # In a prompt the mask id is a closed token like any other.
            ids = draw(st.lists(ids | st.just(mask), max_size=BUCKET - 1))
            ids.append(7)  # a canvas of masks and nothing else is one tie
        own = draw(st.none() | st.integers(0, 99))
        rows.append((ids, draw(row_options(policy, blocks, varied, editing)), own))
    return draw(st.sampled_from(SEEDS)), rows


def mask_lover(family):
    """The mask token wins where another token would have."""
    params, mask = params_of(family, 0), MODELS[family].mask_token_id
    logits = Model(params, MODELS[family]).logits([7] + [mask] * 12)
    favourite = np.bincount(logits.argmax(-1)).argmax()
    head = np.array(params["head"])
    head[mask] = 1.1 * head[favourite]
    return params | {"head": jnp.asarray(head)}


def compare(name, examples):
    policy, family, shape, varied = STRUCTURES[name]
    config, program = structure(policy, family, **shape)
    model = MODELS[family]
    ids = transcription.Ids(model.mask_token_id, model.eos_token_id, EOT, shift=model.shift_logits)
    weights = {seed: mask_lover(family) if seed < 0 else params_of(family, seed) for seed in SEEDS}
    oracles = {seed: Model(weights[seed], model) for seed in SEEDS}
    seen = {"rows": 0, "compared": 0, "facts": set()}

    def one(oracle, prompt, c, n, own):
        o = c.to_dict()
        if program.infill:
            o["early_stop"] = "off"
            whole, is_open = list(prompt), [i == ids.mask for i in prompt]
        else:
            whole = list(prompt) + [ids.mask] * program.gen_length
            is_open = [False] * len(prompt) + [True] * program.gen_length
        origin = 0 if program.infill else len(prompt)
        noise = transcription.Noise(c.seed, n, own)
        return transcription.decode(oracle.logits, whole, is_open, o, ids, noise, origin)

    @settings(max_examples=examples)
    @given(batches(policy, program.blocks, shape.get("infill"), varied, program.edits))
    def check(batch):
        seed, rows = batch
        requests = [
            request(prompt, config.replace(**o), id=n, infill=program.infill, seed=own)
            for n, (prompt, o, own) in enumerate(rows)
        ]
        for n, got in enumerate(decode(weights[seed], requests, program)):
            prompt, _, own = rows[n]
            want = one(oracles[seed], prompt, requests[n].config, n, own)
            seen["rows"] += 1
            if want["margin"] < TOLERANCE:
                continue
            seen["compared"] += 1
            seen["facts"] |= set(want["commit_kind"])
            seen["facts"] |= {"kept open"} if want["kept_open"] else set()
            assert got["done"]
            seen["facts"] |= {"edited"} if want["edits"] else set()
            for fact in ("tokens", "steps", "commit_step", "commit_kind", "edits"):
                assert got[fact] == want[fact], fact
            np.testing.assert_allclose(
                got["commit_confidence"], want["commit_confidence"], rtol=0, atol=2e-5
            )

    check()
    # Most were really compared, and decoding did all it can do. Few examples say little about
    # shares, and which are drawn depends on the modules imported before.
    assert seen["compared"] > (0.8 if examples > 100 else 0.5) * seen["rows"], seen
    kinds = {
        "localleap": {"anchor", "propagated", "top1"},
        "confidence_threshold": {"anchor"},
        "low_confidence_dynamic": {"anchor", "schedule"},
        "joint_threshold": {"anchor", "top1"},
    }
    wanted = kinds.get(policy, {"schedule"})
    wanted |= {"kept open"} if program.holds_masks else set()
    wanted |= {"edited"} if program.edits else set()
    assert seen["facts"] >= wanted, seen


QUICK = {
    "localleap",
    "localleap-infill-dream",
    "localleap-editing",
    "low_confidence-guided",
    "threshold-sampled-filtered",
    "dream-entropy-sampled",
}


@pytest.mark.parametrize(
    "name", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in STRUCTURES]
)
def test_decode_is_the_transcription(name):
    compare(name, examples=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_decode_is_the_transcription_at_length(name):
    compare(name, examples=150)
