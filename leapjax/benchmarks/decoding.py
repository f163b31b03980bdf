"""Tokens per second by KV cache and batch, the host's share, and the engine against lock-step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from leapjax.benchmarks.models import for_cache
from leapjax.benchmarks.timing import alternate, ratios, summarise, timed
from leapjax.benchmarks.workload import Case, ragged_requests, stream, uneven_requests
from leapjax.lm import LM


def throughput(lm: LM, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """Time whole decodes of a batch.

    `lm`: the model; its block-causal twin decodes the cases that need one (`for_cache`). Returns a
    row a case: seconds, tokens per second, passes.
    """
    runs = {}
    for case in cases:
        own = for_cache(lm, case.cache, case.block_length)
        requests = case.requests(own.config)
        runs[case] = functools.partial(stream, own.engine(case.batch), requests)
    passes = {case: run() for case, run in runs.items()}  # compiles
    rows = []
    for case, times in alternate(runs, rounds).items():
        seconds = summarise(times)
        rows.append(
            dataclasses.asdict(case)
            | {
                "seconds": seconds,
                "tokens_per_s": case.batch * case.gen_length / seconds["median"],
                "passes": passes[case],
                "ms_per_pass": 1000 * seconds["median"] / passes[case],
            }
        )
    return rows


def against_lock_step(lm: LM, cache: str, slots: int, count: int, rounds: int) -> dict[str, Any]:
    """Continuous refilling against batches that wait for their slowest row.

    `count`: requests, see `uneven_requests`. Returns the passes and seconds of both, and their
    ratios.
    """
    requests = uneven_requests(lm.config, cache, count)
    engine, passes = lm.engine(slots), {}
    stream(engine, requests[:slots])  # compiles

    def lock_step():
        batches = [requests[i : i + slots] for i in range(0, count, slots)]
        passes["lock_step"] = sum(stream(engine, batch) for batch in batches)

    def continuous():
        passes["continuous"] = stream(engine, requests)

    seconds = alternate({"lock_step": lock_step, "continuous": continuous}, rounds)
    out: dict[str, Any] = {"cache": cache, "slots": slots, "requests": count}
    out |= {f"{name}_passes": n for name, n in passes.items()}
    out |= {f"{name}_seconds": summarise(times) for name, times in seconds.items()}
    return out | {
        "gain_in_passes": passes["lock_step"] / passes["continuous"],
        "gain_in_time": ratios(seconds["lock_step"], seconds["continuous"]),
    }


def ragged(lm: LM, cache: str, slots: int, count: int, rounds: int) -> dict[str, Any]:
    """Decode rows of uneven length through the engine, whose freed slots are refilled.

    `slots`: rows decoded at once by a replica; `count`: requests, see `ragged_requests`. Returns
    `tokens`, `passes` and rows refreshed and wanted (`Refreshes.to_dict`) of a round; `seconds`,
    `tokens_per_s` and `device_share`, the share of the time in which a chunk runs, in the mean of
    all replicas (`summarise`).
    """
    requests, engine = ragged_requests(lm.config, cache, count), lm.engine(slots)
    stream(engine, requests[:slots])  # compiles
    device, passes, refreshes = [], 0, engine.progress.refreshes

    def run():
        nonlocal passes, refreshes
        seconds, rows = engine.progress.device_s, engine.progress.refreshes
        passes = stream(engine, requests)
        device.append((engine.progress.device_s - seconds) / len(engine.replicas))
        refreshes = engine.progress.refreshes - rows

    seconds = [timed(run) for _ in range(rounds)]
    tokens = sum(request.config.gen_length for request in requests)
    return {
        "cache": cache,
        "slots": slots,
        "requests": count,
        "tokens": tokens,
        "passes": passes,
        **refreshes.to_dict(),
        "seconds": summarise(seconds),
        "tokens_per_s": summarise([tokens / s for s in seconds]),
        "device_share": summarise([d / s for d, s in zip(device, seconds, strict=True)]),
    }


def host_share(lm: LM, cache: str, slots: int, count: int) -> dict[str, Any]:
    """Share of a stream's time in which the device has nothing to do. `count`: requests."""
    requests, engine = Case(cache, slots).requests(lm.config, count), lm.engine(slots)
    stream(engine, requests[:slots])  # compiles
    busy = engine.progress.device_s
    total = timed(lambda: stream(engine, requests))
    idle = 1 - (engine.progress.device_s - busy) / total
    return {"cache": cache, "slots": slots, "requests": count, "outside_device": idle}
