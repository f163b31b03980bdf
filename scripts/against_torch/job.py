"""One batch to decode, and what came out: the same for leapjax and for its opponents."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Job:
    """A batch of prompts to decode with LocalLeap.

    Attributes:
      prompts: token ids, a tuple a row.
      gen_length: canvas, tokens.
      block_length: block W, tokens.
      threshold: confidence of an anchor.
      relaxed_threshold: confidence that an anchor's neighbour needs.
      radius: how far a neighbour may be, positions.
      max_steps: end each row after so many steps, finished or not; None decodes it all.
    """

    prompts: tuple[tuple[int, ...], ...]
    gen_length: int
    block_length: int
    threshold: float = 0.9
    relaxed_threshold: float = 0.75
    radius: int = 4
    max_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What an implementation made of a job.

    Attributes:
      tokens: each row's canvas; the mask id where the limit on steps left it open.
      steps: each row's steps.
      full_passes: those over the whole sequence.
      iterations: turns of the implementation's loop over the batch.
    """

    tokens: list[list[int]]
    steps: list[int]
    full_passes: list[int]
    iterations: int

    def same(self, other: Decoded) -> bool:
        """Equal tokens, steps and full passes; how often the loop turned may differ."""
        mine = self.tokens, self.steps, self.full_passes
        return mine == (other.tokens, other.steps, other.full_passes)
