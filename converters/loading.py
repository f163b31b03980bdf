"""A hub folder's weights straight to jax arrays, without a converted copy on disk."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from leapjax.checkpoint import aligned_empty, assemble
from leapjax.model_files import side_files
from leapjax.models import ModelConfig

from .conversion import require_tied
from .mapping import make_plan
from .source import open_source
from .tensor import fetch


def load_hub(
    path: str | os.PathLike, config: ModelConfig, *, dtype: object = None, shardings=None
) -> dict[str, Any]:
    """Read a hub folder's weights.

    Args:
      dtype: of the result; None keeps what is stored.
      shardings: None (default device), one sharding for all leaves, or a pytree of shardings
        like `param_shapes(config)`. Each device's part is read separately: a host holds no
        more than its devices' parts plus those of one leaf in transit.

    Raises:
      UserError: damaged folder, or weights that don't fit `config`.
    """
    side_files(Path(path))  # the tokenizer reads them: none may lead out of the folder
    plan = make_plan(open_source(Path(path)), config, dtype)
    if plan.tied_head is not None:
        require_tied(plan.pieces["embed"][0].tensor, plan.tied_head)

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        shape, kind = plan.leaves[name]
        pieces, inner = plan.pieces[name], len(plan.pieces[name][0].tensor.shape)
        before = len(shape) - inner  # layers, or layers and experts
        chosen = np.arange(len(pieces)).reshape(shape[:before])[index[:before]]
        sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)]
        out = aligned_empty(sizes, kind)
        for place in np.ndindex(chosen.shape):
            piece = pieces[chosen[place]]
            fetch(piece.tensor, kind, piece.transpose, *_two(index[before:]), out=out[place])
        return out

    return assemble(plan.leaves, read, shardings)


def stored_leaves(
    path: str | os.PathLike, config: ModelConfig
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The arrays that `load_hub` would make, by name: (shape, dtype). No weight is read."""
    return dict(make_plan(open_source(Path(path)), config, None).leaves)


def _two(index: tuple[slice, ...]) -> tuple[slice, slice]:
    """Rows and columns; a vector has all of its one column."""
    return index[0], index[1] if len(index) > 1 else slice(None)
