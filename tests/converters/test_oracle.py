"""A second oracle: transformers' Llama, Qwen2, Qwen3, Qwen3-MoE under our masks, same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax import checkpoint, converters
from leapjax.models import parse_config, transformer
from tests.fuzz.families.qwen import apart

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch is not installed: the second oracle is absent")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

V, T = 160, 21

LLADA_NAMES = {
    "model.embed_tokens.": "model.transformer.wte.",
    "model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "model.layers.": "model.transformer.blocks.",
    ".self_attn.o_proj.": ".attn_out.",
    ".self_attn.": ".",
    ".mlp.gate_proj.": ".ff_proj.",
    ".mlp.up_proj.": ".up_proj.",
    ".mlp.down_proj.": ".ff_out.",
    ".input_layernorm.": ".attn_norm.",
    ".post_attention_layernorm.": ".ff_norm.",
}


def theirs(model, ids, block=T):
    """Logits where a position sees its own block and those before: an additive mask."""
    place = torch.arange(T) // block
    hidden = (place[:, None] < place[None, :]) * torch.finfo(torch.float32).min
    mask = hidden.expand(ids.shape[0], 1, T, T)
    with torch.no_grad():
        return model(torch.tensor(ids), attention_mask=mask).logits.numpy()


def ours(folder, out, ids):
    converters.convert(folder, out)
    config = parse_config(checkpoint.read_config(out))
    params = checkpoint.load_params(out, config)

    @jax.jit
    def forward(ids):
        places = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], ids.shape)
        x = transformer.hidden_states(params, config, ids, places, jnp.ones(ids.shape, bool))
        return transformer.head(params, config, x)

    return np.asarray(forward(jnp.asarray(ids)))


def randomise(model, seed, stored="float32"):
    """Weights large enough that attention and biases matter, and that `stored` holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            noise = 1 + 0.2 * noise if "norm" in name else noise * (0.5 if p.ndim == 1 else 0.15)
            p.copy_(noise.to(getattr(torch, stored)))
    return model.float().eval()


def agree(model, folder, tmp_path, block=T):
    ids = np.random.default_rng(0).integers(0, V, (3, T)).astype(np.int32)
    want = theirs(model, ids, block)
    others = [model(torch.tensor(ids)).logits.detach().numpy()]  # causal
    others += [theirs(model, ids)] if block < T else []
    for other in others:
        assert np.abs(other - want).max() > 0.01 * np.abs(want).max()  # the mask has a say
    for row, ref in zip(ours(folder, tmp_path / "out", ids), want, strict=True):
        assert np.abs(row - ref).max() <= 2e-5 * np.abs(ref).max()


def arrays(model, drop=()):
    return {k: v.numpy() for k, v in model.state_dict().items() if k not in drop}


@pytest.mark.parametrize(
    "heads, kv_heads, bias, tied, theta",
    [(4, 4, False, False, 5e5), (6, 2, True, False, 1e4), (4, 1, False, True, 5e5)],
)
def test_llada_is_a_bidirectional_llama(heads, kv_heads, bias, tied, theta, tmp_path, write_hub):
    width, inner, eps = 16 * heads, 80, 1e-5
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=3,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            attention_bias=bias,
            mlp_bias=bias,
            tie_word_embeddings=tied,
            rope_theta=theta,
            rms_norm_eps=eps,
            attn_implementation="eager",
        )
    )
    randomise(model, heads)
    values = {}
    for name, value in arrays(model, ("lm_head.weight",) if tied else ()).items():
        for old, new in LLADA_NAMES.items():
            name = name.replace(old, new)
        values[name] = value
    if bias:  # Llama's head has none
        values["model.transformer.ff_out.bias"] = np.zeros(V, np.float32)
    raw = {
        "model_type": "llada",
        "vocab_size": V,
        "embedding_size": V,
        "d_model": width,
        "n_layers": 3,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "mlp_hidden_size": inner,
        "rope_theta": theta,
        "rms_norm_eps": eps,
        "weight_tying": tied,
        "include_bias": bias,
        "bias_for_layer_norm": False,
        "layer_norm_type": "rms",
        "block_type": "llama",
        "activation_type": "silu",
        "rope": True,
        "max_sequence_length": 64,
        "mask_token_id": V - 1,
        "eos_token_id": V - 2,
        "pad_token_id": V - 2,
    }
    agree(model, write_hub(tmp_path / "hub", raw, values), tmp_path)


QWEN3 = ("a2d-qwen3", "sdar")
BLOCKS = {"sdar": "block_size", "Fast_dLLM_Qwen": "bd_size"}


@pytest.mark.parametrize(
    "family, heads, kv_heads, tied, block, stored",
    [
        ("Dream", 4, 4, False, T, "float32"),
        ("Dream", 6, 2, False, T, "float32"),
        ("Dream", 4, 1, True, T, "float32"),
        ("a2d-qwen2", 6, 2, False, T, "float32"),
        ("a2d-qwen3", 4, 2, True, T, "float32"),
        ("sdar", 4, 2, False, 4, "float32"),
        ("sdar", 6, 1, True, 8, "bfloat16"),
        ("sdar", 2, 2, False, 3, "bfloat16"),
        ("Fast_dLLM_Qwen", 6, 2, False, 8, "float32"),
        ("Fast_dLLM_Qwen", 4, 1, True, 5, "bfloat16"),
        ("Fast_dLLM_Qwen", 4, 4, True, 16, "float32"),
    ],
)
def test_qwen_under_another_mask(family, heads, kv_heads, tied, block, stored, tmp_path, write_hub):
    sizes = {
        "vocab_size": V,
        "hidden_size": 16 * heads,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
    }
    kind = "Qwen3" if family in QWEN3 else "Qwen2"
    if kind == "Qwen3":
        sizes["head_dim"] = 24
    config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="eager")
    model = randomise(getattr(transformers, f"{kind}ForCausalLM")(config), heads, stored)
    raw = sizes | {
        "model_type": family,
        "mask_token_id": V - 1,
        "eos_token_id": V - 2,
        "pad_token_id": V - 2,
    }
    if family in BLOCKS:
        raw[BLOCKS[family]] = block
    # A tied torch module lists its head twice; here both copies stay, as older files have it.
    values = {k: v.astype(jnp.dtype(stored)) for k, v in arrays(model).items()}
    agree(model, write_hub(tmp_path / "hub", raw, values), tmp_path, block)


@pytest.mark.parametrize(
    "more, kv_heads, tied, block, stored",
    [
        pytest.param({}, 2, False, 4, "float32", marks=pytest.mark.slow),
        ({"norm_topk_prob": False, "decoder_sparse_step": 2}, 1, True, 8, "bfloat16"),
        pytest.param(
            {"mlp_only_layers": [1], "num_experts_per_tok": 1, "attention_bias": True},
            4, False, 5, "float32", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_qwen3_moe_in_blocks(more, kv_heads, tied, block, stored, tmp_path, write_hub):
    raw = {
        "vocab_size": V,
        "hidden_size": 64,
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 24,
        "tie_word_embeddings": tied,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        **more,
    }
    config = transformers.Qwen3MoeConfig(**raw, attn_implementation="eager")
    model = randomise(transformers.Qwen3MoeForCausalLM(config), kv_heads, stored)
    raw |= {
        "model_type": "sdar_moe",
        "block_size": block,
        "mask_token_id": V - 1,
        "eos_token_id": V - 2,
    }
    values = {k: v.astype(jnp.dtype(stored)) for k, v in apart(arrays(model)).items()}
    agree(model, write_hub(tmp_path / "hub", raw, values), tmp_path, block)
