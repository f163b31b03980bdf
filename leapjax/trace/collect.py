"""Decode prompts under several policies and put the trace together."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.policies import PARAMETERS, POLICIES, ROWS
from leapjax.policies.names import row_names
from leapjax.policies.parameters import SCHEDULED
from leapjax.trace.data import Item, Run, Trace, run_of
from leapjax.types import Completion, Request

GREEDY = "greedy"
CHOSEN = "chosen"
MOST_POLICIES = 6  # beside each other, still readable
MOST_TOKENS = 200_000  # positions on a page; a browser draws that many


def names(asked: Sequence[str] | None, config: DecodeConfig) -> tuple[str, ...]:
    """The policies of a trace; greedy, which the others are compared with, is one of them.

    `asked`: names of policies, or `chosen`; None is the chosen policy and greedy; `config`: the
    job's options, with the chosen policy.
    """
    asked = row_names(asked or (CHOSEN, GREEDY), "--trace-policies", extra=[CHOSEN])
    resolved = [name_of(config) if n == CHOSEN else n for n in asked]
    if GREEDY not in resolved:
        resolved.append(GREEDY)
    out = tuple(dict.fromkeys(resolved))
    if len(out) > MOST_POLICIES:
        raise UserError(
            f"--trace-policies names {len(out)} policies with greedy; at most {MOST_POLICIES} "
            "fit beside each other"
        )
    return out


def name_of(config: DecodeConfig) -> str:
    """The name that a decode's options go by: one of `ROWS`, else the policy's own."""
    per_step = config.tokens_per_step if config.value("schedule") == "even" else None
    for name, row in ROWS.items():
        if row.policy == config.policy and row.tokens in (0, per_step):
            return name
    return config.policy


def config_for(name: str, config: DecodeConfig) -> DecodeConfig:
    """The options of a policy of a trace.

    What the user set goes with every policy that reads it, so that `--threshold 0.8` is the
    threshold of each; everything else is the policy's default.

    `name`: from `names`; `config`: the request's options, with the chosen policy.
    """
    if name == name_of(config):
        return config
    reads = POLICIES[ROWS[name].policy].reads
    kept = {n: getattr(config, n) if n in reads else None for n in PARAMETERS}
    kept |= dict.fromkeys(p.name for p in SCHEDULED)
    return config.replace(policy=name, **kept)


def check_size(count: int, policies: int, gen_length: int) -> None:
    """Refuse a trace that no browser would show.

    `count`: prompts, or a lower bound of them. Raises UserError: too many positions; the message
    says how many prompts fit.
    """
    most = max(MOST_TOKENS // (policies * gen_length), 1)
    if count > most:
        raise UserError(
            f"--trace shows at most {most} prompts of {gen_length} positions under {policies} "
            f"policies; leave some out with --limit {most}"
        )


def collect(
    lm: LM,
    requests: Sequence[Request],
    prompts: Sequence[str],
    policies: Sequence[str],
    *,
    done: Mapping[str, Sequence[Completion]] | None = None,
    batch_size: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Trace:
    """Decode the requests under each policy.

    `requests`: what was asked, each with its own options; `done`: policy -> completions there are
    already, in the requests' order; `note`: told which policy is being decoded. Raises UserError:
    the model has no tokenizer, or a policy does not go with the options.
    """
    if lm.codec is None:
        raise UserError("--trace shows texts, but the model has no tokenizer")
    if not requests:
        raise UserError("--trace has nothing to show: no record could be decoded")
    check_size(len(requests), len(policies), requests[0].config.gen_length)
    # All of a policy's options are checked before anything is decoded.
    wanted = {
        name: [dataclasses.replace(r, config=config_for(name, r.config)) for r in requests]
        for name in policies
    }
    made = dict(done or {})
    for name in policies:
        if name not in made:
            note(name)
            made[name] = list(lm.stream(wanted[name], batch_size=batch_size))
    items = []
    for n, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        greedy = made[GREEDY][n]
        runs = tuple(
            _run(name, wanted[name][n].config, made[name][n], lm, greedy) for name in policies
        )
        number = "" if request.sample is None else f", sample {request.sample}"
        items.append(Item(f"{request.id}{number}", prompt, runs))
    c = requests[0].config
    settings = f"canvas {c.gen_length}, block {c.block_length}, cache {c.cache}, {lm.dtype}"
    if c.temperature > 0:
        settings += f", temperature {c.temperature:g}"
    from leapjax.loader import embedded_path

    model = "embedded model" if lm.path in (None, embedded_path()) else lm.path.name
    return Trace(model, settings, tuple(items))


def _run(name: str, config: DecodeConfig, completion, lm: LM, greedy) -> Run:
    against = None if name == GREEDY else greedy
    return run_of(name, describe(config), completion, lm.codec, against)


def describe(config: DecodeConfig) -> str:
    """A policy's own numbers, in words."""
    if (per_step := config.tokens_per_step) is not None:
        return f"{config.policy}, {per_step:g} token{'s' * (per_step != 1)} a step"
    shown = []
    for p in POLICIES[config.policy].parameters:
        # What only says that a refinement is off is left out.
        if getattr(config, p.name) is not None or (p.default and not p.follows):
            value = config.value(p.name)
            shown.append(f"{p.name.replace('_', ' ')} {value if p.kind is str else f'{value:g}'}")
    return ", ".join(shown) or config.policy
