"""Where a row's tokens lie in its T columns.

Rows of bidirectional models are right-aligned: pads, prompt, canvas. Rows of block-causal models
are left-aligned, so that a column is a position: a block begins at a multiple of its length, equal
prefixes lie in equal columns, and pads on the right are never attended.

    bidirectional   | pads | prompt | canvas |        block-causal   | prompt | canvas | pads |
"""

from typing import NamedTuple

from leapjax.decoding.program import Program
from leapjax.types import Request


class Layout(NamedTuple):
    """Columns of one row."""

    first: int  # the first token
    origin: int  # canvas position 0, from which noise and output ids count; `first` when infilling
    end: int  # past the last position


def layout(request: Request, program: Program) -> Layout:
    """The columns of a request's row.

    >>> from leapjax.decoding import program_for
    >>> from leapjax.testing import tiny_config
    >>> from leapjax import DecodeConfig
    >>> config, request = DecodeConfig(gen_length=16, block_length=8), Request("a", (5, 6, 7), None)
    >>> shape = dict(length=48, dtype="float32", eot_token_id=None)
    >>> layout(request, program_for(config, tiny_config(), **shape))
    Layout(first=29, origin=32, end=48)
    """
    n, columns = len(request.ids), program.length
    if not program.model.block_causal:
        start = columns - n - (0 if request.infill else program.gen_length)
        return Layout(start, start if request.infill else start + n, columns)
    if request.infill:
        return Layout(0, 0, n)
    return Layout(0, n, n + canvas_positions(n, program))


def canvas_positions(prompt: int, program: Program) -> int:
    """Positions of the canvas behind a prompt of so many tokens (`models.config.CANVASES`)."""
    return program.model.canvas_positions(prompt, program.gen_length, program.block_length)
