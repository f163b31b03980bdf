"""leapjax beside PyTorch: the same weights and prompts, in turns within one run.

A case is a model, a batch, lengths and thresholds. Each implementation first decodes it once,
which compiles, and is compared with leapjax under the same cache: tokens, steps and full passes.
Then all take turns for some rounds. Where something differs, no ratio is given.

Sums of floats are ordered differently by XLA and by torch, so two positions that are equally sure
up to rounding may change places, and with random weights and a long decode that happens. Then
the next seed of prompts is tried, a few times, and the report says which seed was taken.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from against_torch.job import Decoded, Implementation, Job
from leapjax.benchmarks import models
from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.timing import alternate, ratios, summarise
from leapjax.benchmarks.workload import random_prompts
from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.planning import work

PAUSE = 0.5  # seconds before each turn: OpenMP's threads spin for 0.2 s after torch's last work
SEEDS = 3  # of prompts, before a disagreement is believed
# Tokens of prompt, canvas and block; then those of a quick run.
LENGTHS = {
    "short": ((128, 128, 32), (24, 16, 8)),
    "long": ((512, 256, 32), (48, 16, 8)),
}
CAPPED_FROM = 10_000_000  # parameters; the uncached decodes of larger models are cut short

Results = dict[str, Decoded]


@dataclasses.dataclass(frozen=True)
class Case:
    """One block of the table."""

    batch: int  # rows
    prompt_length: int  # tokens
    gen_length: int  # canvas, tokens
    block_length: int  # block, tokens
    # thresholds of 1, so that each step commits one token; else LocalLeap's defaults
    one_token: bool = False
    # limit of the decodes without cache; None decodes all. Time is given a step.
    max_steps: int | None = None

    @property
    def columns(self) -> int:
        """T of every row."""
        return self.prompt_length + self.gen_length

    def job(self, config: ModelConfig, seed: int, cache: str) -> Job:
        """Random prompts, special ids excepted."""
        options = DecodeConfig(
            gen_length=self.gen_length, block_length=self.block_length, early_stop=False
        )
        if self.one_token:
            options = options.replace(threshold=1.0, relaxed_threshold=1.0)
        prompts = random_prompts(config, self.batch, self.prompt_length, seed)
        return Job(tuple(prompts), options, None if CACHES[cache].stores else self.max_steps)


def cases(
    config: ModelConfig, names: list[str], batches: list[int], max_steps: int, quick: bool
) -> Iterator[Case]:
    """The cases that fit a model.

    `names`: `short` (prompt 128, canvas 128, of all `batches`) and `long` (512 and 256, one token a
    step; one row); `max_steps`: for uncached decodes of large models.
    """
    cap = max_steps if models.size(config) >= CAPPED_FROM else None
    for name in names:
        if name not in LENGTHS:
            raise UserError(f"case is {name!r}; choose among {', '.join(LENGTHS)}")
        size, short = LENGTHS[name][quick], name == "short"
        if sum(size[:2]) <= config.max_length:
            for b in batches if short else [1]:
                yield Case(b, *size, one_token=not short, max_steps=cap)


def agree(
    case: Case, config: ModelConfig, implementations: list[Implementation]
) -> tuple[int, Results]:
    """Decode with everybody; other prompts if somebody disagrees with leapjax.

    `implementations`: leapjax's among them, one a cache. Returns the seed of the prompts, and what
    each made of them. Disagreement at the last seed is left in, for the report.
    """
    results: Results = {}
    for seed in range(SEEDS):
        results = {i.name: i.decode(case.job(config, seed, i.cache)) for i in implementations}
        if all(i.name in agreeing(results, implementations) for i in implementations):
            return seed, results
    return SEEDS - 1, results


def agreeing(results: Results, implementations: list[Implementation]) -> set[str]:
    """Names of those that gave what leapjax gave under the same cache."""
    ours = {i.cache: results[i.name] for i in implementations if i.name.startswith("leapjax")}
    return {i.name for i in implementations if results[i.name] == ours[i.cache]}


def compare(
    case: Case,
    config: ModelConfig,
    implementations: list[Implementation],
    rounds: int,
    machine: Machine,
    pause: float = PAUSE,
) -> list[dict[str, Any]]:
    """Time everybody on one case.

    `implementations`: who takes part; leapjax once for each cache; `pause`: seconds of rest before
    each turn. Returns a row for each implementation: `seconds_a_step` (`summarise`),
    `leapjax_gain`, its time over leapjax's with the same cache, and `gain`, plain uncached
    PyTorch's time over its, round by round; either is None where tokens or steps differ.
    `floor_share` is of all its time.
    """
    seed, results = agree(case, config, implementations)
    equal = agreeing(results, implementations)
    jobs = {cache: case.job(config, seed, cache) for cache in CACHES}
    turns = {i.name: lambda i=i: i.decode(jobs[i.cache]) for i in implementations}
    seconds = alternate(turns, rounds, pause)
    steps = {name: max(r.steps) for name, r in results.items()}
    a_step = {name: [t / steps[name] for t in times] for name, times in seconds.items()}
    ours = {i.cache: i.name for i in implementations if i.name.startswith("leapjax")}
    plain = next((i.name for i in implementations if i.name == "torch, plain"), None)

    def ratio(over: str | None, under: str):
        if over is None or not {over, under} <= equal:
            return None
        return ratios(a_step[over], a_step[under])

    rows = []
    for i in implementations:
        least = least_seconds(
            machine,
            config,
            results[i.name],
            case.columns,
            case.block_length,
            CACHES[i.cache].stores,
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


def least_seconds(
    machine: Machine,
    config: ModelConfig,
    decoded: Decoded,
    columns: int,
    window: int,
    cached: bool,
) -> float:
    """The floor of a decode: of its full passes, and of its passes over windows.

    Rows share as many passes as they can: as many turns as the row with most needs.

    `decoded`: steps and full passes of each row.
    """
    full = decoded.full_passes
    short = [s - f for s, f in zip(decoded.steps, full, strict=True)]
    total = 0.0
    for counts, is_full in ((full, True), (short, False)):
        turns = max(counts)
        if turns == 0:
            continue
        rows = sum(counts) / turns  # a turn, on average
        if is_full:
            todo = work.full_pass(config, rows, columns, window, cached)
        else:
            todo = work.window_pass(config, rows, columns, window)
        total += turns * machine.seconds(todo)
    return total
