"""TPU chips and slices: what they have, and what XLA calls them.

Figures are per chip, from Google Cloud's documentation, read in November 2026:
https://docs.cloud.google.com/tpu/docs/v5e (v5e), https://docs.cloud.google.com/tpu/docs/v5p and
https://docs.cloud.google.com/tpu/docs/tpu7x (v5p, v6e and 7x in one table). Interconnect is
given there for all of a chip's links, both ways (v5e 400, v5p 1200, v6e 800, 7x 1200 GB/s); a
link is that over its 4 (two dimensions) or 6 (three) ports, and half of it goes out.

The clock is the one at which a chip's matrix units reach its peak: 4 units of 128 x 128 on v5e, 8
on v5p, 4 of 256 x 256 on v6e and on each of 7x's two devices, 2 FLOPs a cell and cycle.
"""

import dataclasses
import math

import jax

from leapjax.config import check_keys
from leapjax.errors import UserError
from leapjax.sharding import MeshShape


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip."""

    name: str  # as in `--topology`
    xla: str  # as the compiler's topologies are called
    flops: float  # peak bfloat16 FLOP/s
    hbm: float  # bytes of memory
    bandwidth: float  # bytes/s of memory
    link: float  # bytes/s that one link of the interconnect carries one way
    clock: float  # cycles/s
    dimensions: int  # of its slices' shapes
    devices: int = 1  # JAX devices a chip
    kinds: tuple[str, ...] = ()  # what JAX calls such a device (`device_kind`)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e", 197e12, 16e9, 819e9, 400e9 / 4 / 2, 1.5e9, 2, 1, ("TPU v5 lite",)),
        Chip(
            "v5p",
            "v5p",
            459e12,
            95 * 2**30,
            2765e9,
            1200e9 / 6 / 2,
            1.75e9,
            3,
            1,
            ("TPU v5", "TPU v5p"),
        ),
        Chip(
            "v6e", "v6e", 918e12, 32 * 2**30, 1638e9, 800e9 / 4 / 2, 1.75e9, 2, 1, ("TPU v6 lite",)
        ),
        Chip("7x", "tpu7x", 2307e12, 192 * 2**30, 7380e9, 1200e9 / 6 / 2, 2.2e9, 3, 2, ("TPU7x",)),
    )
}

# Other names that people use.
_ALIASES = {
    "v5litepod": "v5e",
    "v6": "v6e",
    "trillium": "v6e",
    "tpu7x": "7x",
    "v7x": "7x",
    "ironwood": "7x",
}

# Shapes by number of chips. The single chip of three dimensions compiles but is not on offer.
SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        1: "1x1x1",
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
    },
}
_OFFERED = {2: 1, 3: 4}  # smallest number of chips that one can rent


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of chips."""

    chip: Chip
    shape: str  # chips along each dimension, as `2x4`

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chips along each dimension."""
        return tuple(map(int, self.shape.split("x")))

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.sizes)

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices

    def spanned(self, count: int) -> int:
        """Number of dimensions over which the first `count` JAX devices extend, in id order.

        Ids run along the first dimension first; the devices of one chip have consecutive ids.
        """
        chips, out, reach = -(-count // self.chip.devices), 0, 1
        for size in self.sizes:
            out += chips > reach and size > 1
            reach *= size
        return out

    def __str__(self) -> str:
        """As `--topology` takes it."""
        return f"{self.chip.name}:{self.shape}"


def parse(text: str) -> Slice:
    """Read `v5e:2x4`. Raises UserError: unknown chip, or a shape that the chip does not have."""
    name, _, shape = text.strip().lower().partition(":")
    name = _ALIASES.get(name, name)
    check_keys([name], f"--topology {text!r}", CHIPS, "chip")
    chip = CHIPS[name]
    known = SHAPES[chip.dimensions]
    if shape in known.values():
        return Slice(chip, shape)
    sizes = [int(n) if n.isdecimal() else 0 for n in shape.split("x")]
    # The smallest that holds as many chips, or the largest there is.
    wanted = math.prod(sizes) or 8
    near = known[min((n for n in known if n >= wanted), default=max(known))]
    raise UserError(
        f"--topology {text!r}: no such {name} slice; did you mean {name}:{near}? "
        f"(shapes: {', '.join(known.values())})"
    )


def of_device(kind: str) -> Chip | None:
    """The chip that a JAX device belongs to; None if the table lacks it.

    >>> of_device("TPU v6 lite").name
    'v6e'
    """
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def slices(chip: str, most: int = 256) -> list[Slice]:
    """The slices of a kind of chip that are on offer, smallest first. `most`: chips."""
    kind = CHIPS[chip]
    counts = SHAPES[kind.dimensions].items()
    return [Slice(kind, s) for n, s in counts if _OFFERED[kind.dimensions] <= n <= most]


def home(chip: Chip, devices: int) -> Slice:
    """The smallest slice with so many JAX devices."""
    for shape in SHAPES[chip.dimensions].values():
        if (found := Slice(chip, shape)).devices >= devices:
            return found
    raise UserError(f"no slice of {chip.name} in the table has {devices} devices")


def used(mesh: MeshShape | None) -> float:
    """Chips of a mesh of this process's devices; None is one device.

    A device of any other kind than a TPU counts as a chip.
    """
    kind = of_device(jax.local_devices()[0].device_kind)
    return (1 if mesh is None else mesh.devices) / (kind.devices if kind else 1)
