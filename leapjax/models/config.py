"""The shape of a masked diffusion transformer of any family."""

from __future__ import annotations

import dataclasses

from leapjax.errors import UserError
from leapjax.models.attention import Bidirectional, BlockCausal, Rule

# How many positions a canvas has, for a prompt of P tokens and blocks of B: `gen_length`; the
# fewest that are at least `gen_length` and end on a block's border (SDAR); `gen_length` // B
# blocks, the first of which begins with the P mod B last tokens of the prompt (Fast-dLLM v2).
CANVASES = ("fixed", "to_border", "whole_blocks")


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive equal layers; their parameters are stacked.

    Attributes:
      name: key of the run in the parameters.
      n_layers: number of layers.
      mlp_hidden_size: inner width F of the MLP.
      attention: attention rule.
    """

    name: str
    n_layers: int
    mlp_hidden_size: int
    attention: Rule = Bidirectional()


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
      mask_token_id: the id of an open position.
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
      qk_norm: each head's queries and keys get an RMS norm before RoPE (Qwen3).
      attention: attention rule.
      layer_runs: runs of layers, in order; () if all layers are equal.
      canvas: number of canvas positions behind a prompt, name in `CANVASES`.
      seeds_blocks: a block's first token is the argmax of the pass that stores the block before
        it; no policy decides it (Fast-dLLM v2).
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
    linear_bias: bool = False
    head_bias: bool = False
    norm_bias: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    shift_logits: bool = False
    qk_norm: bool = False
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
    def block_length(self) -> int | None:
        """The block of block-causal attention, in tokens; None for other rules."""
        return self.attention.length if isinstance(self.attention, BlockCausal) else None

    def with_block_length(self, length: int) -> ModelConfig:
        """The same model with another block of its block-causal attention.

        Args:
          length: tokens per block, at least 1.
        """
        rule = BlockCausal(length)
        runs = tuple(dataclasses.replace(run, attention=rule) for run in self.layer_runs)
        return dataclasses.replace(self, attention=rule, layer_runs=runs)

    def canvas_positions(self, prompt: int, gen_length: int, block_length: int) -> int:
        """Positions of the canvas behind a prompt; see `CANVASES`.

        Args:
          prompt: tokens of the prompt.
          gen_length: tokens to generate.
          block_length: tokens per block.
        """
        if self.canvas == "to_border":
            return -(-(prompt + gen_length) // block_length) * block_length - prompt
        if self.canvas == "whole_blocks":
            return gen_length // block_length * block_length - prompt % block_length
        return gen_length

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
