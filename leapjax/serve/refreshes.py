"""What refreshes of a KV cache cost: rows that they compute, and their share of the work.

Passes have no clock of their own, because the host sees whole chunks. So the share is an estimate:
each pass counts by the FLOPs and bytes that it needs at least (`leapjax.planning.work`), of which
the one that takes longer on the platform (`hardware.Defaults.ridge`) is its work.
"""

from __future__ import annotations

import dataclasses
import functools

from leapjax.decoding import Program
from leapjax.decoding.state import PassCounts
from leapjax.ops import hardware
from leapjax.planning import work


@dataclasses.dataclass
class Refreshes:
    """Counts of passes with a KV cache; all 0 without one."""

    window_passes: int = 0  # passes in which at least one row computed its window
    refreshed_rows: int = 0  # rows that refreshes computed
    # rows that waited for a refresh. The others filled turns of several rows.
    refresh_rows_wanted: int = 0
    # FLOPs of the window passes, or bytes at as many FLOPs each as the platform computes meanwhile;
    # an estimate
    window_work: float = 0.0
    refresh_work: float = 0.0  # the same of the refreshes

    @property
    def share(self) -> float:
        """Estimated share of the passes' time in refreshes, in which the other rows idle."""
        return self.refresh_work / max(self.window_work + self.refresh_work, 1e-9)

    def to_dict(self) -> dict[str, int | float]:
        """The counts and the share, JSON-ready."""
        return {
            "refreshed_rows": self.refreshed_rows,
            "refresh_rows_wanted": self.refresh_rows_wanted,
            "estimated_share_of_time": round(self.share, 3),
        }

    def __add__(self, other: Refreshes) -> Refreshes:
        return self._with(other, 1)

    def __sub__(self, other: Refreshes) -> Refreshes:
        return self._with(other, -1)

    def _with(self, other: Refreshes, sign: int) -> Refreshes:
        names = [field.name for field in dataclasses.fields(self)]
        return Refreshes(**{n: getattr(self, n) + sign * getattr(other, n) for n in names})


def refreshes(program: Program, slots: int, counts: PassCounts) -> Refreshes:
    """The counts of a lane with the estimate of their work.

    `counts`: of the lane's state, on the host.
    """
    told = (counts.window_passes, counts.refreshed_rows, counts.refresh_rows_wanted)
    windows, rows, wanted = map(int, told)
    window, row = _work(program, slots)
    return Refreshes(windows, rows, wanted, windows * window, rows * row)


@functools.lru_cache
def _work(program: Program, slots: int) -> tuple[float, float]:
    """The work of a window pass, and of one row of a turn; as `Refreshes` has it."""
    copies, item = 1 + program.guidance, program.compute_dtype.itemsize
    group = min(program.refresh_group, slots)
    columns, size = program.length, program.kv_cache.columns(program)
    window = work.window_pass(program.model, copies * slots, columns, size, item)
    turn = work.full_pass(
        program.model, copies * group, columns, program.block_length, cached=True, item=item
    )
    ridge = hardware.defaults().ridge
    window, turn = (max(w.flops, ridge * w.bytes) for w in (window, turn))
    return window, turn / group
