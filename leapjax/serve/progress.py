"""Counters of an engine."""

from __future__ import annotations

import dataclasses

from leapjax.serve.prefills import Prefills
from leapjax.serve.refreshes import Refreshes


@dataclasses.dataclass
class Progress:
    """Counters of a running stream, for progress bars and summaries.

    Attributes:
      finished: finished requests.
      running: slots in use.
      slots: slots of the running lanes.
      passes: iterations of the loop, over all lanes.
      lane_passes: the same by replica.
      row_steps: steps of finished rows, summed.
      device_s: seconds during which a chunk ran on the device.
      rows_in_flight_done: finished fraction of each row in flight, summed; for the time left.
      refreshes: rows that refreshes of KV caches computed, and their share of the work.
      prefills: tokens of prompts that prefills computed, and how many are distinct.
    """

    finished: int = 0
    running: int = 0
    slots: int = 0
    passes: int = 0
    row_steps: int = 0
    device_s: float = 0.0
    rows_in_flight_done: float = 0.0
    lane_passes: list[int] = dataclasses.field(default_factory=list)
    refreshes: Refreshes = dataclasses.field(default_factory=Refreshes)
    prefills: Prefills = dataclasses.field(default_factory=Prefills)
