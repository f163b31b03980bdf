"""Prompt buckets, slots, and how many finish before they are refilled."""

_BUCKETS = (32, 64, 96)  # then 128, 192, 256, 384, 512, … two per octave


def bucket(length: int) -> int:
    """Columns reserved for a prompt of this many tokens.

    `length`: tokens, at least 0.

    >>> [bucket(n) for n in (0, 33, 128, 129, 500)]
    [32, 64, 128, 192, 512]
    """
    for size in _BUCKETS:
        if length <= size:
            return size
    size = 128
    while length > size:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def refill_share(slots: int) -> int:
    """Rows that finish before a chunk ends, so that their slots are refilled.

    >>> refill_share(8), refill_share(64)
    (1, 4)
    """
    return max(1, slots // 16)


def slots_for(count: int | None, wanted: int | None, default: int) -> int:
    """The number of slots: the caller's choice, else one per request up to the default.

    `count`: number of requests, None if unknown; `wanted`: the caller's choice, or None. Returns
    `wanted`, or `count` rounded up to a power of two (so that few programs are compiled).

    >>> slots_for(5, None, 16), slots_for(500, None, 16), slots_for(5, 3, 16)
    (8, 16, 3)
    """
    if wanted is not None:
        return wanted
    if count is None:
        return default
    return min(default, 1 << max(count - 1, 0).bit_length())
