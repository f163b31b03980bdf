"""`Program`: the static structure of a decode as one hashable value."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from leapjax.caches import CACHES, SUB_BLOCK, Cache
from leapjax.config import DecodeConfig
from leapjax.models.config import ModelConfig
from leapjax.policies import POLICIES, Parameter, Policy
from leapjax.policies.parameters import EDITING_THRESHOLD


@dataclasses.dataclass(frozen=True)
class Program:
    """Static structure of a decode; everything else is traced (docs/contract.md, Options).

    Attributes:
      model: the model's shape and special ids.
      gen_length: canvas C, tokens.
      block_length: block W, tokens.
      length: columns T of the padded batch: prompt bucket + canvas.
      guidance: classifier-free guidance is compiled in.
      sampling: noise is compiled in.
      filtering: top-p and top-k are compiled in.
      dtype: compute dtype's name.
      infill: open positions may be anywhere, and no canvas is appended.
      refresh_group: number G of rows that a refresh computes together; 1 without a KV cache.
      static: (name, value) pairs of the policy's static parameters.
      stop_ids: ids that end an answer.
      sub_block_length: policies decide within sub-blocks of this many positions; None is the
        whole block.
      sub_block_cache: passes over the active block reuse its keys and values (Fast-dLLM v2's
        approximation).
      edits: the policy may replace tokens that it committed, and a log of the changes is kept.
    """

    model: ModelConfig
    policy_name: str
    cache: str
    gen_length: int
    block_length: int
    length: int
    guidance: bool
    sampling: bool
    filtering: bool
    eot_token_id: int | None
    dtype: str
    infill: bool = False
    refresh_group: int = 1
    static: tuple[tuple[str, Any], ...] = ()
    stop_ids: tuple[int, ...] = ()
    sub_block_length: int | None = None
    sub_block_cache: bool = False
    edits: bool = False

    @property
    def policy(self) -> Policy:
        """The policy's registry entry."""
        return POLICIES[self.policy_name]

    @property
    def kv_cache(self) -> Cache:
        """The cache's registry entry."""
        return SUB_BLOCK if self.sub_block_cache else CACHES[self.cache]

    @property
    def greedy(self) -> Program:
        """The same program with the simplest proposal: the top-1 token and its probability."""
        return dataclasses.replace(
            self, policy_name="confidence_threshold", static=(), sampling=False
        )

    @property
    def traced(self) -> tuple[Parameter, ...]:
        """The policy's parameters that have a value in each row."""
        off = None if self.edits else EDITING_THRESHOLD.name
        return tuple(p for p in self.policy.parameters if p.traced and p.name != off)

    @property
    def holds_masks(self) -> bool:
        """Whether a position whose top-1 token is the mask may stay open (Dream's schedule)."""
        return self.schedule == "dream"

    @property
    def schedule(self) -> str | None:
        """`even` or `dream` with a fixed schedule, else None."""
        return dict(self.static).get("schedule")

    @property
    def blocks(self) -> int:
        """Number of blocks in the canvas of a bidirectional model."""
        return self.gen_length // self.block_length

    @property
    def compute_dtype(self):
        """The compute dtype as a NumPy dtype."""
        return jnp.dtype(self.dtype)


def program_for(
    config: DecodeConfig,
    model: ModelConfig,
    *,
    length: int,
    dtype: str,
    eot_token_id: int | None,
    infill: bool = False,
    refresh_group: int = 1,
) -> Program:
    """The program that a request with these options needs.

    Args:
      length: columns T of the batch; a block-causal model's are rounded up to whole blocks.
      refresh_group: see `Program`; ignored without a KV cache.

    Raises:
      UserError: the model can't be decoded with these options.
    """
    config = config.for_model(model)
    if model.block_causal:
        model = model.with_block_length(config.block_length)
        length = -(-length // config.block_length) * config.block_length  # whole blocks
    sampling = config.temperature > 0
    parameters = POLICIES[config.policy].parameters
    return Program(
        model=model,
        policy_name=config.policy,
        cache=config.cache,
        gen_length=config.gen_length,
        block_length=config.block_length,
        length=length,
        guidance=config.cfg_scale > 0,
        sampling=sampling,
        filtering=sampling and (config.top_p < 1 or config.top_k is not None),
        eot_token_id=eot_token_id,
        dtype=dtype,
        infill=infill,
        refresh_group=refresh_group if CACHES[config.cache].stores else 1,
        stop_ids=config.stop_ids,
        sub_block_length=config.sub_block_length,
        sub_block_cache=config.sub_block_cache,
        edits=config.edits,
        static=tuple((p.name, config.value(p.name)) for p in parameters if not p.traced),
    )
