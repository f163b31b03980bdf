"""The shape of a masked diffusion transformer, whatever family it comes from."""

from __future__ import annotations

import dataclasses
import math

from leapjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Static shape and special ids of a model; hashable, so it can be a jit static.

    Attributes:
      family: name in `leapjax.models.FAMILIES`.
      vocab_size: rows V of the embedding table (ids beyond the tokenizer included).
      d_model: width D of the residual stream.
      n_layers: number of blocks L.
      n_heads: query heads H.
      n_kv_heads: key/value heads; divides `n_heads`.
      head_dim: width of one head.
      mlp_hidden_size: inner width F of the gated MLP.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of the RMS norms.
      max_length: longest sequence the model was built for, in tokens.
      mask_token_id: the id that stands for an open position.
      eos_token_id: the id that ends an answer.
      pad_token_id: the id that fills unused slots.
      tie_embeddings: the head is the embedding table.
      qkv_bias: query, key and value projections have a bias.
      linear_bias: the other projections of a block have a bias.
      head_bias: the vocabulary head has a bias.
      norm_bias: the norms have a bias.
      embed_scale: factor on the embeddings.
      logit_scale: factor on the logits.
      shift_logits: position i is predicted by the output at i - 1 (Dream).
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    mlp_hidden_size: int
    rope_theta: float
    norm_eps: float
    max_length: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    tie_embeddings: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    head_bias: bool = False
    norm_bias: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    shift_logits: bool = False

    def __post_init__(self):
        sizes = (
            "vocab_size d_model n_layers n_heads n_kv_heads head_dim mlp_hidden_size max_length"
        ).split()
        for name in (*sizes, "mask_token_id", "eos_token_id", "pad_token_id"):
            if type(value := getattr(self, name)) is not int:
                raise UserError(f"model config: {name} is {value!r}, expected a whole number")
        for name in ("rope_theta", "norm_eps", "embed_scale", "logit_scale"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise UserError(f"model config: {name} is {value!r}, expected a number > 0")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"model config: {name} is {getattr(self, name)}, expected >= 1")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"model config: {self.n_heads} heads can't share {self.n_kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise UserError(
                f"model config: head_dim {self.head_dim} is odd; rotary needs an even one"
            )
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise UserError(
                    f"model config: {name} {getattr(self, name)} is outside the vocabulary "
                    f"of {self.vocab_size}"
                )


def param_shapes(config: ModelConfig) -> dict:
    """Shapes of every parameter, as the pytree that the model's functions take.

    Matrices are stored (in, out), layers stacked along a leading L axis; `embed`
    and `head` are (V, D).

    Args:
      config: the model's shape.

    Returns:
      A nested dict of shape tuples; optional leaves (biases, untied head) are there
      only when the config has them.
    """
    c = config
    n, d, f = c.n_layers, c.d_model, c.mlp_hidden_size
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layers: dict[str, tuple[int, ...]] = {
        "attn_norm": (n, d),
        "q": (n, d, q),
        "k": (n, d, kv),
        "v": (n, d, kv),
        "o": (n, q, d),
        "mlp_norm": (n, d),
        "gate": (n, d, f),
        "up": (n, d, f),
        "down": (n, f, d),
    }
    if c.qkv_bias:
        layers |= {"q_bias": (n, q), "k_bias": (n, kv), "v_bias": (n, kv)}
    if c.linear_bias:
        layers |= {"o_bias": (n, d), "gate_bias": (n, f), "up_bias": (n, f), "down_bias": (n, d)}
    if c.norm_bias:
        layers |= {"attn_norm_bias": (n, d), "mlp_norm_bias": (n, d)}
    tree: dict = {"embed": (c.vocab_size, d), "layers": layers, "final_norm": (d,)}
    if not c.tie_embeddings:
        tree["head"] = (c.vocab_size, d)
    if c.head_bias:
        tree["head_bias"] = (c.vocab_size,)
    if c.norm_bias:
        tree["final_norm_bias"] = (d,)
    return tree


def parameter_count(config: ModelConfig) -> str:
    """How many parameters a model has, as `8.0 B`, `2.6 M` or `900`.

    Args:
      config: the model's shape.
    """
    shapes = param_shapes(config)
    flat = [*shapes.pop("layers").values(), *shapes.values()]
    number = sum(math.prod(shape) for shape in flat)
    for unit, name in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return str(number)
