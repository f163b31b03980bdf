"""A grid of settings decoded three ways: as one stream, in a warm loop, in a process each.

All answer the same word problems under the same LocalLeap thresholds with the embedded model:

    stream      one `leapjax decode`, every problem under every setting, as `leapjax ablate` does
    processes   one `leapjax decode` per setting
    loop        the settings one after the other, in a process that has compiled already; beside
                it, in the same process, the stream again

Whole commands find their compiled programs in the persistent cache, from a run that does not
count. Of many settings only some are run in processes of their own, spread evenly; the others are
taken to need their mean time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leapjax import tasks
from leapjax.benchmarks.timing import alternate, ratios, spread, summarise, timed
from leapjax.benchmarks.workload import stream
from leapjax.config import DecodeConfig
from leapjax.loader import load

BATCH = 32


def settings(count: int) -> list[dict[str, float]]:
    """Thresholds, their relaxed ones 0.15 below."""
    values = np.linspace(0.7, 0.95, count).round(4).tolist()
    return [{"threshold": t, "relaxed_threshold": round(t - 0.15, 4)} for t in values]


def _records(problems, points: Sequence[dict[str, float]]) -> Iterator[dict[str, Any]]:
    for i, options in enumerate(points):
        for problem in problems:
            yield {"id": f"{i}/{problem.id}", "prompt": problem.question, "options": options}


def _command(folder: Path, records: Iterator[dict[str, Any]]) -> None:
    """Run `leapjax decode` on some records, from start to end."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in records))
    argv = [sys.executable, "-m", "leapjax.cli.main", "decode", "--input", str(source)]
    argv += ["--output", str(folder / "out.jsonl"), "--overwrite", "--batch-size", str(BATCH)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"leapjax decode failed: {done.stderr.strip()}")


def measure(count: int, limit: int, processes: int, rounds: int) -> dict[str, Any]:
    """Time a grid each way.

    Args:
      count: settings.
      limit: problems.
      processes: settings that are run in processes of their own, at most.
      rounds: of the warm comparison, alternating.

    Returns:
      `stream_s`, `process_s` (`summarise`, a setting each), `gain` of the stream over as many
      processes as settings; `loop_s`, `warm_stream_s` and `warm_gain` (`summarise`).
    """
    task = tasks.get("wordproblems")
    problems = task.problems(None, (), limit, 1)
    points = settings(count)
    some = [points[i] for i in np.linspace(0, count - 1, min(processes, count)).round().astype(int)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _command(folder, _records(problems, points[:1]))  # compiles
        whole = timed(lambda: _command(folder, _records(problems, points)))
        each = [timed(lambda p=p: _command(folder, _records(problems, [p]))) for p in some]

    lm = load()
    base = DecodeConfig(gen_length=task.gen_length, block_length=task.block_length)
    requests = [
        [lm.request(task.record(problem), base.replace(**point)) for problem in problems]
        for point in points
    ]
    engine = lm.engine(BATCH)
    stream(engine, requests[0])  # compiles
    runs = {
        "loop": lambda: [stream(engine, group) for group in requests],
        "stream": lambda: stream(engine, [r for group in requests for r in group]),
    }
    seconds = alternate(runs, rounds)
    return {
        "settings": count,
        "problems": len(problems),
        "stream_s": whole,
        "process_s": summarise(each),
        "gain": count * float(np.mean(each)) / whole,
        "loop_s": summarise(seconds["loop"]),
        "warm_stream_s": summarise(seconds["stream"]),
        "warm_gain": ratios(seconds["loop"], seconds["stream"]),
    }


def text(found: dict[str, Any]) -> str:
    """The figures in words."""
    each, gain = found["process_s"], found["warm_gain"]
    warm, loop = found["warm_stream_s"]["median"], found["loop_s"]["median"]
    return (
        f"{found['settings']} settings x {found['problems']} problems\n"
        f"one stream, start to end: {found['stream_s']:.1f} s; a process per setting: "
        f"{spread(each, 1)} s each, n = {each['n']}: "
        f"the stream is {found['gain']:.1f} times faster\n"
        f"warm, in one process: a loop over the settings {loop:.1f} s, one stream {warm:.1f} s: "
        f"{spread(gain)} times, n = {gain['n']}"
    )
