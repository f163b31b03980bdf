"""The table of a model's weights: one row per parameter.

    table(config) -> shapes, shardings, int8, arrangement, optimiser groups, converters

A family adds the hub's names (`leapjax.models.families`); the rest is common to all.

Shapes: L layers of a run, V vocabulary, D width, F inner width of the MLP.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from leapjax.models.config import ModelConfig, Run

EMBEDDING, MATRIX, NORM, BIAS = "embedding", "matrix", "norm", "bias"


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
      name: the leaf in the parameters, such as `embed` or `layers.q`.
      shape: with a leading L where a run's layers are stacked. Matrices are (in, out), `embed`
        and `head` (V, D).
      axes: the logical axis of each dimension (`leapjax.sharding.RULES`), or None.
      role: embedding (and head), matrix, norm or bias.
      hub: the hub's name; `{}` stands for the layer's number.
      first: number of the run's first layer.

    >>> axes = (None, "width", "mlp")
    >>> up = Weight("layers.up", (4, 16, 64), axes, MATRIX, "model.layers.{}.mlp.up_proj.weight")
    >>> up.hub_name(2), up.hub_shape()
    ('model.layers.2.mlp.up_proj.weight', (64, 16))
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    role: str
    hub: str
    first: int = 0

    @property
    def stacked(self) -> bool:
        """Whether each layer has one."""
        return "." in self.name

    @property
    def short(self) -> str:
        """The name within its layer, `q` of `layers.q`."""
        return self.name.rpartition(".")[2]

    @property
    def transposed(self) -> bool:
        """Whether the hub stores it as (out, in), the transpose of ours."""
        return self.role == MATRIX

    def hub_name(self, layer: int | None = None) -> str:
        """The hub's name of a layer's tensor.

        Args:
          layer: number within the run; None for a weight outside the layers.
        """
        return self.hub if layer is None else self.hub.replace("{}", str(self.first + layer))

    def hub_shape(self) -> tuple[int, ...]:
        """The shape of one layer's tensor on the hub."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def transformer_weights(config: ModelConfig, hub: Mapping[str, str]) -> tuple[Weight, ...]:
    """The table of a Llama-shaped transformer.

    Args:
      config: its shape.
      hub: short name -> the hub's name without `.weight` or `.bias`.
    """
    c, first, rows = config, 0, []

    def add(name, shape, axes, role, first=0, where=""):
        of = name.removesuffix("_bias")
        suffix = "bias" if role == BIAS else "weight"
        rows.append(Weight(where + name, shape, axes, role, f"{hub[of]}.{suffix}", first))

    add("embed", (c.vocab_size, c.d_model), ("vocabulary", "width"), EMBEDDING)
    for run in c.runs:
        for name, shape, axes, role in _layer(c, run):
            stacked, unsplit = (run.n_layers, *shape), (None, *axes)
            add(name, stacked, unsplit, role, first, f"{run.name}.")
        first += run.n_layers
    add("final_norm", (c.d_model,), (None,), NORM)
    if not c.tie_embeddings:
        add("head", (c.vocab_size, c.d_model), ("vocabulary", "width"), EMBEDDING)
    if c.head_bias:
        add("head_bias", (c.vocab_size,), ("vocabulary",), BIAS)
    if c.norm_bias:
        add("final_norm_bias", (c.d_model,), (None,), BIAS)
    return tuple(rows)


def _layer(c: ModelConfig, run: Run) -> Iterator[tuple]:
    """(short name, shape, logical axes, role) of one layer's weights."""
    d, f = c.d_model, run.mlp_hidden_size
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield "attn_norm", (d,), (None,), NORM
    yield "q", (d, q), ("width", "heads"), MATRIX
    yield "k", (d, kv), ("width", "kv_heads"), MATRIX
    yield "v", (d, kv), ("width", "kv_heads"), MATRIX
    yield "o", (q, d), ("heads", "width"), MATRIX
    yield "mlp_norm", (d,), (None,), NORM
    yield "gate", (d, f), ("width", "mlp"), MATRIX
    yield "up", (d, f), ("width", "mlp"), MATRIX
    yield "down", (f, d), ("mlp", "width"), MATRIX
    if c.qkv_bias:
        yield "q_bias", (q,), ("heads",), BIAS
        yield "k_bias", (kv,), ("kv_heads",), BIAS
        yield "v_bias", (kv,), ("kv_heads",), BIAS
    if c.linear_bias:
        yield "o_bias", (d,), (None,), BIAS
        yield "gate_bias", (f,), ("mlp",), BIAS
        yield "up_bias", (f,), ("mlp",), BIAS
        yield "down_bias", (d,), (None,), BIAS
    if c.norm_bias:
        yield "attn_norm_bias", (d,), (None,), BIAS
        yield "mlp_norm_bias", (d,), (None,), BIAS
    if c.qk_norm:
        yield "q_norm", (c.head_dim,), (None,), NORM
        yield "k_norm", (c.head_dim,), (None,), NORM


def matches(pattern: str, name: str) -> bool:
    """Whether a tensor's name matches the pattern, where `{}` is any layer's number.

    >>> matches("model.layers.{}.mlp.up_proj.weight", "model.layers.12.mlp.up_proj.weight")
    True
    """
    return re.fullmatch(re.escape(pattern).replace(r"\{\}", r"\d+"), name) is not None
