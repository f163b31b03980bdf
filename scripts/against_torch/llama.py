"""leapjax's weights in transformers' Llama, whose layers LLaDA shares."""

import jax.numpy as jnp
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig

# leapjax's names of a layer's weights, and transformers'.
LAYER = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def torch_model(params, config: ModelConfig) -> LlamaForCausalLM:
    """Leapjax's weights in transformers' Llama, whose layers LLaDA shares, in float32.

    `params`: the model's pytree, (in, out) matrices with a leading layer axis.
    """
    extras = config.qkv_bias or config.linear_bias or config.head_bias or config.norm_bias
    scales = (config.embed_scale, config.logit_scale)
    if extras or config.shift_logits or scales != (1.0, 1.0):
        raise UserError("the PyTorch opponents know LLaDA-shaped models only")

    def tensor(leaf):
        # A copy: JAX's arrays may not be written to, and torch assumes that its may.
        return torch.from_numpy(np.array(jnp.asarray(leaf), np.float32))

    weights = {
        "model.embed_tokens": tensor(params["embed"]),
        "model.norm": tensor(params["final_norm"]),
    }
    weights["lm_head"] = tensor(params["embed" if config.tie_embeddings else "head"])
    for ours, theirs in LAYER.items():
        for i, leaf in enumerate(tensor(params["layers"][ours])):
            weights[f"model.layers.{i}.{theirs}"] = leaf.t().contiguous()  # (out, in)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
        )
    )
    model.load_state_dict({f"{name}.weight": value for name, value in weights.items()})
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model.eval().requires_grad_(False)
