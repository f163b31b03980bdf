"""Sizes that decide how many programs are compiled: prompt buckets, slots, refresh groups."""

from __future__ import annotations

import jax

_BUCKETS = (32, 64, 96)  # then 128, 192, 256, 384, 512, … two per octave


def bucket(length: int) -> int:
    """Columns reserved for a prompt of this many tokens.

    Args:
      length: tokens, at least 0.

    Returns:
      The smallest bucket that holds it.
    """
    for size in _BUCKETS:
        if length <= size:
            return size
    size = 128
    while length > size:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def default_refresh_group(slots: int) -> int:
    """Rows that refresh together by default.

    A quarter of the slots on a CPU: measured best at 16 slots (docs/performance.md). A
    larger group wastes what it does not fill, a smaller one keeps new rows waiting.
    Elsewhere an eighth, at least four, so that small models fill the device; not measured.

    Args:
      slots: of a replica.
    """
    return max(1, slots // 4) if jax.default_backend() == "cpu" else max(4, slots // 8)


def slots_for(count: int | None, wanted: int | None, default: int) -> int:
    """Slots to use: what was asked for, else as many as there is work, up to the default.

    Args:
      count: number of requests, None if unknown.
      wanted: the caller's choice, or None.
      default: the most by default.

    Returns:
      A power of two when derived, so that few programs are compiled.
    """
    if wanted is not None:
        return wanted
    if count is None:
        return default
    return min(default, 1 << max(count - 1, 0).bit_length())
