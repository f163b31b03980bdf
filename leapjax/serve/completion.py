"""Build a Completion from a finished row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leapjax.decoding import Program
from leapjax.types import COMMIT_KINDS, Completion, Request


def completion(
    request: Request,
    row: dict[str, np.ndarray],
    program: Program,
    finish: Callable[[Request, list[int]], tuple[str, str]],
) -> Completion:
    """The Completion of a request.

    Args:
      request: the request.
      row: arrays of its finished row, by field of `DecodeState`.
      program: its program.
      finish: see `Engine`.
    """
    canvas = slice(int(row["origin"]), int(row["end"]))
    ids = row["tokens"][canvas].tolist()
    text, reason = finish(request, ids)
    steps = int(row["steps"])
    return Completion(
        id=request.id,
        text=text,
        output_ids=ids,
        finish_reason=reason,
        steps=steps,
        full_passes=int(row["full_passes"]),
        nfe=(steps + int(row["other_passes"])) * (2 if program.guidance else 1),
        commit_step=row["commit_step"][canvas].tolist(),
        commit_kind=[COMMIT_KINDS[k] for k in row["commit_kind"][canvas].tolist()],
        commit_confidence=row["commit_confidence"][canvas].tolist(),
        sample=request.sample,
        metadata=request.metadata,
    )
