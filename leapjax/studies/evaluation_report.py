"""An evaluation as a report: numbers by row, stratum and template, as a table, Markdown, JSON."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.caches import CACHES
from leapjax.errors import UserError
from leapjax.studies import comparisons
from leapjax.studies.evaluation import KINDS, is_baseline
from leapjax.studies.statistics import paired_difference, wilson
from leapjax.studies.tables import heading, markdown_table, points, text_table, with_interval
from leapjax.wording import plural

DEFINITIONS = {
    "accuracy": "share of answers that the lenient parser finds right; 95 % Wilson interval",
    "strict_accuracy": "the same by the strict parser, which accepts the asked form only",
    "difference": "accuracy minus that of greedy without a cache, mean of the paired differences; "
    "95 % normal interval, standard errors clustered by problem",
    "agreement": "share of answers whose text is greedy's",
    "corrupted": "share of answers whose text is not greedy's although the score is the same",
    "steps": "mean steps over the whole canvas; share: of greedy's mean on the same problems",
    "eos_steps": "mean of 1 + the last commit step among the positions up to and including the "
    "first eos; all steps where there is no eos",
    "answer_steps": "mean number of steps that committed at least one of those positions",
    "tokens_per_step": "tokens before the first eos, per step over the whole canvas",
    "tokens_per_s": "the same tokens, per second of wall time, compiling left out",
    "full_passes": "mean passes over the whole sequence",
    "holds": "both the clustered normal test and the exact sign test over problems reject that the "
    "rows are equally accurate, at 95 % jointly over all comparisons (Holm)",
    "stability": "Kendall's tau-b between the rows' orders under two templates, mean over pairs of "
    "templates; 95 % bootstrap interval over problems",
}
MOST_UNDECIDED = 5  # on a terminal


def summarise(
    these: Sequence[Mapping[str, Any]], greedy: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The numbers of one row on one group of answers.

    `greedy` are the baseline's, to the same problems in the same order. Without `seconds` in the
    answers, `tokens_per_s` means nothing.
    """
    n = len(these)

    def total(name: str, of: Sequence[Mapping[str, Any]] = these) -> float:
        return sum(a[name] for a in of)

    pairs = [(a["correct"], b["correct"]) for a, b in zip(these, greedy, strict=True)]
    same = [a["text"] == b["text"] for a, b in zip(these, greedy, strict=True)]
    right, strict = int(total("correct")), int(total("strict"))
    problems = [a["problem"] for a in these]
    sides = [a for a, _ in pairs], [b for _, b in pairs]
    difference, interval = paired_difference(*sides, problems)
    out: dict[str, Any] = {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "accuracy_interval": list(wilson(right, n)),
        "strict_accuracy": strict / n,
        "strict_accuracy_interval": list(wilson(strict, n)),
        "difference": difference,
        "difference_interval": list(interval),
        "only_this_right": sum(a and not b for a, b in pairs),
        "only_greedy_right": sum(b and not a for a, b in pairs),
        "agreement": sum(same) / n,
        "agreement_interval": list(wilson(sum(same), n)),
        "corrupted": sum(a == b and not s for (a, b), s in zip(pairs, same, strict=True)) / n,
    }
    for name in ("steps", "eos_steps", "answer_steps"):
        out[name] = total(name) / n
        out[f"{name}_share"] = total(name) / total(name, greedy)
    seconds = sum(a.get("seconds", 0.0) for a in these)
    return out | {
        "seconds": seconds / n,
        "tokens": total("tokens") / n,
        "tokens_per_step": total("tokens") / total("steps"),
        "tokens_per_s": total("tokens") / max(seconds, 1e-9),
        "full_passes": total("full_passes") / n,
        "nfe": total("nfe") / n,
        "no_eos": sum(a["finish_reason"] != "stop" for a in these),
    }


def report_of(
    head: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    searches: Sequence[Mapping[str, Any]] = (),
    *,
    tolerance: float = 0.05,
    allow_unequal: bool = False,
) -> dict[str, Any]:
    """Put a report together.

    `rows` are as of `evaluation.described`, each with its `manifest` and its `answers` to the same
    trials in the same order, the baseline among them; `searches` are of `evaluation.equal_rows`.
    """
    greedy = next((row["answers"] for row in rows if is_baseline(row)), None)
    if greedy is None:
        raise UserError("no row is greedy without a cache, which all rows are compared with")
    groups: dict[str, list[int]] = {"all": list(range(len(greedy)))}
    for key, prefix in (("stratum", ""), ("template", "template ")):
        values = list(dict.fromkeys(a[key] for a in greedy))
        for value in values if len(values) > 1 else ():
            groups[f"{prefix}{value}"] = [i for i, a in enumerate(greedy) if a[key] == value]
    made = []
    for row in rows:
        told = {n: value for n, value in row.items() if n not in ("answers", "manifest")}
        told["groups"] = {
            name: summarise([row["answers"][i] for i in which], [greedy[i] for i in which])
            for name, which in groups.items()
        }
        made.append(told)
    equal = [dict(e) | _reached(e, made, tolerance) for e in searches]
    asked = [row for row in rows if not row["equal"]]
    alike = [r for r in asked if not comparisons.differing(r["manifest"], asked[-1]["manifest"])]
    report = dict(head) | {
        "n": len(greedy),
        "problems": len({a["problem"] for a in greedy}),
        "templates": sorted({a["template"] for a in greedy}),
        "definitions": DEFINITIONS,
        "unequal": comparisons.told([row["manifest"] for row in asked]),
        "allow_unequal": allow_unequal,
        "tolerance": tolerance,
        "rows": made,
        "equal": equal,
        "comparisons": comparisons.compare(comparisons.sets(rows, equal), allow_unequal),
        "stability": comparisons.stability(asked if allow_unequal else alike),
    }
    return report | {"words": comparisons.words(report)}


def _reached(
    search: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], tolerance: float
) -> dict[str, Any]:
    """What a row of equal cost costs on the reported problems, and whether that is equal."""

    def cost(label: str) -> float:
        found = (r for r in rows if (r["label"], r["cache"]) == (label, search["cache"]))
        return next(found)["groups"]["all"][KINDS[search["equal"]]]

    lead, own = cost(search["reference"]), cost(search["label"])
    share = own / lead if lead else float("inf")
    return {"cost": own, "reference_cost": lead, "share": share} | {
        "matched": abs(share - 1) <= tolerance
    }


def _steps(numbers: Mapping[str, Any], name: str) -> str:
    return f"{numbers[name]:.1f} ({100 * numbers[f'{name}_share']:.1f} %)"


def _difference(row: Mapping[str, Any], interval: bool) -> str:
    """Accuracy minus greedy's, in points; nothing for greedy itself."""
    if is_baseline(row):
        return ""
    g = row["groups"]["all"]
    return points(g["difference"], g["difference_interval"] if interval else None)


def _head(report: Mapping[str, Any]) -> str:
    """What was measured, and in what the rows differ beside the policy."""
    out, seeds = heading(report), report["settings"].get("seeds", 1)
    if len(report["templates"]) > 1 or seeds > 1:
        out += (
            f"; {plural(report['problems'], 'problem')}, "
            f"{plural(len(report['templates']), 'template')}, {plural(seeds, 'seed')}"
        )
    if report["unequal"] and report["allow_unequal"]:
        out += f". UNEQUAL, compared all the same: {report['unequal']}"
    elif report["unequal"]:
        out += (
            f". Rows that differ in {report['unequal']} are compared in the column − greedy alone, "
            "which is against greedy without a cache"
        )
    return out


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal or a pipe, short; `markdown` has every column."""
    cells = [["policy", "right % (95 %)", "− greedy", "steps (of greedy's)"]]
    for row in report["rows"]:
        g = row["groups"]["all"]
        name = row["label"] + (f", {row['cache']}" if CACHES[row["cache"]].stores else "")
        low, high = g["accuracy_interval"]
        right = f"{100 * g['accuracy']:.1f} ({100 * low:.0f} to {100 * high:.0f})"
        cells.append([name, right, _difference(row, False), _steps(g, "steps")])
    fill = functools.partial(textwrap.fill, width=80, break_on_hyphens=False)
    out = f"{fill(_head(report))}\n\n{text_table(cells, 2)}\n"
    for line in comparisons.words(report, MOST_UNDECIDED):
        out += fill(line, subsequent_indent="  " * line.startswith("-")) + "\n"
    return out


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown: what holds, every column, then tables by stratum and template."""
    head = ["policy", "cache", "accuracy % (95 %)", "strict %", "− greedy, points (95 %)"]
    head += ["other text, same score %", "steps (of greedy's)", "to first eos", "deciding answer"]
    cells = [[*head, "tokens/step", "tokens/s", "full passes"]]
    for row in report["rows"]:
        g, name = row["groups"]["all"], [row["label"], row["cache"]]
        right = [with_interval(g["accuracy"], g["accuracy_interval"])]
        right.append(f"{100 * g['strict_accuracy']:.1f}")
        corrupted = "" if is_baseline(row) else f"{100 * g['corrupted']:.1f}"
        steps = [_steps(g, kind) for kind in ("steps", "eos_steps", "answer_steps")]
        rates = [f"{g['tokens_per_step']:.2f}", f"{g['tokens_per_s']:.0f}"]
        rates.append(f"{g['full_passes']:.1f}")
        cells.append([*name, *right, _difference(row, True), corrupted, *steps, *rates])
    out = f"{_head(report)}\n\n{markdown_table(cells, 2)}"
    if report["equal"]:
        out += f"\nAt equal cost; settings found on {report['settings']['tuning']}.\n\n"
        out += markdown_table(_equal_cells(report), 3)
    lines = (line if line.startswith("- ") else f"\n{line}\n" for line in report["words"])
    out += "\n" + "\n".join(lines) + "\n"
    names = [name for name in report["rows"][0]["groups"] if name != "all"]
    for kind in ("stratum", "template"):
        which = [n for n in names if n.startswith("template ") == (kind == "template")]
        if which:
            out += (
                f"\nBy {kind}: accuracy % (95 %); − greedy, points (95 %); steps to the first eos "
                "(share of greedy's).\n\n"
            )
            out += markdown_table(_group_cells(report, which), 2)
    return out


def _group_cells(report: Mapping[str, Any], groups: Sequence[str]) -> list[list[str]]:
    first = report["rows"][0]["groups"]
    cells = [["policy", "cache", *(f"{name} (n={first[name]['n']})" for name in groups)]]
    for row in report["rows"]:
        told = []
        for g in (row["groups"][name] for name in groups):
            numbers = [with_interval(g["accuracy"], g["accuracy_interval"])]
            if not is_baseline(row):
                numbers.append(points(g["difference"], g["difference_interval"]))
            told.append("; ".join([*numbers, _steps(g, "eos_steps")]))
        cells.append([row["label"], row["cache"], *told])
    return cells


def _equal_cells(report: Mapping[str, Any]) -> list[list[str]]:
    head = ["policy", "cache", "reference", "cost on those problems", "reference's there"]
    head += ["cost here", "share of the reference's"]
    cells = [[*head, "equal", "settings tried"]]
    for e in report["equal"]:
        unit, form = ("s", ".4f") if e["equal"] == "time" else ("steps", ".2f")
        numbers = [f"{e[n]:{form}} {unit}" for n in ("tuned", "target", "cost")]
        numbers += [f"{100 * e['share']:.1f} %", "yes" if e["matched"] else "no", str(e["tried"])]
        cells.append([e["label"], e["cache"], e["reference"], *numbers])
    return cells
