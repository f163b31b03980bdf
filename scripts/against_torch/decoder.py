"""The decode loop that all PyTorch decoders share; they differ in their passes and their rule.

Rows are independent, ties go to the left and to the lowest id, the mask token is never proposed,
early stop is off (docs/contract.md). So tokens and steps are leapjax's.

Shapes: B rows, T columns (pads, prompt, canvas), R rows of a pass, W block.
"""

import abc
from collections.abc import Iterable

import torch

from against_torch.job import Decoded, Implementation, Job, Rule
from leapjax.models.config import ModelConfig


class Rows:
    """A batch as it is being decoded.

    Attributes:
      tokens: (B, T) int64; pads, prompt, canvas, at the right end of their columns.
      open: (B, T) bool; positions still to be decided.
      block: (B, W) int64; columns of each row's active block.
      positions: (B, T) int64; rotary positions, counted from each row's first token.
      valid: (B, 1, 1, T) bool, False at pads; None where no row has any.
      steps: (B,) int64; passes offered to its policy.
      full_passes: (B,) int64; those over the whole sequence.
      fresh: (B,) bool; the row's block has had no pass yet.
      done: (B,) bool.
      iterations: turns of the loop.
    """

    def __init__(self, job: Job, config: ModelConfig):
        b, longest = len(job.prompts), max(len(p) for p in job.prompts)
        self.tokens = torch.full((b, longest + job.config.gen_length), config.mask_token_id)
        self.tokens[:, :longest] = config.pad_token_id
        for row, prompt in zip(self.tokens, job.prompts, strict=True):
            row[longest - len(prompt) : longest] = torch.tensor(prompt)
        columns = torch.arange(self.tokens.shape[1])
        self.open = (columns >= longest).repeat(b, 1)
        self.block = longest + torch.arange(job.config.block_length).repeat(b, 1)
        real = columns - torch.tensor([[longest - len(p)] for p in job.prompts])
        self.positions = real.clamp(min=0)
        self.valid = None if bool((real >= 0).all()) else (real >= 0)[:, None, None, :]
        self.steps, self.full_passes = torch.zeros((2, b), dtype=torch.int64)
        self.done = torch.zeros(b, dtype=torch.bool)
        self.fresh, self.iterations = ~self.done, 0

    def commit(self, chosen, token, full, limit: int | None) -> None:
        """Commit a pass and go on to the next block where one is complete.

        `chosen`: (B, W) bool, within the open positions of the block; `token`: (B, W) int64,
        proposed; `full`: (B,) bool, the rows that had a pass over the whole sequence; `limit`:
        steps after which a row ends; None for no limit.
        """
        self.tokens.scatter_(1, self.block, torch.where(chosen, token, self.of_block(self.tokens)))
        left = self.of_block(self.open) & ~chosen
        self.open.scatter_(1, self.block, left)
        self.steps += ~self.done
        self.full_passes += full & ~self.done
        self.fresh = ~self.done & ~left.any(1)
        self.done |= self.fresh & (self.block[:, -1] == self.tokens.shape[1] - 1)
        if limit is not None:
            self.done |= self.steps >= limit
        self.block += self.block.shape[1] * (self.fresh & ~self.done)[:, None]
        self.iterations += 1

    def of_block(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, W), the columns of each row's block."""
        return values.gather(1, self.block)

    def decoded(self, job: Job) -> Decoded:
        """What came out."""
        return Decoded(
            self.tokens[:, -job.config.gen_length :].tolist(),
            self.steps.tolist(),
            self.full_passes.tolist(),
            self.iterations,
        )


class Decoder(Implementation):
    """A PyTorch decoder."""

    @abc.abstractmethod
    def begin(self, rows: Rows) -> None:
        """Prepare for a batch."""

    @abc.abstractmethod
    def groups(self, full: torch.Tensor) -> Iterable[torch.Tensor]:
        """With a cache: the (B,) rows that take a full pass, as those (R,) computed together."""

    @abc.abstractmethod
    def full_pass(self, rows: Rows, some: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and confidence of the blocks, (R, W) each, by a pass over whole sequences."""

    @abc.abstractmethod
    def window_pass(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and confidence of the blocks, (B, W) each, by a pass over them alone."""

    @abc.abstractmethod
    def choose(self, confidence, masked, rule: Rule) -> torch.Tensor:
        """LocalLeap's rule on (B, W): which of the masked positions commit."""

    @torch.inference_mode()
    def decode(self, job: Job) -> Decoded:
        """Decode the job's rows."""
        rows = Rows(job, self.config)
        self.begin(rows)
        everybody = torch.arange(len(rows.done))
        while not bool(rows.done.all()):
            token, confidence = rows.of_block(rows.tokens), torch.zeros(rows.block.shape)
            full = ~rows.done
            groups: Iterable[torch.Tensor] = [everybody]  # as published: those done too
            if self.stores:
                full = full & rows.fresh
                groups = self.groups(full) if bool(full.any()) else ()
                if bool((~rows.done & ~full).any()):
                    # Every row's block; what a row that doesn't move writes, nobody reads.
                    token, confidence = self.window_pass(rows)
            for some in groups:
                token[some], confidence[some] = self.full_pass(rows, some)
            masked = rows.of_block(rows.open) & ~rows.done[:, None]
            chosen = self.choose(confidence, masked, job.rule)
            rows.commit(chosen, token, full, job.max_steps)
        return rows.decoded(job)
