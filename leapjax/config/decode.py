"""`DecodeConfig`: the options of a decode, validated on construction.

The field names are the YAML keys, the command-line flags (with dashes) and the
per-record `options`; `docs/contract.md` defines what each means.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from leapjax.caches import CACHES
from leapjax.config import check
from leapjax.errors import UserError
from leapjax.policies import POLICIES
from leapjax.policies.names import policy_of

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


@dataclasses.dataclass(frozen=True, repr=False)
class DecodeConfig:
    """Options of a decode; see the fields' help, and docs/contract.md for the definitions.

    `None` in a policy's own field means the policy's default: read the value in force
    with `value(name)`. A config is complete: what it does not name has the default, not what
    some checkpoint says (`LM.options` goes by the checkpoint).

    Raises:
      UserError: an unknown name; a value that is out of range, or set but not read by the policy.

    >>> DecodeConfig(policy="greedy", gen_length=64)
    DecodeConfig(policy='low_confidence', gen_length=64)
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
    cache: str = _field(
        "none",
        str,
        f"KV cache; a pass computes: {', '.join(f'{c.help} ({n})' for n, c in CACHES.items())}",
        tuple(CACHES),
    )

    def __new__(cls, *args, **options):
        """Refuse what is no option before `__init__` ends in a TypeError."""
        if args:
            raise UserError("DecodeConfig: options go by name, such as threshold=0.9")
        check_keys(options, "DecodeConfig")
        return super().__new__(cls)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check.coerce(field, getattr(self, field.name)))
        check.ranges(self)
        for name, value in check.policy(self).items():
            object.__setattr__(self, name, value)
        check.together(self, POLICY_OPTIONS)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.changed().items())
        return f"DecodeConfig({said})"

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

    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {name: v for name, v in values.items() if v != FIELDS[name].default}

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
            near = difflib.get_close_matches(str(name)[:80], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown {what} {check.shown(name)}; {hint}")


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
    own = {k: v for k, v in options.items() if k in PER_ROW}
    try:
        for name, given in options.items():
            if name not in PER_ROW and not _same(job, name, given):
                raise UserError(
                    f"option {name!r} is the same for the whole job; "
                    f"set it with --{name.replace('_', '-')}"
                )
        return dataclasses.replace(job, **own) if own else job
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def _same(job: DecodeConfig, name: str, given: Any) -> bool:
    """Whether the job decodes with this value of an option that a record can't set."""
    value = check.coerce(FIELDS[name], given)
    if name != "policy" or value == job.policy:
        return value == job.value(name)
    # By another name it may be the job's; a name that means other steps is refused by `replace`.
    same = (policy_of(value) or ("",))[0] == job.policy
    return same and dataclasses.replace(job, policy=value) == job
