"""Parameters that several policies share, and their checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leapjax.errors import UserError
from leapjax.policies.base import Parameter

if TYPE_CHECKING:
    from leapjax.config import DecodeConfig


def _check_schedule(c: DecodeConfig) -> None:
    if c.model is None:
        return
    if c.model.block_causal:
        _check_block_schedule(c)
        return
    if c.value("schedule") == "dream" and c.block_length != c.gen_length:
        raise UserError(
            f"schedule dream runs over the whole canvas; set block_length to gen_length "
            f"({c.gen_length}), not {c.block_length}"
        )
    if c.value("steps") % c.blocks:
        raise UserError(
            f"steps {c.value('steps')} is not a multiple of the {c.blocks} blocks "
            f"(gen_length {c.gen_length} / block_length {c.block_length})"
        )
    if c.steps_per_block is not None:
        raise UserError(
            f"steps_per_block is {c.steps_per_block}, but the model is not block-causal; set "
            f"steps, the passes over the whole canvas"
        )


def _check_block_schedule(c: DecodeConfig) -> None:
    """Rows of a block-causal model have different numbers of blocks."""
    if c.steps is not None:
        raise UserError(
            f"steps is {c.steps}, but the model is block-causal, so that rows have different "
            f"numbers of blocks; set steps_per_block (default: block_length {c.block_length})"
        )
    if c.value("schedule") == "dream":
        raise UserError(
            "schedule is dream, which runs over the whole canvas, but the model is block-causal; "
            "remove schedule and set steps_per_block"
        )


def _check_editing(c: DecodeConfig) -> None:
    """What does not go with editing; and its own options without it."""
    if c.value("editing_threshold") is None:
        if c.max_post_steps is not None:
            raise UserError(
                f"max_post_steps is {c.max_post_steps}, but nothing is edited; set "
                f"editing_threshold or remove max_post_steps"
            )
    elif c.early_stop in ("settled", "on_eos"):
        raise UserError(
            f"early_stop is {c.early_stop}, but with editing_threshold an eos of an unfinished "
            f"block may change; set early_stop block or off"
        )


THRESHOLD = Parameter(
    "threshold", float, "confidence that makes an anchor, 0 to 1", 0.9, low=0, high=1
)
RELAXED_THRESHOLD = Parameter(
    "relaxed_threshold",
    float,
    "confidence that an anchor's neighbour needs, at most threshold",
    0.75,
    low=0,
    high=1,
    at_most="threshold",
)
RADIUS = Parameter("radius", int, "how far an anchor reaches, in positions", 4, low=0)
STEPS = Parameter(
    "steps",
    int,
    "passes of a fixed schedule over the whole canvas",
    follows="gen_length",
    low=1,
    check=_check_schedule,
)
STEPS_PER_BLOCK = Parameter(
    "steps_per_block",
    int,
    "passes of a fixed schedule over a block, for block-causal models",
    follows="block_length",
    low=1,
)
SCHEDULE = Parameter(
    "schedule",
    str,
    "how a fixed schedule spreads the commits over its passes",
    "even",
    choices=("even", "dream"),
    traced=False,
)

EDITING_THRESHOLD = Parameter(
    "editing_threshold",
    float,
    "confidence above which another token replaces a committed one of the block",
    low=0,
    high=1,
    check=_check_editing,
)
MAX_POST_STEPS = Parameter(
    "max_post_steps",
    int,
    "with editing: maximum number of passes over a block after its last mask is gone",
    16,
    low=0,
    high=1024,
    traced=False,
)
# The parameters of a policy with a fixed schedule (`info.quota`).
SCHEDULED = (STEPS, STEPS_PER_BLOCK, SCHEDULE)
