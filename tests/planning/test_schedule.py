"""The schedule in plain Python against the engine's own counters."""

import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, Request
from leapjax.planning.schedule import simulate, simulate_for
from leapjax.testing import tiny_config, tiny_params

BLOCK, CANVAS = 4, 16


def engine_of(slots, group, family="llada"):
    """An engine on a tiny model; its programs don't depend on the number of steps."""
    config = tiny_config(family)
    lm = leapjax.LM(tiny_params(config), config, None)
    return lm.engine(slots, refresh_group=group)


@pytest.mark.parametrize(("slots", "group", "count"), [(4, 1, 21), (3, 2, 17), (16, 4, 40)])
def test_the_engine_counts_what_the_schedule_says(slots, group, count):
    """Rows of 1, 2 or 4 passes a block, so that they begin their blocks at different times."""
    rng = np.random.default_rng(slots)
    steps = rng.choice([4, 8, 16], count)
    engine = engine_of(slots, group)
    asked = [
        Request(
            id=i,
            ids=(3, 4, 5),
            config=DecodeConfig(
                policy="low_confidence",
                steps=int(n),
                gen_length=CANVAS,
                block_length=BLOCK,
                cache="dual",
                early_stop=False,
            ),
        )
        for i, n in enumerate(steps)
    ]
    list(engine.stream(asked))
    blocks = CANVAS // BLOCK
    want = simulate([[int(n) // blocks] * blocks for n in steps], slots, group)
    found, progress = engine.progress.refreshes, engine.progress
    assert (progress.passes, progress.row_steps) == (want.passes, want.steps)
    assert found.window_passes == want.window_passes
    assert found.refreshed_rows == want.turned_rows
    assert found.refresh_rows_wanted == want.waiting_rows == count * blocks
    assert found.refreshed_rows == want.turns * group
    assert 0 < found.share < 1


@pytest.mark.parametrize(
    ("family", "slots", "group"), [("sdar", 4, 2), ("sdar", 5, 2), ("fast_dllm_v2", 3, 1)]
)
def test_the_engine_counts_what_the_schedule_of_a_block_cache_says(family, slots, group):
    """Passes two blocks wide, turns, and stores in passes of their own; prompts of whole blocks."""
    engine = engine_of(slots, group, family)
    model = engine.model
    each = np.random.default_rng(slots).integers(1, 3, 19)
    block = model.block_length
    asked = [
        Request(
            id=i,
            ids=tuple(range(3, 3 + block)),
            config=DecodeConfig(
                policy="low_confidence",
                steps_per_block=int(n),
                gen_length=3 * block,
                early_stop="off",
                sub_block_length=model.sub_block_length and block,
            ),
        )
        for i, n in enumerate(each)
    ]
    program = engine.program(asked[0])
    assert program.kv_cache.wide(program, slots) is (family == "sdar" and slots == 4)
    list(engine.stream(asked))
    want = simulate_for(program, [[int(n)] * 3 for n in each], slots)
    assert (engine.progress.passes, engine.progress.row_steps) == (want.passes, want.steps)
    assert want.steps == 3 * each.sum()
    # With cache `block` every row waits twice for a turn, if there are turns.
    assert want.waiting_rows == (2 * len(each) if (family, slots) == ("sdar", 5) else 0)


@pytest.mark.parametrize("slots", [8, 16, 64])
@pytest.mark.parametrize("tokens", [4, 8])
def test_no_row_is_refreshed_in_vain(slots, tokens):
    """LLaDA-8B's shape, ragged: rows whose blocks take up to twice the mean number of passes."""
    rng = np.random.default_rng(0)
    mean = 32 // tokens
    rows = rng.integers(1, 2 * mean, (4 * slots, 8)).tolist()
    group = leapjax.ops.hardware.TPU.refresh_group(768, "bfloat16")
    found = simulate(rows, slots, group)
    assert found.turned_rows / found.waiting_rows <= 1.05
    # What it is worth: a group of a quarter of the slots computes far more.
    padded = simulate(rows, slots, slots // 4)
    assert padded.turned_rows / padded.waiting_rows > 1.2
