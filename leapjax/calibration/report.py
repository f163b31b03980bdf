"""A calibration as text, as a YAML file of decode options, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from leapjax.calibration.calibrate import Calibration
from leapjax.calibration.promise import Promise
from leapjax.config import OPTIONS, DecodeConfig


def label(config: DecodeConfig) -> str:
    """A setting in short: the options of its own that are set."""
    said = [f"{n} {v:g}" for n, v in config.changed().items() if OPTIONS[n].traced]
    return ", ".join(said) or "defaults"


def text(c: Calibration) -> str:
    """A table for people."""
    share = _percent(c.budget)
    lines = [
        f"{c.n} prompts, budget {share} of answers, confidence {_percent(c.confidence)}; "
        f"greedy takes {c.greedy_steps:.1f} steps",
        "",
        f"{'setting':<58} {'differ':>7} {'at most':>8} {'steps':>6}",
    ]
    for t in c.tested:
        given_up = t.prompts < c.n
        differ = f"{'>=' if given_up else ''}{t.disagreements}"
        verdict = "passes" if t.passes else "fails"
        if given_up:
            verdict += f" (given up after {t.prompts} prompts)"
        lines.append(
            f"{label(t.config):<58} {differ:>7} {_percent(t.bound):>8} {t.steps:>6.1f}  {verdict}"
        )
    if c.untested:
        lines.append(f"not tested, behind the first failure: {c.untested}")
    lines.append("")
    if c.chosen is None:
        lines.append(f"No setting qualifies: none is shown to differ on at most {share}.")
    else:
        t = c.tested[c.chosen]
        lines.append(
            f"Chosen: {label(t.config)}; {t.steps:.1f} steps, {_percent(t.steps / c.greedy_steps)} "
            f"of greedy's."
        )
    return "\n".join(lines) + "\n"


def config_file(c: Calibration, facts: Mapping[str, Any], model: str | None) -> str:
    """The chosen setting as a file for `leapjax decode --config`.

    Args:
      c: a calibration that chose a setting.
      facts: what else it rests on, shown as comments.
      model: what `model` should say; None leaves it out.
    """
    assert c.chosen is not None
    t = c.tested[c.chosen]
    options = {} if model is None else {"model": model}
    always = ("policy", "gen_length", "block_length")
    changed = t.config.changed()
    options |= {n: getattr(t.config, n) for n in OPTIONS if n in changed or n in always}
    comments = {
        "chosen by": "leapjax calibrate (docs/calibration.md)",
        "prompts": c.n,
        "answers that differ from greedy's": t.disagreements,
        "bound": f"at most {_percent(t.bound)} differ; budget {_percent(c.budget)}, "
        f"confidence {_percent(c.confidence)}",
        "mean steps": f"{t.steps:.2f}; greedy {c.greedy_steps:.2f}",
        **facts,
    }
    # A line of its own for each, whatever the value holds.
    head = [f"# {name}: {' '.join(str(value).split())}" for name, value in comments.items()]
    return "\n".join(head) + "\n" + yaml.safe_dump(options, sort_keys=False)


def document(c: Calibration, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, JSON-ready."""
    return {
        **facts,
        "n": c.n,
        "max_disagreement": c.budget,
        "confidence": c.confidence,
        "greedy_steps": c.greedy_steps,
        "tested": [t.to_dict() for t in c.tested],
        "untested": c.untested,
        "chosen": c.chosen,
    }


@dataclasses.dataclass(frozen=True)
class Rival:
    """What the chosen settings are compared with: confidence threshold 0.9.

    Attributes:
      steps: mean over the pool.
      rate: share of the pool on which it disagrees with greedy.
    """

    steps: float
    rate: float


def promise_text(p: Promise, settings: list[DecodeConfig], rival: Rival, budget: float) -> str:
    """The outcome of many calibrations, for people."""
    lines = [
        f"{p.repeats} calibrations of {p.n} prompts each out of {p.pool}, "
        f"budget {_percent(budget)} of answers",
        "",
        f"{'setting':<58} {'differ':>8} {'steps':>6} {'chosen':>7}",
    ]
    for config, rate, steps, times in zip(settings, p.rates, p.steps, p.picked, strict=True):
        lines.append(f"{label(config):<58} {_percent(rate):>8} {steps:>6.2f} {times:>7}")
    lines += [
        f"{'(confidence threshold 0.9)':<58} {_percent(rival.rate):>8} {rival.steps:>6.2f}",
        "",
        f"over the budget in the pool: {p.failures} of {p.repeats} "
        f"({_percent(p.failures / p.repeats)}); at most {p.allowed} are within the promise and its "
        f"sampling error: {'kept' if p.holds else 'BROKEN'}",
        f"over the budget on the {p.pool - p.n} prompts not seen: {p.rest_failures}",
        f"no setting qualified: {p.none}",
    ]
    if p.chosen_steps is not None:
        fewer = "fewer" if p.chosen_steps < rival.steps else "not fewer"
        lines.append(
            f"mean steps of the chosen: {p.chosen_steps:.2f}, {fewer} than threshold 0.9's "
            f"{rival.steps:.2f}"
        )
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
