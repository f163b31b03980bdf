"""Numbers in sentences."""


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 row`, `2 rows`, `1 pass`, `2 passes`. `count`: how many."""
    if count != 1:
        noun += "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count} {noun}"


def times_fewer(ours: float, theirs: float) -> str:
    """How one count stands to a larger one, such as `16x fewer`.

    `ours`: the count that is spoken of. Returns `16x fewer`, `1.5x fewer`, `as many`, `1.2x more`.
    """
    ratio = theirs / max(ours, 1)
    if not ratio or abs(ratio - 1) < 0.05:
        return "as many"
    word, ratio = ("fewer", ratio) if ratio > 1 else ("more", 1 / ratio)
    return f"{ratio:.{0 if ratio >= 9.95 else 1}f}x {word}"
