"""Passes of the compiled decode loop against the floor, and what they cost besides the model.

    step    the compiled loop that decodes: model, proposal, commit, next block
    bare    a loop over the same model alone: embedding to logits, of which it takes the maximum,
            on which the next pass's tokens depend, so that no pass can be left out

Both take turns; what the step takes longer is the share outside the model. With a cache a block's
first pass is a full one, timed alone, and the others, over the window, are timed together.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leapjax.benchmarks import floor
from leapjax.benchmarks.decoding import random_requests, summarise
from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.decoding import DecodeState, Program, forward, initial_state, streamed
from leapjax.decoding.program import program_for
from leapjax.decoding.state import with_cache
from leapjax.decoding.window import block_columns
from leapjax.models import transformer
from leapjax.models.config import ModelConfig
from leapjax.serve.lane import empty_state, lower_run

TIMED = ("none", "dual")  # caches whose passes have a floor (`leapjax.benchmarks.floor`)
UNCACHED_PASSES = 4  # that are timed together; they all cost the same
ALL = np.int32(2**30)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is decoded.

    Attributes:
      cache: none or dual.
      batch: rows.
      prompt_length: tokens.
      gen_length: canvas, tokens.
      block_length: block, tokens.
    """

    cache: str
    batch: int
    prompt_length: int
    gen_length: int
    block_length: int

    @property
    def columns(self) -> int:
        """T; nothing is padded."""
        return self.prompt_length + self.gen_length

    @property
    def passes(self) -> int:
        """Passes that are timed together."""
        return self.block_length - 1 if self.stores else UNCACHED_PASSES

    @property
    def stores(self) -> bool:
        """Keys and values are kept, so that most passes compute the window alone."""
        return CACHES[self.cache].stores

    def config(self, tokens_per_step: int) -> DecodeConfig:
        """The decode options: a fixed schedule."""
        return DecodeConfig(
            policy="low_confidence",
            steps=self.gen_length // tokens_per_step,
            gen_length=self.gen_length,
            block_length=self.block_length,
            cache=self.cache,
            early_stop=False,
        )

    def program(self, model: ModelConfig, dtype: str) -> Program:
        """The compiled structure; the schedule is no part of it."""
        return program_for(
            self.config(1), model, length=self.columns, dtype=dtype, eot_token_id=None
        )


def begin(case: Case, program: Program, tokens_per_step: int) -> DecodeState:
    """Random prompts on the device, before their first pass."""
    config = case.config(tokens_per_step)
    requests = random_requests(program.model, config, case.batch, case.prompt_length)
    state = jax.tree.map(jnp.asarray, initial_state(requests, program))
    return jax.block_until_ready(with_cache(state, program))


def bare(params, state: DecodeState, passes: int, program: Program) -> DecodeState:
    """The model alone, over the same tokens and columns in every pass.

    Args:
      params: the model's pytree.
      state: B rows; with a cache, after their first full pass.
      passes: how many.
      program: static structure.

    Returns:
      The state with what the last pass left in the cache.
    """
    columns, _ = block_columns(state.block, program)

    def body(_, state):
        rows = forward.Rows(state, program)
        hidden, cache = program.kv_cache.steady(params, rows, columns, state.cache)
        if streamed.applies(params, program) and "head_packed" in params:
            # The kernel that multiplies takes the maximum too, with the rest of the summary.
            apart = [program.model.mask_token_id]
            top = transformer.head_summary(params, program.model, hidden, apart)[0]
        elif streamed.applies(params, program):
            pieces = transformer.head_in_pieces(
                params, program.model, hidden, program.compute_dtype
            )
            top = functools.reduce(jnp.maximum, (jnp.max(x, axis=-1) for x in pieces))
        else:
            top = jnp.max(forward.window_logits(params, hidden, state, program), axis=-1)
        # Never so large, which the compiler can't know.
        changed = jnp.any(top > 1e30).astype(jnp.int32)
        return state.replace(tokens=state.tokens + changed, cache=cache)

    return lax.fori_loop(0, passes, body, state)


bare_jit = functools.partial(
    jax.jit, static_argnames=("passes", "program"), donate_argnames="state"
)(bare)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The programs of a case.

    Attributes:
      step: takes parameters, state, passes at most and rows to be done; see `loop.run`.
      bare: takes parameters and state; see `bare`.
      seconds: that compiling both took.
    """

    step: Any
    bare: Any
    seconds: float


def compile_both(params, case: Case, program: Program, options: dict[str, str | bool]) -> Compiled:
    """Compile a case's programs.

    Args:
      params: the model's pytree, as the programs are to take it.
      case: what is decoded.
      program: its structure.
      options: of the compiler, as `XLA_FLAGS` names them, without the dashes; a switch is a bool.
    """
    start = time.perf_counter()
    state = jax.eval_shape(lambda: empty_state(program, case.batch))
    chosen = options or None
    step = lower_run(params, program, case.batch)
    alone = bare_jit.lower(params, state, passes=case.passes, program=program)
    return Compiled(
        step.compile(compiler_options=chosen),
        alone.compile(compiler_options=chosen),
        time.perf_counter() - start,
    )


def _timed(function, *args) -> tuple[Any, float]:
    start = time.perf_counter()
    out = jax.block_until_ready(function(*args))
    return out, time.perf_counter() - start


def measure(
    params, case: Case, program: Program, compiled: Compiled, tokens_per_step: int, rounds: int
) -> dict[str, Any]:
    """Time a case.

    Args:
      params: the model's pytree, as compiled for.
      case: what is decoded.
      program: its structure.
      compiled: its programs.
      tokens_per_step: of the whole decodes; passes are timed with one.
      rounds: of alternating turns, after one that does not count.

    Returns:
      Seconds (`summarise`) of a `pass` timed with others of its kind and of the `model` alone,
      `outside` (share of the pass that is not the model); with a cache also of a `full_pass` and a
      whole `decode`; `tokens_per_s`.
    """
    rows, n = np.int32(case.batch), case.passes
    seconds: dict[str, list[float]] = {k: [] for k in ("pass", "model", "full_pass", "decode")}
    # The bare loop keeps a state of its own.
    alone = begin(case, program, 1)
    alone, _ = _timed(compiled.step, params, alone, np.int32(1), rows)
    for i in range(rounds + 1):
        state = begin(case, program, 1)
        if case.stores:
            state, first = _timed(compiled.step, params, state, np.int32(1), rows)
            seconds["full_pass"].append(first)
        for who in ("pass", "model") if i % 2 else ("model", "pass"):
            if who == "pass":
                state, took = _timed(compiled.step, params, state, np.int32(n), rows)
            else:
                alone, took = _timed(compiled.bare, params, alone)
            seconds[who].append(took / n)
        del state
    del alone
    for _ in range(min(rounds, 2) + 1 if case.stores else 0):
        state = begin(case, program, tokens_per_step)
        state, took = _timed(compiled.step, params, state, ALL, rows)
        assert bool(jnp.all(state.done))
        seconds["decode"].append(took)
    out: dict[str, Any] = {k: summarise(v[1:]) for k, v in seconds.items() if v}
    pairs = zip(seconds["pass"][1:], seconds["model"][1:], strict=True)
    out["outside"] = summarise([1 - model / whole for whole, model in pairs])
    if case.stores:
        out["tokens_per_s"] = case.batch * case.gen_length / out["decode"]["median"]
    else:
        out["tokens_per_s"] = case.batch * tokens_per_step / out["pass"]["median"]
    return out


def floors(case: Case, model: ModelConfig, dtype: str) -> dict[str, floor.Work]:
    """What the timed passes have to do at least: the `pass`, with a cache also the `full_pass`."""
    item = jnp.dtype(dtype).itemsize
    args = (model, case.batch, case.columns, case.block_length)
    if not case.stores:
        return {"pass": floor.full_pass(*args, cached=False, item=item)}
    return {
        "pass": floor.window_pass(*args, item=item),
        "full_pass": floor.full_pass(*args, cached=True, item=item),
    }


def parse_cases(text: str, lengths: Sequence[int]) -> list[Case]:
    """`dual:1,none:16` -> cases of these prompt, canvas and block lengths.

    Raises:
      ValueError: not of this form.
    """
    cases = []
    for part in text.split(","):
        cache, _, batch = part.partition(":")
        if cache not in TIMED or not batch.isdecimal() or int(batch) < 1:
            raise ValueError(f"{part!r} is not none:ROWS or dual:ROWS")
        cases.append(Case(cache, int(batch), *lengths))
    return cases
