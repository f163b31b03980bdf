"""Decode requests, keep every answer, and continue after an interruption: the studies' runner.

    questions ─▶ those that the store lacks ─▶ LM.engine_for(…) ─▶ answers, kept as they come

Options with one value per row are traced, so requests under many settings are rows of one
stream and share one compiled program.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from leapjax.config import OPTIONS, DecodeConfig, per_row
from leapjax.errors import UserError
from leapjax.jobs.header import versions
from leapjax.jobs.source import Input
from leapjax.jsonl import parse_line
from leapjax.lm import LM
from leapjax.model_files import tokenizer_hash
from leapjax.ops import hardware
from leapjax.studies.counts import counts
from leapjax.studies.store import AnswerStore
from leapjax.tasks import Task
from leapjax.tasks.base import Problem
from leapjax.types import Request

_DETAILS = ("output_ids", "commit_step", "commit_kind")


class Question(NamedTuple):
    """A request whose answer is kept."""

    id: str  # of the answer in the store; the same question has the same id in every run
    request: Request
    about: Mapping[str, Any] = {}  # further keys of the answer


class Trial(NamedTuple):
    """A task's problem as it is asked once."""

    problem: Problem
    template: int = 0  # in which wording, a place in the task's templates
    seed: int = 0  # added to a setting's seed of the noise


def read_records(path: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The records of a JSONL file; one without an id gets the number of its line.

    `path` is a file, a URL, or `-` for stdin.
    """
    records = []
    for item in itertools.islice(Input(path).items(), limit):
        record = parse_line(item.given, item.where)
        records.append({"id": item.line} | {k: v for k, v in record.items() if v is not None})
    if not records:
        raise UserError(f"{path}: holds no prompts")
    return records


def default_batch_size() -> int:
    """Rows decoded at once by default (`--batch-size`)."""
    return hardware.defaults().study_slots


def device_name() -> str:
    """The accelerator's kind, or the processor's name and its number of cores."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def provenance(lm: LM, options: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Everything that an answer and its time depend on, except the prompt.

    `options` are the decode options that the answers of a store share.
    """
    return {
        "model_hash": lm.model_hash,
        "config": dataclasses.asdict(lm.config),
        "tokenizer": tokenizer_hash(lm.path),
        "dtype": lm.dtype,
        "quantization": lm.quantization,
        "options": dict(options),
        "batch_size": batch_size,
        "device": device_name(),
        "backend": hardware.name(),
        "versions": versions(),
    }


def answers(
    lm: LM,
    questions: Sequence[Question],
    folder: Path | None,
    name: str,
    options: Mapping[str, Any],
    *,
    batch_size: int,
    details: bool = False,
    timed: bool = False,
    show: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answer every question; only those without an answer in the store are decoded.

    `folder` None keeps the store `name` in memory; `options` are the decode options that all
    questions share. Yields (index of the question, answer), kept answers first, each question
    once; a caller that stops early decodes no more. An answer holds `id`, the question's `about`,
    `text`, `finish_reason` and the numbers of `counts`; with `details` also `output_ids`,
    `commit_step`, `commit_kind` and `commit_confidence`; if `timed` also `seconds`, the wall time
    since the answer before. For that each program decodes one request first, so that the sum over
    all answers contains no compilation. `show` takes the number of answers there are.
    """
    with AnswerStore(folder, name, provenance(lm, options, batch_size)) as store:
        todo = [i for i, q in enumerate(questions) if q.id not in store.answers]
        kept = len(questions) - len(todo)
        show(kept)
        for i, q in enumerate(questions):
            if (answer := store.answers.get(q.id)) is not None:
                yield i, answer
        if not todo:
            return
        requests = [questions[i].request for i in todo]
        engine = lm.engine_for(len(requests), batch_size)
        if timed:
            for first in {engine.program(r): r for r in reversed(requests)}.values():
                list(engine.stream([dataclasses.replace(first, id="warm-up")]))
        last = time.perf_counter()
        for done, (place, made) in enumerate(engine.as_completed(requests), kept + 1):
            q = questions[todo[place]]
            answer = {"id": q.id, **q.about, "text": made.text, "finish_reason": made.finish_reason}
            answer |= counts(made, q.request.config.for_model(lm.config).end_ids)
            if details:
                answer |= {name: getattr(made, name) for name in _DETAILS}
                answer["commit_confidence"] = [round(x, 5) for x in made.commit_confidence]
            now = time.perf_counter()
            if timed:
                answer["seconds"] = round(now - last, 6)
            last = now
            store.add(answer)
            show(done)
            yield todo[place], answer


def decode(lm: LM, questions: Sequence[Question], *where, **how) -> list[dict[str, Any]]:
    """`answers` in the questions' order; its arguments."""
    found = dict(answers(lm, questions, *where, **how))
    return [found[i] for i in range(len(questions))]


def greedy(config: DecodeConfig) -> DecodeConfig:
    """Greedy decoding on a setting's canvas: one token a step, without an approximate cache.

    >>> greedy(DecodeConfig(gen_length=16, block_length=8, cache="dual")).value("steps")
    16
    """
    made = DecodeConfig(
        policy="low_confidence", gen_length=config.gen_length, block_length=config.block_length
    )
    return made if config.model is None else made.for_model(config.model)


def row_numbers(config: DecodeConfig) -> dict[str, Any]:
    """The values in force of the options with one value per row that its policy reads.

    >>> row_numbers(DecodeConfig(policy="confidence_threshold"))["threshold"]
    0.9
    """
    every = {name: config.value(name) for name in per_row()}
    return {name: value for name, value in every.items() if value is not None}


def shared_options(config: DecodeConfig) -> dict[str, Any]:
    """The options that requests of one stream share: those without one value per row."""
    return {n: value for n, value in config.to_dict().items() if not OPTIONS[n].traced}


def setting_key(config: DecodeConfig) -> str:
    """A short name of a setting among those of one compiled structure, the same in every run."""
    text = json.dumps(row_numbers(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def decode_settings(
    lm: LM,
    task: Task,
    problems: Sequence[Problem | Trial],
    configs: Sequence[DecodeConfig],
    folder: Path | None,
    *,
    show: Callable[[int], None] = lambda done: None,
    **how,
) -> dict[DecodeConfig, list[dict[str, Any]]]:
    """Answer every problem under every setting; one stream and one store a compiled structure.

    Trials ask in other templates, too. Returns setting -> one answer per problem, in their order,
    with `correct` and `strict` (the lenient and the strict parser's verdict), `problem` (its id),
    `stratum`, `template` and `seed`. `how` goes to `answers`, of which `timed` tells settings apart
    only if each is decoded by itself.
    """
    trials = [t if isinstance(t, Trial) else Trial(t) for t in problems]
    groups: dict[str, list[DecodeConfig]] = {}
    for config in dict.fromkeys(configs):
        groups.setdefault(json.dumps(shared_options(config)), []).append(config)
    out: dict[DecodeConfig, list[dict[str, Any]]] = {}
    for group in groups.values():
        first, before = group[0], len(out) * len(trials)
        asked = [lm.request(task.record(t.problem, t.template), first) for t in trials]
        keys = [prompt_key(request) for request in asked]
        questions = []
        for config in group:
            for trial, request, key in zip(trials, asked, keys, strict=True):
                own = config.replace(seed=config.seed + trial.seed) if trial.seed else config
                request = dataclasses.replace(request, config=own)
                about = {"numbers": row_numbers(own)}
                questions.append(Question(f"{setting_key(own)}/{key}", request, about))
        how |= {"show": lambda done, before=before: show(before + done)}
        name = f"{first.policy}-{first.cache}" + "-details" * how.get("details", False)
        found = iter(decode(lm, questions, folder, name, shared_options(first), **how))
        for config in group:
            out[config] = [
                {
                    **answer,
                    "correct": task.score(answer["text"], p),
                    "strict": task.score_strict(answer["text"], p),
                    **{"problem": p.id, "stratum": p.stratum, "template": template, "seed": seed},
                }
                for (p, template, seed), answer in zip(trials, found, strict=False)
            ]
    return out


def prompt_key(request: Request) -> str:
    """A name of a prompt that is the same in every run: its id, and a hash of what is asked."""
    what = repr((request.ids, request.infill, request.stop)).encode()
    return f"{request.id}-{hashlib.blake2b(what, digest_size=8).hexdigest()}"
