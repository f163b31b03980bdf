"""Steps and tokens of one completion."""

from collections.abc import Collection

from leapjax.types import Completion


def counts(completion: Completion, ends: Collection[int]) -> dict[str, int]:
    """Count steps and tokens of a completion that is a whole canvas.

    `ends` are the ids that end an answer. Returns `tokens` (before the first end; the whole canvas
    without one), `steps` (over the whole canvas), `eos_steps` (until every position up to and
    including the first end was decided), `answer_steps` (those of them that decided at least one
    such position), `full_passes` (over the whole sequence), `nfe` (model evaluations).
    """
    ids, commits = completion.output_ids, completion.commit_step
    end = next((n for n, i in enumerate(ids) if i in ends), None)
    # Early stop needs a stop id that a step decided, so no position up to the first is unfilled.
    decided = [s for s in (commits if end is None else commits[: end + 1]) if s >= 0]
    return {
        "tokens": len(ids) if end is None else end,
        "steps": completion.steps,
        "eos_steps": completion.steps if end is None else 1 + max(decided, default=-1),
        "answer_steps": len(set(decided)),
        "full_passes": completion.full_passes,
        "nfe": completion.nfe,
    }
