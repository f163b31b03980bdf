"""Defaults by platform: compute dtype, slots, balance of speed and memory, form of the weights.

`leapjax.ops.arrangement` goes by the devices that hold the weights instead.
"""

import dataclasses
import hashlib
import platform
from typing import Any

import jax
import jax.numpy as jnp

from leapjax.native.build import processor


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults of one platform."""

    dtype: str  # compute dtype's name
    slots: int  # rows that a replica decodes at once, if memory allows (docs/performance.md)
    study_slots: int  # the same for studies, which have many requests; not measured
    ridge: float  # FLOPs in the time of a byte from memory; passes with fewer wait for memory
    weights: str = "stacked"  # name in `leapjax.ops.split.FORMS`

    def refresh_group(self, length: int, dtype: str, sparsity: float = 1.0) -> int:
        """Default number of rows whose KV cache a refresh computes together.

        Each turn of a refresh reads the weights once. A turn of few columns waits for them, and
        takes no longer with more rows; so it has as many rows as that is true for. `sparsity` is
        the number of a layer's weights for each that a token uses (`leapjax.planning.work`).

        >>> TPU.refresh_group(768, "bfloat16"), TPU.refresh_group(64, "bfloat16")
        (1, 3)
        """
        return max(1, int(self._columns(dtype) * sparsity // length))

    def storing_group(self, block_length: int, dtype: str, sparsity: float = 1.0) -> int:
        """Default number of rows that store a finished block together, `cache` block.

        Such a turn computes two blocks of each row. As for refreshes, it has as many rows as take
        no longer than the weights do.

        >>> TPU.storing_group(4, "bfloat16"), CPU.storing_group(32, "float32")
        (30, 0)
        """
        return int(self._columns(dtype) * sparsity // (2 * block_length))

    def _columns(self, dtype: str) -> float:
        """Columns of a pass that takes as long for its FLOPs as for the weights' bytes."""
        return self.ridge * jnp.dtype(dtype).itemsize / 2  # 2 FLOPs a column and weight


# Ridges. CPU: 326 GFLOP/s over 41.5 GB/s, measured on 2 cores (docs/performance.md). Accelerators,
# bfloat16, from data sheets: H200 206, H100 295, TPUs below. Of others a low one is safe, because
# then a turn that is not full costs no more.
CPU = Defaults("float32", 16, 32, ridge=8.0)
TPU = Defaults("bfloat16", 64, 256, ridge=240.0)
GPU = dataclasses.replace(TPU, weights="layers")
_RIDGES = {  # by `device_kind`
    "TPU v5 lite": 240.0,
    "TPU v5": 166.0,
    "TPU v5p": 166.0,
    "TPU v6 lite": 560.0,
    "TPU7x": 313.0,
}


def name() -> str:
    """The platform of this process's devices: cpu, gpu or tpu."""
    return jax.default_backend()


def on_cpu() -> bool:
    """Whether this process's platform is the CPU."""
    return name() == "cpu"


def defaults() -> Defaults:
    """The defaults of this process's platform."""
    if name() in ("cpu", "gpu"):
        return CPU if on_cpu() else GPU
    return of_tpu(str(jax.local_devices()[0].device_kind))


def of_tpu(kind: str) -> Defaults:
    """The defaults of a TPU by its `device_kind`; `TPU` serves those that are not in the table.

    >>> of_tpu("TPU v6 lite").storing_group(32, "bfloat16"), TPU.storing_group(32, "bfloat16")
    (8, 3)
    """
    return dataclasses.replace(TPU, ridge=_RIDGES.get(kind, TPU.ridge))


def described(device: Any) -> dict[str, str]:
    """The platform of a device, and what tells its kind from others that run other code."""
    if device.platform != "cpu":
        return {"platform": device.platform, "device": device.device_kind}
    digest = hashlib.sha256(processor().encode()).hexdigest()[:16]
    return {"platform": "cpu", "device": f"{platform.machine()} {digest}"}
