"""`DecodeConfig`: the options of a decode, validated on construction.

The field names are the YAML keys, the command-line flags (with dashes) and the
per-record `options`; `docs/contract.md` defines what each means.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from leapjax.errors import UserError
from leapjax.policies import POLICIES

CACHES = ("none", "prefix", "dual")
QUANTIZATIONS = ("int8",)
SCHEDULES = ("even", "dream")


def _field(default, kind, help_text: str, choices=None):
    return dataclasses.field(
        default=default, metadata={"kind": kind, "help": help_text, "choices": choices}
    )


def _own(kind, help_text: str, low, high=None, *, above: bool = False):
    """A number that one policy or a few read: per row, traced, checked against a range.

    Args:
      kind: int or float.
      help_text: ends with the policies that read it and their default.
      low: the least value.
      high: the greatest; None is the largest that its type holds.
      above: `low` itself is refused.
    """
    top = (2**31 - 1 if kind is int else 1e30) if high is None else high
    range_ = {"low": low, "high": top, "above": above}
    return dataclasses.field(
        default=None, metadata={"kind": kind, "help": help_text, "choices": None, "own": range_}
    )


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Options of a decode; see the fields' help, and docs/contract.md for the definitions.

    `None` in a policy's own field means the policy's default: read the value in force
    with `value(name)`.

    Raises:
      UserError: a value is out of range, or set but not read by the policy.
    """

    policy: str = _field("localleap", str, "which positions commit in a pass", tuple(POLICIES))
    threshold: float | None = _field(
        None, float, "confidence that makes an anchor, 0 to 1 (threshold policies; 0.9, wino 0.6)"
    )
    relaxed_threshold: float | None = _field(
        None,
        float,
        "confidence an anchor's neighbour needs, at most threshold (localleap, placebo; 0.75)",
    )
    radius: int | None = _field(
        None, int, "how far an anchor reaches, positions (localleap, placebo; 4)"
    )
    steps: int | None = _field(
        None, int, "passes over the whole canvas (fixed schedules; gen_length)"
    )
    schedule: str | None = _field(None, str, "commits per pass (fixed schedules; even)", SCHEDULES)
    radius_left: int | None = _own(
        int, "how far an anchor reaches to its left (localleap; radius)", 0
    )
    radius_right: int | None = _own(
        int, "how far an anchor reaches to its right (localleap; radius)", 0
    )
    decay: float | None = _own(
        float, "rise of relaxed_threshold with each further position (localleap; 0)", 0, 1
    )
    factor: float | None = _own(
        float, "how much doubt in all the n surest may share (factor; 1)", 0, above=True
    )
    entropy_bound: float | None = _own(
        float, "entropy that a pass may commit beside its largest, nats (entropy_bound; 0.1)", 0
    )
    low_threshold: float | None = _own(
        float, "confidence that the surest of a run of masks needs (hierarchy; 0.4)", 0, 1
    )
    sigma: float | None = _own(
        float, "how far known tokens lend certainty, positions (certainty_prior; 10)", 0.1, 100
    )
    position_decay: float | None = _own(
        float, "how fast a block's later positions lose weight (position_calibration; 0.25)", 0
    )
    surprise_cap: float | None = _own(
        float, "most that a rare token can weigh, nats (position_calibration; 10)", 0, above=True
    )
    kl_threshold: float | None = _own(
        float, "divergence from the last pass below which a position is steady (klass; 0.01)", 0
    )
    kl_history: int | None = _own(int, "passes that it has to be steady for (klass; 2)", 1)
    explore_threshold: float | None = _own(
        float, "confidence up to which a span reaches (slowfast; 0.3)", 0, 1
    )
    explore_steps: int | None = _own(int, "slow passes that a span begins with (slowfast; 6)", 1)
    credit_weight: float | None = _own(float, "weight of past proposals (credit; 0.7)", 0)
    credit_power: float | None = _own(
        float, "power of a proposal's probability that it is credited with (credit; 0.2)", 0
    )
    credit_decay: float | None = _own(
        float, "share of its credit that a token keeps each pass (credit; 0.8)", 0, 1
    )
    remask_threshold: float | None = _own(
        float, "confidence below which a draft is taken back (wino; 0.9)", 0, 1
    )
    gen_length: int = _field(256, int, "canvas: tokens to generate")
    block_length: int = _field(32, int, "block, decoded left to right; divides gen_length")
    temperature: float = _field(0.0, float, "0 takes the most probable token")
    top_p: float = _field(1.0, float, "sample within this probability mass, 0 < p <= 1")
    top_k: int | None = _field(None, int, "sample among the k most probable tokens (off)")
    seed: int = _field(0, int, "seed of the noise, 0 to 2**32 - 1")
    cfg_scale: float = _field(0.0, float, "classifier-free guidance; two evaluations a pass")
    early_stop: bool = _field(True, bool, "end a row once a finished block holds eos")
    logits_eos_inf: bool = _field(False, bool, "never propose eos (LLaDA's option)")
    confidence_eos_eot_inf: bool = _field(
        False, bool, "commit eos and end-of-turn last: confidence 0 (LLaDA's option)"
    )
    cache: str = _field("none", str, "KV cache", CACHES)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _coerce(field, getattr(self, field.name)))
        _check_ranges(self)
        _check_policy(self)

    @property
    def blocks(self) -> int:
        """Number of blocks in the canvas."""
        return self.gen_length // self.block_length

    def value(self, name: str) -> Any:
        """The value in force: what was set, else the policy's default.

        Args:
          name: an option's name.

        Returns:
          The value, or None where the policy does not read the option.
        """
        own = getattr(self, name)
        if own is not None or name not in POLICY_OPTIONS:
            return own
        defaults = POLICIES[self.policy].defaults
        if name == "steps" and POLICIES[self.policy].scheduled:
            return self.gen_length
        if name in ("radius_left", "radius_right") and name in defaults:
            return self.value("radius")
        return defaults.get(name)

    def replace(self, **changes) -> DecodeConfig:
        """A copy with some options changed, validated again."""
        check_keys(changes, "option")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every option with its value in force, JSON-ready."""
        return {f.name: self.value(f.name) for f in dataclasses.fields(self)}


FIELDS = {f.name: f for f in dataclasses.fields(DecodeConfig)}

# Numbers that travel in `RowOptions.own`, with their types: only policies that list them do.
OWN = {name: f.metadata["kind"] for name, f in FIELDS.items() if "own" in f.metadata}

# Options that belong to some policies only; None means "the policy's default".
POLICY_OPTIONS = ("threshold", "relaxed_threshold", "radius", "steps", "schedule", *OWN)

# Options that a record may set for its own row; the others shape the compiled program.
PER_ROW = (
    "threshold",
    "relaxed_threshold",
    "radius",
    "steps",
    *OWN,
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "cfg_scale",
    "early_stop",
    "logits_eos_inf",
    "confidence_eos_eot_inf",
)


def check_keys(
    given: Iterable[str], where: str, allowed: Iterable[str] = (), what: str = "option"
) -> None:
    """Refuse unknown option names, offering the nearest known one.

    Args:
      given: the names somebody wrote.
      where: shown in the message (a file, `line 3`, …).
      allowed: known names; default: every option.
      what: what such a name is called in the message.

    Raises:
      UserError: at the first unknown name.
    """
    known = list(allowed) or list(FIELDS)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown {what} {name!r}; {hint}")


def row_config(job: DecodeConfig, options: Mapping[str, Any], where: str) -> DecodeConfig:
    """The job's options with a record's own per-row options over them.

    Args:
      job: the job's options.
      options: the record's `options`.
      where: for messages, such as `line 3`.

    Raises:
      UserError: unknown option, an option that is static per job, or a bad value.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"{where}: options must be an object of names and values")
    check_keys(options, where)
    for name, given in options.items():
        if name not in PER_ROW and given != job.value(name):
            raise UserError(
                f"{where}: option {name!r} is the same for the whole job; "
                f"set it with --{name.replace('_', '-')}"
            )
    own = {k: v for k, v in options.items() if k in PER_ROW}
    if not own:
        return job
    try:
        return dataclasses.replace(job, **own)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def _coerce(field: dataclasses.Field, value: Any) -> Any:
    """Bring a YAML, JSON or Python value to the field's type, or say why not."""
    name, kind = field.name, field.metadata["kind"]
    optional = field.default is None
    if name == "top_k" and (value is False or value == "off" or value == 0):
        return None  # YAML reads a bare `off` as false
    if value is None:
        if optional:
            return None
        raise UserError(f"{name} has no value; the default is {field.default!r}")
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # NumPy scalars are welcome
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
    bad = UserError(f"{name} is {value!r}; expected {wanted}")
    if kind is bool:
        if not isinstance(value, bool):
            raise bad
        return value
    if kind is str:
        if not isinstance(value, str):
            raise bad
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad
    if kind is int:
        if isinstance(value, float) and not value.is_integer():
            raise bad
        return int(value)
    if not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; expected a finite number")
    return float(value)


def _check_ranges(c: DecodeConfig) -> None:
    for field in dataclasses.fields(c):
        choices, value = field.metadata["choices"], getattr(c, field.name)
        if choices and value is not None and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"{field.name} is {value!r}; {hint}choose one of {', '.join(choices)}")
    for name in ("threshold", "relaxed_threshold"):
        value = getattr(c, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise UserError(f"{name} is {value}; expected a probability between 0 and 1")
    for name in OWN:
        value, allowed = getattr(c, name), FIELDS[name].metadata["own"]
        low, high, above = allowed["low"], allowed["high"], allowed["above"]
        if value is not None and (value < low or (above and value == low)):
            least = "more than" if above else "at least"
            raise UserError(f"{name} is {value}; expected {least} {low}")
        if value is not None and value > high:
            raise UserError(f"{name} is {value}; expected at most {high:g}")
    limit = 2**31 - 1
    for name, least in (("radius", 0), ("steps", 1), ("gen_length", 1), ("block_length", 1)):
        value = getattr(c, name)
        if value is not None and not least <= value <= limit:
            raise UserError(f"{name} is {value}; expected at least {least}")
    if c.gen_length % c.block_length:
        raise UserError(
            f"block_length {c.block_length} does not divide gen_length {c.gen_length}; "
            f"choose a divisor, such as {_divisor_near(c.gen_length, c.block_length)}"
        )
    if c.temperature < 0:
        raise UserError(f"temperature is {c.temperature}; expected 0 or more")
    if not 0.0 < c.top_p <= 1.0:
        raise UserError(f"top_p is {c.top_p}; expected more than 0 and at most 1")
    if c.top_k is not None and not 1 <= c.top_k <= limit:
        raise UserError(f"top_k is {c.top_k}; expected at least 1, or leave it off")
    if not 0 <= c.seed < 2**32:
        raise UserError(f"seed is {c.seed}; expected 0 to 2**32 - 1")
    if c.cfg_scale < 0:
        raise UserError(f"cfg_scale is {c.cfg_scale}; expected 0 or more")


def _check_policy(c: DecodeConfig) -> None:
    policy = POLICIES[c.policy]
    for name in POLICY_OPTIONS:
        if getattr(c, name) is not None and name not in policy.defaults:
            reads = ", ".join(policy.defaults) or "none"
            raise UserError(
                f"{name} is set, but policy {c.policy} does not read it (it reads: {reads}); "
                f"remove it or choose another policy"
            )
    if "relaxed_threshold" in policy.defaults:
        relaxed, threshold = c.value("relaxed_threshold"), c.value("threshold")
        if relaxed > threshold:
            raise UserError(
                f"relaxed_threshold {relaxed} is above threshold {threshold}; "
                f"lower relaxed_threshold or raise threshold"
            )
    if "low_threshold" in policy.defaults and c.value("low_threshold") > c.value("threshold"):
        raise UserError(
            f"low_threshold {c.value('low_threshold')} is above threshold {c.value('threshold')}; "
            f"lower low_threshold or raise threshold"
        )
    if "recheck" in policy.needs and c.cache != "none":
        raise UserError(
            f"cache is {c.cache}, but policy {c.policy} reads the whole sequence in every pass; "
            f"choose cache none or another policy"
        )
    if policy.scheduled:
        if c.value("schedule") == "dream" and c.block_length != c.gen_length:
            raise UserError(
                f"schedule dream runs over the whole canvas; set block_length to gen_length "
                f"({c.gen_length}), not {c.block_length}"
            )
        if c.value("steps") % c.blocks:
            raise UserError(
                f"steps {c.value('steps')} is not a multiple of the {c.blocks} blocks "
                f"(gen_length {c.gen_length} / block_length {c.block_length})"
            )


def _divisor_near(n: int, wanted: int) -> int:
    divisors = {d for i in range(1, math.isqrt(n) + 1) if n % i == 0 for d in (i, n // i)}
    return min(divisors, key=lambda d: (abs(d - wanted), d))
