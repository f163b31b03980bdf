"""The compiled loop on block-causal models against the transcription, with both caches.

Mixed prompts and options share lanes of fewer slots than rows, so slots are refilled.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leapjax
from leapjax import DecodeConfig
from leapjax.testing import tiny_config, tiny_params
from leapjax.types import EARLY_STOPS
from tests.decoding import block_causal_oracle as oracle
from tests.decoding.cached_oracle import NumpyModel
from tests.decoding.transcription import Noise
from tests.models.transcription import Model

ROWS, SLOTS, LONGEST = 4, 3, 14
TOLERANCE = 1e-4  # below this distance float32 may decide otherwise
SEEDS = (0, 3)
STOP_IDS = {"sdar": [37, 38], "fast_dllm_v2": [6, 22]}  # tokens that are common in the answers
SUB_BLOCK_CACHE = {"cache": "block", "sub_block_cache": True}

# What is compiled: (policy, family, options, what rows may vary besides).
STRUCTURES = {
    "localleap-sdar": ("localleap", "sdar", {}, ()),
    "localleap-fast-dllm-v2": ("localleap", "fast_dllm_v2", {"sub_block_length": 8}, ()),
    "joint_threshold-sdar": ("joint_threshold", "sdar", {"max_post_steps": 3}, ()),
    "localleap-editing-sdar-infill": (
        "localleap",
        "sdar",
        {"editing_threshold": 0.5, "max_post_steps": 2, "block_length": 6, "gen_length": 15},
        ("infill",),
    ),
    "joint_threshold-fast-dllm-v2": (
        "joint_threshold",
        "fast_dllm_v2",
        {"max_post_steps": 1},
        (),
    ),
    "localleap-editing-sdar-guided-sampled": (
        "localleap",
        "sdar",
        {"editing_threshold": 0.5, "max_post_steps": 2, "cfg_scale": 1.0, "temperature": 1.0},
        ("cfg_scale", "temperature"),
    ),
    "threshold-fast-dllm-v2": ("confidence_threshold", "fast_dllm_v2", {}, ()),
    "threshold-sub-block-cache": ("confidence_threshold", "fast_dllm_v2", SUB_BLOCK_CACHE, ()),
    "sequential-sub-block-cache": (
        "sequential",
        "fast_dllm_v2",
        SUB_BLOCK_CACHE | {"block_length": 12, "sub_block_length": 3, "gen_length": 24},
        (),
    ),
    "localleap-sub-block-cache-infill": (
        "localleap",
        "fast_dllm_v2",
        SUB_BLOCK_CACHE | {"sub_block_length": 2},
        ("infill",),
    ),
    "threshold-sdar-blocks-of-1": ("confidence_threshold", "sdar", {"block_length": 1}, ()),
    "dynamic-sdar": ("low_confidence_dynamic", "sdar", {"block_length": 8}, ()),
    "dynamic-fast-dllm-v2": ("low_confidence_dynamic", "fast_dllm_v2", {}, ()),
    "sequential-sdar": ("sequential", "sdar", {"gen_length": 9}, ()),
    "low_confidence-fast-dllm-v2": ("low_confidence", "fast_dllm_v2", {}, ()),
    "entropy_bounded-sdar": ("entropy_bounded", "sdar", {"gen_length": 7}, ()),
    "entropy-sdar-infill": ("entropy", "sdar", {}, ("infill",)),
    "localleap-fast-dllm-v2-infill": ("localleap", "fast_dllm_v2", {}, ("infill",)),
    "margin-sdar-guided": ("margin", "sdar", {"cfg_scale": 1.0}, ("cfg_scale",)),
    "localleap-fast-dllm-v2-guided": (
        "localleap",
        "fast_dllm_v2",
        {"cfg_scale": 1.0},
        ("cfg_scale",),
    ),
    "random-sdar-sampled": ("random", "sdar", {"temperature": 1.0}, ("temperature",)),
    "threshold-fast-dllm-v2-sampled": (
        "confidence_threshold",
        "fast_dllm_v2",
        {"temperature": 1.0, "top_p": 0.8},
        ("temperature",),
    ),
}


@st.composite
def row_options(draw, config, varied):
    """One row's own options."""
    reads = leapjax.policies.POLICIES[config.policy].reads
    o = {
        "logits_eos_inf": draw(st.booleans()) and draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    if "infill" not in varied:
        o["early_stop"] = draw(st.sampled_from(EARLY_STOPS[:2] if config.edits else EARLY_STOPS))
    if config.edits:
        o["editing_threshold"] = draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]))
    if "num_to_transfer" in reads:
        o["num_to_transfer"] = draw(st.integers(1, 5))
    if "threshold" in reads:
        o["threshold"] = draw(st.sampled_from([0.0, 0.3, 0.6, 0.8, 0.9, 1.0]))
    if "relaxed_threshold" in reads:
        o["relaxed_threshold"] = o["threshold"] * draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
        o["radius"] = draw(st.sampled_from([0, 1, 2, 4, 2**31 - 1]))
    if "eb_threshold" in reads:
        o["eb_threshold"] = draw(st.sampled_from([0.0, 0.35, 1.0, 3.0]))
    if "steps_per_block" in reads:
        o["steps_per_block"] = draw(st.integers(1, config.block_length + 2))
    if "cfg_scale" in varied:
        o["cfg_scale"] = draw(st.sampled_from([0.5, 2.0]))
    if "temperature" in varied:
        o["temperature"] = draw(st.sampled_from([0.3, 1.0, 2.0]))
    return o


@st.composite
def batches(draw, config, varied, mask):
    """A model's seed, and ROWS of records."""
    rows = []
    for n in range(ROWS):
        ids = draw(st.lists(st.integers(0, 38), max_size=LONGEST - 1))
        ids.append(7)  # masks and nothing else are one tie
        if "infill" in varied:
            holes = draw(st.lists(st.integers(0, len(ids)), min_size=1, max_size=6))
            for at in holes:
                ids.insert(at, mask)
        record = {"id": n, ("infill_ids" if "infill" in varied else "prompt_ids"): ids}
        rows.append(record | {"options": draw(row_options(config, varied))})
    return draw(st.sampled_from(SEEDS)), rows


def wanted(model, network, record, request):
    """The transcription's answer to a record."""
    o = request.config.to_dict()
    ids = list(request.ids)
    noise = Noise(o["seed"], record["id"], record["options"]["seed"])
    if not request.infill:
        whole = oracle.canvas(ids, o, model)
        return oracle.decode(network, *whole, o, model, None, noise, len(ids))
    is_open = [i == model.mask_token_id for i in ids]
    return oracle.decode(network, ids, is_open, o | {"early_stop": "off"}, model, None, noise)


def compare(name, examples):
    policy, family, options, varied = STRUCTURES[name]
    model = tiny_config(family)
    options = {"policy": policy, "gen_length": 16, "stop_ids": STOP_IDS[family]} | options
    caches = [options["cache"]] if "cache" in options else ["none", "block"]
    configs = [DecodeConfig(**options | {"cache": c}).for_model(model) for c in caches]
    weights = {seed: tiny_params(model, seed) for seed in SEEDS}
    lms = {seed: leapjax.LM(weights[seed], model, None) for seed in SEEDS}
    shape = model.with_block_length(configs[0].block_length)
    if options.get("sub_block_cache"):
        networks = {seed: NumpyModel(weights[seed], model) for seed in SEEDS}
    else:
        networks = {seed: Model(weights[seed], shape).logits for seed in SEEDS}
    seen = {"rows": 0, "compared": 0, "stopped": 0, "edited": 0}

    @settings(max_examples=examples)
    @given(batches(configs[0], varied, model.mask_token_id))
    def check(batch):
        seed, records = batch
        lm = lms[seed]
        answers = {}
        for config in configs:
            requests = [lm.request(r, config) for r in records]
            answers[config.cache] = list(lm.stream(requests, batch_size=SLOTS))
        for n, (record, request) in enumerate(zip(records, requests, strict=True)):
            want = wanted(model, networks[seed], record, request)
            seen["rows"] += 1
            if want["margin"] < TOLERANCE:
                continue
            seen["compared"] += 1
            seen["stopped"] += -1 in want["commit_step"]
            seen["edited"] += bool(want["edits"])
            for cache, rows in answers.items():
                got = rows[n]
                for fact in ("output_ids", "steps", "commit_step", "commit_kind", "edits"):
                    assert getattr(got, fact) == want[fact], (cache, fact, record)
                np.testing.assert_allclose(
                    got.commit_confidence, want["commit_confidence"], rtol=0, atol=2e-5
                )

    check()
    # About one row in eight has a tie, one in five where sub-blocks are infilled. Which rows are
    # drawn depends on the modules imported before, so a few examples say little about shares.
    many = examples > 100
    most = 0.7 if "infill" in varied and configs[0].sub_block_cache else 0.8
    assert seen["compared"] > (most if many else 0.5) * seen["rows"], seen
    assert seen["stopped"] or "infill" in varied or not many, seen
    assert (seen["edited"] > 0) == configs[0].edits, seen


QUICK = {"localleap-sdar", "dynamic-fast-dllm-v2"}


@pytest.mark.parametrize(
    "name", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in STRUCTURES]
)
def test_decode_is_the_transcription(name):
    compare(name, examples=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_decode_is_the_transcription_at_length(name):
    compare(name, examples=150)
