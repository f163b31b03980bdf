"""Weights as the operations take them: pytrees whose leaves one backend can read in place.

Shapes: K inputs and N outputs of a matrix, D width, E head width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Any

from flax import struct

# Matrices with the same input, which one product can compute, in the order of concatenation.
GROUPS = {"vkq": ("v", "k", "q"), "gate_up": ("gate", "up")}


class Norm(struct.PyTreeNode):
    """An RMS norm.

    Attributes:
      weight: (D,).
      bias: (D,), or None.
      eps: added to the mean square.
    """

    weight: Any
    bias: Any = None
    eps: float = struct.field(pytree_node=False, default=1e-6)


class Matrices(struct.PyTreeNode):
    """Matrices with the same input, for XLA.

    Attributes:
      weights: (K, N) each, or one concatenation of all. uint16 holds the bits of bfloat16.
      biases: (N,) each, or one concatenation; () for none.
      scales: (N,) float32 each, or one concatenation, for int8 weights; () for none.
      widths: N of each matrix.
      training: use 2-D matmuls at XLA's default precision (`leapjax.ops.xla`).
    """

    weights: tuple[Any, ...]
    biases: tuple[Any, ...] = ()
    scales: tuple[Any, ...] = ()
    widths: tuple[int, ...] = struct.field(pytree_node=False, default=())
    training: bool = struct.field(pytree_node=False, default=False)

    def part(self, start: int, stop: int) -> Matrices:
        """Matrices `start` to `stop`, the last one excluded."""
        if len(self.weights) == len(self.widths):
            own = slice(start, stop)
            cut = [x[own] for x in (self.weights, self.biases, self.scales)]
        else:
            own = slice(sum(self.widths[:start]), sum(self.widths[:stop]))
            cut = [
                tuple(x[..., own] for x in xs) for xs in (self.weights, self.biases, self.scales)
            ]
        return self.replace(
            weights=cut[0], biases=cut[1], scales=cut[2], widths=self.widths[start:stop]
        )


class Head(struct.PyTreeNode):
    """The vocabulary head and the norm before it.

    Attributes:
      norm: the final norm.
      table: (V, D) or a backend's form of it; None uses the embedding.
      pieces: (C, D) views of the table, in order, for `head_summary`; () for none.
      bias: (V,), or None.
      scales: (V,) float32 of an int8 table, or None.
      factor: factor on the logits.
    """

    norm: Norm
    table: Any = None
    pieces: tuple[Any, ...] = ()
    bias: Any = None
    scales: Any = None
    factor: float = struct.field(pytree_node=False, default=1.0)


class Arranged(struct.PyTreeNode):
    """A model's weights as one backend reads them.

    Attributes:
      embed: (V, D) token embeddings.
      runs: runs of equal layers (`Stacked` or `Unrolled`).
      head: the vocabulary head.
      log_frequency: (V,) float32, log of each token's share of a corpus, or None.
      backend: name in `leapjax.ops.arrangement.BACKENDS`.
    """

    embed: Any
    runs: tuple[Any, ...]
    head: Head
    log_frequency: Any = None
    backend: str = struct.field(pytree_node=False, default="xla")
