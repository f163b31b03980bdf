"""Tables of reports: Markdown, aligned text, shares with their intervals."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from leapjax.config import OPTIONS, DecodeConfig

DEFAULTS = "defaults"


def markdown_table(cells: Sequence[Sequence[str]], text: int = 1) -> str:
    """A Markdown table.

    `cells` are rows, the heading first; `text` columns from the left hold text, the others are
    aligned to the right.

    >>> print(markdown_table([["policy", "steps"], ["greedy", "64"]]), end="")
    | policy | steps |
    | --- | ---: |
    | greedy | 64 |
    """
    rule = ["---" if i < text else "---:" for i in range(len(cells[0]))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (cells[0], rule, *cells[1:]))


def text_table(cells: Sequence[Sequence[str]], text: int) -> str:
    """Columns aligned by spaces; arguments as in `markdown_table`.

    >>> print(text_table([["policy", "steps"], ["greedy", "64"]], 1), end="")
    policy  steps
    greedy     64
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "".join(
        "  ".join(
            cell.ljust(width) if i < text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in cells
    )


def with_interval(
    value: float | None, interval: Sequence[float] | None, form: str = ".1f", scale: float = 100.0
) -> str:
    """A number and its interval, by default a share in per cent; None is a dash.

    >>> with_interval(0.5, (0.4, 0.6)), with_interval(0.0, (-0.01, 0.01), "+.1f")
    ('50.0 (40.0 to 60.0)', '+0.0 (-1.0 to +1.0)')
    """
    if value is None:
        return "–"
    told = [f"{scale * x + 0.0:{form}}" for x in (value, *(interval or ()))]
    return told[0] if interval is None else f"{told[0]} ({told[1]} to {told[2]})"


def points(share: float, interval: Sequence[float] | None = None) -> str:
    """A difference of shares in points, and its interval.

    >>> points(0.012), points(0.0, (-0.01, 0.01))
    ('+1.20', '0.00 (-1.00 to +1.00)')
    """
    told = with_interval(share, interval, "+.2f")
    return told.replace("+0.00", "0.00").replace("-0.00", "0.00")


def percent(share: float) -> str:
    """A share in per cent with two digits, such as `12.50 %`."""
    return f"{100 * share:.2f} %"


def label(config: DecodeConfig, without: Collection[str] = ()) -> str:
    """A setting in short: its own options that are set, except those named.

    >>> label(DecodeConfig(threshold=0.8, radius=2))
    'threshold 0.8, radius 2'
    """
    changed = {n: v for n, v in config.changed().items() if OPTIONS[n].traced and n not in without}
    return ", ".join(f"{n} {short(v)}" for n, v in changed.items()) or DEFAULTS


def short(value: Any) -> str:
    """A setting's value with few digits."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def heading(report: Mapping[str, Any]) -> str:
    """What was measured, in one line."""
    model, s = report["model"], report["settings"]
    weights = f" on {model['quantization']} weights" if model.get("quantization") else ""
    longest = report.get("answer_tokens_p99")
    answers = f" (99 % of answers have at most {longest} tokens)" if longest is not None else ""
    return (
        f"{s['task']}, split {s['split']}, seed {s['seed']}, n={report['n']}; canvas "
        f"{s['gen_length']}, block {s['block_length']}{answers}; model {model['name']}, "
        f"{(model['hash'] or 'unhashed')[:12]}, {model['dtype']}{weights}; {report['device']}, "
        f"batch {s['batch_size']}"
    )
