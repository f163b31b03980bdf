"""The journal's header: everything that a job's outputs depend on, and a resume must agree in."""

import dataclasses
import functools
import hashlib
import json
import platform
from typing import Any

from leapjax.config import OPTIONS
from leapjax.config.check import coerce
from leapjax.decoding import NOISE_VERSION
from leapjax.jobs.source import InputInfo
from leapjax.jobs.spec import JobSpec
from leapjax.model_files import tokenizer_hash

# What a resumed job must agree in, besides input and options: header key -> name in messages.
_SETTINGS = {
    "weights": "the model's weights",
    "config": "the model's config.json",
    "tokenizer": "the model's tokenizer or chat template",
    "dtype": "dtype",
    "quantization": "quantization",
    "num_samples": "num_samples",
    "details": "details",
    "fields": "fields",
    "raw": "raw",
    "template_options": "template options",
    "stop": "stop",
    "limit": "limit",
    "noise": "the noise of sampled answers",
}


def describe(
    lm, spec: JobSpec, info: InputInfo, size: int | None = None, job: str = ""
) -> dict[str, Any]:
    """The header of a job, with `size` records a shard and a token of its own."""
    config = json.dumps(dataclasses.asdict(lm.config), sort_keys=True)
    return {
        "job": job,
        "input": dataclasses.asdict(info),
        "weights": lm.model_hash,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer": tokenizer_hash(lm.path),
        "dtype": lm.dtype,
        "quantization": lm.quantization,
        "options": spec.options.for_model(lm.config).to_dict(),
        "num_samples": spec.num_samples,
        "details": spec.details,
        "fields": None if spec.fields is None else list(spec.fields),
        "raw": spec.raw,
        "template_options": lm.codec.template_options or None if lm.codec else None,
        "stop": list(spec.stop),
        "limit": spec.limit,
        "batch_size": spec.batch_size,
        "shard_size": size,
        "noise": NOISE_VERSION,
        "versions": versions(),
    }


def other_version(old: dict[str, Any]) -> str | None:
    """A note if another version of leapjax began the job, else None."""
    before, now = old.get("versions", {}).get("leapjax"), versions()["leapjax"]
    if before == now:
        return None
    return f"the job was begun with leapjax {before}, and goes on with {now}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The differences, in words, that forbid the job of `old` to go on as `new`."""
    found = []
    before, now = old["input"], new["input"]
    if before["sha256"] != now["sha256"]:
        found.append(f"the input changed ({before['bytes']} bytes before, {now['bytes']} now)")
    for key, name in _SETTINGS.items():
        if old.get(key) != new[key]:
            if name.startswith("the "):
                found.append(f"{name} changed")
            else:
                found.append(f"{name} was {_shown(old.get(key))}, now {_shown(new[key])}")
    for name in {**old["options"], **new["options"]}:
        was, now_is = (_option(name, header["options"].get(name)) for header in (old, new))
        if was != now_is:
            found.append(f"{name} was {_shown(was)}, now {_shown(now_is)}")
    return found


def _option(name: str, value: Any) -> Any:
    """An option's value as it is written today; `early_stop` was true or false once."""
    known = OPTIONS.get(name)
    return coerce(known, value) if known and known.choices and isinstance(value, bool) else value


def _shown(value: Any) -> str:
    return "off" if value is None else json.dumps(value, ensure_ascii=False)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that compute the outputs."""
    import importlib.metadata

    import leapjax

    found = {"leapjax": leapjax.__version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "tokenizers"):
        found[name] = importlib.metadata.version(name)
    return found
