"""TPU chips and slices: what they have, and what XLA calls them.

Figures are per chip, from Google Cloud's documentation, read in November 2026:
https://docs.cloud.google.com/tpu/docs/v5e (v5e), https://docs.cloud.google.com/tpu/docs/tpu7x
(v5p, v6e and 7x in one table). Interconnect bandwidth there is bidirectional; half of it goes
out.
"""

from __future__ import annotations

import dataclasses
import math
import re

from leapjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as in `--topology`.
      xla: as the compiler's topologies are called.
      flops: peak bfloat16 FLOP/s.
      hbm: bytes of memory.
      bandwidth: bytes/s of memory.
      interconnect: bytes/s that a chip sends to all its neighbours together.
      dimensions: of its slices' shapes.
      devices: JAX devices a chip.
    """

    name: str
    xla: str
    flops: float
    hbm: float
    bandwidth: float
    interconnect: float
    dimensions: int
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e", 197e12, 16e9, 819e9, 200e9, 2),
        Chip("v5p", "v5p", 459e12, 95 * 2**30, 2765e9, 600e9, 3),
        Chip("v6e", "v6e", 918e12, 32 * 2**30, 1638e9, 400e9, 2),
        Chip("7x", "tpu7x", 2307e12, 192 * 2**30, 7380e9, 600e9, 3, devices=2),
    )
}

# Slices to compare in a sweep, by number of chips.
SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"},
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of chips.

    Attributes:
      chip: its kind.
      shape: chips along each dimension, as `2x4`.
    """

    chip: Chip
    shape: str

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.chips * self.chip.devices

    def __str__(self) -> str:
        """As `--topology` takes it."""
        return f"{self.chip.name}:{self.shape}"


def parse(text: str) -> Slice:
    """Read `v5e:2x4`.

    Raises:
      UserError: unknown chip, or a shape that it does not come in.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology {text!r}: unknown chip (known: {', '.join(CHIPS)})")
    chip = CHIPS[name]
    if not re.fullmatch("x".join([r"[1-9]\d*"] * chip.dimensions), shape):
        example = SHAPES[chip.dimensions][8]
        raise UserError(f"--topology {text!r}: a {name} slice has a shape like {name}:{example}")
    return Slice(chip, shape)


def slices(chip: str, most: int = 256) -> list[Slice]:
    """The slices of a kind of chip to compare, smallest first.

    Args:
      chip: name in `CHIPS`.
      most: chips.
    """
    kind = CHIPS[chip]
    return [Slice(kind, s) for n, s in SHAPES[kind.dimensions].items() if n <= most]
