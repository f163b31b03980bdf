"""What a model says about options: the defaults that are its own, and the checks that need it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leapjax.caches import CACHES
from leapjax.config import pairs
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.policies.registry import ROWS

if TYPE_CHECKING:
    from leapjax.config.decode import DecodeConfig

BLOCK_LENGTH = 32  # of models whose attention is not block-causal


def filled(values: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """The options of every decode, with the model's own in place of None.

    `values`: values by name, checked; `policy` is the registry's name.
    """
    rules = [run.attention for run in model.runs]
    own: dict[str, Any] = {
        "block_length": model.block_length or BLOCK_LENGTH,
        "cache": pairs.default_cache(values["policy"], rules),
        "stop_ids": model.stop_ids or (model.eos_token_id,),
    }
    if model.sub_block_length is not None:
        block = values["block_length"] or own["block_length"]
        own["sub_block_length"] = min(model.sub_block_length, block)
    return {n: own.get(n) if v is None else v for n, v in values.items()}


def unread(model: ModelConfig) -> str:
    """The schedule's option that a model does not read.

    Rows of a block-causal model have different numbers of blocks, so that its schedules count
    passes per block; the others count passes over the whole canvas.
    """
    return "steps" if model.block_causal else "steps_per_block"


def row_steps(
    values: Mapping[str, Any], own: Mapping[str, Any], row: str, model: ModelConfig
) -> dict[str, int]:
    """The passes that the name of a fixed schedule stands for.

    `values`: the options of every decode, from `filled`; `own`: the policy's parameters that are
    set; `row`: a name in `ROWS`, or "" for a policy's own name, which stands for no number of
    passes. Returns `steps` or `steps_per_block`; nothing where the policy's default says the same.
    """
    if not row:
        return {}
    name, tokens, _ = ROWS[row]
    gen, block = values["gen_length"], values["block_length"]
    if model.block_causal:
        option, passes = "steps_per_block", max(block // tokens, 1)
    else:
        _check_division(gen, block)
        blocks = gen // block
        option, passes = "steps", max(gen // tokens // blocks, 1) * blocks
    for other, meant in ((option, passes), ("schedule", "even")):
        given = own.get(other)
        if given not in (None, meant):
            raise UserError(
                f"{other} is {given}, but policy {row} is {name} with {other} {meant}; "
                f"remove {other} or set policy {name}"
            )
    return {} if tokens == 1 else {option: passes}


def check(c: DecodeConfig, model: ModelConfig) -> None:
    """Check options against a model."""
    if wrong := pairs.refusal(c.cache, c.policy, (run.attention for run in model.runs)):
        raise UserError(wrong)
    if not model.block_causal:
        _check_division(c.gen_length, c.block_length)
    elif model.canvas == "whole_blocks" and c.gen_length < c.block_length:
        raise UserError(
            f"gen_length is {c.gen_length}, less than a block of {c.block_length}, and this model "
            f"generates whole blocks; raise gen_length"
        )
    for token in c.stop_ids:
        if token >= model.vocab_size:
            raise UserError(
                f"stop_ids holds {token}, outside the vocabulary of {model.vocab_size}; remove it"
            )
    _check_sub_blocks(c, model)


def _check_sub_blocks(c: DecodeConfig, model: ModelConfig) -> None:
    for name in ("sub_block_length", "sub_block_cache"):
        if model.sub_block_length is None and getattr(c, name):
            raise UserError(
                f"{name} is {getattr(c, name)}, but the model's blocks have no sub-blocks; "
                f"remove {name}"
            )
    if c.sub_block_length is not None and c.block_length % c.sub_block_length:
        raise UserError(
            f"sub_block_length {c.sub_block_length} does not divide block_length "
            f"{c.block_length}; choose a divisor, such as "
            f"{_nearest_divisor(c.block_length, c.sub_block_length)}"
        )
    if c.sub_block_cache and not (CACHES[c.cache].stores and CACHES[c.cache].exact):
        raise UserError(
            f"sub_block_cache is on, but cache is {c.cache}; set cache block or remove "
            f"sub_block_cache"
        )
    if c.sub_block_cache and c.edits:
        raise UserError(
            f"sub_block_cache is on, but policy {c.policy} replaces tokens of the whole block"
            f"; remove sub_block_cache or choose another policy"
        )


def _check_division(gen: int, block: int) -> None:
    if gen % block:
        raise UserError(
            f"block_length {block} does not divide gen_length {gen}; "
            f"choose a divisor, such as {_nearest_divisor(gen, block)}"
        )


def _nearest_divisor(n: int, wanted: int) -> int:
    divisors = {d for i in range(1, math.isqrt(n) + 1) if n % i == 0 for d in (i, n // i)}
    return min(divisors, key=lambda d: (abs(d - wanted), d))
