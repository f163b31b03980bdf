"""Qwen2's, Qwen3's and Qwen3-MoE's layout and keys, which several families share."""

from collections.abc import Sequence
from typing import Any

from leapjax.errors import UserError
from leapjax.models.config import Experts
from leapjax.models.keys import Keys

_LAYER = "model.layers.{}"
HUB = {
    "embed": "model.embed_tokens",
    "attn_norm": f"{_LAYER}.input_layernorm",
    "q": f"{_LAYER}.self_attn.q_proj",
    "k": f"{_LAYER}.self_attn.k_proj",
    "v": f"{_LAYER}.self_attn.v_proj",
    "o": f"{_LAYER}.self_attn.o_proj",
    "q_norm": f"{_LAYER}.self_attn.q_norm",
    "k_norm": f"{_LAYER}.self_attn.k_norm",
    "mlp_norm": f"{_LAYER}.post_attention_layernorm",
    "gate": f"{_LAYER}.mlp.gate_proj",
    "up": f"{_LAYER}.mlp.up_proj",
    "down": f"{_LAYER}.mlp.down_proj",
    # Of Qwen3-MoE.
    "router": f"{_LAYER}.mlp.gate",
    "experts_gate": f"{_LAYER}.mlp.experts.{{}}.gate_proj",
    "experts_up": f"{_LAYER}.mlp.experts.{{}}.up_proj",
    "experts_down": f"{_LAYER}.mlp.experts.{{}}.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
# Buffers that the config determines; older files carry them.
IGNORED = ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")

_MOST_LAYERS = 10_000


def shape(keys: Keys, **own: Any) -> dict[str, Any]:
    """The fields of `ModelConfig` that every Qwen-shaped config.json gives, without `head_dim`.

    `own` are fields whose keys or defaults are the family's own.
    """
    n_heads = keys.whole("num_attention_heads")
    pad = keys.whole("pad_token_id", None, null=True, least=0)
    fields = {
        "vocab_size": lambda: keys.whole("vocab_size"),
        "d_model": lambda: keys.whole("hidden_size"),
        "n_layers": lambda: keys.whole("num_hidden_layers"),
        "n_kv_heads": lambda: keys.whole("num_key_value_heads", None, null=True) or n_heads,
        "mlp_hidden_size": lambda: keys.whole("intermediate_size"),
        "rope_theta": lambda: keys.rope_theta(10000.0),
        "norm_eps": lambda: keys.real("rms_norm_eps", 1e-6),
        "max_length": lambda: keys.whole("max_position_embeddings", 32768),
        "mask_token_id": lambda: keys.whole("mask_token_id", least=0),
        "eos_token_id": lambda: keys.whole("eos_token_id", least=0),
        "tie_embeddings": lambda: keys.flag("tie_word_embeddings", False),
    }
    out = {name: own[name] if name in own else read() for name, read in fields.items()}
    return out | {"n_heads": n_heads, "pad_token_id": out["eos_token_id"] if pad is None else pad}


def layer_count(keys: Keys) -> int:
    """The number of layers, where each may be of its own kind: few enough to list them."""
    number = keys.whole("num_hidden_layers")
    if number > _MOST_LAYERS:
        keys.refuse("num_hidden_layers", number, f"at most {_MOST_LAYERS}")
    return number


def chosen_experts(keys: Keys, available: int, *default: int) -> int:
    """The number of experts that a token uses, `num_experts_per_tok`, of those available.

    Without `default` the key is required.
    """
    chosen = keys.whole(name := "num_experts_per_tok", *default)
    if chosen > available:
        keys.refuse(name, chosen, f"at most {available}, the experts that a token chooses from")
    return chosen


def mlp_width(keys: Keys, name: str, kinds: Sequence[Experts | None]) -> int:
    """The inner width of the MLPs; where every layer has experts, the key may say anything.

    `kinds` has the experts of each layer, or None for an MLP.
    """
    widths = [experts.hidden_size for experts in kinds if experts is not None]
    if len(widths) < len(kinds):
        return keys.whole(name)
    keys.ignore(name)
    return widths[0]


def head_width(shape: dict[str, Any]) -> int:
    """The width of a head where config.json has no `head_dim`; it has to be a whole number."""
    width, rest = divmod(shape["d_model"], shape["n_heads"])
    if rest:
        raise UserError(
            f"config.json: num_attention_heads {shape['n_heads']} does not divide hidden_size "
            f"{shape['d_model']}"
        )
    return width
