"""Fixed-sequence testing: settings in an order fixed beforehand, until the first failure.

Every setting that passes before the first failure keeps the budget, all of them together with
the confidence of one test: a false pass needs the first setting over the budget to pass, and
that is one event.

Source: Angelopoulos et al., Learn then Test, arXiv 2110.01052, section on fixed-sequence testing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leapjax.calibration.bound import most_disagreements


def passed(disagreements: Iterable[int], n: int, budget: float, confidence: float) -> int:
    """How many settings pass.

    Args:
      disagreements: of each setting among the n prompts, in the order of the tests; read only
        as far as the first that fails.
      n: prompts.
      budget: share of answers that may differ.
      confidence: of the whole procedure.

    Returns:
      The number of settings before the first failure.
    """
    most, count = most_disagreements(n, budget, confidence), 0
    for found in disagreements:
        if found > most:
            break
        count += 1
    return count


def chosen(steps: Sequence[float]) -> int | None:
    """Which of the settings that passed is chosen.

    Args:
      steps: mean steps of the settings that passed, in their order.

    Returns:
      Index of the fewest steps, the safer of equals; None where nothing passed.
    """
    return min(range(len(steps)), key=steps.__getitem__, default=None)
