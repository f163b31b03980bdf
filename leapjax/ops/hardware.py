"""What leapjax chooses by the platform where nobody chooses: dtype, rows, arrangement.

The arrangement of weights goes by the devices that hold them (`leapjax.ops.arrangement`).
"""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Choices for one platform.

    Attributes:
      dtype: compute dtype's name.
      slots: rows decoded at once by a replica, if memory allows (docs/performance.md).
      study_slots: the same for studies, whose requests are many; a choice, not a measurement.
      refresh_share: slots for each row that refreshes its KV cache in an iteration.
      refresh_least: rows that refresh at least.
      weights: name in `leapjax.ops.split.FORMS`.
    """

    dtype: str
    slots: int
    study_slots: int
    refresh_share: int
    refresh_least: int
    weights: str = "stacked"


# A quarter of the slots refreshes on a CPU: measured best at 16 slots (docs/performance.md). A
# larger group wastes what it does not fill, a smaller one keeps new rows waiting. Elsewhere an
# eighth, at least four, so that small models fill the device; not measured.
CPU = Defaults("float32", 16, 32, refresh_share=4, refresh_least=1)
TPU = Defaults("bfloat16", 64, 256, refresh_share=8, refresh_least=4)
GPU = dataclasses.replace(TPU, weights="layers")


def name() -> str:
    """The platform of this process's devices: cpu, gpu or tpu."""
    return jax.default_backend()


def on_cpu() -> bool:
    """Whether this process computes on the host's processor."""
    return name() == "cpu"


def defaults() -> Defaults:
    """The choices for this process's platform."""
    return {"cpu": CPU, "gpu": GPU}.get(name(), TPU)
