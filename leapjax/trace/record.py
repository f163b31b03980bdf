"""What `leapjax decode --trace` notes while it decodes, and writes afterwards."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leapjax import records
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.trace import collect
from leapjax.trace.files import check_count
from leapjax.trace.files import write as write_file
from leapjax.types import Completion, Request


class Intake(records.Intake):
    """An intake that keeps what it made, for the other policies.

    `made`: the requests, in input order.
    """

    def __init__(self, job: DecodeConfig, *args, **kwargs):
        super().__init__(job, *args, **kwargs)
        self.made: list[Request] = []
        self.prompts: list[str] = []

    def requests(self, record: Any, line: int, where: str | None = None) -> list[Request]:
        """See `leapjax.records.Intake`."""
        made = super().requests(record, line, where)
        self.made += made
        self.prompts += [prompt_text(record, made[0], self.codec)] * len(made)
        return made


class Sink:
    """Hands everything on and keeps the completions."""

    def __init__(self, inner):
        self._inner = inner
        self.completions: list[Completion] = []

    def write(self, completion: Completion) -> None:
        """Take the next completion."""
        self.completions.append(completion)
        self._inner.write(completion)

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Hand a bad record on."""
        self._inner.keep_bad(record)

    def settle(self, item) -> None:
        """Hand on that a record is through."""
        self._inner.settle(item)


def prompt_text(record: Any, request: Request, codec) -> str:
    """What was asked, as text. `codec`: for prompts that are token ids; None leaves these empty."""
    if isinstance(record, dict):
        if isinstance(record.get("prompt"), str):
            return record["prompt"]
        if record.get("messages"):
            return "\n".join(f"{m['role']}: {m['content']}" for m in record["messages"])
    return "" if codec is None else codec.decode(request.ids)


def write(
    args: argparse.Namespace, lm: LM, intake: Intake, sink: Sink, note: Callable[[str], None]
) -> None:
    """Decode under the other policies and write the trace.

    Raises UserError: too much for a trace, or it can't be written.
    """
    policies = collect.names(args.trace_policies, intake.job)
    done = {collect.name_of(intake.job): sink.completions}
    trace = collect.collect(
        lm,
        intake.made,
        intake.prompts,
        policies,
        done=done,
        batch_size=args.batch_size,
        note=lambda name: note(f"trace: decoding with {name}, to compare"),
    )
    write_file(trace, args.trace, args.overwrite)
    note(f"trace written to {args.trace}")


def check(args: argparse.Namespace, config: DecodeConfig, count: int | None) -> None:
    """Refuse too large a trace before anything is decoded. `count`: prompts, as far as known."""
    if count is None:
        if args.limit is None:
            raise UserError("--trace from a stream needs --limit N, the number of prompts to show")
        count = args.limit
    rows = (count or 0) * (args.num_samples or 1)
    check_count(args.trace, rows)
    policies = collect.names(args.trace_policies, config)
    collect.check_size(rows, len(policies), config.gen_length)


def write_samples(
    args: argparse.Namespace,
    lm: LM,
    config: DecodeConfig,
    asked: Sequence[Mapping[str, Any]],
    note: Callable[[str], None],
) -> None:
    """The trace of `leapjax decode` without a prompt, whose samples are the records `asked`."""
    requests = [lm.request(r, config, line=n) for n, r in enumerate(asked, 1)]
    policies = collect.names(args.trace_policies, config)
    trace = collect.collect(lm, requests, [r["prompt"] for r in asked], policies)
    write_file(trace, args.trace, args.overwrite)
    note(f"trace written to {args.trace}")
