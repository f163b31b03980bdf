"""The report of published rows: published, rerun by others, ours, and what was not run."""

from collections.abc import Mapping
from typing import Any

from leapjax.studies.paper_rows import PaperRow, by_setting, cells_of
from leapjax.studies.tables import markdown_table, with_interval

_CELLS = ("task", "setting", "published", "rerun_by_others")


def report(
    rows: Mapping[str, PaperRow],
    made: Mapping[str, Mapping[str, Any]],
    reasons: Mapping[str, str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Published, rerun by others and ours, row by row, and why the rest was not run; JSON-ready.

    `rows` are all there are; `made` has the reports of those that were run, `reasons` why not, of
    the others.
    """
    same, out = by_setting(rows.values()), []
    for name, numbers in made.items():
        row = rows[name]
        cells = cells_of(row, same[row.setting])
        about = {"row": name, **dict(zip(_CELLS, cells, strict=True)), "metric": row.metric}
        sources = {"sources": [*row.sources], "notes": [*row.notes]}
        out.append(about | {"decode": row.decode.to_dict()} | dict(numbers) | sources)
    return {**facts, "rows": out, "not_run": dict(reasons)}


def not_run(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason, with its rows."""
    grouped: dict[str, list[str]] = {}
    for name, why in reasons.items():
        grouped.setdefault(why, []).append(name)
    return [f"not run: {why} ({', '.join(names)})" for why, names in grouped.items()]


def ours_of(made: Mapping[str, Any]) -> list[str]:
    """A measured row's shares with their intervals, one a measure."""
    shares = (made["measured"] or {}).items()
    return [f"{with_interval(m['value'], m['interval'], '.2f', 1)} {name}" for name, m in shares]


def markdown(report: Mapping[str, Any]) -> str:
    """The report to read."""
    model = report["model"]
    head = ["row", "task", "setting", "published", "rerun by others", "ours, % (95 %)", "n"]
    cells = [[*head, "steps", "tokens/s", "seconds"]]
    for r in report["rows"]:
        ours = ours_of(r)
        told = [r[key] for key in ("row", *_CELLS)]
        numbers = [f"{r[key]:.1f}" for key in ("steps", "tokens_per_s", "seconds")]
        cells.append([*told, "; ".join(ours) or "not scored", str(r["n"]), *numbers])
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    weights = f", {model['quantization']} weights" if model["quantization"] else ""
    limit = f"; at most {report['limit']} problems of each" if report["limit"] else ""
    return "\n".join(
        [
            "# Published rows, run with leapjax\n",
            f"{report['published_as']}: {report['layers']} layers of width {report['width']}, "
            f"{model['hash'] or 'unhashed'}, {model['dtype']}{weights}; "
            f"{report['device']}, batch {report['batch_size']}{limit}. {versions}.\n",
            "Tokens/s: those before the first end of an answer, by wall time without compiling. "
            "Papers decode one row at a time.\n",
            markdown_table(cells, 6),
            *(f"- {line}" for line in not_run(report["not_run"])),
            "",
        ]
    )


def text(row: PaperRow, made: Mapping[str, Any]) -> str:
    """A row that was run, for a terminal or a pipe."""
    unscored = f"null, not scored ({made['n']} answers; --allow-code-execution runs them)"
    out = f"{row.name}\n  expected: {row.expected} ({row.metric})\n"
    for line in ours_of(made) or [unscored]:
        out += f"  measured, % (95 %): {line}\n"
    numbers = f"steps: {made['steps']:.1f}; {made['tokens_per_s']:.1f} tokens/s"
    return f"{out}  n: {made['n']}; {numbers}\n"
