"""Which ids came before, in some sixteen bytes each."""

import hashlib
from array import array


def digest(given: object) -> int:
    """A 64-bit hash of an id; `1` and `"1"` are the same id.

    Returns a number from 0 to 2**64 - 1, the same in every process and version.
    """
    text = str(given).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class IdSet:
    """A set of ids that keeps 64 bits of a hash of each.

    A Python set of the same numbers takes five times the memory, which counts with
    millions of ids. Of a million different ids two share a hash in one of 37 million jobs.
    """

    def __init__(self):
        self._table = array("Q", bytes(8 << 10))  # open addressing; 0 is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, given: object) -> bool:
        key, mask = digest(given) or 1, len(self._table) - 1
        at = key & mask
        while (found := self._table[at]) != 0:
            if found == key:
                return True
            at = (at + 1) & mask
        return False

    @property
    def nbytes(self) -> int:
        """Bytes that the hashes take."""
        return len(self._table) * self._table.itemsize

    def add(self, given: object) -> bool:
        """Add an id; False if it was there.

        `given`: the id; `1` and `"1"` are the same, as for the noise of a row.
        """
        key = digest(given) or 1
        if not self._put(key):
            return False
        self._count += 1
        if self._count * 4 > len(self._table) * 3:
            keys, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for old in keys:
                if old:
                    self._put(old)
        return True

    def _put(self, key: int) -> bool:
        table, mask = self._table, len(self._table) - 1
        at = key & mask
        while (found := table[at]) != 0:
            if found == key:
                return False
            at = (at + 1) & mask
        table[at] = key
        return True
