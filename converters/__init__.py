"""Hub checkpoints in, leapjax checkpoints out, and back.

    hub folder --source--> Tensor (name, file, place) --mapping--> leaf and layer --> Orbax

    resolve     a folder or hub id -> a folder on disk
    check       check the headers, without reading a weight
    convert     hub folder -> leapjax checkpoint, streamed
    load_hub    hub folder -> jax arrays, without a converted copy
    stored_leaves  names, shapes and dtypes of those arrays
    to_hub      leapjax checkpoint -> hub folder, bit for bit

Names and shapes come from each family's table of weights (`leapjax.models.families`). The folder is
installed as `leapjax.converters` and has no other name.
"""

if __name__ != "leapjax.converters":
    raise ImportError(
        f"imported as {__name__!r}: this folder is the package leapjax.converters; "
        "install leapjax (pip install -e .) and import that"
    )

from .conversion import check, convert
from .export import to_hub
from .hub import resolve
from .loading import load_hub, stored_leaves

__all__ = ["check", "convert", "load_hub", "resolve", "stored_leaves", "to_hub"]
