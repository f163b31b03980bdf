"""Tiny random models, for tests of code that decodes.

    config = tiny_config("dream")
    lm = leapjax.LM(tiny_params(config), config, codec=None)

The weights are random but scaled so that confidences spread over (0, 1), as a trained
model's do: thresholds then decide something.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from leapjax.config import OPTIONS, DecodeConfig, check_keys
from leapjax.errors import UserError
from leapjax.models import FAMILIES, ModelConfig, chain, param_shapes
from leapjax.models.attention import Absent, Bidirectional, BlockCausal
from leapjax.models.config import Experts, layer_runs
from leapjax.policies import POLICIES
from leapjax.policies.names import policy_of

# What tiny models of a family have as the real ones do.
_PARTICULAR: dict[str, dict[str, Any]] = {
    "dream": {"n_kv_heads": 2, "qkv_bias": True, "shift_logits": True},
    "a2d": {"n_kv_heads": 2, "qk_norm": True},
    "sdar": {
        "n_kv_heads": 2,
        "qk_norm": True,
        "attention": BlockCausal(4),
        "canvas": "to_border",
        "stop_ids": (-3, -2),  # from the end of the vocabulary
    },
    "sdar_moe": {
        "family": "sdar",
        "n_kv_heads": 2,
        "qk_norm": True,
        "attention": BlockCausal(4),
        "canvas": "to_border",
        "stop_ids": (-3, -2),
    },
    "fast_dllm_v2": {
        "n_kv_heads": 2,
        "qkv_bias": True,
        "shift_logits": True,
        "attention": BlockCausal(8),
        "canvas": "whole_blocks",
        "seeds_blocks": True,
        "sub_block_length": 4,
    },
    "llada_moe": {"qk_norm": True},
    "chain": {
        "d_model": 3,
        **dict.fromkeys(("n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size"), 1),
        **dict.fromkeys(("rope_theta", "norm_eps"), 1.0),
        "head_dim": 2,
        "attention": Absent(),
    },
    "llada2": {
        "n_kv_heads": 2,
        "head_dim": 8,
        "qk_norm": True,
        "rotary_dim": 4,
        "attention": BlockCausal(8),
        "canvas": "overhang",
    },
}
# Their experts, and the number of layers before the first that has some.
_EXPERTS = {
    "sdar_moe": (Experts(count=8, chosen=2, hidden_size=12, normalize=True), 0),
    "llada_moe": (Experts(count=8, chosen=2, hidden_size=12), 0),
    "llada2": (
        Experts(
            count=8,
            chosen=3,
            hidden_size=12,
            shared_size=12,
            score="sigmoid",
            normalize=True,
            scale=2.5,
            bias="selects",
            groups=4,
            top_groups=2,
        ),
        1,
    ),
}
# What goldens call an option or a policy -> leapjax's name, and the options that make it the same.
_GOLDEN_NAMES = {"denoising_steps": "steps_per_block"}
_GOLDEN_POLICIES = {
    "low_confidence_static": ("low_confidence_dynamic", {"threshold": 1.0}),
    "llada2": ("low_confidence_dynamic", {}),
    "llada21": ("joint_threshold", {}),
}


def tiny_config(family: str = "llada", **changes: Any) -> ModelConfig:
    """A model small enough to compile in about a second.

    Its last ids are special: `vocab_size - 1` is the mask; `vocab_size - 2` is both eos and
    pad, as in real checkpoints.

    Args:
      family: name in `leapjax.models.FAMILIES`, or `sdar_moe`. Grouped heads, biases, shifted
        logits, norms of queries and keys, block-causal attention and experts are as in the real
        family.
      **changes: fields of `ModelConfig` to override.

    Returns:
      A ModelConfig.

    Raises:
      UserError: unknown family.
    """
    names = dict.fromkeys([*FAMILIES, *_PARTICULAR])
    if family not in names:
        raise UserError(f"family is {family!r}; choose one of {', '.join(names)}")
    vocab_size = changes.get("vocab_size", 40)
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": vocab_size,
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "head_dim": 4,
        "mlp_hidden_size": 24,
        "rope_theta": 100.0,
        "norm_eps": 1e-5,
        "max_length": 512,
        "mask_token_id": vocab_size - 1,
        "eos_token_id": vocab_size - 2,
        "pad_token_id": vocab_size - 2,
    }
    particular = dict(_PARTICULAR.get(family, {}))
    if "stop_ids" in particular:
        particular["stop_ids"] = tuple(vocab_size + i for i in particular["stop_ids"])
    fields |= particular | changes
    if family in _EXPERTS and "layer_runs" not in changes:
        experts, dense = _EXPERTS[family]
        kinds = [None if layer < dense else experts for layer in range(fields["n_layers"])]
        rule = fields.get("attention", Bidirectional())
        fields["layer_runs"] = layer_runs(kinds, fields["mlp_hidden_size"], rule)
    return ModelConfig(**fields)


def golden_config(model: ModelConfig, options: Mapping[str, Any]) -> DecodeConfig:
    """The decode options that a conformance case names.

    Goldens use leapjax's names (docs/contract.md, Options), and the originals' where these decide
    in other words:

    - `denoising_steps` is `steps_per_block`; a policy without a schedule ignores its passes.
    - `low_confidence_static` is `low_confidence_dynamic` at threshold 1, `llada2` is that rule;
      `llada21` is `joint_threshold`.
    - `block_cache` is `sub_block_cache` with `cache: block`; `eos_early_stop` is `early_stop:
      on_eos`, of `llada21` `block`.
    - `early_stop: true` stops a confidence threshold of Fast-dLLM v2 as the original does, which is
      `settled`.

    Args:
      model: of the checkpoint that the case belongs to.
      options: a case's `options`.

    Returns:
      The options for this model (`DecodeConfig.for_model`).

    Raises:
      UserError: an option that leapjax doesn't know, or an unusable value.

    Example:
      >>> case = {"policy": "localleap", "threshold": 0.8, "gen_length": 32, "early_stop": False}
      >>> golden_config(tiny_config("a2d"), case).threshold
      0.8
      >>> golden_config(tiny_config("sdar"), {"policy": "low_confidence_static"}).threshold
      1.0
    """
    switches = ("block_cache", "eos_early_stop")
    check_keys(options, "options", (*OPTIONS, *_GOLDEN_NAMES, *switches))
    given = {_GOLDEN_NAMES.get(n, n): v for n, v in options.items() if n not in switches}
    if options.keys() >= {"denoising_steps", "steps_per_block"}:
        raise UserError("options: denoising_steps and steps_per_block are the same; remove one")
    name = given.get("policy", OPTIONS["policy"].default)
    name, fixed = _GOLDEN_POLICIES.get(name, (name, {}))
    found = policy_of(name)
    if found and not POLICIES[found[0]].scheduled:
        given = {n: v for n, v in given.items() if n not in ("steps", "steps_per_block")}
    if options.get("block_cache"):
        given |= {"cache": "block", "sub_block_cache": True}
    if options.get("eos_early_stop"):  # LLaDA2.1 stops after a block
        given["early_stop"] = "block" if name == "joint_threshold" else "on_eos"
    elif given.get("early_stop") is True and model.seeds_blocks and name == "confidence_threshold":
        given["early_stop"] = "settled"
    return DecodeConfig(**(given | {"policy": name} | fixed)).for_model(model)


def tiny_params(
    config: ModelConfig, seed: int = 0, *, logit_std: float = 4.0, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """Random weights whose top-1 probabilities spread over (0, 1).

    Args:
      config: the model's shape, from `tiny_config` or any other.
      seed: seed of the weights.
      logit_std: standard deviation of the logits; a larger one makes the model more confident.
      dtype: dtype of every leaf.

    Returns:
      The pytree of `param_shapes(config)`.
    """
    rng = np.random.default_rng(seed)
    shapes = param_shapes(config)
    if not config.has_attention:
        drawn = {n: logit_std / 2 * rng.standard_normal(s) for n, s in shapes.items()}
        return chain.init_params(config, drawn)

    def leaf(name: str, shape: tuple[int, ...]):
        if name.endswith("norm"):
            out = 1 + 0.1 * rng.standard_normal(shape)
        elif name.endswith("bias"):
            out = 0.1 * rng.standard_normal(shape)
        elif name == "embed":
            out = rng.standard_normal(shape) / config.embed_scale
        elif name in ("q", "k"):
            # Peaked attention: the masks of a canvas differ by what they attend to only.
            out = 1.5 * rng.standard_normal(shape) / shape[-2] ** 0.5
        elif name == "head":
            out = rng.standard_normal(shape) / shape[-1] ** 0.5
        else:
            out = 1.2 * rng.standard_normal(shape) / shape[-2] ** 0.5
        if name == "final_norm":
            # The final norm makes the head's input of size sqrt(D) whatever came before.
            size = config.d_model**0.5 if config.tie_embeddings else 1.0
            tied = config.embed_scale if config.tie_embeddings else 1.0
            out = out * logit_std * tied / (size * config.logit_scale)
        return jnp.asarray(out, dtype)

    runs = {
        run.name: {name: leaf(name, shape) for name, shape in shapes[run.name].items()}
        for run in config.runs
    }
    return {k: leaf(k, s) for k, s in shapes.items() if k not in runs} | runs
