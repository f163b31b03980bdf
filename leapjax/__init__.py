"""leapjax: decode masked diffusion language models with LocalLeap, in JAX.

    import leapjax
    lm = leapjax.load("path/to/checkpoint")
    print(lm.generate(["..."], leapjax.DecodeConfig(gen_length=128))[0].text)

Importing this package starts no backend and loads nothing heavy; names below are
imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from leapjax.bridge import from_nnx, to_nnx
    from leapjax.config import DecodeConfig
    from leapjax.errors import UserError
    from leapjax.lm import LM
    from leapjax.loader import embedded_path, load
    from leapjax.models.config import ModelConfig
    from leapjax.policies import register_policy
    from leapjax.types import Completion, Request

_HOME = {
    "Completion": "leapjax.types",
    "DecodeConfig": "leapjax.config",
    "LM": "leapjax.lm",
    "ModelConfig": "leapjax.models.config",
    "Request": "leapjax.types",
    "UserError": "leapjax.errors",
    "embedded_path": "leapjax.loader",
    "from_nnx": "leapjax.bridge",
    "load": "leapjax.loader",
    "register_policy": "leapjax.policies",
    "to_nnx": "leapjax.bridge",
}

__all__ = [
    "LM",
    "Completion",
    "DecodeConfig",
    "ModelConfig",
    "Request",
    "UserError",
    "__version__",
    "embedded_path",
    "from_nnx",
    "load",
    "register_policy",
    "to_nnx",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'leapjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
