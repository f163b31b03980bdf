"""Loading a model for people: a helpful line where the package's own is missing."""

from __future__ import annotations

from leapjax.errors import UserError
from leapjax.fit import Auto
from leapjax.lm import LM
from leapjax.progress import busy


def load(
    model: str | None,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    mesh: str | Auto | None = None,
) -> LM:
    """The model at a path, or the embedded one.

    Args:
      model: path or hub id; None is the embedded model.
      dtype: compute type, or None.
      quantize: as in `leapjax.load`.
      mesh: as in `leapjax.load`.

    Raises:
      UserError: no such model.
    """
    import leapjax
    from leapjax.checkpoint import is_checkpoint

    if model is None and not is_checkpoint(leapjax.embedded_path()):
        raise UserError(
            "this installation has no embedded model; name a checkpoint with --model PATH "
            "(leapjax convert makes one), or install a released wheel"
        )
    with busy(f"loading {model or 'the embedded model'}"):
        return leapjax.load(model, dtype=dtype, quantize=quantize, mesh=mesh)
