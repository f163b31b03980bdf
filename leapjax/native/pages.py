"""Memory in large pages, for arrays that are read from end to end in every pass."""

import mmap

import numpy as np

_CHUNK = 64 * 2**20
_ALIGNED = 64  # as JAX asks of memory that it is to use without copying


class Pages:
    """Hands out pieces of memory for which the system was asked for large pages.

    With small ones the processor looks up the address of every 4 kB, which a product of few rows
    with a large matrix waits for. Where the system knows no large pages it is plain memory. It is
    given back when the last array over it is gone.
    """

    def __init__(self):
        self._chunk = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
        """An array whose contents are not set."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._used + size > self._chunk.size:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                # Shared memory, mmap's default, would not get them.
                area = mmap.mmap(-1, max(size, _CHUNK), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                area.madvise(mmap.MADV_HUGEPAGE)
            else:
                area = mmap.mmap(-1, max(size, _CHUNK))
            self._chunk, self._used = np.frombuffer(area, np.uint8), 0
        piece = self._chunk[self._used : self._used + size]
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return piece.view(dtype).reshape(shape)
