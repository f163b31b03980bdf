"""Counters of an engine."""

import dataclasses

from leapjax.serve.prefills import Prefills
from leapjax.serve.refreshes import Refreshes


@dataclasses.dataclass
class Progress:
    """Counters of a running stream, for progress bars and summaries."""

    finished: int = 0  # finished requests
    running: int = 0  # slots in use
    slots: int = 0  # slots of the running lanes
    passes: int = 0  # iterations of the loop, over all lanes
    row_steps: int = 0  # steps of finished rows, summed
    device_s: float = 0.0  # seconds during which a chunk ran on the device
    # finished fraction of each row in flight, summed; for the time left
    rows_in_flight_done: float = 0.0
    lane_passes: list[int] = dataclasses.field(default_factory=list)  # the same by replica
    # rows that refreshes of KV caches computed, and their share of the work
    refreshes: Refreshes = dataclasses.field(default_factory=Refreshes)
    # tokens of prompts that prefills computed, and how many are distinct
    prefills: Prefills = dataclasses.field(default_factory=Prefills)
