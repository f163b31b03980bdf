"""The journal's header: what a job's outputs depend on, and so what a resume must agree in."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.decoding import NOISE_VERSION
from leapjax.errors import UserError
from leapjax.jobs.source import InputInfo, Item
from leapjax.jobs.spec import JobSpec
from leapjax.jsonl import parse_line
from leapjax.model_files import tokenizer_hash
from leapjax.policies import POLICIES

# What a resumed job must agree in, besides input and options; header key -> how it is called.
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
    "stop": "stop",
    "limit": "limit",
}


def describe(lm, spec: JobSpec, info: InputInfo) -> dict[str, Any]:
    """The journal's header: everything that the outputs depend on.

    Args:
      lm: the model.
      spec: the job.
      info: the input.
    """
    config = json.dumps(dataclasses.asdict(lm.config), sort_keys=True)
    return {
        "input": dataclasses.asdict(info),
        "weights": lm.model_hash,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "tokenizer": tokenizer_hash(lm.path),
        "dtype": lm.dtype,
        "quantization": lm.quantization,
        "options": spec.options.to_dict(),
        "num_samples": spec.num_samples,
        "details": spec.details,
        "fields": None if spec.fields is None else list(spec.fields),
        "raw": spec.raw,
        "stop": list(spec.stop),
        "limit": spec.limit,
        "batch_size": spec.batch_size,
        "shard_size": spec.shard_size,
        "noise": NOISE_VERSION,
        "versions": versions(),
    }


def is_noisy(options: DecodeConfig | dict[str, Any]) -> bool:
    """Whether answers under these options depend on noise.

    Args:
      options: decode options, or some of them by name.
    """
    given = options if isinstance(options, dict) else options.to_dict()
    drawn = given.get("policy") in POLICIES and "uniform" in POLICIES[given["policy"]].needs
    return drawn or (given.get("temperature") or 0) > 0


def noise_changed(old: dict[str, Any]) -> bool:
    """Whether a job was begun when seeds and ids stood for other noise; 0.1 said nothing."""
    return old.get("noise", 1) != NOISE_VERSION


def without_noise(items: Iterable[Item], old: dict[str, Any]) -> Iterator[Item]:
    """Records of a job that was begun under other noise, none of which may sample.

    Args:
      items: what is still to be decoded.
      old: header of the interrupted job.

    Raises:
      UserError: a record samples, and has no seed of its own.
    """
    for item in items:
        record = item.given
        if isinstance(record, bytes):
            with contextlib.suppress(UserError):  # whoever decodes it says what is wrong
                record = parse_line(record, item.where)
        options = record.get("options") if isinstance(record, dict) else None
        if isinstance(options, dict) and options.get("seed") is None:
            with contextlib.suppress(TypeError):
                if is_noisy(options):
                    raise UserError(f"{item.where}: samples, but {_other_noise(old)}")
        yield item


def _other_noise(old: dict[str, Any]) -> str:
    before = old.get("versions", {}).get("leapjax", "another version")
    return (
        f"the noise of sampled answers changed since leapjax {before}, with which the job was "
        "begun; go on with that version, or start anew with --overwrite"
    )


def other_version(old: dict[str, Any]) -> str | None:
    """A note where another version of leapjax began the job."""
    before, now = old.get("versions", {}).get("leapjax"), versions()["leapjax"]
    if before == now:
        return None
    return f"the job was begun with leapjax {before}, and goes on with {now}"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What forbids that a job goes on, in words; empty if nothing does.

    Args:
      old: header of the interrupted job.
      new: header of the one that would go on.
    """
    found = []
    before, now = old["input"], new["input"]
    # A stream has no hash; its lines are compared as they are skipped.
    if None not in (before["sha256"], now["sha256"]) and before["sha256"] != now["sha256"]:
        found.append(f"the input changed ({before['bytes']} bytes before, {now['bytes']} now)")
    for key, name in _SETTINGS.items():
        if old.get(key) != new[key]:
            if key == "weights" and "noise" not in old:
                found.append(
                    f"{name} changed, or leapjax 0.1 began it and hashed hub folders otherwise"
                )
            elif name.startswith("the "):
                found.append(f"{name} changed")
            else:
                found.append(f"{name} was {_shown(old.get(key))}, now {_shown(new[key])}")
    if noise_changed(old) and is_noisy(new["options"]):
        found.append("the noise of sampled answers changed with the version of leapjax")
    for name in {**old["options"], **new["options"]}:
        was, now_is = old["options"].get(name), new["options"].get(name)
        if was != now_is:
            found.append(f"{name} was {_shown(was)}, now {_shown(now_is)}")
    return found


def _shown(value: Any) -> str:
    return "off" if value is None else json.dumps(value, ensure_ascii=False)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes the outputs."""
    import importlib.metadata

    import leapjax

    found = {"leapjax": leapjax.__version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "tokenizers"):
        found[name] = importlib.metadata.version(name)
    return found
