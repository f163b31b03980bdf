"""Which orderings of an evaluation's rows hold, and whether they depend on the template.

Two rows are compared if their manifests are equal: everything but the policy and its parameters.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leapjax.config.decode import COMMON
from leapjax.studies import statistics
from leapjax.studies.tables import points, with_interval
from leapjax.wording import plural

LEVEL = 0.05

Row = Mapping[str, Any]  # `label`, `cache`, `equal`, `manifest`, `answers`, …


def manifest_of(shared: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a row, flat: `versions.jax`, `config.num_layers`, `early_stop`.

    `shared` is nested, of all rows of a run; the options of the row's policy are left out.

    >>> manifest_of({"versions": {"jax": "0.10"}}, {"policy": "localleap", "cache": "none"})
    {'versions.jax': '0.10', 'cache': 'none'}
    """
    own = {n: v for n, v in options.items() if n in COMMON and n != "policy"}
    return dict(_flat(shared)) | own


def _flat(nested: Mapping[str, Any], path: str = ""):
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def differing(these: Mapping[str, Any], those: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two manifests differ, or that only one has.

    >>> differing({"dtype": "float32", "batch_size": 8}, {"dtype": "bfloat16", "batch_size": 8})
    ['dtype']
    """
    missing = object()
    names = dict.fromkeys((*these, *those))
    return [n for n in names if these.get(n, missing) != those.get(n, missing)]


def told(manifests: Sequence[Mapping[str, Any]]) -> str:
    """The fields in which manifests differ from the first, with their values, for a table's head.

    >>> told([{"dtype": "float32"}, {"dtype": "bfloat16"}])
    'dtype (float32, bfloat16)'
    """
    out = []
    for name in dict.fromkeys(f for m in manifests for f in differing(manifests[0], m)):
        values = dict.fromkeys(str(m.get(name, "none")) for m in manifests)
        out.append(f"{name} ({', '.join(v if len(v) <= 40 else v[:12] + '…' for v in values)})")
    return ", ".join(out)


def sets(rows: Sequence[Row], equal: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """The rows that are compared with each other, by how they were set.

    "" -> the rows as they were asked for; "steps", "time" -> reference and matched rows; those
    that were not `matched` are in no set.
    """
    out = {"": [row for row in rows if not row["equal"]]}
    for kind in dict.fromkeys(e["equal"] for e in equal):
        matched = {(e["label"], e["cache"]) for e in equal if e["equal"] == kind and e["matched"]}
        leads = {(e["reference"], e["cache"]) for e in equal if e["equal"] == kind}
        out[kind] = [
            row
            for row in rows
            if (row["label"], row["cache"]) in (matched if row["equal"] else leads)
        ]
    return out


def compare(named: Mapping[str, Sequence[Row]], unequal: bool = False) -> list[dict[str, Any]]:
    """Compare every two rows of a set whose manifests are equal.

    All answer the same trials in the same order. `a` is ahead of `b`; `p_joint` is Holm's, over all
    pairs that are returned, and decides whether the ordering `holds` at 95 %. `unequal` allows
    rows with different manifests.
    """
    found = []
    for kind, rows in named.items():
        for a, b in itertools.combinations(rows, 2):
            fields = differing(a["manifest"], b["manifest"])
            if fields and not unequal:
                continue
            if _right(a, "correct").sum() < _right(b, "correct").sum():
                a, b = b, a
            problems = [answer["problem"] for answer in a["answers"]]
            pair: dict[str, Any] = {"equal": kind, "a": name(a, rows), "b": name(b, rows)}
            for prefix, measure in (("", "correct"), ("strict_", "strict")):
                sides = _right(a, measure), _right(b, measure)
                mean, interval = statistics.paired_difference(*sides, problems)
                pair |= {f"{prefix}difference": mean, f"{prefix}interval": list(interval)}
            p = statistics.paired_p(_right(a, "correct"), _right(b, "correct"), problems)
            pair |= {"n": len(problems), "problems": len(set(problems)), "p": p}
            found.append(pair | {"unequal": fields})
    for pair, p in zip(found, statistics.holm([pair["p"] for pair in found]), strict=True):
        pair |= {"p_joint": p, "holds": p < LEVEL}
    return found


def name(row: Row, rows: Sequence[Row]) -> str:
    """A row's label (its setting, if it was found), with its cache where the rows have several."""
    several = len({r["cache"] for r in rows}) > 1
    label = row["setting"] if row["equal"] else row["label"]
    return label + (f", cache {row['cache']}" if several else "")


def _right(row: Row, measure: str) -> np.ndarray:
    return np.array([answer[measure] for answer in row["answers"]], float)


def stability(rows: Sequence[Row], seed: int = 0) -> dict[str, Any] | None:
    """Whether the rows' order is the same under every template.

    `rows` have equal manifests and answer the same trials in the same order. None with fewer than
    two rows or templates, or where all rows tie. `tau`: the mean of Kendall's tau-b over pairs of
    templates, with the 95 % `interval` of a bootstrap over problems (which keeps a problem's
    templates together). `same` and `other`: the mean tau between random halves of the problems,
    under one template and under two; where they are equal, what moves the order is the sample, not
    the template. `flips`: (ahead, behind, template, template in which it is the other way round),
    both at 95 %, jointly over all pairs and templates.
    """
    answers = rows[0]["answers"] if rows else []
    templates = sorted({a["template"] for a in answers})
    if len(rows) < 2 or len(templates) < 2:
        return None
    places = {p: i for i, p in enumerate(dict.fromkeys(a["problem"] for a in answers))}
    right = np.zeros((len(rows), len(templates), len(places)))
    for r, row in enumerate(rows):
        for a in row["answers"]:
            right[r, templates.index(a["template"]), places[a["problem"]]] += a["correct"]
    several = ~np.eye(len(templates), dtype=bool)

    def taus(these: np.ndarray, those: np.ndarray) -> np.ndarray:
        """(N, P) weights of problems -> (N, T, T)."""
        return statistics.kendall_tau(
            *(statistics.orders(np.einsum("rtp,np->nrt", right, w)) for w in (these, those))
        )

    def mean(found: np.ndarray) -> float | None:
        told = found[~np.isnan(found)]
        return float(told.mean()) if told.size else None

    n, rng = len(places), np.random.default_rng(seed)
    whole = np.ones((1, n))
    tau = mean(taus(whole, whole)[:, several])
    if tau is None:
        return None
    drawn = statistics.resampling(n, rng)
    means = [mean(t[several]) for t in taus(drawn, drawn)]
    low, high = np.percentile([m for m in means if m is not None], [2.5, 97.5])
    half = np.zeros((statistics.RESAMPLES // 4, n))
    for weights in half:
        weights[rng.permutation(n)[: n // 2]] = 1
    halves = taus(half, 1 - half)
    return {
        "tau": tau,
        "interval": [float(low), float(high)],
        "same": mean(halves[:, ~several]),
        "other": mean(halves[:, several]),
        "flips": _flips(right, [name(row, rows) for row in rows], templates),
        "templates": templates,
        "rows": len(rows),
        "problems": n,
    }


def _flips(
    right: np.ndarray, labels: Sequence[str], templates: Sequence[int]
) -> list[tuple[str, str, int, int]]:
    """Orders that are sure under one template and the reverse, as sure, under another."""
    pairs = list(itertools.permutations(range(len(labels)), 2))
    tests = [(a, b, t) for a, b in pairs if a < b for t in range(len(templates))]
    adjusted = statistics.holm([statistics.paired_p(right[a, t], right[b, t]) for a, b, t in tests])
    ahead: set[tuple[int, int, int]] = set()
    for (a, b, t), p in zip(tests, adjusted, strict=True):
        if p < LEVEL:
            ahead.add((a, b, t) if right[a, t].sum() > right[b, t].sum() else (b, a, t))
    return [
        (labels[a], labels[b], templates[t], templates[u])
        for a, b, t in sorted(ahead)
        for u in range(t + 1, len(templates))
        if (b, a, u) in ahead
    ]


def words(report: Mapping[str, Any], most: int | None = None) -> list[str]:
    """The report's orderings as lines of Markdown: what holds at 95 %, and what doesn't.

    `most` undecided orderings are listed; None lists all.
    """
    found, out = report["comparisons"], []
    if found:
        of = f"{found[0]['n']} answers a row to {plural(found[0]['problems'], 'problem')}"
        joint = f"95 %, jointly over {plural(len(found), 'comparison')}; n = {of}"
        holds = [pair for pair in found if pair["holds"]]
        rest = [pair for pair in found if not pair["holds"]]
        out.append(f"Orderings that hold ({joint}):" if holds else f"No ordering holds ({joint}).")
        out += [f"- {sentence(pair)}" for pair in holds]
        if rest:
            out.append(f"{plural(len(rest), 'ordering')} not decided by these answers:")
            out += [f"- {sentence(pair)}" for pair in rest[:most]]
            if most is not None and len(rest) > most:
                out.append(f"- {len(rest) - most} more, listed with --markdown or --output")
    for e in report["equal"]:
        if not e["matched"]:
            out.append(
                f"Not compared at equal {e['equal']}: {e['label']} costs {e['share']:.2f} times "
                f"what {e['reference']} does; the tolerance is {report['tolerance']:g}."
            )
    if s := report["stability"]:
        tau = with_interval(s["tau"], s["interval"], ".2f", 1)
        line = (
            f"Order of {s['rows']} rows under {plural(len(s['templates']), 'template')}: Kendall's "
            f"tau {tau}, n = {plural(s['problems'], 'problem')}."
        )
        if s["same"] is not None and s["other"] is not None:
            line += (
                f" Between halves of the problems it is {s['same']:.2f} under one template and "
                f"{s['other']:.2f} under two."
            )
        if not s["flips"]:
            line += " No two rows change places between templates at 95 %, jointly."
        out.append(line)
        out += [
            f"- {a} is ahead of {b} under template {t} and behind under template {u}"
            for a, b, t, u in s["flips"]
        ]
    return out


def sentence(pair: Mapping[str, Any]) -> str:
    """A comparison in words."""
    lenient = points(pair["difference"], pair["interval"])
    strict = points(pair["strict_difference"], pair["strict_interval"])
    how = f"at equal {pair['equal']}, " if pair["equal"] else ""
    verb = "is more accurate than" if pair["holds"] else "against"
    out = f"{how}{pair['a']} {verb} {pair['b']}: {lenient} points"
    if strict != lenient:
        out += f", by the strict parser {strict}"
    if pair["p"] < LEVEL and not pair["holds"]:
        out += "; holds alone, not jointly"
    if pair["unequal"]:
        out += f"; unequal: {', '.join(pair['unequal'])}"
    return out
