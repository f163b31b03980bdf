"""The least that a forward pass has to multiply, and has to read or write.

    matrices    2 FLOPs a weight and computed position, in every layer; in a pass over the whole
                sequence the last layer's query, output and MLP on the window only, because only
                the window's outputs are read (its keys and values may be cached, so they count)
    attention   4 T FLOPs a query and unit of width, for scores and mixing
    head        2 D V FLOPs a position of the window
    bytes       the weights of layers and head once a pass, however many rows; with a KV cache
                also its keys and values: written by a full pass, read by a pass over the window

Embeddings, norms, softmaxes, logits and other activations are left out. `leapjax plan` and the
floor of `leapjax benchmark` (docs/performance.md) are computed from these counts.

Shapes: B rows, T columns, W window, V vocabulary, L layers, D width.
"""

from __future__ import annotations

import dataclasses

from leapjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done at least.

    Attributes:
      flops: multiplications and additions of matrix products.
      bytes: to and from memory.
    """

    flops: float
    bytes: float


def _per_position(config: ModelConfig) -> tuple[int, int]:
    """Weights of one layer: of keys and values, and of all the rest."""
    d, e = config.d_model, config.head_dim
    keys_values = 2 * d * config.n_kv_heads * e
    rest = 2 * d * config.n_heads * e + 3 * d * config.mlp_hidden_size
    return keys_values, rest


def _bytes(config: ModelConfig, rows: float, columns: int, item: int) -> float:
    """Bytes of the weights, and of the keys and values of `rows` cached rows."""
    weights = config.n_layers * sum(_per_position(config)) + config.vocab_size * config.d_model
    kept = 2 * config.n_layers * columns * config.n_kv_heads * config.head_dim
    return item * (weights + rows * kept)


def full_pass(
    config: ModelConfig, rows: float, columns: int, window: int, cached: bool, item: int = 4
) -> Work:
    """A pass over whole sequences that computes the logits of a window.

    Args:
      config: the model's shape.
      rows: B.
      columns: T, pads not counted.
      window: W.
      cached: keys and values are kept.
      item: bytes a number.
    """
    flops = sum(full_pass_flops(config, rows, columns, window).values())
    return Work(flops, _bytes(config, rows if cached else 0, columns, item))


def full_pass_flops(
    config: ModelConfig, rows: float, columns: int, window: int
) -> dict[str, float]:
    """FLOPs of a pass over whole sequences by what they are for; arguments as for `full_pass`.

    Returns:
      `matrices`, `attention` and `head`.
    """
    keys_values, rest = _per_position(config)
    attention = 4 * columns * config.n_heads * config.head_dim
    before = (config.n_layers - 1) * columns  # positions of all layers but the last
    return {
        "matrices": rows * 2 * ((before + columns) * keys_values + (before + window) * rest),
        "attention": rows * (before + window) * attention,
        "head": rows * window * 2 * config.d_model * config.vocab_size,
    }


def window_pass(config: ModelConfig, rows: float, columns: int, window: int, item: int = 4) -> Work:
    """A pass over a window of each row against a KV cache; arguments as for `full_pass`."""
    flops = sum(window_pass_flops(config, rows, columns, window).values())
    return Work(flops, _bytes(config, rows, columns, item))


def window_pass_flops(
    config: ModelConfig, rows: float, columns: int, window: int
) -> dict[str, float]:
    """FLOPs of a pass over windows by what they are for, as `full_pass_flops` has them."""
    positions = rows * window
    return {
        "matrices": positions * config.n_layers * 2 * sum(_per_position(config)),
        "attention": positions * config.n_layers * 4 * columns * config.n_heads * config.head_dim,
        "head": positions * 2 * config.d_model * config.vocab_size,
    }
