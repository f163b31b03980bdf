"""LLaDA: Llama-shaped, bidirectional; position i is predicted by the output at i.

Source: arXiv 2502.09992 and the hub's `configuration_llada.py` (field names and defaults).
"""

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.keys import Keys

MODEL_TYPES = ("llada",)

# Our name -> the hub's (source: `modeling_llada.py`). `ff_proj` is the gate, the projection that
# goes through the activation.
_BLOCK = "model.transformer.blocks.{}"
HUB = {
    "embed": "model.transformer.wte",
    "attn_norm": f"{_BLOCK}.attn_norm",
    "q": f"{_BLOCK}.q_proj",
    "k": f"{_BLOCK}.k_proj",
    "v": f"{_BLOCK}.v_proj",
    "o": f"{_BLOCK}.attn_out",
    "mlp_norm": f"{_BLOCK}.ff_norm",
    "gate": f"{_BLOCK}.ff_proj",
    "up": f"{_BLOCK}.up_proj",
    "down": f"{_BLOCK}.ff_out",
    "final_norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
}
# A buffer that follows from the config.
IGNORED = (f"{_BLOCK}.rotary_emb.inv_freq",)

# Settings that change the computation and that no released checkpoint uses:
# key -> (supported values, the original's default).
_ONLY = {
    "activation_type": (("silu",), "swiglu"),
    "alibi": ((False, None), False),
    "attention_layer_norm": ((False, None), False),
    "block_group_size": ((1, None), 1),
    "block_type": (("llama",), "sequential"),
    "clip_qkv": ((None,), None),
    "layer_norm_type": (("rms",), "default"),
    "layer_norm_with_affine": ((True,), True),
    "rope": ((True,), False),
}
# Training, initialisation, kernels, storage, and keys that only a refused setting reads.
# rope_full_precision makes no difference in float32.
_HARMLESS = (
    "alibi_bias_max attention_layer_norm_with_affine embedding_dropout flash_attention "
    "init_cutoff_factor init_device init_fn init_std mlp_ratio precision residual_dropout "
    "rope_full_precision train_max_sequence_length"
).split()


def parse(raw: dict) -> ModelConfig:
    """Read LLaDA's `config.json`."""
    keys = Keys(raw, "LLaDA", _HARMLESS)
    keys.only(_ONLY)
    d_model, n_heads = keys.whole("d_model"), keys.whole("n_heads")
    if d_model % n_heads:
        raise UserError(
            f"config.json: n_heads {n_heads} (config key n_heads) does not divide d_model {d_model}"
        )
    n_kv_heads = keys.whole("n_kv_heads", None, null=True)
    one_kv_head = keys.flag("multi_query_attention", False)
    if raw.get("multi_query_attention") is not None:
        shared = 1 if one_kv_head else n_heads
        if n_kv_heads not in (None, shared):
            keys.refuse("n_kv_heads", n_kv_heads, f"{shared}, as multi_query_attention says")
        n_kv_heads = shared
    tied = keys.flag("weight_tying", True)
    keys.only({"tie_word_embeddings": ((tied, None), None)})
    bias, norm_bias = keys.flag("include_bias", False), keys.flag("bias_for_layer_norm", False)
    if raw.get("bias_for_layer_norm") is None:
        norm_bias = bias
    rows = keys.whole("embedding_size", None, null=True)
    vocabulary = keys.whole("vocab_size") if rows is None else keys.whole("vocab_size", rows)
    if rows is not None and rows < vocabulary:
        keys.refuse("embedding_size", rows, f"at least vocab_size, {vocabulary}")
    inner = keys.whole("mlp_hidden_size", None, null=True)
    if inner is None:
        inner = (ratio := keys.real("mlp_ratio", 4)) * d_model
        if inner != int(inner):
            keys.refuse("mlp_ratio", ratio, f"a whole number when multiplied by d_model, {d_model}")
    eos, pad = (
        keys.whole("eos_token_id", least=0),
        keys.whole("pad_token_id", None, null=True, least=0),
    )
    qkv_bias = keys.flag("include_qkv_bias", False)
    config = ModelConfig(
        family="llada",
        vocab_size=rows or vocabulary,
        d_model=d_model,
        n_layers=keys.whole("n_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads or n_heads,
        head_dim=d_model // n_heads,
        mlp_hidden_size=int(inner),
        rope_theta=keys.rope_theta(10000.0),
        norm_eps=keys.real("rms_norm_eps", 1e-5),
        max_length=keys.whole("max_sequence_length", 1024),
        mask_token_id=keys.whole("mask_token_id", least=0),
        eos_token_id=eos,
        pad_token_id=eos if pad is None else pad,
        tie_embeddings=tied,
        qkv_bias=bias or qkv_bias,
        linear_bias=bias,
        head_bias=bias and not tied,
        norm_bias=norm_bias,
        embed_scale=d_model**0.5 if keys.flag("input_emb_norm", False) else 1.0,
        logit_scale=d_model**-0.5 if keys.flag("scale_logits", False) else 1.0,
    )
    keys.done()
    return config
