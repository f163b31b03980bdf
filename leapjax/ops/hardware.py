"""Defaults by platform: compute dtype, slots, refresh groups, form of the weights.

`leapjax.ops.arrangement` goes by the devices that hold the weights instead.
"""

from __future__ import annotations

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults of one platform.

    Attributes:
      dtype: compute dtype's name.
      slots: rows that a replica decodes at once, if memory allows (docs/performance.md).
      study_slots: the same for studies, which have many requests; not measured.
      refresh_share: slots per row of a refresh group (rows that refresh in one iteration).
      refresh_least: smallest refresh group, in rows.
      weights: name in `leapjax.ops.split.FORMS`.
    """

    dtype: str
    slots: int
    study_slots: int
    refresh_share: int
    refresh_least: int
    weights: str = "stacked"


# On a CPU the refresh group is a quarter of the slots, the best measured at 16 slots
# (docs/performance.md). A larger group is often partly empty; a smaller one delays new rows.
# Accelerators: an eighth, and at least four, so that small models fill the device; not measured.
CPU = Defaults("float32", 16, 32, refresh_share=4, refresh_least=1)
TPU = Defaults("bfloat16", 64, 256, refresh_share=8, refresh_least=4)
GPU = dataclasses.replace(TPU, weights="layers")


def name() -> str:
    """The platform of this process's devices: cpu, gpu or tpu."""
    return jax.default_backend()


def on_cpu() -> bool:
    """Whether this process's platform is the CPU."""
    return name() == "cpu"


def defaults() -> Defaults:
    """The defaults of this process's platform."""
    return {"cpu": CPU, "gpu": GPU}.get(name(), TPU)
