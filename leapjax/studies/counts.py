"""Steps and tokens of one completion."""

from __future__ import annotations

from leapjax.types import Completion


def counts(completion: Completion, eos_id: int) -> dict[str, int]:
    """Count steps and tokens of a completion that is a whole canvas.

    Args:
      completion: what was decoded.
      eos_id: the model's eos token.

    Returns:
      `tokens` (before the first eos; the whole canvas without one), `steps` (over the whole
      canvas), `eos_steps` (until every position up to and including the first eos was decided),
      `answer_steps` (those of them that decided at least one such position), `full_passes` (over
      the whole sequence), `nfe` (model evaluations).
    """
    ids, commits = completion.output_ids, completion.commit_step
    end = ids.index(eos_id) if eos_id in ids else None
    # Early stop needs an eos that a step decided, so no position up to the first is unfilled.
    decided = [s for s in (commits if end is None else commits[: end + 1]) if s >= 0]
    return {
        "tokens": len(ids) if end is None else end,
        "steps": completion.steps,
        "eos_steps": completion.steps if end is None else 1 + max(decided, default=-1),
        "answer_steps": len(set(decided)),
        "full_passes": completion.full_passes,
        "nfe": completion.nfe,
    }
