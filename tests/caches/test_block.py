"""The exact cache of block-causal models: its kinds of passes, and no copy of what it holds."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.caches import CACHES
from leapjax.decoding import decode as decode_all
from leapjax.decoding import initial_state
from leapjax.decoding.prefill import prefill, prefill_all, read_piece, write_piece
from leapjax.decoding.state import with_cache
from leapjax.ops.arrangement import arrange
from leapjax.serve.lowering import compile_run
from tests.decoding.harness import MODELS, params_of, prompts, request, row, structure

FAMILIES = [
    "sdar",
    "fast_dllm_v2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llada2", "sdar_moe")),
]


def decoded(family, program, asked):
    state = jax.tree.map(jnp.asarray, initial_state(asked, program))
    state = jax.device_get(jax.jit(decode_all, static_argnums=2)(params_of(family), state, program))
    return [row(state, b) for b in range(len(asked))]


@pytest.mark.parametrize("guidance", [{}, {"cfg_scale": 0.5}], ids=["plain", "guided"])
@pytest.mark.parametrize("group", [0, 2, 8], ids=["one by one", "turns of two", "always wide"])
def test_how_finished_blocks_are_stored_changes_nothing(group, guidance):
    options = {"threshold": 0.3, "relaxed_threshold": 0.2, **guidance}
    config, program = structure(family="sdar", cache="none", **options)
    asked = [request(p, config, id=i) for i, p in enumerate(prompts(np.random.default_rng(3), 5))]
    wanted = decoded("sdar", program, asked)
    own = dataclasses.replace(program, cache="block", refresh_group=group)
    for got, want in zip(decoded("sdar", own, asked), wanted, strict=True):
        assert want["steps"] < sum(step >= 0 for step in want["commit_step"])  # in parallel
        sure = got.pop("commit_confidence"), want.pop("commit_confidence")
        np.testing.assert_allclose(*sure, atol=1e-5)
        assert got == want


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copied_prefix_has_the_bits_of_a_prefill(family):
    config, program = structure(family=family, block=8, gen=16, cache="block")
    program = dataclasses.replace(program, length=64)
    ids = np.random.default_rng(0).integers(0, 38, 45)
    other = np.concatenate([ids[:26], ids[:10]])
    asked = [request(ids, config, id=0), request(other, config, id=1)]
    params = params_of(family)
    state = jax.tree.map(jnp.asarray, initial_state(asked, program))
    state = with_cache(state, program)
    whole = prefill_all(params, state, program)
    assert int(whole.stored.max()) >= 32
    part = prefill(params, state, jnp.int32(0), jnp.int32(0), program)
    piece = read_piece(part.cache, jnp.int32(0), jnp.int32(0), program)
    part = write_piece(part, piece, jnp.int32(1), jnp.int32(0), program)
    part = prefill(params, part, jnp.int32(1), jnp.int32(24), program)
    assert np.array_equal(whole.stored, part.stored)
    for b in range(2):
        held = int(whole.stored[b])
        for one, two in zip(whole.cache, part.cache, strict=True):
            assert np.array_equal(one[:, b, :, :held], two[:, b, :, :held])
            assert np.abs(one[:, b, :, :held]).min() > 0


@pytest.mark.parametrize(("family", "group"), [("sdar", 1), ("sdar", 8), ("fast_dllm_v2", 0)])
def test_passes_copy_no_cache(family, group):
    """A read that might come after a write would copy it in every pass."""
    program = structure(family=family, block=8, gen=64, cache="block")[1]
    program = dataclasses.replace(program, length=512, refresh_group=group)
    params = arrange(params_of(family), MODELS[family], "float32")
    made = compile_run(params, program, 8)
    (keys, _) = CACHES["block"].shapes(program, 8)
    shape = re.escape(f"f32[{','.join(map(str, keys.shape))}]")
    assert not re.findall(rf"= {shape}\S* copy\(", made.as_text())
    stats = made.memory_analysis()
    assert stats.temp_size_in_bytes < keys.size * 4
