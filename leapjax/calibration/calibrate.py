"""One calibration: greedy's answers, then setting by setting until the first failure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from leapjax.calibration import sequence
from leapjax.calibration.answers import Answers
from leapjax.calibration.bound import most_disagreements, prompts_needed, upper_bound
from leapjax.calibration.prompts import answer_key
from leapjax.config import DecodeConfig
from leapjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tested:
    """A setting and how it did.

    Attributes:
      config: the setting.
      prompts: those that were decoded; fewer than all where it had failed before.
      disagreements: among them.
      bound: upper bound of the share that disagrees; of a setting that was given up, at the
        number of prompts it might have had without any further disagreement.
      steps: mean over the prompts that were decoded.
      passes: whether the bound keeps the budget.
    """

    config: DecodeConfig
    prompts: int
    disagreements: int
    bound: float
    steps: float
    passes: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self) | {"config": self.config.to_dict()}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What came out.

    Attributes:
      n: prompts.
      budget: share of answers that may differ.
      confidence: of the procedure.
      greedy_steps: mean steps of greedy.
      tested: the settings in their order, as far as the first that failed.
      untested: settings behind it.
      chosen: index into `tested`, or None.
    """

    n: int
    budget: float
    confidence: float
    greedy_steps: float
    tested: tuple[Tested, ...]
    untested: int
    chosen: int | None


def greedy(base: DecodeConfig) -> DecodeConfig:
    """One token a step without a cache: whose answers are to be kept."""
    own = {"policy": "low_confidence", "steps": base.gen_length, "cache": "none"}
    return base.replace(**own)


def check(n: int, budget: float, confidence: float) -> None:
    """Refuse a calibration that can't succeed.

    Args:
      n: prompts.
      budget: share of answers that may differ.
      confidence: of the procedure.

    Raises:
      UserError: numbers out of range, or too few prompts, naming how many are needed.
    """
    if not 0 < budget < 1:
        raise UserError(f"max_disagreement is {budget}; expected a share between 0 and 1")
    if not 0.5 <= confidence < 1:
        raise UserError(f"confidence is {confidence}; expected at least 0.5 and below 1")
    needed = prompts_needed(budget, confidence)
    if n < needed:
        raise UserError(
            f"{n} prompts are too few: even without any disagreement, a budget of {budget:g} at "
            f"confidence {confidence:g} needs {needed}; give more, or a larger --max-disagreement"
        )


def calibrate(
    answers: Answers,
    base: DecodeConfig,
    settings: Sequence[DecodeConfig],
    *,
    budget: float,
    confidence: float,
    extract: Callable[[str], Hashable | None] | None = None,
) -> Calibration:
    """Test the settings in their order until one fails.

    Args:
      answers: decodes the prompts.
      base: options of greedy.
      settings: from safe to fast, fixed before any of them was decoded.
      budget: share of answers that may differ from greedy's.
      confidence: of the procedure.
      extract: takes the answer to compare out of a text; None compares texts.

    Raises:
      UserError: see `check`.
    """
    n = len(answers.requests)
    check(n, budget, confidence)
    reference = answers.all(greedy(base), "greedy")
    keys = [answer_key(extract, a.text) for a in reference]
    most = most_disagreements(n, budget, confidence)
    tested: list[Tested] = []
    for number, config in enumerate(settings, 1):
        seen = differ = steps = 0
        for index, answer in answers.under(config, f"setting-{number:02d}"):
            seen += 1
            steps += answer.steps
            differ += answer_key(extract, answer.text) != keys[index]
            if differ > most:
                break  # whatever follows, it has failed
        bound = upper_bound(differ, n, confidence)
        tested.append(Tested(config, seen, differ, bound, steps / seen, differ <= most))
        if differ > most:
            break
    good = sequence.passed((t.disagreements for t in tested), n, budget, confidence)
    return Calibration(
        n,
        budget,
        confidence,
        sum(a.steps for a in reference) / n,
        tuple(tested),
        len(settings) - len(tested),
        sequence.chosen([t.steps for t in tested[:good]]),
    )
