"""An evaluation as a report: numbers by row and stratum, as a table, Markdown and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.caches import CACHES
from leapjax.studies.policy_rows import BASELINE, Row
from leapjax.studies.statistics import paired_difference, wilson
from leapjax.studies.tables import heading, markdown_table, text_table, with_interval
from leapjax.tasks.base import Problem

DEFINITIONS = {
    "accuracy": "share of problems whose number after #### is right; 95 % Wilson interval",
    "difference": "accuracy minus that of greedy without a cache, mean of the per-problem "
    "differences; 95 % normal interval, mean ± 1.96 s / sqrt(n)",
    "steps": "mean steps over the whole canvas; share: of greedy's mean on the same problems",
    "eos_steps": "mean of 1 + the last commit step among the positions up to and including the "
    "first eos; all steps where there is no eos",
    "answer_steps": "mean number of steps that committed at least one of those positions",
    "tokens_per_step": "tokens before the first eos, per step over the whole canvas",
    "tokens_per_s": "the same tokens, per second of wall time, compiling left out",
    "full_passes": "mean passes over the whole sequence",
}
Answers = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def summarise(
    these: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of one row on one group of problems.

    Args:
      these: the row's answers, with `correct`; without `seconds`, `tokens_per_s` means nothing.
      greedy: the baseline's, to the same problems in the same order.
    """
    n = len(these)

    def total(name: str, of: Sequence[Mapping[str, Any]] = these) -> float:
        return sum(a[name] for a in of)

    pairs = [(a["correct"], b["correct"]) for a, b in zip(these, greedy, strict=True)]
    right = total("correct")
    difference, interval = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    out: dict[str, Any] = {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "accuracy_interval": list(wilson(int(right), n)),
        "difference": difference,
        "difference_interval": list(interval),
        "only_this_right": sum(a and not b for a, b in pairs),
        "only_greedy_right": sum(b and not a for a, b in pairs),
    }
    for name in ("steps", "eos_steps", "answer_steps"):
        out[name] = total(name) / n
        out[f"{name}_share"] = total(name) / total(name, greedy)
    return out | {
        "tokens": total("tokens") / n,
        "tokens_per_step": total("tokens") / total("steps"),
        "tokens_per_s": total("tokens") / max(sum(a.get("seconds", 0.0) for a in these), 1e-9),
        "full_passes": total("full_passes") / n,
        "nfe": total("nfe") / n,
        "no_eos": sum(a["finish_reason"] != "stop" for a in these),
    }


def rows_of(
    problems: Sequence[Problem], rows: Sequence[Row], answers: Answers
) -> list[dict[str, Any]]:
    """The report's rows.

    Args:
      problems: what was asked.
      rows: what was run.
      answers: by (policy, cache), in the problems' order; the baseline among them.
    """
    groups: dict[str, list[int]] = {"all": list(range(len(problems)))}
    strata = list(dict.fromkeys(p.stratum for p in problems))
    for stratum in strata if strata != ["all"] else ():
        groups[stratum] = [i for i, p in enumerate(problems) if p.stratum == stratum]
    greedy = answers[BASELINE]
    return [
        {
            "policy": row.policy,
            "label": row.label,
            "cache": row.config.cache,
            "options": row.config.to_dict(),
            "groups": {
                name: summarise([answers[row.key][i] for i in which], [greedy[i] for i in which])
                for name, which in groups.items()
            },
        }
        for row in rows
    ]


def is_baseline(row: Mapping[str, Any]) -> bool:
    """Whether a report's row is greedy without a cache."""
    return (row["policy"], row["cache"]) == BASELINE


def _steps(numbers: Mapping[str, Any], name: str) -> str:
    return f"{numbers[name]:.1f} ({100 * numbers[f'{name}_share']:.1f} %)"


def _points(share: float) -> str:
    text = f"{100 * share:+.2f}"
    return text if float(text) else "0.00"


def _difference(row: Mapping[str, Any], interval: bool) -> str:
    """Accuracy minus greedy's, in points; nothing for greedy itself."""
    if is_baseline(row):
        return ""
    g = row["groups"]["all"]
    low, high = (_points(x) for x in g["difference_interval"])
    return _points(g["difference"]) + f" ({low} to {high})" * interval


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal or a pipe, short; `markdown` has every column."""
    cells = [["policy", "right % (95 %)", "− greedy", "steps (of greedy's)"]]
    for row in report["rows"]:
        g = row["groups"]["all"]
        name = row["label"] + (f", {row['cache']}" if CACHES[row["cache"]].stores else "")
        low, high = g["accuracy_interval"]
        right = f"{100 * g['accuracy']:.1f} ({100 * low:.0f} to {100 * high:.0f})"
        cells.append([name, right, _difference(row, False), _steps(g, "steps")])
    lines = textwrap.fill(heading(report), 80, break_on_hyphens=False)
    return f"{lines}\n\n{text_table(cells, 2)}"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: every column, and a second table by stratum if there are several."""
    head = ["policy", "cache", "accuracy % (95 %)", "− greedy, points (95 %)"]
    head += ["steps (of greedy's)", "to first eos", "deciding answer"]
    cells = [[*head, "tokens/step", "tokens/s", "full passes"]]
    strata = [name for name in report["rows"][0]["groups"] if name != "all"]
    first = report["rows"][0]["groups"]
    by_stratum = [["policy", "cache", *(f"{name} (n={first[name]['n']})" for name in strata)]]
    for row in report["rows"]:
        g, name = row["groups"]["all"], [row["label"], row["cache"]]
        right = with_interval(g["accuracy"], g["accuracy_interval"])
        steps = [_steps(g, kind) for kind in ("steps", "eos_steps", "answer_steps")]
        rates = [f"{g['tokens_per_step']:.2f}", f"{g['tokens_per_s']:.0f}"]
        rates.append(f"{g['full_passes']:.1f}")
        cells.append([*name, right, _difference(row, True), *steps, *rates])
        parts = [row["groups"][stratum] for stratum in strata]
        rights = [with_interval(p["accuracy"], p["accuracy_interval"]) for p in parts]
        told = [f"{r}, {_steps(p, 'eos_steps')}" for r, p in zip(rights, parts, strict=True)]
        by_stratum.append([*name, *told])
    out = f"{heading(report)}\n\n{markdown_table(cells, 2)}"
    if strata:
        out += "\nBy stratum: accuracy % (95 %), steps to the first eos (share of greedy's).\n\n"
        out += markdown_table(by_stratum, 2)
    return out
