"""Build a Completion from a finished row."""

from collections.abc import Callable
from typing import Any

from leapjax.decoding import Program
from leapjax.decoding.edits import as_committed, listed
from leapjax.types import COMMIT_KINDS, Completion, Request


def completion(
    request: Request,
    row: dict[str, Any],
    program: Program,
    finish: Callable[[Request, list[int]], tuple[str, str]],
) -> Completion:
    """The Completion of a request. `row`: arrays of its finished row, by field of `DecodeState`."""
    origin, end = int(row["origin"]), int(row["end"])
    if program.model.canvas == "overhang" and not program.infill:
        end = min(end, origin + program.gen_length)  # the rest is decoded, but not answered
    canvas = slice(origin, end)
    ids = row["tokens"][canvas].tolist()
    text, reason = finish(request, ids)
    steps, commit_step = int(row["steps"]), row["commit_step"][canvas]
    edits = committed_ids = None
    if program.edits:
        edits = listed(row["edits"], steps, commit_step, origin)
        committed_ids = as_committed(row["edits"], ids, edits, commit_step, origin)
    return Completion(
        id=request.id,
        text=text,
        output_ids=ids,
        finish_reason=reason,
        steps=steps,
        full_passes=int(row["full_passes"]),
        nfe=(steps + int(row["other_passes"])) * (2 if program.guidance else 1),
        commit_step=commit_step.tolist(),
        commit_kind=[COMMIT_KINDS[k] for k in row["commit_kind"][canvas].tolist()],
        commit_confidence=row["commit_confidence"][canvas].tolist(),
        edits=edits,
        committed_ids=committed_ids,
        sample=request.sample,
        metadata=request.metadata,
    )
