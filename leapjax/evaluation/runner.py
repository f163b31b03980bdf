"""Decode a task's problems, row by row, and keep what came out.

problems ─▶ requests, short prompts first ─▶ engine ─▶ answers by problem id
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.evaluation.measures import counts
from leapjax.evaluation.results import Results
from leapjax.evaluation.settings import Row
from leapjax.lm import LM
from leapjax.model_files import tokenizer_hash
from leapjax.tasks import Task
from leapjax.tasks.base import Problem

# Rows decoded at once by default; a choice, not a measurement (--batch-size).
BATCH_SIZE = {"cpu": 32}
BATCH_SIZE_ELSEWHERE = 256


def default_batch_size() -> int:
    """Rows decoded at once on this backend."""
    import jax

    return BATCH_SIZE.get(jax.default_backend(), BATCH_SIZE_ELSEWHERE)


def versions() -> dict[str, str]:
    """What computed the numbers."""
    from importlib.metadata import version

    import leapjax

    return {
        "leapjax": leapjax.__version__,
        **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
        "python": platform.python_version(),
    }


def device_name() -> str:
    """The accelerator's kind, or the processor's name and its cores."""
    import jax

    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def row_settings(lm: LM, row: Row, batch_size: int) -> dict[str, Any]:
    """Everything that an answer and its time depend on, but for the problem."""
    import jax

    return {
        "model_hash": lm.model_hash,
        "config": dataclasses.asdict(lm.config),
        "tokenizer": tokenizer_hash(lm.path),
        "dtype": lm.dtype,
        "quantization": lm.quantization,
        "options": row.config.to_dict(),
        "batch_size": batch_size,
        "device": device_name(),
        "backend": jax.default_backend(),
        "versions": versions(),
    }


def run_row(
    lm: LM,
    task: Task,
    problems: Sequence[Problem],
    row: Row,
    results: Results,
    *,
    batch_size: int,
    show: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Answer every problem that `results` does not hold yet.

    Args:
      lm: the model.
      task: scores the answers, those of an earlier run too.
      problems: in the order of the answers returned.
      row: policy and options.
      results: where answers are kept.
      batch_size: rows decoded at once.
      show: takes the number of answers there are, as they come.

    Returns:
      One answer per problem: `id`, `text`, `finish_reason`, `correct`, the fields of
      `Counts`, and `seconds`, the wall time since the answer before it; the seconds of all
      are what decoding took, compiling left out.
    """
    records = [task.record(p) for p in problems]
    decode(lm, records, row.config, results, batch_size=batch_size, show=show)
    return [
        results.answers[p.id] | {"correct": task.score(results.answers[p.id]["text"], p)}
        for p in problems
    ]


def decode(
    lm: LM,
    records: Sequence[dict[str, Any]],
    config: DecodeConfig,
    results: Results,
    *,
    batch_size: int,
    show: Callable[[int], None] = lambda done: None,
) -> None:
    """Answer every record that `results` does not hold yet, and add the answers there.

    Args:
      lm: the model.
      records: as in a JSONL file, each with an `id` of its own.
      config: options of all of them.
      results: where answers are kept.
      batch_size: rows decoded at once.
      show: takes the number of answers there are, as they come.
    """
    todo = [r for r in records if r["id"] not in results.answers]
    requests = [lm.request(r, config) for r in todo]
    engine = lm.engine(batch_size)
    for first in {engine.program(r): r for r in reversed(requests)}.values():
        list(engine.stream([dataclasses.replace(first, id="warm-up")]))
    show(len(records) - len(todo))
    last = time.perf_counter()
    for done, (_, c) in enumerate(engine.as_completed(requests), len(records) - len(todo) + 1):
        now = time.perf_counter()
        answer = {"id": c.id, "text": c.text, "finish_reason": c.finish_reason}
        answer |= counts(c, lm.config.eos_token_id).to_dict()
        results.add(answer | {"seconds": round(now - last, 6)})
        last = now
        show(done)
