"""What every cache keeps of the protocol, and a cache of one's own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax import DecodeConfig, UserError
from leapjax.caches import CACHES
from leapjax.caches.refresh import Refreshing
from leapjax.config import pairs
from leapjax.decoding import initial_state, program_for, step
from leapjax.decoding.forward import Rows, block_columns
from leapjax.decoding.state import with_cache
from leapjax.models.attention import RULES, Bidirectional, BlockCausal
from leapjax.models.config import Run
from leapjax.policies import POLICIES
from leapjax.testing import tiny_config
from leapjax.types import WHOLE_ROW
from tests.decoding.harness import decode, params_of, request, structure

FAMILIES = ("llada", "dream", "sdar", "fast_dllm_v2")
CASES = [
    (name, family)
    for name in CACHES
    for family in FAMILIES
    if not pairs.refusal(name, "localleap", [tiny_config(family).attention])
]


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("guidance", [{}, {"cfg_scale": 1.0}], ids=["plain", "guided"])
@pytest.mark.parametrize(("name", "family"), CASES)
def test_shapes(name, family, guidance):
    """The state keeps its structure over a step; passes give the window of each evaluation."""
    config, program = structure(family=family, cache=name, **guidance)
    cache, params = CACHES[name], params_of(family)
    state = initial_state([request([3, 4], config), request([5], config)], program)
    state = with_cache(jax.tree.map(jnp.asarray, state), program)
    assert shapes(state.cache or ()) == shapes(cache.shapes(program, 2))
    assert bool(state.cache) == cache.stores
    after = jax.eval_shape(lambda s: step(params, s, program), state)
    assert shapes(after) == shapes(state)
    columns, _ = block_columns(state.block, program)
    rows = 4 if program.guidance else 2
    window = (rows, program.block_length, program.model.d_model)
    hidden = jax.eval_shape(
        lambda s: cache.steady(params, Rows(s, program), columns, s.cache), state
    )
    assert hidden.shape == window
    out = jax.eval_shape(lambda s: cache.forward(params, Rows(s, program), columns), state)
    assert out.hidden.shape == window and out.served.shape == out.full.shape == (2,)
    assert program.block_length <= cache.columns(program) <= program.length


class Everything(Refreshing):
    """Stores, and recomputes every column all the same: exact."""

    name, help, exact = "everything", "every position", True

    def columns(self, program):
        return program.length

    def end(self, rows):
        return jnp.full_like(rows.state.block, rows.program.length)


def test_a_cache_of_ones_own_is_a_class_and_a_line(monkeypatch):
    """It changes the passes that are full, and nothing else."""
    monkeypatch.setitem(CACHES, "everything", Everything())
    params = params_of("dream")
    config, program = structure(family="dream", threshold=0.05, relaxed_threshold=0.03)
    asked = [request([3, 4, 5], config, id=0), request([6], config, id=1)]
    own = dataclasses.replace(program, cache="everything", refresh_group=1)
    for got, want in zip(decode(params, asked, own), decode(params, asked, program), strict=True):
        assert 2 < want["steps"] < 12
        sure = got.pop("commit_confidence"), want.pop("commit_confidence")
        np.testing.assert_allclose(*sure, atol=1e-5)
        assert got == want


def test_the_table_of_pairs_names_what_there_is():
    assert set(CACHES) == {name for names in pairs.CACHES_FOR.values() for name in names}
    assert set(RULES) == set(pairs.CACHES_FOR)


@pytest.mark.parametrize("cache", CACHES)
def test_a_model_whose_finished_blocks_stay_has_no_approximate_cache(cache):
    """One layer of another rule is enough; asked as soon as options and model are both known."""
    runs = (Run("first", 1, 32), Run("last", 1, 32, BlockCausal(4)))
    model = tiny_config(layer_runs=runs)
    config = DecodeConfig(cache=cache)
    made = functools.partial(program_for, length=300, dtype="float32", eot_token_id=None)
    if cache == "none":
        assert made(config, model).model == model
        return
    rule, choices = ("bidirectional", "none or prefix or dual") if cache == "block" else (
        "block_causal", "none or block"
    )  # fmt: skip
    with pytest.raises(
        UserError,
        match=f"^cache is {cache}, but the model's attention is {rule}; choose cache {choices}$",
    ):
        made(config, model)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cache", CACHES)
def test_pairs(cache, policy):
    """Attention takes every cache of its rule; a policy that reads whole rows takes none."""
    rule = BlockCausal(4) if cache == "block" else Bidirectional()
    wrong = pairs.refusal(cache, policy, [rule])
    if cache == "none" or not POLICIES[policy].needs & WHOLE_ROW:
        assert wrong is None
        assert DecodeConfig(policy=policy, cache=cache).cache == cache
        return
    assert wrong == (
        f"cache is {cache}, but policy {policy} reads the whole sequence in every pass; "
        f"choose cache none or another policy"
    )
    with pytest.raises(UserError, match=wrong):
        DecodeConfig(policy=policy, cache=cache)
