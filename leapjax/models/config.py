"""The shape of a model of any family: a masked diffusion transformer, or a Markov chain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from leapjax.errors import UserError
from leapjax.models.attention import Absent, Bidirectional, BlockCausal, Rule

# How many positions a canvas has, for a prompt of P tokens and blocks of B: `gen_length`; the
# fewest that are at least `gen_length` and end on a block's border (SDAR); `gen_length` // B
# blocks, the first of which begins with the P mod B last tokens of the prompt (Fast-dLLM v2); as
# "to_border", but the answer is cut to `gen_length` (LLaDA2).
CANVASES = ("fixed", "to_border", "whole_blocks", "overhang")


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of a layer's MLP.

    Attributes:
      count: experts X.
      chosen: experts k that a token uses.
      hidden_size: inner width of one expert.
      shared_size: inner width of the experts that every token uses, together; 0 for none.
      score: how the router's logits become scores: "softmax" or "sigmoid".
      normalize: the weights of the chosen experts are divided by their sum.
      scale: factor on the weights.
      bias: the router has a bias on the scores, which takes part in the choice ("selects"), or in
        the weights too ("weighs"); "" for none.
      groups: equal groups of consecutive experts.
      top_groups: groups that a token may choose from. A group's score is the sum of its two
        largest biased scores.
    """

    count: int
    chosen: int
    hidden_size: int
    shared_size: int = 0
    score: str = "softmax"
    normalize: bool = False
    scale: float = 1.0
    bias: str = ""
    groups: int = 1
    top_groups: int = 1

    def __post_init__(self):
        if not 1 <= self.chosen <= self.count:
            raise UserError(
                f"model config: {self.chosen} experts a token, but there are {self.count}"
            )
        if self.count % self.groups or not 1 <= self.top_groups <= self.groups:
            raise UserError(
                f"model config: {self.count} experts in {self.groups} groups, of which a token "
                f"chooses {self.top_groups}: groups are equal, and it chooses at most all"
            )
        if self.groups > 1 and self.count == self.groups:
            raise UserError("model config: a group of experts has at least two")
        if self.chosen > self.count // self.groups * self.top_groups:
            raise UserError(
                f"model config: {self.chosen} experts a token, but {self.top_groups} groups have "
                f"{self.count // self.groups * self.top_groups}"
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive equal layers; their parameters are stacked.

    Attributes:
      name: key of the run in the parameters.
      mlp_hidden_size: inner width F of the MLP.
    """

    name: str
    n_layers: int
    mlp_hidden_size: int
    attention: Rule = Bidirectional()
    experts: Experts | None = None


def layer_runs(
    kinds: Sequence[Experts | None], mlp_hidden_size: int, attention: Rule
) -> tuple[Run, ...]:
    """Runs of equal neighbours.

    Args:
      kinds: for each layer, its experts, or None for an MLP.

    >>> runs = layer_runs([None, Experts(8, 2, 16), Experts(8, 2, 16)], 64, Bidirectional())
    >>> [(run.name, run.n_layers) for run in runs]
    [('layers_0', 1), ('layers_1', 2)]
    """
    parts = [(kind, len([*same])) for kind, same in itertools.groupby(kinds)]
    names = ["layers"] if len(parts) == 1 else [f"layers_{i}" for i in range(len(parts))]
    return tuple(
        Run(name, size, mlp_hidden_size, attention, kind)
        for name, (kind, size) in zip(names, parts, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Static shape and special ids of a model; hashable, so it can be a jit static.

    Attributes:
      family: name in `leapjax.models.FAMILIES`.
      vocab_size: rows V of the embedding table (ids beyond the tokenizer included).
      d_model: width D of the residual stream; for a hidden Markov chain, its number of states S.
      n_layers: number of blocks L.
      n_heads: query heads H.
      n_kv_heads: key/value heads; divides `n_heads`.
      head_dim: width of one head.
      mlp_hidden_size: inner width F of the gated MLP.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of the RMS norms.
      max_length: longest sequence the model was built for, in tokens.
      mask_token_id: the id of an open position.
      pad_token_id: the id that fills unused slots.
      tie_embeddings: the head is the embedding table.
      qkv_bias: query, key and value projections have a bias.
      o_bias: the output projection of attention has a bias.
      linear_bias: the projections of the MLP and attention's output projection have a bias.
      head_bias: the vocabulary head has a bias.
      norm_bias: the norms have a bias.
      embed_scale: factor on the embeddings.
      logit_scale: factor on the logits.
      shift_logits: position i is predicted by the output at i - 1 (Dream).
      qk_norm: each head's queries and keys get an RMS norm before RoPE (Qwen3).
      rotary_dim: leading dimensions of a head that RoPE rotates; None is all. With an odd
        number, one more is rotated, as in the original code.
      clip_qkv: queries, keys and values are clamped to +- this before RoPE; None is no limit.
      attention: attention rule.
      layer_runs: runs of layers, in order; () if all layers are equal.
      canvas: rule for the number of canvas positions after a prompt, a name in `CANVASES`.
      seeds_blocks: no policy decides a block's first token: it is the argmax of the pass that
        stores the previous block (Fast-dLLM v2).
      sub_block_length: policies decide within sub-blocks of this many positions; None is the
        whole block.
      stop_ids: ids that end an answer; () is `eos_token_id` alone.
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
    o_bias: bool = False
    linear_bias: bool = False
    head_bias: bool = False
    norm_bias: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    shift_logits: bool = False
    qk_norm: bool = False
    rotary_dim: int | None = None
    clip_qkv: float | None = None
    attention: Rule = Bidirectional()
    layer_runs: tuple[Run, ...] = ()
    canvas: str = "fixed"
    seeds_blocks: bool = False
    sub_block_length: int | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def block_causal(self) -> bool:
        """Whether attention is block-causal, so that finished blocks are final."""
        return isinstance(self.attention, BlockCausal)

    @property
    def has_attention(self) -> bool:
        """Whether the model is a transformer; a hidden Markov chain has no layers."""
        return not isinstance(self.attention, Absent)

    @property
    def block_length(self) -> int | None:
        """Block length of block-causal attention, in tokens; None for other attention rules."""
        return self.attention.length if isinstance(self.attention, BlockCausal) else None

    def with_block_length(self, length: int) -> ModelConfig:
        """The same model with another block length of its block-causal attention, at least 1."""
        rule = BlockCausal(length)
        runs = tuple(dataclasses.replace(run, attention=rule) for run in self.layer_runs)
        return dataclasses.replace(self, attention=rule, layer_runs=runs)

    def canvas_positions(self, prompt: int, gen_length: int, block_length: int) -> int:
        """Number of canvas positions after a prompt of `prompt` tokens; see `CANVASES`.

        All of them are decoded. With "overhang", the answer is cut to `gen_length`.
        """
        if self.canvas in ("to_border", "overhang"):
            return -(-(prompt + gen_length) // block_length) * block_length - prompt
        if self.canvas == "whole_blocks":
            return gen_length // block_length * block_length - prompt % block_length
        return gen_length

    @property
    def rotated(self) -> int:
        """Leading dimensions of a head that RoPE rotates."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def runs(self) -> tuple[Run, ...]:
        """Runs of equal layers, in order."""
        equal = Run("layers", self.n_layers, self.mlp_hidden_size, self.attention)
        return self.layer_runs or (equal,)

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
        if not 0 <= self.rotated <= self.head_dim:
            raise UserError(
                f"model config: rotary_dim {self.rotary_dim} is outside a head of {self.head_dim}"
            )
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise UserError(
                    f"model config: {name} {getattr(self, name)} is outside the vocabulary "
                    f"of {self.vocab_size}"
                )
        if self.canvas not in CANVASES:
            raise UserError(f"model config: canvas is {self.canvas!r}; expected one of {CANVASES}")
        for token in self.stop_ids:
            if not 0 <= token < self.vocab_size:
                raise UserError(
                    f"model config: stop id {token} is outside the vocabulary of {self.vocab_size}"
                )
        if sum(run.n_layers for run in self.runs) != self.n_layers:
            raise UserError(f"model config: layer_runs don't add up to {self.n_layers} layers")
