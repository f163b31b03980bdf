"""Choose the fastest setting whose answers agree with greedy's (docs/calibration.md).

Settings are tested in an order fixed beforehand, from safe to fast, until the first whose share of
disagreements can't be shown to keep the budget. All settings before it keep the budget jointly,
with the confidence of one test: a false pass needs the first setting over the budget to pass, and
that is a single event.

Source: Angelopoulos et al., Learn then Test, arXiv 2110.01052, section on fixed-sequence testing.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.studies.runner import Question, answers, prompt_key
from leapjax.studies.statistics import at_most, most_successes, trials_needed, upper_bound
from leapjax.tasks import Task
from leapjax.types import Request


def greedy_setting(base: DecodeConfig) -> DecodeConfig:
    """One token a step without a cache; its answers are the reference."""
    return base.replace(policy="low_confidence", cache="none")


def answer_key(extract: Callable[[str], Hashable | None] | None, text: str) -> Hashable:
    """What two answers have in common if they agree: what `extract` finds, else the text.

    >>> answer_key(None, "4"), answer_key(str.strip, " 4")
    (('text', '4'), ('answer', '4'))
    """
    found = extract(text) if extract else None
    return ("text", text) if found is None else ("answer", found)


@dataclasses.dataclass
class Comparison:
    """Decodes prompts under one setting after another and compares the answers with greedy's."""

    lm: LM
    requests: Sequence[Request]
    base: DecodeConfig  # of greedy
    folder: Path | None  # None keeps answers in memory
    _: dataclasses.KW_ONLY
    batch_size: int
    task: Task | None = None  # compares extracted answers, None compares texts
    show: Callable[[str, int], None] = lambda name, done: None  # a setting's number of answers
    greedy_steps: float = math.nan  # mean; known once a setting has been compared
    _greedy: Sequence[Hashable] = ()

    def compare(self, config: DecodeConfig, name: str) -> Iterator[tuple[int, bool, int]]:
        """Answers under a setting, those of earlier runs first.

        Yields (index of the prompt, whether the answer differs from greedy's, its steps), each
        prompt once; a caller that stops early decodes no more. `name` is the first part of the
        file's name.
        """
        extract = self.task.extract if self.task else None
        if not self._greedy:
            found = dict(self.answers(greedy_setting(self.base), "greedy"))
            every = [found[i] for i in range(len(self.requests))]
            self._greedy = [answer_key(extract, a["text"]) for a in every]
            self.greedy_steps = sum(a["steps"] for a in every) / len(every)
        for i, answer in self.answers(config, name):
            differs = answer_key(extract, answer["text"]) != self._greedy[i]
            yield i, differs, answer["steps"]

    def answers(self, config: DecodeConfig, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index of the prompt, answer) pairs, as `compare`."""
        questions = [
            Question(prompt_key(r), dataclasses.replace(r, config=config)) for r in self.requests
        ]
        how = {"batch_size": self.batch_size, "show": lambda done: self.show(name, done)}
        return answers(self.lm, questions, self.folder, name, config.to_dict(), **how)


def check_size(n: int, budget: float, confidence: float) -> None:
    """Refuse a calibration of n prompts that can't succeed, and name how many it needs."""
    if not 0 < budget < 1:
        raise UserError(f"max_disagreement is {budget}; expected a share between 0 and 1")
    if not 0.5 <= confidence < 1:
        raise UserError(f"confidence is {confidence}; expected at least 0.5 and below 1")
    needed = trials_needed(budget, confidence)
    if n < needed:
        raise UserError(
            f"{n} prompts are too few: even without any disagreement, a budget of {budget:g} at "
            f"confidence {confidence:g} needs {needed}; give more, or a larger --max-disagreement"
        )


def calibrate(
    comparison: Comparison, settings: Sequence[DecodeConfig], *, budget: float, confidence: float
) -> dict[str, Any]:
    """Test the settings in their order until one fails.

    `settings` are fixed before any of them was decoded, from safe to fast. `untested` is the number
    of settings behind the first failure, `chosen` an index into `tested`, or None. Of a tested
    setting, `prompts` were decoded (fewer than n where it had failed before), and `bound` is the
    upper bound of the share that disagrees, as if no prompt that was not decoded did.
    """
    n = len(comparison.requests)
    check_size(n, budget, confidence)
    most = most_successes(n, budget, confidence)
    tested: list[dict[str, Any]] = []
    for number, config in enumerate(settings, 1):
        seen = differ = steps = 0
        for _, differs, taken in comparison.compare(config, f"setting-{number:02d}"):
            seen, differ, steps = seen + 1, differ + differs, steps + taken
            if differ > most:
                break  # whatever follows, it has failed
        found = {"config": config, "prompts": seen, "disagreements": differ}
        found |= {"bound": upper_bound(differ, n, confidence), "steps": steps / seen}
        tested.append(found | {"passes": differ <= most})
        if differ > most:
            break
    return {
        "n": n,
        "max_disagreement": budget,
        "confidence": confidence,
        "greedy_steps": comparison.greedy_steps,
        "tested": tested,
        "untested": len(settings) - len(tested),
        "chosen": fewest_steps([t["steps"] for t in tested if t["passes"]]),
    }


def passed(disagreements: Iterable[int], n: int, budget: float, confidence: float) -> int:
    """How many settings pass before the first failure, behind which nothing is read.

    >>> passed([0, 1, 9, 0], n=100, budget=0.05, confidence=0.95)
    2
    """
    most = most_successes(n, budget, confidence)
    return sum(1 for _ in itertools.takewhile(lambda found: found <= most, disagreements))


def fewest_steps(steps: Sequence[float]) -> int | None:
    """Index of the fewest mean steps, the first (safer) of equals; None of no settings."""
    return min(range(len(steps)), key=steps.__getitem__, default=None)


def resample(
    disagree: np.ndarray,
    steps: np.ndarray,
    *,
    n: int,
    repeats: int,
    budget: float,
    confidence: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibrate on random parts of a pool that has been decoded under every setting.

    The pool is the population, so its share of disagreements is known exactly; each calibration
    sees a random part of n prompts, drawn without replacement. At most a share 1 - confidence of
    them choose a setting over the budget: draws without replacement spread less than the
    independent trials that the bound assumes.

    `disagree` and `steps` are (S, P), of S settings on P prompts. `failures` are calibrations whose
    setting exceeds the budget in the pool, `rest_failures` the same on the prompts that the
    calibration did not see; a lucky part leaves an unlucky rest, so these are more where the pool
    is hardly larger than the parts. A procedure with exactly the promised rate exceeds `allowed`
    failures in 1 of 100 runs. In `none` calibrations no setting passed.
    """
    rng = np.random.default_rng(seed)
    settings, pool = disagree.shape
    rates, mean_steps = disagree.mean(axis=1), steps.mean(axis=1)
    picked, failures, rest_failures = np.zeros(settings, int), 0, 0
    for _ in range(repeats):
        seen = np.zeros(pool, bool)
        seen[rng.choice(pool, n, replace=False)] = True
        good = passed(disagree[:, seen].sum(axis=1).tolist(), n, budget, confidence)
        pick = fewest_steps(steps[:good, seen].mean(axis=1).tolist())
        if pick is None:
            continue
        picked[pick] += 1
        failures += int(rates[pick] > budget)
        if n < pool:
            rest_failures += int(disagree[pick, ~seen].mean() > budget)
    calibrated = int(picked.sum())
    allowed = next(k for k in range(repeats + 1) if at_most(k, repeats, 1 - confidence) >= 0.99)
    return {
        "repeats": repeats,
        "n": n,
        "pool": pool,
        "failures": failures,
        "rest_failures": rest_failures,
        "allowed": allowed,
        "none": repeats - calibrated,
        "picked": picked.tolist(),
        "rates": rates.tolist(),
        "steps": mean_steps.tolist(),
        "chosen_steps": float(picked @ mean_steps / calibrated) if calibrated else None,
        "holds": failures <= allowed,
    }


def check_guarantee(
    comparison: Comparison, settings: Sequence[DecodeConfig], **options
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """Decode the pool under every setting, then calibrate on random parts of it.

    Also returns the `steps` and `rate` of disagreement of confidence threshold 0.9 in the pool.
    """

    def under(config: DecodeConfig, name: str) -> np.ndarray:  # (2, P)
        found = sorted(comparison.compare(config, name))
        return np.array([[differs, steps] for _, differs, steps in found]).T

    made = np.stack([under(c, f"setting-{i:02d}") for i, c in enumerate(settings, 1)])
    threshold = comparison.base.replace(policy="confidence_threshold", threshold=0.9)
    rate, steps = under(threshold, "threshold-0.9").mean(axis=1)
    outcome = resample(made[:, 0].astype(bool), made[:, 1], **options)
    return outcome, {"steps": float(steps), "rate": float(rate)}
