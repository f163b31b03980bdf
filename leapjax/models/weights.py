"""The table of a model's weights: one row per parameter.

    table(config) -> shapes, shardings, int8, arrangement, optimiser groups, converters

A family adds the hub's names (`leapjax.models.families`); the rest is common to all.

Shapes: L layers of a run, V vocabulary, D width, F inner width of the MLP, X experts.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from leapjax.models.config import Experts, ModelConfig, Run

EMBEDDING, MATRIX, NORM, BIAS = "embedding", "matrix", "norm", "bias"
EXPERT, ROUTER = "expert", "router"
LOG = "log probability"


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter.

    Attributes:
      name: the leaf in the parameters, such as `embed` or `layers.q`.
      shape: with a leading L where a run's layers are stacked. Matrices are (in, out), `embed`
        and `head` (V, D).
      axes: the logical axis of each dimension (`leapjax.sharding.RULES`), or None.
      role: embedding (and head), matrix, norm, bias, expert (the matrices of a layer's experts),
        router, or log probability (of a Markov chain).
      hub: the hub's name; `{}` stands for the layer's number, a second one for the expert's.
      part: (first row, rows in all) of its place in a tensor of the hub that holds several
        parameters; None if it has a tensor of its own.
      merged: the hub's name of one tensor with a layer's experts, (X, out, in), in checkpoints
        that store them so; "" if there are none.

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
    part: tuple[int, int] | None = None
    merged: str = ""

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
        return self.role in (MATRIX, EXPERT, ROUTER)

    @property
    def quantized(self) -> bool:
        """Whether int8 rounds it (`leapjax.models.quantize`)."""
        return self.role in (MATRIX, EXPERT)

    def hub_name(self, layer: int | None = None, expert: int | None = None) -> str:
        """The hub's name of a layer's tensor, or of one expert's."""
        if layer is None:
            return self.hub
        name = self.hub.replace("{}", str(self.first + layer), 1)
        return name if expert is None else name.replace("{}", str(expert), 1)

    def hub_shape(self) -> tuple[int, ...]:
        """The shape of one layer's tensor on the hub; of experts, of one expert's."""
        skip = self.stacked + (self.role == EXPERT)
        shape = self.shape[skip:]
        shape = shape[::-1] if self.transposed else shape
        return shape if self.part is None else (self.part[1], *shape[1:])


def transformer_weights(config: ModelConfig, hub: Mapping[str, str]) -> tuple[Weight, ...]:
    """The table of a Llama-shaped transformer.

    Args:
      hub: short name -> the hub's name without `.weight` or `.bias`. A bias may have a name of its
        own, complete; `experts_gate_merged` and so on name `Weight.merged`. Where q, k and v have
        the same name, one tensor holds them, in this order.
    """
    c, first, rows = config, 0, []
    widths = {"q": c.n_heads, "k": c.n_kv_heads, "v": c.n_kv_heads}
    starts = dict(zip(widths, (0, c.n_heads, c.n_heads + c.n_kv_heads), strict=True))
    fused = hub["q"] == hub["k"]

    def part(of):
        if not (fused and of in widths):
            return None
        return starts[of] * c.head_dim, sum(widths.values()) * c.head_dim

    def add(name, shape, axes, role, first=0, where=""):
        of = name.removesuffix("_bias")
        suffix = "bias" if role == BIAS else "weight"
        own = hub.get(name) if role == BIAS else None
        called = own or f"{hub[of]}.{suffix}"
        merged = hub.get(f"{name}_merged", "")
        row = Weight(where + name, shape, axes, role, called, first, part(of), merged)
        rows.append(row)

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
    d = c.d_model
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield "attn_norm", (d,), (None,), NORM
    yield "q", (d, q), ("width", "heads"), MATRIX
    yield "k", (d, kv), ("width", "kv_heads"), MATRIX
    yield "v", (d, kv), ("width", "kv_heads"), MATRIX
    yield "o", (q, d), ("heads", "width"), MATRIX
    yield "mlp_norm", (d,), (None,), NORM
    if run.experts is None:
        yield from _mlp(c, run)
    else:
        yield from _experts(c, run.experts)
    if c.qkv_bias:
        yield "q_bias", (q,), ("heads",), BIAS
        yield "k_bias", (kv,), ("kv_heads",), BIAS
        yield "v_bias", (kv,), ("kv_heads",), BIAS
    if c.o_bias or c.linear_bias:
        yield "o_bias", (d,), (None,), BIAS
    if c.norm_bias:
        yield "attn_norm_bias", (d,), (None,), BIAS
        yield "mlp_norm_bias", (d,), (None,), BIAS
    if c.qk_norm:
        yield "q_norm", (c.head_dim,), (None,), NORM
        yield "k_norm", (c.head_dim,), (None,), NORM


def _mlp(c: ModelConfig, run: Run) -> Iterator[tuple]:
    """The rows of a gated MLP."""
    d, f = c.d_model, run.mlp_hidden_size
    yield "gate", (d, f), ("width", "mlp"), MATRIX
    yield "up", (d, f), ("width", "mlp"), MATRIX
    yield "down", (f, d), ("mlp", "width"), MATRIX
    if c.linear_bias:
        yield "gate_bias", (f,), ("mlp",), BIAS
        yield "up_bias", (f,), ("mlp",), BIAS
        yield "down_bias", (d,), (None,), BIAS


def _experts(c: ModelConfig, e: Experts) -> Iterator[tuple]:
    """The rows of a mixture of experts."""
    d, f, shared = c.d_model, e.hidden_size, e.shared_size
    yield "router", (d, e.count), (None, None), ROUTER
    if e.bias:
        yield "router_bias", (e.count,), (None,), BIAS
    yield "experts_gate", (e.count, d, f), ("experts", None, "mlp"), EXPERT
    yield "experts_up", (e.count, d, f), ("experts", None, "mlp"), EXPERT
    yield "experts_down", (e.count, f, d), ("experts", "mlp", None), EXPERT
    if shared:
        yield "shared_gate", (d, shared), ("width", "mlp"), MATRIX
        yield "shared_up", (d, shared), ("width", "mlp"), MATRIX
        yield "shared_down", (shared, d), ("mlp", "width"), MATRIX


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A test whether a tensor's name matches one of the patterns, where `{}` is any number.

    >>> known = matcher(["model.layers.{}.mlp.up_proj.weight"])
    >>> known("model.layers.12.mlp.up_proj.weight"), known("model.layers.x.mlp.up_proj.weight")
    (True, False)
    """
    any_of = re.compile("|".join(re.escape(p).replace(r"\{\}", r"\d+") for p in patterns))
    return lambda name: any_of.fullmatch(name) is not None
