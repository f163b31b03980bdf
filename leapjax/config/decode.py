"""`DecodeConfig`: the options of a decode, validated on construction.

Each option is a `Parameter`. This file declares the options of every decode; a policy's file
declares the policy's. An option's name is also its YAML key, its command-line flag (with dashes)
and its key in a record's `options`; `docs/contract.md` defines what each means.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any

from leapjax.caches import CACHES
from leapjax.config import check, of_model
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.policies import PARAMETERS, POLICIES, ROWS, Parameter
from leapjax.policies.names import policy_of
from leapjax.policies.parameters import EDITING_THRESHOLD, MAX_POST_STEPS
from leapjax.types import EARLY_STOPS

QUANTIZATIONS = ("int8",)


def _option(default: Any, kind: type, help_text: str, **more: Any) -> Any:
    """A dataclass field for an option of every decode; `more` are fields of `Parameter`."""
    metadata = {"kind": kind, "help": help_text, **more}
    return dataclasses.field(default=default, metadata=metadata)


class _Signature:
    """The constructor's signature in `help` and notebooks: every option, registered ones too."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        kind = inspect.Parameter.KEYWORD_ONLY
        # An unset parameter of a policy is None.
        known = {n: COMMON[n].default if n in COMMON else None for n in OPTIONS}
        return inspect.Signature([inspect.Parameter(n, kind, default=d) for n, d in known.items()])


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class DecodeConfig:
    """Options of a decode; see `leapjax decode --help` and `--help-policies`.

    A policy's parameters are also attributes, None if unset; `value(name)` is the value in force.
    An option that is not given has its default; `LM.options` uses the checkpoint's value instead.

    Args:
      **options: options by name.

    Raises:
      UserError: unknown name, value out of range, or a parameter that this policy does not read.

    >>> DecodeConfig(policy="greedy", gen_length=64)
    DecodeConfig(policy='low_confidence', gen_length=64)
    >>> config = DecodeConfig(threshold=0.8)
    >>> config.threshold, config.radius, config.value("radius")
    (0.8, None, 4)
    """

    policy: str = _option("localleap", str, "which positions commit in a pass", traced=False)
    gen_length: int = _option(256, int, "canvas length: tokens to generate", low=1, traced=False)
    block_length: Any = _option(
        None,
        int,
        "length of a block; blocks are decoded left to right (default: a block-causal model's own; "
        "else 32, which must divide gen_length)",
        low=1,
        traced=False,
    )
    temperature: float = _option(0.0, float, "0 takes the most probable token", low=0)
    top_p: float = _option(
        1.0, float, "sample within this probability mass, 0 < p <= 1", low=0, high=1, above=True
    )
    top_k: int | None = _option(None, int, "sample among the k most probable tokens (off)", low=1)
    seed: int = _option(0, int, "seed of the noise, 0 to 2**32 - 1", low=0, high=2**32 - 1)
    cfg_scale: float = _option(
        0.0, float, "classifier-free guidance; above 0, the model runs twice a pass", low=0
    )
    early_stop: str = _option(
        "block",
        str,
        "end a row at a stop id: once its block is finished (block), once no mask is left before "
        "it (settled), or in a pass that commits a stop id, if no mask is left before the first "
        "one (on_eos); off",
        choices=EARLY_STOPS,
    )
    stop_ids: Any = _option(
        None, tuple, "ids that end an answer (default: the model's)", low=0, traced=False
    )
    logits_eos_inf: bool = _option(False, bool, "never propose eos (LLaDA's option)")
    confidence_eos_eot_inf: bool = _option(
        False, bool, "commit eos and end-of-turn last: confidence 0 (LLaDA's option)"
    )
    cache: Any = _option(
        None,
        str,
        f"KV cache; a pass computes {', '.join(f'{c.help} ({n})' for n, c in CACHES.items())} "
        "(default: block for a block-causal model, else none)",
        choices=tuple(CACHES),
        traced=False,
    )
    sub_block_length: Any = _option(
        None,
        int,
        "length of the sub-blocks that a block is decided in, left to right; divides block_length "
        "(default: the model's; only for models with sub-blocks)",
        low=1,
        traced=False,
    )
    sub_block_cache: bool = _option(
        False,
        bool,
        "reuse a block's keys and values between its passes, an approximation; with cache block "
        "and sub-blocks",
        traced=False,
    )
    __signature__ = _Signature()
    # The policy's parameters that are set: (name, value), sorted by name.
    parameters: tuple[tuple[str, Any], ...] = ()
    # The name of a fixed schedule's row, such as `schedule-2`, until the model is known.
    row: str = ""
    # The options as they were given: (name, value).
    given: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), compare=False)
    model: ModelConfig | None = dataclasses.field(default=None, compare=False)

    def __init__(self, *args: Any, **options: Any):
        if args:
            raise UserError("DecodeConfig: give options by name, such as threshold=0.9")
        model = None
        if isinstance(options.get("given"), tuple):  # from dataclasses.replace
            options, model = _changed_fields(options)
        check_keys(options, "DecodeConfig")
        self._set(options, model)

    def _set(self, options: Mapping[str, Any], model: ModelConfig | None) -> None:
        """Check options and set every field."""
        values = {n: check.coerce(p, options.get(n, p.default)) for n, p in COMMON.items()}
        own = {n: check.coerce(p, options[n]) for n, p in PARAMETERS.items() if n in options}
        own = {n: v for n, v in own.items() if v is not None}
        check.common(values, COMMON)
        values["policy"], row = check.policy(values["policy"], own)
        given = {n: values[n] for n, v in options.items() if n in COMMON and v is not None} | own
        if model is not None:
            values = of_model.filled(values, model)
            steps = of_model.row_steps(values, own, row, model)
            own, given, row = own | steps, given | steps, ""
        if "policy" in given:
            given["policy"] = row or values["policy"]
        fields = {"parameters": tuple(sorted(own.items())), "row": row}
        fields |= {"given": tuple(given.items()), "model": model}
        for name, value in (values | fields).items():
            object.__setattr__(self, name, value)
        if model is not None:
            of_model.check(self, model)
        check.parameters(self)

    def for_model(self, model: ModelConfig) -> DecodeConfig:
        """The same options for a model: fill in its own defaults, and check every option.

        A `Request` holds such options. A copy by `replace` is for the same model.

        Args:
          model: the model's shape and special ids.

        Raises:
          UserError: the model can't be decoded with these options.

        >>> from leapjax.testing import tiny_config
        >>> config = DecodeConfig(gen_length=64)
        >>> config.block_length, config.for_model(tiny_config()).block_length
        (None, 32)
        """
        return self if self.model == model else self._of(dict(self.given), model)

    @classmethod
    def _of(cls, options: Mapping[str, Any], model: ModelConfig | None) -> DecodeConfig:
        made = object.__new__(cls)
        made._set(options, model)
        return made

    def __getattr__(self, name: str) -> Any:
        """A policy's parameter: its value, or None if unset."""
        if name in PARAMETERS and "parameters" in self.__dict__:
            return dict(self.parameters).get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *POLICIES[self.policy].reads]

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.changed().items())
        return f"DecodeConfig({said})"

    @property
    def blocks(self) -> int:
        """Number of blocks in the canvas; the model must be known (`for_model`)."""
        return self.gen_length // self.block_length

    @property
    def edits(self) -> bool:
        """Whether the policy may replace tokens that it committed."""
        return POLICIES[self.policy].replaces or self.value(EDITING_THRESHOLD.name) is not None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids at which an answer ends: stop ids and eos; the model must be known."""
        assert self.model is not None
        return tuple(sorted({*self.stop_ids, self.model.eos_token_id}))

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a pass of a fixed schedule commits on average; None without a schedule.

        >>> DecodeConfig(policy="margin", gen_length=64, steps=16).tokens_per_step
        4.0
        """
        if self.row:
            return ROWS[self.row].tokens
        if not POLICIES[self.policy].scheduled:
            return None
        if self.model is not None and self.model.block_causal:
            return self.block_length / self.value("steps_per_block")
        return self.gen_length / self.value("steps")

    def value(self, name: str) -> Any:
        """The value in force: the given value, else the policy's default.

        Args:
          name: an option's name.

        Returns:
          The value; None if the policy or the model does not read the option.
        """
        if self.model is not None and name == of_model.unread(self.model):
            return None
        parameter = POLICIES[self.policy].reads.get(name)
        own = getattr(self, name)
        if own is not None or parameter is None:
            return own
        if parameter.of_model and self.model and (usual := parameter.of_model(self.model)):
            return usual
        return self.value(parameter.follows) if parameter.follows else parameter.default

    def replace(self, **changes) -> DecodeConfig:
        """A validated copy with some options changed, for the same model."""
        check_keys(changes, "option")
        return self._of(dict(self.given) | changes, self.model)

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, as they were given."""
        given = dict(self.given)
        usual = {name: p.default for name, p in COMMON.items()}
        return {n: given[n] for n in OPTIONS if n in given and given[n] != usual.get(n)}

    def to_dict(self) -> dict[str, Any]:
        """Every option that the policy and the model read, with its value in force; JSON-ready."""
        reads = {*COMMON, *POLICIES[self.policy].reads}
        if self.model is not None:
            reads -= {of_model.unread(self.model)}
        if not self.edits:
            reads -= {MAX_POST_STEPS.name}
        values = {n: self.value(n) for n in OPTIONS if n in reads}
        return {n: [*v] if isinstance(v, tuple) else v for n, v in values.items()}


def _changed_fields(fields: dict[str, Any]) -> tuple[dict[str, Any], ModelConfig | None]:
    """The options that `dataclasses.replace` stands for, and the model they are for."""
    model, given = fields.pop("model"), dict(fields.pop("given"))
    before = DecodeConfig(**given) if model is None else DecodeConfig(**given).for_model(model)
    own = {n: v for n, v in fields.items() if n in OPTIONS}
    changed = {n: v for n, v in own.items() if n not in COMMON or v != getattr(before, n)}
    return given | changed, model


# The options of every decode, by name.
COMMON = {
    f.name: Parameter(name=f.name, default=f.default, **f.metadata)
    for f in dataclasses.fields(DecodeConfig)
    if f.metadata
}

# Every option by name: policy, then all policies' parameters (registered ones too), then the
# rest. A ChainMap iterates over its last map first.
OPTIONS: Mapping[str, Parameter] = ChainMap(COMMON, PARAMETERS, {"policy": COMMON["policy"]})


def per_row() -> tuple[str, ...]:
    """The options that a record may set for its row; the others are part of the program."""
    return tuple(name for name, p in OPTIONS.items() if p.traced)


def check_keys(
    given: Iterable[str], where: str, allowed: Iterable[str] = (), what: str = "option"
) -> None:
    """Refuse unknown option names and suggest the nearest known one.

    Args:
      given: the names to check.
      where: their origin, for the message (a file, `line 3`, …).
      allowed: known names; default: every option.
      what: the message's word for a name.

    Raises:
      UserError: a name is unknown.
    """
    known = list(allowed) or list(OPTIONS)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:80], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {check.few(known)}"
            raise UserError(f"{where}: unknown {what} {check.shown(name)}; {hint}")


def row_config(job: DecodeConfig, options: Mapping[str, Any], where: str) -> DecodeConfig:
    """The job's options, overridden by a record's own per-row options.

    Args:
      job: the job's options, for the model that decodes (`DecodeConfig.for_model`).
      options: the record's `options`.
      where: for messages, such as `line 3`.

    Raises:
      UserError: an option is unknown or the same for the whole job, or a value is unusable.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"{where}: options must be an object of names and values")
    check_keys(options, where)
    own = {name: v for name, v in options.items() if OPTIONS[name].traced}
    try:
        for name, given in options.items():
            if name not in own and not _same(job, name, given):
                raise UserError(
                    f"option {name!r} is the same for the whole job; "
                    f"set it with --{name.replace('_', '-')}"
                )
        return job.replace(**own) if own else job
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def _same(job: DecodeConfig, name: str, given: Any) -> bool:
    """Whether a record's value of a job-wide option equals the job's."""
    value = check.coerce(OPTIONS[name], given)
    if name != "policy" or value == job.policy:
        return value == job.value(name)
    # Another name may mean the job's policy; `replace` refuses one that implies other passes.
    same = (policy_of(value) or ("",))[0] == job.policy
    return same and job.replace(policy=value) == job
