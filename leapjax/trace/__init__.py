"""Traces: who committed which token, in which step, how surely; to look at, not to compute with.

    Requests ─▶ collect (each policy decodes them) ─▶ data.Trace ─▶ html, gif, png

`leapjax decode --trace PATH` is the command; docs/traces.md says how to read what it writes.
"""

from leapjax.trace.data import Earlier, Item, Run, Token, Trace
from leapjax.trace.files import check_path, write

__all__ = ["Earlier", "Item", "Run", "Token", "Trace", "check_path", "write"]
