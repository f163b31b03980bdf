"""Mixtures of experts of every layout: a row is the row alone, bit for bit, at batch 1, 2 and 7.

`tests/test_support.py` does the same with the golden checkpoints. Here are layouts that they lack:
dense layers between experts, several or no shared experts, one expert a token, biases, groups,
partial rotary, tied embeddings, bfloat16, experts too large for one dense product.
"""

import itertools

import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig
from leapjax.caches import CACHES
from leapjax.config import pairs
from leapjax.models.attention import Bidirectional, BlockCausal
from leapjax.models.config import Experts, layer_runs
from leapjax.policies import POLICIES
from leapjax.testing import tiny_config, tiny_params

PLAIN = Experts(8, 2, 6, normalize=True)
SHARED = Experts(6, 2, 4, shared_size=8, bias="weighs")
ONE = Experts(5, 1, 8)
GROUPS = Experts(
    12, 3, 4, 8, score="sigmoid", normalize=True, scale=2.5, bias="selects", groups=4, top_groups=2
)
ONE_GROUP = Experts(6, 1, 4, score="sigmoid", scale=2.5, bias="selects")
LARGE = Experts(16, 3, 48, normalize=True)  # more weights than `DENSE_UP_TO`


def layout(family, *kinds, **changes):
    """(family, layers, other fields): a tiny model with these layers."""
    return family, kinds, changes


LAYOUTS = {
    "dense-between": layout("llada_moe", SHARED, None, SHARED, qkv_bias=True, o_bias=True),
    "one-a-token": layout("llada_moe", ONE, ONE, tie_embeddings=True, rotary_dim=2, clip_qkv=1.0),
    "large": layout("llada_moe", LARGE, LARGE, n_kv_heads=2),
    "groups": layout("llada2", None, GROUPS, GROUPS, rotary_dim=2, o_bias=True),
    "one-group": layout("llada2", ONE_GROUP, qkv_bias=True, tie_embeddings=True),
    "sparse-step": layout("sdar_moe", None, PLAIN, None, PLAIN),
    "large-blocks": layout("sdar_moe", PLAIN, LARGE),
}
OPTIONS = {"gen_length": 9, "block_length": 4}
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 2, 7)


def model_of(name):
    family, kinds, changes = LAYOUTS[name]
    rule = BlockCausal(4) if family != "llada_moe" else Bidirectional()
    runs = layer_runs(kinds, 24, rule)
    return tiny_config(family, n_layers=len(kinds), layer_runs=runs, attention=rule, **changes)


def cases():
    """Every policy with each cache it takes, layouts in turn; then every layout."""
    turns = {
        True: itertools.cycle(n for n in LAYOUTS if model_of(n).block_causal),
        False: itertools.cycle(n for n in LAYOUTS if not model_of(n).block_causal),
    }
    for policy, cache, kind in itertools.product(POLICIES, CACHES, turns):
        rule = BlockCausal(4) if kind else Bidirectional()
        if not pairs.refusal(cache, policy, [rule]):
            yield next(turns[kind]), policy, cache, "float32"
    for name, cache, dtype in itertools.product(LAYOUTS, CACHES, DTYPES):
        if not pairs.refusal(cache, "localleap", [model_of(name).attention]):
            yield name, "localleap", cache, dtype


QUICK = {("large-blocks", "localleap", "block", "bfloat16")}  # the cheapest
CASES = list(dict.fromkeys(cases()))


def test_quick_cases_are_there():
    assert QUICK < set(CASES)
    assert {c[1] for c in CASES} == set(POLICIES)


@pytest.mark.parametrize(
    ("name", "policy", "cache", "dtype"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES],
)
def test_each_row_is_the_row_alone(name, policy, cache, dtype):
    model = model_of(name)
    lm = leapjax.LM(tiny_params(model, dtype=dtype), model, None, dtype=dtype)
    options = OPTIONS | {"policy": policy, "cache": cache}
    if not model.block_causal:
        options["gen_length"] = 8
    config = DecodeConfig(**options).for_model(model)
    rng = np.random.default_rng(1)
    asked = [
        lm.request({"id": f"r{n}", "prompt_ids": rng.integers(0, 38, n).tolist()}, config)
        for n in (11, 1, 4, 7, 2, 8, 5)
    ]
    facts = None
    for batch in BATCHES if dtype == "float32" else BATCHES[-1:]:
        together = list(lm.stream(asked, batch_size=batch))
        if batch > 1:
            alone = [next(lm.stream([r], batch_size=batch)) for r in asked[:4]]
            assert together[:4] == alone, batch
        found = [(c.output_ids, c.steps, c.commit_step, c.commit_kind) for c in together]
        assert facts in (None, found), batch
        facts = found
    assert len({tuple(f[0]) for f in facts}) > 1
