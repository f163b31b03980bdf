"""What two rows must share to be compared: everything but the policy and its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from leapjax.config.decode import COMMON


def of_row(shared: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a row, flat: `versions.jax`, `config.num_layers`, `early_stop`.

    `shared` is nested, of all rows of a run; the options of the row's policy are left out.

    >>> of_row({"versions": {"jax": "0.10"}}, {"policy": "localleap", "radius": 4, "cache": "none"})
    {'versions.jax': '0.10', 'cache': 'none'}
    """
    own = {n: v for n, v in options.items() if n in COMMON and n != "policy"}
    return dict(_flat(shared)) | own


def _flat(nested: Mapping[str, Any], path: str = ""):
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def differing(these: Mapping[str, Any], those: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two manifests differ, or that only one has.

    >>> differing({"dtype": "float32", "batch_size": 8}, {"dtype": "bfloat16", "batch_size": 8})
    ['dtype']
    """
    missing = object()
    names = dict.fromkeys((*these, *those))
    return [n for n in names if these.get(n, missing) != those.get(n, missing)]


def told(fields: Sequence[str], manifests: Sequence[Mapping[str, Any]]) -> str:
    """Fields with the values that manifests have, for a table's head.

    >>> told(["dtype"], [{"dtype": "float32"}, {"dtype": "bfloat16"}])
    'dtype (float32, bfloat16)'
    """
    out = []
    for name in fields:
        values = dict.fromkeys(str(m.get(name, "none")) for m in manifests)
        out.append(f"{name} ({', '.join(v if len(v) <= 40 else v[:12] + '…' for v in values)})")
    return ", ".join(out)
