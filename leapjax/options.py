"""Decode options as YAML files and command lines say them; `leapjax.config.resolve` merges them.

Flags and keys are made from the options' declarations, so they can't drift apart.
"""

import argparse
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from leapjax.config import OPTIONS, check_keys
from leapjax.config.check import shown
from leapjax.errors import UserError
from leapjax.policies import PARAMETERS, POLICIES, Parameter

_SAMPLING = ("temperature", "top_p", "top_k", "seed", "cfg_scale")
_FEW = 4  # choices that fit into a usage line


class _Yaml(yaml.SafeLoader):
    """Safe YAML that reads numbers as people write them and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        """Build a mapping, each key once."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `064` as 52 and `1:30` as 90; here they are words, which no number option takes.
_Yaml.yaml_implicit_resolvers = {
    start: [(tag, rule) for tag, rule in rules if not tag.endswith((":int", ":float"))]
    for start, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # YAML 1.1 wants a dot before an exponent; people write without.
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """What a `--config` file says."""

    path: str  # where it is, for messages
    options: Mapping[str, Any]  # option names and values, only those that are written there
    model: str | None = None  # the model it names, or None
    share_prefix: bool | str | None = None  # the job's setting of that name, or None


def load_yaml(path: str | Path) -> Any:
    """What a YAML file holds, read safely, no key twice."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"{path}: can't be read ({reason})") from e
    try:
        return yaml.load(text, _Yaml)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None) or getattr(e, "context_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(e, "problem", None) or " ".join(str(e).split())
        raise UserError(f"{path}{line}: not valid YAML ({reason})") from e


def read_config(path: str | Path) -> ConfigFile:
    """Read a YAML file of decode options.

    `path`: the file; beside options, it may hold `model` and `share_prefix`.
    """
    path = str(path)
    value = load_yaml(path)
    if value is None:
        value = {}  # a file of comments only
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected option names and values, such as `threshold: 0.9`")
    check_keys(value, path, (*OPTIONS, "model", "share_prefix"), "key")
    model = value.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise UserError(f"{path}: model is {shown(model)}; expected a path or a hub id")
    return ConfigFile(path, value, model, value.pop("share_prefix", None))


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser one flag per option; a flag that is not set is absent from `set_flags`."""
    groups = {
        "policy (which positions commit)": ["policy", *PARAMETERS],
        "sampling": _SAMPLING,
        "canvas and loop": [n for n in OPTIONS if n not in ("policy", *PARAMETERS, *_SAMPLING)],
    }
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_flag(group, OPTIONS[name])


def set_flags(args: argparse.Namespace, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The options that the command line sets.

    `names`: the options among its flags; default: all.
    """
    given = {n: getattr(args, n, None) for n in (OPTIONS if names is None else names)}
    return {n: v for n, v in given.items() if v is not None}


def _add_flag(group, p: Parameter) -> None:
    flag, choices = f"--{p.name.replace('_', '-')}", p.choices
    text, usual = p.help, p.default
    if p.name == "policy":
        choices = tuple(POLICIES)
    if p.name in PARAMETERS:
        readers = [policy.name for policy in POLICIES.values() if p.name in policy.reads]
        text, usual = f"{text}{_readers(p, readers)}", None
        if len(readers) == 1:
            text = argparse.SUPPRESS  # one policy's own: `--help-policies` explains it
    text = text.replace("%", "%%")
    if p.kind is bool:
        if p.name not in PARAMETERS:
            text = f"{text} (default: {'on' if usual else 'off'})"
        group.add_argument(flag, default=None, action=argparse.BooleanOptionalAction, help=text)
        return
    if usual is not None:
        text = f"{text} (default: {usual})"
    if "off" in choices:  # words, and a switch
        group.add_argument(flag, default=None, nargs="?", const=usual, metavar="WORD", help=text)
        off = f"the same as {flag} off"
        group.add_argument(
            f"--no-{flag[2:]}", dest=p.name, action="store_const", const="off", help=off
        )
        return
    metavar = {int: "N", float: "X", tuple: "ID,…"}.get(p.kind, "{" + ",".join(choices) + "}")
    if len(choices) > _FEW:
        metavar, text = "NAME", f"{text}: {', '.join(choices)}"
    convert = _top_k if p.name == "top_k" else _CONVERT.get(p.kind, str)
    # `choices` are left to DecodeConfig, which offers the nearest.
    group.add_argument(flag, default=None, type=convert, metavar=metavar, help=text)


def _readers(p: Parameter, readers: list[str]) -> str:
    """Who reads a shared parameter, if they are few, and its defaults."""
    usual = {name: POLICIES[name].reads[p.name] for name in readers}
    others = [f"{n} {own.default}" for n, own in usual.items() if own.default != p.default]
    said = ", ".join([str(p.follows or p.default), *others])
    return f" ({', '.join(readers)}; {said})" if len(readers) < _FEW else f" (default: {said})"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _top_k(text: str) -> int:
    return 0 if text == "off" else _whole(text)


def _ids(text: str) -> list[int]:
    return [_whole(part) for part in text.replace(",", " ").split()]


_CONVERT = {int: _whole, float: _number, tuple: _ids}
