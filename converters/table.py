"""The row of a family's table: source name pattern, target path, transform."""

from __future__ import annotations

import dataclasses
import re

IGNORED = ""
"""Target of tensors that are left out on purpose."""


@dataclasses.dataclass(frozen=True)
class Row:
    """How one kind of tensor is called on the hub, and where it goes.

    Attributes:
      source: name in the checkpoint; `{}` stands for the layer's number.
      target: leaf of `param_shapes` ("layers.q"), or `IGNORED`.
      transpose: stored (out, in) there, (in, out) here.
    """

    source: str
    target: str
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor per layer."""
        return "{}" in self.source

    def name(self, layer: int | None) -> str:
        """The tensor's name, for a layer where the row is stacked."""
        return self.source.replace("{}", str(layer))

    def matches(self, name: str) -> bool:
        """Whether `name` is this row's tensor of some layer."""
        return re.fullmatch(re.escape(self.source).replace(r"\{\}", r"\d+"), name) is not None


def linear(source: str, target: str) -> list[Row]:
    """The two rows of a linear layer: its matrix, and the bias it may have."""
    return [
        Row(f"{source}.weight", target, transpose=True),
        Row(f"{source}.bias", f"{target}_bias"),
    ]


def norm(source: str, target: str) -> list[Row]:
    """The two rows of a norm: its scale, and the bias it may have."""
    return [Row(f"{source}.weight", target), Row(f"{source}.bias", f"{target}_bias")]
