"""What policies are called: the registry's names, and those of tables and of `leapjax evaluate`.

One table for flags, YAML, records, Python, `--policies` and `--trace-policies`. Capitals, dashes,
underscores and spaces make no difference.
"""

import difflib
from collections.abc import Iterable

from leapjax.errors import UserError
from leapjax.policies.registry import POLICIES, ROWS, plain


def policy_of(name: str) -> tuple[str, int] | None:
    """The registry's name of the policy that a name stands for; None for an unknown name.

    The number is the tokens per step that the name implies (0: it implies none).

    >>> policy_of("Greedy"), policy_of("entropy-bound"), policy_of("LocalLeap")
    (('low_confidence', 1), ('entropy_bound', 0), ('localleap', 0))
    """
    word = plain(name)
    if word in POLICIES:
        return word, 0
    return next((row[:2] for name, row in ROWS.items() if plain(name) == word), None)


def row_names(
    given: Iterable[str],
    where: str,
    allowed: Iterable[str] | None = None,
    extra: Iterable[str] = (),
) -> list[str]:
    """The names of tables that given names of either kind stand for, each once.

    `where` begins the message, such as `--policies`. `allowed` are the names of `ROWS` that there
    are here (None: all); `extra` are further words that may stand there.
    """
    allowed, extra = list(ROWS if allowed is None else allowed), list(extra)
    out = []
    for name in given:
        found = policy_of(name)
        # A registry's name is that of its first row: low_confidence is greedy.
        row = next(
            (r for r in allowed if plain(r) == plain(name)),
            next((r for r in allowed if found and ROWS[r][0] == found[0]), None),
        )
        if plain(name) in extra:
            row = plain(name)
        if row is None:
            raise UserError(f"{where}: unknown policy {name!r}; {suggestion(name, allowed)}")
        out.append(row)
    return list(dict.fromkeys(out))


def suggestion(name: str, known: Iterable[str] | None = None) -> str:
    """The end of a message about an unknown name; `known` are those there are (None: all)."""
    known = list(dict.fromkeys((*POLICIES, *ROWS) if known is None else known))
    near = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
