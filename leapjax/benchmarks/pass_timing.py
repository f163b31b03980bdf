"""Times of single passes of the compiled decode loop, and of the model alone.

    step    the compiled loop that decodes: model, proposal, commit, next block
    bare    a loop over the same model alone: embedding to logits, of which it takes the maximum,
            on which the next pass's tokens depend, so that no pass can be left out

Both take turns; what the step takes longer is the share outside the model. With a cache a block's
first pass is a full one, timed alone, and the others, over the window, are timed together.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.benchmarks.timing import summarise
from leapjax.benchmarks.workload import Case
from leapjax.decoding import DecodeState, Program, forward, initial_state, summary
from leapjax.decoding.program import program_for
from leapjax.models import transformer
from leapjax.models.config import ModelConfig
from leapjax.ops import hardware
from leapjax.planning import work
from leapjax.serve.lowering import abstract_state, lower_run, on_devices
from leapjax.sharding import Placement, under_mesh

TIMED = ("none", "dual")  # caches whose passes have a floor (`leapjax.planning.work`)
UNCACHED_PASSES = 4  # that are timed together; they all cost the same
ALL = 2**30


def passes_of(case: Case) -> int:
    """Passes that are timed together: the window passes of a block, where there is a cache."""
    return case.block_length - 1 if case.stores else UNCACHED_PASSES


def program_of(case: Case, model: ModelConfig, dtype: str) -> Program:
    """The compiled structure; the schedule is no part of it."""
    return program_for(
        case.config(model),
        model,
        length=case.columns,
        dtype=dtype,
        eot_token_id=None,
        refresh_group=hardware.defaults().refresh_group(case.columns, dtype),
    )


def begin(case: Case, program: Program, placement: Placement | None = None) -> DecodeState:
    """Random prompts on the devices, before their first pass."""
    state = initial_state(case.requests(program.model), program)
    return jax.block_until_ready(on_devices(state, program, placement))


def bare(params, state: DecodeState, passes: int, program: Program) -> DecodeState:
    """The model alone, over the same tokens and columns in every pass.

    Returns the state with what the last pass left in the cache.
    """
    columns, _ = forward.block_columns(state.block, program)

    def body(_, state):
        rows = forward.Rows(state, program)
        hidden = program.kv_cache.steady(params, rows, columns, state.cache)
        if summary.applies(params, program):
            apart = [program.model.mask_token_id]
            top = transformer.head_summary(params, program.model, hidden, apart)[0]
        else:
            top = jnp.max(forward.window_logits(params, hidden, state, program), axis=-1)
        # Never so large, which the compiler can't know.
        changed = jnp.any(top > 1e30).astype(jnp.int32)
        return state.replace(tokens=state.tokens + changed)

    return lax.fori_loop(0, passes, body, state)


bare_jitted = functools.partial(
    jax.jit, bare, static_argnames=("passes", "program"), donate_argnames="state"
)


class Compiled:
    """The compiled programs of a case.

    `params`: the model's pytree, as the programs are to take it; `placement`: the devices; None is
    the default device. `step`: takes parameters, state, passes at most and rows to be done; see
    `loop.run`; `bare`: takes parameters and state; see `bare`; `seconds`: that compiling both took.
    """

    def __init__(
        self,
        params,
        case: Case,
        program: Program,
        placement: Placement | None = None,
    ):
        self.case, self.program, self._params, self._place = case, program, params, placement
        start = time.perf_counter()
        state, shardings = abstract_state(program, case.batch, placement)
        step = lower_run(params, program, case.batch, placement)
        jitted = bare_jitted(out_shardings=shardings)
        with under_mesh(placement):
            alone = jitted.lower(params, state, passes=passes_of(case), program=program)
        self.step, self.bare = step.compile(), alone.compile()
        self.seconds = time.perf_counter() - start

    def begin(self, tokens_per_step: int = 1) -> DecodeState:
        """See `begin`; passes are timed with one token a step."""
        case = dataclasses.replace(self.case, tokens_per_step=tokens_per_step)
        return begin(case, self.program, self._place)

    def run(self, state: DecodeState, passes: int) -> tuple[DecodeState, float]:
        """Decode for some passes; the new state and seconds."""
        rows = np.int32(self.case.batch)
        return _timed(self.step, self._params, state, np.int32(passes), rows)

    def run_bare(self, state: DecodeState) -> tuple[DecodeState, float]:
        """The model alone, for as many passes as are timed together; the new state and seconds."""
        return _timed(self.bare, self._params, state)


def _timed(function, *args) -> tuple[Any, float]:
    start = time.perf_counter()
    out = jax.block_until_ready(function(*args))
    return out, time.perf_counter() - start


def measure(compiled: Compiled, rounds: int) -> dict[str, Any]:
    """Time a case.

    `compiled`: its programs; `rounds`: of alternating turns, after one that does not count. Returns
    seconds (`summarise`) of a `pass` timed with others of its kind and of the `model` alone,
    `outside` (share of the pass that is not the model); with a cache also of a `full_pass` and a
    whole `decode`; `tokens_per_s`.
    """
    case, n = compiled.case, passes_of(compiled.case)
    seconds: dict[str, list[float]] = {k: [] for k in ("pass", "model", "full_pass", "decode")}
    # The bare loop keeps a state of its own.
    alone, _ = compiled.run(compiled.begin(), 1)
    for i in range(rounds + 1):
        state = compiled.begin()
        if case.stores:
            state, took = compiled.run(state, 1)
            seconds["full_pass"].append(took)
        for who in ("pass", "model") if i % 2 else ("model", "pass"):
            if who == "pass":
                state, took = compiled.run(state, n)
            else:
                alone, took = compiled.run_bare(alone)
            seconds[who].append(took / n)
        del state
    del alone
    for _ in range(min(rounds, 2) + 1 if case.stores else 0):
        state, took = compiled.run(compiled.begin(case.tokens_per_step), ALL)
        assert bool(jnp.all(state.done))
        seconds["decode"].append(took)
    out: dict[str, Any] = {k: summarise(v[1:]) for k, v in seconds.items() if v}
    pairs = zip(seconds["pass"][1:], seconds["model"][1:], strict=True)
    out["outside"] = summarise([1 - model / whole for whole, model in pairs])
    if case.stores:
        out["tokens_per_s"] = case.batch * case.gen_length / out["decode"]["median"]
    else:
        out["tokens_per_s"] = case.batch * case.tokens_per_step / out["pass"]["median"]
    return out


def least_work(case: Case, model: ModelConfig, dtype: str) -> dict[str, work.Work]:
    """What the timed passes have to do at least: the `pass`, with a cache also the `full_pass`."""
    item = jnp.dtype(dtype).itemsize
    args = (model, case.batch, case.columns, case.block_length)
    if not case.stores:
        return {"pass": work.full_pass(*args, cached=False, item=item)}
    return {
        "pass": work.window_pass(*args, item=item),
        "full_pass": work.full_pass(*args, cached=True, item=item),
    }


def parse_cases(text: str, lengths: tuple[int, int, int], tokens_per_step: int) -> list[Case]:
    """`dual:1,none:16` -> cases of these prompt, canvas and block lengths.

    Raises ValueError: not of this form.
    """
    cases = []
    for part in text.split(","):
        cache, _, batch = part.partition(":")
        if cache not in TIMED or not batch.isdecimal() or int(batch) < 1:
            raise ValueError(f"{part!r} is not none:ROWS or dual:ROWS")
        cases.append(Case(cache, int(batch), *lengths, tokens_per_step))
    return cases
