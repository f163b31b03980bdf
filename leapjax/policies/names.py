"""What policies are called: the registry's names, and those of tables and of `leapjax evaluate`.

One table for flags, YAML, records, Python, `--policies` and `--trace-policies`. Capitals, dashes,
underscores and spaces make no difference.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from leapjax.errors import UserError
from leapjax.policies import POLICIES

# Name in a table of results -> policy, and for fixed schedules the tokens a step.
ROWS = {
    "greedy": ("low_confidence", 1),
    "schedule-2": ("low_confidence", 2),
    "schedule-4": ("low_confidence", 4),
    "schedule-8": ("low_confidence", 8),
    "threshold": ("confidence_threshold", 0),
    "localleap": ("localleap", 0),
    "factor": ("factor", 0),
    "entropy-bound": ("entropy_bound", 0),
    "hierarchy": ("hierarchy", 0),
    "certainty-prior": ("certainty_prior", 1),
    "position-calibration": ("position_calibration", 1),
    "klass": ("klass", 0),
    "slowfast": ("slowfast", 0),
    "credit": ("credit", 0),
    "wino": ("wino", 0),
    "margin": ("margin", 1),
    "entropy": ("entropy", 1),
    "random": ("random", 1),
    "placebo": ("placebo", 0),
}


def plain(word: str) -> str:
    """A word in lower case, with underscores.

    >>> plain("Entropy-Bound")
    'entropy_bound'
    """
    return re.sub(r"[\s_-]+", "_", word.strip().lower())


def policy_of(name: str) -> tuple[str, int] | None:
    """The policy that a name stands for.

    Args:
      name: as somebody wrote it.

    Returns:
      The registry's name, and the tokens a step that the written name promises (0: it promises
      none); None for an unknown name.

    >>> policy_of("Greedy"), policy_of("entropy-bound"), policy_of("LocalLeap")
    (('low_confidence', 1), ('entropy_bound', 0), ('localleap', 0))
    """
    word = plain(name)
    if word in POLICIES:
        return word, 0
    return next((found for row, found in ROWS.items() if plain(row) == word), None)


def row_names(
    given: Iterable[str], where: str, allowed: Iterable[str] = (*ROWS,), extra: Iterable[str] = ()
) -> list[str]:
    """The names of tables that given names stand for, each once.

    Args:
      given: names of either kind.
      where: shown in the message, such as `--policies`.
      allowed: which names of `ROWS` there are here.
      extra: further words that may stand there.

    Raises:
      UserError: an unknown name.
    """
    allowed, extra = list(allowed), list(extra)
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


def suggestion(name: str, known: Iterable[str] = (*POLICIES, *ROWS)) -> str:
    """The end of a message about an unknown name.

    Args:
      name: as somebody wrote it.
      known: the names there are.
    """
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(plain(name), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
