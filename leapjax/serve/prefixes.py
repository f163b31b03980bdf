"""Which prompts' prefixes the slots of a lane hold, in plain Python.

    prompt -> hashes of its block-prefixes -> longest prefix that a slot holds, the slot to take

The cache of a slot keeps a prompt's whole blocks until another row takes the slot. So prefixes live
in slots, and nothing is held besides.
"""

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Sequence

Prefix = tuple[bytes, ...]
"""A prompt's whole blocks: after each block, a 128-bit hash of all tokens up to its end."""


def prefix_of(ids: Sequence[int], block: int) -> Prefix:
    """The hashes of whole blocks.

    `ids`: tokens, a multiple of `block`; each below 2**63; `block`: tokens per block.

    >>> a, b = prefix_of((1, 2, 3, 4), 2), prefix_of((1, 2, 4, 3), 2)
    >>> len(a), a[0] == b[0], a[1] == b[1]
    (2, True, False)
    """
    running, out = hashlib.blake2b(array("q", [block]), digest_size=16), []
    for at in range(0, len(ids), block):
        running.update(array("q", ids[at : at + block]))
        out.append(running.digest())
    return tuple(out)


def common(a: Prefix, b: Prefix) -> int:
    """Blocks of the longest common prefix.

    >>> a, b = prefix_of((1, 2, 3, 4, 5), 1), prefix_of((1, 2, 3, 5), 1)
    >>> common(a, b), common(a, a), common((), a)
    (3, 5, 0)
    """
    low, high = 0, min(len(a), len(b))
    while low < high:  # equal hashes mean equal prefixes
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[middle - 1] == b[middle - 1] else (low, middle - 1)
    return low


@dataclasses.dataclass
class _Slot:
    """What a slot holds."""

    held: Prefix = ()  # the prompt's whole blocks
    shared: int = 0  # blocks of it that another request had too
    used: int = 0  # when it was last of use


class Prefixes:
    """The prefixes in a lane's slots.

    >>> slots, few_shot = Prefixes(3), prefix_of(range(9), 1)
    >>> slots.fill(0, few_shot)
    >>> slots.longest(few_shot[:4]), slots.choose([1, 2], few_shot[:4]), slots.worth_keeping
    ((4, 0), 1, (True, 4))
    """

    def __init__(self, slots: int):
        self._slots = [_Slot() for _ in range(slots)]
        self._time = 0

    @property
    def worth_keeping(self) -> tuple[bool, int]:
        """Whether a slot holds anything, and the most blocks that requests shared."""
        return any(slot.held for slot in self._slots), max(slot.shared for slot in self._slots)

    def longest(self, wanted: Prefix) -> tuple[int, int]:
        """Find the longest prefix of a prompt; the slots that hold some of it note that.

        Returns the number of blocks, and a slot that holds them.
        """
        self._time += 1
        found = [common(slot.held, wanted) for slot in self._slots]
        for slot, blocks in zip(self._slots, found, strict=True):
            slot.shared = max(slot.shared, blocks)
            if blocks:
                slot.used = self._time
        most = max(found)
        return most, found.index(most)

    def choose(self, free: Iterable[int], wanted: Prefix) -> int:
        """The free slot to overwrite.

        The one whose loss costs least: fewest shared blocks that neither the prompt nor another
        slot has; then the one that holds most of the prompt; then the one longest out of use.

        `free`: slots, at least one.
        """

        def cost(number: int):
            slot = self._slots[number]
            kept = own = common(slot.held, wanted)
            for other in self._slots:
                if kept < slot.shared and other is not slot:
                    kept = max(kept, common(slot.held, other.held))
            return max(slot.shared - kept, 0), -own, slot.used, number

        return min(free, key=cost)

    def holds(self, number: int, wanted: Prefix, blocks: int) -> bool:
        """Whether a slot holds the first blocks of a prompt. `number`: the slot."""
        return common(self._slots[number].held, wanted) >= blocks

    def fill(self, number: int, held: Prefix, shared: int = 0) -> None:
        """Note that a slot holds a prompt.

        `number`: the slot; `shared`: blocks of it that were copied.
        """
        self._time += 1
        self._slots[number] = _Slot(held, shared, self._time)
