"""Tokens per second by cache and batch, the host's share, and the engine against lock-step."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from leapjax.config import DecodeConfig
from leapjax.lm import LM
from leapjax.models.config import ModelConfig
from leapjax.types import Request


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
      cache: none, prefix or dual.
      batch: rows decoded at once.
      prompt_length: tokens.
      gen_length: canvas, tokens.
      block_length: block, tokens.
      tokens_per_step: positions that the fixed schedule commits in a pass.
    """

    cache: str
    batch: int
    prompt_length: int
    gen_length: int
    block_length: int
    tokens_per_step: int

    def config(self) -> DecodeConfig:
        """The decode options: a fixed schedule, so that every machine does the same work."""
        return DecodeConfig(
            policy="low_confidence",
            steps=self.gen_length // self.tokens_per_step,
            gen_length=self.gen_length,
            block_length=self.block_length,
            cache=self.cache,
            early_stop=False,
        )


def random_requests(
    model: ModelConfig, config: DecodeConfig, count: int, length: int
) -> list[Request]:
    """Requests of random tokens, special ids excepted."""
    rng = np.random.default_rng(0)
    special = {model.mask_token_id, model.eos_token_id}
    allowed = [i for i in range(min(model.vocab_size, 256)) if i not in special]
    return [
        Request(id=str(i), ids=tuple(rng.choice(allowed, length).tolist()), config=config)
        for i in range(count)
    ]


def timed(run: Callable[[], Any]) -> float:
    """Seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def summarise(values: list[float]) -> dict[str, float]:
    """Median and spread of some timings."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def throughput(lm: LM, settings: list[Setting], repeats: int) -> Iterator[dict[str, Any]]:
    """Time every setting, alternating between them so that drift meets all alike.

    Args:
      lm: the model.
      settings: what to time.
      repeats: rounds.

    Yields:
      One row per setting: seconds, tokens per second, passes.
    """
    jobs = []
    for s in settings:
        engine = lm.engine(s.batch)
        requests = random_requests(lm.config, s.config(), s.batch, s.prompt_length)
        list(engine.stream(requests))  # compiles
        jobs.append((s, engine, requests))
    seconds: list[list[float]] = [[] for _ in jobs]
    passes = [0] * len(jobs)
    for _ in range(repeats):
        for i, (_, engine, requests) in enumerate(jobs):
            before = engine.progress.passes
            seconds[i].append(timed(lambda e=engine, r=requests: list(e.stream(r))))
            passes[i] = engine.progress.passes - before
    for (s, _, _), times, n in zip(jobs, seconds, passes, strict=True):
        tokens = s.batch * s.gen_length
        spread = summarise(times)
        yield dataclasses.asdict(s) | {
            "seconds": spread,
            "tokens_per_s": tokens / spread["median"],
            "passes": n,
            "ms_per_pass": 1000 * spread["median"] / n,
        }


def against_lock_step(lm: LM, cache: str, slots: int, count: int, repeats: int) -> dict[str, Any]:
    """Continuous refilling against batches that wait for their slowest row.

    Rows take 8 to 64 passes (8x spread), drawn uniformly, by a schedule of their own.

    Args:
      lm: the model.
      cache: KV cache.
      slots: rows decoded at once.
      count: requests.
      repeats: rounds, alternating.

    Returns:
      Passes and seconds of both, and their ratios.
    """
    requests = spread_requests(lm, cache, count)
    engine = lm.engine(slots)

    def lock_step():
        for i in range(0, count, slots):
            list(engine.stream(requests[i : i + slots]))

    def continuous():
        list(engine.stream(requests))

    list(engine.stream(requests[:slots]))  # compiles
    out: dict[str, Any] = {"cache": cache, "slots": slots, "requests": count}
    times: dict[str, list[float]] = {"lock_step": [], "continuous": []}
    for _ in range(repeats):
        for name, run in (("lock_step", lock_step), ("continuous", continuous)):
            before = engine.progress.passes
            times[name].append(timed(run))
            out[f"{name}_passes"] = engine.progress.passes - before
    for name, values in times.items():
        out[f"{name}_seconds"] = summarise(values)
    out["gain_in_passes"] = out["lock_step_passes"] / out["continuous_passes"]
    ratios = [a / b for a, b in zip(times["lock_step"], times["continuous"], strict=True)]
    out["gain_in_time"] = summarise(ratios)
    return out


def spread_requests(lm: LM, cache: str, count: int) -> list[Request]:
    """Requests whose rows take 8 to 64 passes (8x spread), by a schedule of their own.

    Args:
      lm: the model.
      cache: KV cache.
      count: requests; their passes are drawn uniformly.
    """
    job = DecodeConfig(
        policy="low_confidence", gen_length=64, block_length=8, cache=cache, early_stop=False
    )
    passes = np.random.default_rng(1).integers(1, 9, count)
    return [
        dataclasses.replace(r, config=job.replace(steps=8 * int(n)))
        for r, n in zip(random_requests(lm.config, job, count, 32), passes, strict=True)
    ]


def refresh_groups(
    lm: LM, cache: str, slots: int, groups: list[int], count: int, repeats: int
) -> list[dict[str, Any]]:
    """Seconds of a stream by how many rows may refresh their cache in one iteration.

    Args:
      lm: the model.
      cache: prefix or dual.
      slots: rows decoded at once.
      groups: settings of `refresh_group`.
      count: requests, those of `spread_requests`.
      repeats: rounds, alternating.

    Returns:
      One row per group: seconds, and their ratio to those of the first group.
    """
    requests = spread_requests(lm, cache, count)
    engines = [lm.engine(slots, refresh_group=g) for g in groups]
    seconds: list[list[float]] = [[] for _ in groups]
    for engine in engines:
        list(engine.stream(requests[:slots]))  # compiles
    for _ in range(repeats):
        for times, engine in zip(seconds, engines, strict=True):
            times.append(timed(lambda e=engine: list(e.stream(requests))))
    return [
        {
            "cache": cache,
            "slots": slots,
            "refresh_group": g,
            "seconds": summarise(times),
            "of_first": summarise([a / b for a, b in zip(times, seconds[0], strict=True)]),
        }
        for g, times in zip(groups, seconds, strict=True)
    ]


def host_share(lm: LM, cache: str, slots: int, count: int) -> dict[str, Any]:
    """Share of a stream's time in which the device has nothing to do.

    Args:
      lm: the model.
      cache: KV cache.
      slots: rows decoded at once.
      count: requests.
    """
    config = Setting(cache, slots, 32, 64, 32, 4).config()
    requests = random_requests(lm.config, config, count, 32)
    engine = lm.engine(slots)
    list(engine.stream(requests[:slots]))
    busy = engine.progress.device_s
    total = timed(lambda: list(engine.stream(requests)))
    return {
        "cache": cache,
        "slots": slots,
        "requests": count,
        "outside_device": 1 - (engine.progress.device_s - busy) / total,
    }
