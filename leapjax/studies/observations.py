"""Decode prompts and replay every pass: the raw measurements of one policy.

    requests ─▶ runner ─▶ answers with details ─▶ batches of one program ─▶ replay ─▶ Observations

Both answers and measurements are kept, so an interrupted analysis continues where it was.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.decoding import initial_state
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.policies import POLICIES
from leapjax.studies import runner
from leapjax.studies.replay import CONFIDENCE_BINS, DISTANCE_BINS, replay_jit, replay_program
from leapjax.studies.store import AnswerStore
from leapjax.types import Request

_TABLE = (2, 2, CONFIDENCE_BINS, DISTANCE_BINS)


@dataclasses.dataclass(frozen=True)
class Observations:
    """Measurements of n prompts under one policy (canvas C); the last four as in `Replayed`."""

    block_length: int
    steps: np.ndarray  # (n,) int32
    commit_step: np.ndarray  # (n, C) int32; -1 filled in by early stop
    answer: np.ndarray  # (n, C) bool; up to and including the first id that ends it
    since: np.ndarray
    differs: np.ndarray
    pairs: np.ndarray
    agree: np.ndarray


def check(config: DecodeConfig, where: str = "analyze") -> None:
    """Refuse what a replay from the commit steps would not reproduce.

    `where` begins the message.
    """
    policy = POLICIES[config.policy]
    wrong = None
    if config.model is not None and config.model.block_causal:
        wrong = "the model is block-causal, whose passes are not replayed yet; choose another model"
    elif not CACHES[config.cache or "none"].exact:
        wrong = f"cache {config.cache} proposes from older keys and values; use cache none"
    elif config.temperature > 0:
        wrong = f"temperature {config.temperature} samples; use temperature 0"
    elif config.cfg_scale > 0:
        wrong = f"cfg_scale {config.cfg_scale} is not replayed; use cfg_scale 0"
    elif policy.reopens or config.edits:
        wrong = f"policy {config.policy} changes tokens that it committed; choose another policy"
    elif policy.adjust is not None:
        wrong = f"policy {config.policy} changes the logits; choose another policy"
    if wrong:
        raise UserError(f"{where}: {wrong}")


def collect(
    lm: LM,
    requests: Sequence[Request],
    *,
    threshold: float = 0.9,
    batch_size: int,
    folder: Path | None = None,
    show: Callable[[str, int], None] = lambda stage, done: None,
) -> Observations:
    """Decode requests and measure each of their passes.

    `requests` have one policy and canvas, and distinct ids; `threshold` makes an anchor. `show`
    takes `decode` or `replay` and the number of requests that are through.
    """
    if not requests:
        raise UserError("analyze: no prompts")
    for r in requests:
        check(r.config, f"record {r.id}")
        if r.infill:
            raise UserError(f"record {r.id}: infilling is not analysed; give a prompt")
    first = requests[0].config
    ends = first.for_model(lm.config).end_ids
    keys = [f"{runner.setting_key(r.config)}/{runner.prompt_key(r)}" for r in requests]
    shared = runner.shared_options(first)
    questions = [runner.Question(key, r) for key, r in zip(keys, requests, strict=True)]
    how = {"batch_size": batch_size, "details": True, "show": functools.partial(show, "decode")}
    made = runner.decode(lm, questions, folder, f"{first.policy}-details", shared, **how)
    settings = runner.provenance(lm, shared, batch_size) | {"anchor_threshold": threshold}
    with AnswerStore(folder, f"{first.policy}-replay", settings) as store:
        engine = lm.engine_for(len(requests), batch_size)
        groups: dict = {}
        for i, r in enumerate(requests):
            if keys[i] not in store.answers:
                groups.setdefault(engine.program(r), []).append(i)
        done = len(requests) - sum(map(len, groups.values()))
        show("replay", done)
        for program, members in groups.items():
            for at in range(0, len(members), batch_size):
                batch = members[at : at + batch_size]
                pairs = [(requests[i], made[i]) for i in batch]
                rows = _replay(lm, engine, pairs, program, batch_size, np.float32(threshold))
                for i, row in zip(batch, rows, strict=True):
                    store.add({"id": keys[i]} | row)
                done += len(batch)
                show("replay", done)
        measured = [_measured(store.answers[key]) for key in keys]
    ids = [a["output_ids"] for a in made]
    return Observations(
        block_length=first.block_length,
        steps=np.array([a["steps"] for a in made], np.int32),
        commit_step=np.array([a["commit_step"] for a in made], np.int32),
        answer=np.stack([answer_positions(x, ends) for x in ids]),
        **{name: np.stack([m[name] for m in measured]) for name in measured[0]},
    )


def answer_positions(ids: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """(C,) bool: the canvas up to and including the first id that ends it, or all of it.

    >>> answer_positions([3, 7, 0, 0], ends=(0,)).tolist()
    [True, True, True, False]
    """
    found = np.flatnonzero(np.isin(ids, ends))
    return np.arange(len(ids)) <= (found[0] if len(found) else len(ids))


def _replay(
    lm: LM, engine, pairs, program, slots: int, threshold: np.float32
) -> list[dict[str, Any]]:
    """Replay at most `slots` rows of one program; free slots hold rows without a step."""
    c = program.gen_length
    final = np.full((slots, c), lm.config.pad_token_id, np.int32)
    commit = np.full((slots, c), -1, np.int32)
    answer = np.zeros((slots, c), bool)
    for b, (request, made) in enumerate(pairs):
        ends = request.config.for_model(lm.config).end_ids
        final[b], commit[b] = made["output_ids"], made["commit_step"]
        answer[b] = answer_positions(made["output_ids"], ends)
    whole = replay_program(program)
    out = replay_jit(
        engine.replicas[0].params,
        initial_state([request for request, _ in pairs], whole, slots),
        *(final, commit, answer),
        np.int32(max(made["steps"] for _, made in pairs)),
        *(threshold, whole, program.block_length),
    )
    rows = []
    for _, since, differs, *tables in zip(pairs, *jax.tree.map(np.asarray, out), strict=False):
        count, agree = (table.ravel() for table in tables)
        at = np.flatnonzero(count)
        cells = np.stack([at, count[at], agree[at]], axis=1).tolist()
        rows.append({"since": since.tolist(), "differs": int(differs), "cells": cells})
    return rows


def _measured(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a kept row; `cells` are those of the tables that count something."""
    tables = np.zeros((2, np.prod(_TABLE)), np.int32)
    at, *values = np.array(row["cells"], np.int32).reshape(-1, 3).T
    tables[:, at] = values
    pairs, agree = tables.reshape(2, *_TABLE)
    since, differs = (np.array(row[name], np.int32) for name in ("since", "differs"))
    return {"since": since, "differs": differs, "pairs": pairs, "agree": agree}
