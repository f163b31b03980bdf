"""Kernels of our own for programs on one CPU: packed products, experts, and attention.

XLA packs a matrix in every product anew, which costs more than the product where the rows are few.
`kernels.cc` is compiled when it is first needed, by the machine's C++ compiler; without one, or
with `LEAPJAX_NATIVE=off`, XLA's own products are used.
"""

from leapjax.native.build import available, panel
from leapjax.native.packed import (
    Packed,
    PackedExperts,
    attention,
    experts,
    pack,
    pack_experts,
    product,
    route,
    summary,
)
from leapjax.native.pages import Pages

__all__ = [
    "Packed",
    "PackedExperts",
    "Pages",
    "attention",
    "available",
    "experts",
    "pack",
    "pack_experts",
    "panel",
    "product",
    "route",
    "summary",
]
