"""From answers to a report: numbers by row and stratum, as a table, Markdown and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.caches import CACHES
from leapjax.evaluation.settings import BASELINE, Row
from leapjax.evaluation.statistics import paired_difference, wilson
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


def groups(problems: Sequence[Problem]) -> dict[str, list[int]]:
    """Indices of the problems, in all and by stratum."""
    out: dict[str, list[int]] = {"all": list(range(len(problems)))}
    strata = dict.fromkeys(p.stratum for p in problems)
    for stratum in strata if list(strata) != ["all"] else ():
        out[stratum] = [i for i, p in enumerate(problems) if p.stratum == stratum]
    return out


def summarise(
    these: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of one row on one group of problems.

    Args:
      these: the row's answers.
      greedy: the baseline's, to the same problems in the same order.
    """
    n = len(these)
    right = sum(a["correct"] for a in these)
    difference, interval = paired_difference(
        [a["correct"] for a in these], [a["correct"] for a in greedy]
    )
    tokens, seconds = sum(a["tokens"] for a in these), sum(a["seconds"] for a in these)
    out: dict[str, Any] = {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "accuracy_interval": list(wilson(right, n)),
        "difference": difference,
        "difference_interval": list(interval),
        "only_this_right": sum(
            a["correct"] and not b["correct"] for a, b in zip(these, greedy, strict=True)
        ),
        "only_greedy_right": sum(
            b["correct"] and not a["correct"] for a, b in zip(these, greedy, strict=True)
        ),
    }
    for name in ("steps", "eos_steps", "answer_steps"):
        total, base = sum(a[name] for a in these), sum(a[name] for a in greedy)
        out[name] = total / n
        out[f"{name}_share"] = total / base
    return out | {
        "tokens": tokens / n,
        "tokens_per_step": tokens / sum(a["steps"] for a in these),
        "tokens_per_s": tokens / max(seconds, 1e-9),
        "full_passes": sum(a["full_passes"] for a in these) / n,
        "nfe": sum(a["nfe"] for a in these) / n,
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
    greedy = answers[BASELINE]
    out = []
    for row in rows:
        these = answers[row.key]
        out.append(
            {
                "policy": row.policy,
                "label": row.label,
                "cache": row.cache,
                "options": row.config.to_dict(),
                "groups": {
                    name: summarise([these[i] for i in which], [greedy[i] for i in which])
                    for name, which in groups(problems).items()
                },
            }
        )
    return out


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _steps(numbers: Mapping[str, Any], name: str) -> str:
    return f"{numbers[name]:.1f} ({_percent(numbers[f'{name}_share'])} %)"


def _signed(points: float) -> str:
    text = f"{100 * points:+.2f}"
    return "0.00" if float(text) == 0 else text


def main_cells(report: Mapping[str, Any]) -> list[list[str]]:
    """The table over all problems, its heading first."""
    cells = [
        [
            "policy",
            "cache",
            "accuracy % (95 %)",
            "− greedy, points (95 %)",
            "steps (of greedy's)",
            "to first eos",
            "deciding answer",
            "tokens/step",
            "tokens/s",
            "full passes",
        ]
    ]
    for row in report["rows"]:
        g = row["groups"]["all"]
        low, high = g["accuracy_interval"]
        below, above = g["difference_interval"]
        baseline = (row["policy"], row["cache"]) == BASELINE
        cells.append(
            [
                row["label"],
                row["cache"],
                f"{_percent(g['accuracy'])} ({_percent(low)} to {_percent(high)})",
                ""
                if baseline
                else f"{_signed(g['difference'])} ({_signed(below)} to {_signed(above)})",
                _steps(g, "steps"),
                _steps(g, "eos_steps"),
                _steps(g, "answer_steps"),
                f"{g['tokens_per_step']:.2f}",
                f"{g['tokens_per_s']:.0f}",
                f"{g['full_passes']:.1f}",
            ]
        )
    return cells


def stratum_cells(report: Mapping[str, Any]) -> list[list[str]]:
    """Accuracy, and share of greedy's steps to eos, by stratum; empty if there is one only."""
    names = [n for n in report["rows"][0]["groups"] if n != "all"]
    if not names:
        return []
    first = report["rows"][0]["groups"]
    cells = [["policy", "cache", *(f"{n} (n={first[n]['n']})" for n in names)]]
    for row in report["rows"]:
        line = [row["label"], row["cache"]]
        for name in names:
            g = row["groups"][name]
            low, high = (_percent(x) for x in g["accuracy_interval"])
            line.append(f"{_percent(g['accuracy'])} ({low} to {high}), {_steps(g, 'eos_steps')}")
        cells.append(line)
    return cells


def heading(report: Mapping[str, Any]) -> str:
    """What was measured, in one line."""
    model, s = report["model"], report["settings"]
    weights = f" on {model['quantization']} weights" if model.get("quantization") else ""
    return (
        f"{s['task']}, split {s['split']}, seed {s['seed']}, n={report['n']}; canvas "
        f"{s['gen_length']}, block {s['block_length']} (99 % of answers have at most "
        f"{report['answer_tokens_p99']} tokens); model {model['name']}, "
        f"{(model['hash'] or 'unhashed')[:12]}, {model['dtype']}{weights}; {report['device']}, "
        f"batch {s['batch_size']}"
    )


def _columns(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        texts = [
            t.ljust(w) if i < 2 else t.rjust(w)
            for i, (t, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal or a pipe, short; `markdown` has every column."""
    cells = [["policy", "right % (95 %)", "− greedy", "steps (of greedy's)"]]
    for row in report["rows"]:
        g = row["groups"]["all"]
        low, high = g["accuracy_interval"]
        baseline = (row["policy"], row["cache"]) == BASELINE
        cells.append(
            [
                row["label"] + (f", {row['cache']}" if CACHES[row["cache"]].stores else ""),
                f"{_percent(g['accuracy'])} ({100 * low:.0f} to {100 * high:.0f})",
                "" if baseline else _signed(g["difference"]),
                _steps(g, "steps"),
            ]
        )
    lines = textwrap.fill(heading(report), 80, break_on_hyphens=False)
    return f"{lines}\n\n{_columns(cells)}\n"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""

    def table(cells: Sequence[Sequence[str]]) -> str:
        rule = ["---" if i < 2 else "---:" for i in range(len(cells[0]))]
        return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))

    out = f"{heading(report)}\n\n{table(main_cells(report))}"
    if by_stratum := stratum_cells(report):
        out += "\nBy stratum: accuracy % (95 %), steps to the first eos (share of greedy's).\n\n"
        out += table(by_stratum)
    return out
