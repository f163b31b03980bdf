"""Corners of a pass: idle slots, Dream's first position, and what the compiled step may hold."""

import re

import jax
import numpy as np
import pytest
from jax.experimental import checkify

from leapjax.decoding import step
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import (
    MODELS,
    decode,
    params_of,
    request,
    row,
    start,
    structure,
)
from tests.models.transcription import Model

EVERYTHING = {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "cfg_scale": 1.0}


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_idle_slots_make_no_nan_and_stay_idle(cache):
    """Every operation of a pass is checked, not its results only: NaNs may cancel out of sight."""
    config, program = structure("localleap", gen=4, cache=cache, **EVERYTHING)
    state = start([request([1, 2], config)], program, slots=2)
    before = row(jax.device_get(state), 1, full=True)
    checked = checkify.checkify(lambda p, s: step(p, s, program), errors=checkify.nan_checks)
    checked = jax.jit(checked)
    for _ in range(4):
        error, state = checked(params_of("llada"), state)
        error.throw()
        assert row(jax.device_get(state), 1, full=True) == before
    assert state.steps[0] > 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))


def test_dreams_first_position_is_predicted_by_its_own_output():
    """After pads or at column 0 there is no output before; elsewhere it is the one before."""
    config, program = structure("confidence_threshold", "dream", infill=14, threshold=0.0)
    model, params = MODELS["dream"], params_of("dream", 2)
    mask = model.mask_token_id
    long = [mask, *range(13)]  # fills the columns; the other has pads before it
    for ids in ([mask, 7, 3], long):
        (got,) = decode(params, [request(ids, config, infill=True)], program)
        scores = Model(params, model).logits(ids)
        scores[:, mask] = -np.inf
        assert got["tokens"] == [int(scores[0].argmax()), *ids[1:]]
        # The neighbour's output would have said something else.
        assert scores[0].argmax() != scores[1].argmax()
    # Position 1 of a generated canvas is predicted by the prompt's last token.
    config, program = structure("confidence_threshold", "dream", threshold=0.0)
    (got,) = decode(params, [request([5], config)], program)
    scores = Model(params, model).logits([5] + [mask] * 12)
    scores[:, mask] = -np.inf
    assert got["tokens"][1] == scores[0].argmax()


def test_rows_of_any_length_equal_the_row_in_columns_of_its_own():
    """Left pads: a row alone, without a pad, in a program of its length."""
    config, program = structure("low_confidence", "dream", steps=12, early_stop=False)
    rng = np.random.default_rng(4)
    rows = [request(rng.integers(0, 38, n), config, id=n) for n in (1, 4, 10)]
    together = decode(params_of("dream"), rows, program)
    for one, got in list(zip(rows, together, strict=True))[:2]:
        own = type(program)(**(vars(program) | {"length": len(one.ids) + 12}))
        (alone,) = decode(params_of("dream"), [one], own)
        for fact in ("tokens", "steps", "commit_step", "commit_kind"):
            assert got[fact] == alone[fact]


@pytest.mark.parametrize("o", [{}, {"cfg_scale": 1.0}], ids=["plain", "guided"])
def test_the_vocabulary_is_met_once_and_in_the_window_only(o):
    """One product with the head a pass, on W positions; guidance makes its rows twice as many."""
    model = tiny_config(vocab_size=53)
    config, program = structure("localleap", gen=24, block=8, **o)
    program = type(program)(**(vars(program) | {"model": model}))
    shapes = jax.eval_shape(lambda: start([], program, 3))
    params = jax.eval_shape(lambda: tiny_params(model))
    lowered = jax.jit(step, static_argnames="program").lower(params, shapes, program=program)
    text = lowered.as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line and "x53x" in line]
    results = [re.search(r"-> tensor<([0-9x]+)xf32>", line).group(1) for line in dots]
    heads = [r for r in results if r.endswith("x53")]
    assert heads == ["6x8x53" if o else "3x8x53"]
    # Nothing of the size of whole-sequence logits, before or after optimisation.
    least = 3 * program.length * 53
    for size in re.findall(r"tensor<([0-9x]+)x[a-z]", text):
        dims = [int(d) for d in size.split("x")]
        assert 53 not in dims or np.prod(dims) < least, size
    for size in re.findall(r"f32\[([0-9,]+)\]", lowered.compile().as_text()):
        dims = [int(d) for d in size.split(",")]
        assert 53 not in dims or np.prod(dims) < least, size
    assert "f64" not in text
