"""leapjax beside PyTorch: the same weights and prompts, alternating in one run.

A case is a model, a batch, lengths and thresholds. Each implementation first decodes it once,
which compiles, and is compared with leapjax under the same cache: tokens, steps and full passes.
Then all take turns for some rounds. Where something differs, no ratio is given.

Sums of floats are ordered differently by XLA and by torch, so two positions that are equally sure
up to rounding may change places, and with random weights and a long decode that happens. Then
the next seed of prompts is tried, a few times, and the report says which seed was taken.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.benchmarks import models
from leapjax.benchmarks.decoding import summarise, timed
from leapjax.benchmarks.floor import Machine, decode_seconds
from leapjax.benchmarks.job import Decoded, Job
from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.decoding import Program, initial_state, program_for
from leapjax.decoding.state import with_cache
from leapjax.errors import UserError
from leapjax.loader import load
from leapjax.models import layout
from leapjax.models.config import ModelConfig
from leapjax.serve.lane import compile_run
from leapjax.serve.sizes import bucket, default_refresh_group
from leapjax.testing import tiny_config, tiny_params
from leapjax.types import Request

PAUSE = 0.5  # seconds before each turn: OpenMP's threads spin for 0.2 s after torch's last work
SEEDS = 3  # of prompts, before a disagreement is believed
CAPPED_FROM = 10_000_000  # parameters; the uncached decodes of larger models are cut short

Results = dict[str, Decoded]


class Implementation(Protocol):
    """What takes part."""

    name: str
    cache: str

    def decode(self, job: Job) -> Decoded:
        """Decode a batch to its end."""
        ...

    def notes(self) -> str:
        """What a reader of the table should know, or nothing."""
        ...


class Leapjax:
    """leapjax's compiled loop, as a lane runs it.

    Attributes:
      name: for tables.
      cache: `none` or `dual`.
    """

    def __init__(self, params, config: ModelConfig, cache: str):
        self.name = f"leapjax, {cache} cache" if CACHES[cache].stores else "leapjax"
        self.cache = cache
        self.config = config
        self.params = layout.arrange(params, config)
        self._compiled: dict[tuple[Program, int], Any] = {}

    def notes(self) -> str:
        """Nothing."""
        return ""

    def decode(self, job: Job) -> Decoded:
        """Decode a batch to its end.

        Args:
          job: without `max_steps` where there is a cache: rows then take turns in refreshing
            it, so that no number of passes is a number of steps.
        """
        if CACHES[self.cache].stores and job.max_steps is not None:
            raise ValueError("max_steps is for uncached decodes")
        config = DecodeConfig(
            gen_length=job.gen_length,
            block_length=job.block_length,
            threshold=job.threshold,
            relaxed_threshold=job.relaxed_threshold,
            radius=job.radius,
            cache=self.cache,
            early_stop=False,
        )
        program = program_for(
            config,
            self.config,
            length=bucket(max(len(p) for p in job.prompts)) + job.gen_length,
            dtype="float32",
            eot_token_id=None,
            refresh_group=default_refresh_group(len(job.prompts)),
        )
        b = len(job.prompts)
        if (program, b) not in self._compiled:
            self._compiled[program, b] = compile_run(self.params, program, b)
        requests = [Request(id=i, ids=p, config=config) for i, p in enumerate(job.prompts)]
        state = jax.tree.map(jnp.asarray, initial_state(requests, program))
        state = with_cache(state, program)
        passes = 2**30 if job.max_steps is None else job.max_steps
        run = self._compiled[program, b]
        state = run(self.params, state, jnp.int32(passes), jnp.int32(b))
        return Decoded(
            np.asarray(state.tokens)[:, -job.gen_length :].tolist(),
            np.asarray(state.steps).tolist(),
            np.asarray(state.full_passes).tolist(),
            int(state.iteration),
        )


def weights(name: str) -> tuple[Any, ModelConfig]:
    """A model's parameters in float32, and its shape.

    Args:
      name: `tiny`, `60m` (random weights whose logits are scaled so that confidences spread
        as a trained model's do), `embedded`, or the path of a LLaDA-shaped checkpoint.
    """
    if name in ("tiny", "60m"):
        config = models.MODEL_60M if name == "60m" else tiny_config()
        return tiny_params(config), config
    lm = load() if name == "embedded" else load(name)
    # Widened once, for everybody: this is about decoding, not about storage.
    return jax.tree.map(lambda x: x.astype(jnp.float32), lm.params), lm.config


@dataclasses.dataclass(frozen=True)
class Case:
    """One block of the table.

    Attributes:
      batch: rows.
      prompt_length: tokens.
      gen_length: canvas, tokens.
      block_length: block, tokens.
      one_token: thresholds of 1, so that each step commits one token; else LocalLeap's defaults.
      max_steps: limit of the decodes without cache; None decodes all. Time is given a step.
    """

    batch: int
    prompt_length: int
    gen_length: int
    block_length: int
    one_token: bool = False
    max_steps: int | None = None

    @property
    def columns(self) -> int:
        """T of every row."""
        return self.prompt_length + self.gen_length

    def job(self, config: ModelConfig, seed: int, cache: str) -> Job:
        """Random prompts, special ids excepted."""
        special = {config.mask_token_id, config.eos_token_id, config.pad_token_id}
        allowed = [i for i in range(min(config.vocab_size, 256)) if i not in special]
        rng = np.random.default_rng(seed)
        drawn = rng.choice(allowed, (self.batch, self.prompt_length)).tolist()
        sure: dict[str, Any] = (
            {"threshold": 1.0, "relaxed_threshold": 1.0} if self.one_token else {}
        )
        return Job(
            tuple(tuple(p) for p in drawn),
            self.gen_length,
            self.block_length,
            max_steps=None if CACHES[cache].stores else self.max_steps,
            **sure,
        )


SHORT = ((128, 128, 32, False), "short")
LONG = ((512, 256, 32, True), "long")


def cases(
    config: ModelConfig, names: list[str], batches: list[int], max_steps: int, quick: bool
) -> Iterator[Case]:
    """The cases that fit a model.

    Args:
      config: its shape.
      names: `short` (prompt 128, canvas 128) and `long` (512 and 256, one token a step; one
        row).
      batches: rows, of the short case.
      max_steps: for uncached decodes of large models.
      quick: small lengths instead.

    Yields:
      Cases, in the order of the table.

    Raises:
      UserError: there is no such case.
    """
    cap = max_steps if models.size(config) >= CAPPED_FROM else None
    for name in names:
        if name == "short":
            size = (24, 16, 8) if quick else (128, 128, 32)
            yield from (Case(b, *size, max_steps=cap) for b in batches)
        elif name == "long":
            size = (48, 16, 8) if quick else (512, 256, 32)
            if sum(size[:2]) <= config.max_length:
                yield Case(1, *size, one_token=True, max_steps=cap)
        else:
            raise UserError(f"case is {name!r}; choose among short, long")


def agree(
    case: Case, config: ModelConfig, implementations: list[Implementation]
) -> tuple[int, Results]:
    """Decode with everybody; other prompts if somebody disagrees with leapjax.

    Args:
      case: what to decode.
      config: the model's shape.
      implementations: leapjax's among them, one a cache.

    Returns:
      The seed of the prompts, and what each made of them. Disagreement at the last seed is
      left in, for the report.
    """
    results: Results = {}
    for seed in range(SEEDS):
        results = {i.name: i.decode(case.job(config, seed, i.cache)) for i in implementations}
        if all(i.name in agreeing(results, implementations) for i in implementations):
            return seed, results
    return SEEDS - 1, results


def agreeing(results: Results, implementations: list[Implementation]) -> set[str]:
    """Names of those that gave what leapjax gave under the same cache."""
    ours = {i.cache: results[i.name] for i in implementations if isinstance(i, Leapjax)}
    return {i.name for i in implementations if results[i.name].same(ours[i.cache])}


def compare(
    case: Case,
    config: ModelConfig,
    implementations: list[Implementation],
    rounds: int,
    machine: Machine,
    each_round: Callable[[int], None] | None = None,
    pause: float = PAUSE,
) -> list[dict[str, Any]]:
    """Time everybody on one case.

    Args:
      case: what to decode.
      config: the model's shape.
      implementations: who takes part; leapjax once for each cache.
      rounds: of alternating turns.
      machine: for the floor.
      each_round: called before each.
      pause: seconds of rest before each turn.

    Returns:
      A row an implementation: `seconds_a_step` (`summarise`), `leapjax_gain`, its time over
      leapjax's with the same cache, and `gain`, plain uncached PyTorch's time over its, round by
      round; either is None where tokens or steps differ. `floor_share` is of all its time.
    """
    seed, results = agree(case, config, implementations)
    equal = agreeing(results, implementations)
    seconds: dict[str, list[float]] = {i.name: [] for i in implementations}
    for n in range(rounds):
        if each_round is not None:
            each_round(n)
        # There and back, so that nobody always follows the same neighbour.
        for i in implementations if n % 2 == 0 else implementations[::-1]:
            job = case.job(config, seed, i.cache)
            time.sleep(pause)
            seconds[i.name].append(timed(lambda i=i, job=job: i.decode(job)))
    steps = {name: max(r.steps) for name, r in results.items()}
    a_step = {name: [t / steps[name] for t in times] for name, times in seconds.items()}
    ours = {i.cache: i.name for i in implementations if isinstance(i, Leapjax)}
    plain = next((i.name for i in implementations if i.name == "torch, plain"), None)

    def ratio(over: str | None, under: str):
        if over is None or not {over, under} <= equal:
            return None
        return summarise([a / b for a, b in zip(a_step[over], a_step[under], strict=True)])

    rows = []
    for i in implementations:
        stores = CACHES[i.cache].stores
        least = decode_seconds(
            machine, config, results[i.name], case.columns, case.block_length, stores
        )
        rows.append(
            {
                "name": i.name,
                "cache": i.cache,
                "seed": seed,
                "equal": i.name in equal,
                "steps": steps[i.name],
                "tokens": sum(
                    t != config.mask_token_id for row in results[i.name].tokens for t in row
                ),
                "iterations": results[i.name].iterations,
                "seconds_a_step": summarise(a_step[i.name]),
                "leapjax_gain": ratio(i.name, ours[i.cache]),
                "gain": ratio(plain, i.name),
                "floor_seconds_a_step": least / steps[i.name],
                "floor_share": least / summarise(seconds[i.name])["median"],
                "notes": i.notes(),
            }
        )
    return rows


def opponents(params, config: ModelConfig, quick: bool) -> list[Implementation]:
    """Leapjax and everything it is timed against.

    Args:
      params: the model's pytree.
      config: its shape.
      quick: don't try torch.compile, which takes minutes.

    Raises:
      UserError: torch is not installed.
    """
    try:
        from leapjax.benchmarks import torch_opponents
    except ImportError as e:
        if e.name != "torch":
            raise
        raise UserError("torch is not installed; install leapjax[oracle] to compare") from e
    out: list[Implementation] = []
    for cache in ("none", "dual"):
        out.append(Leapjax(params, config, cache))
        out.append(torch_opponents.Plain(params, config, cache))
        out.append(torch_opponents.Fast(params, config, cache, compiled=not quick))
    return out
