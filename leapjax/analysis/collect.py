"""Decode prompts and replay them: the raw measurements of one policy.

requests ─▶ engine ─▶ completions ─▶ batches of one program ─▶ replay ─▶ Observations
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from leapjax.analysis.replay import replay_jit, replay_program
from leapjax.caches import CACHES
from leapjax.config import DecodeConfig
from leapjax.decoding import initial_state
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.policies import POLICIES
from leapjax.types import Completion, Request


@dataclasses.dataclass(frozen=True)
class Observations:
    """What was measured of n prompts under one policy (canvas C).

    Attributes:
      block_length: W, positions.
      steps: (n,) int32.
      commit_step: (n, C) int32; -1 filled in by early stop.
      answer: (n, C) bool; up to and including the first eos.
      since: (n, C) int32, as in `Replayed`, and so are the others.
      differs: (n,) int32.
      pairs: (n, 2, 2, confidences, distances) int32.
      agree: (n, 2, 2, confidences, distances) int32.
    """

    block_length: int
    steps: np.ndarray
    commit_step: np.ndarray
    answer: np.ndarray
    since: np.ndarray
    differs: np.ndarray
    pairs: np.ndarray
    agree: np.ndarray


def check(config: DecodeConfig, where: str = "analyze") -> None:
    """Refuse what a replay from the commit steps would not reproduce.

    Args:
      config: decode options.
      where: named at the beginning of the message.

    Raises:
      UserError: a KV cache, sampling, guidance, or a policy that changes committed tokens or
        logits.
    """
    policy = POLICIES[config.policy]
    wrong = None
    if not CACHES[config.cache].exact:
        wrong = f"cache {config.cache} proposes from older keys and values; use cache none"
    elif config.temperature > 0:
        wrong = f"temperature {config.temperature} samples; use temperature 0"
    elif config.cfg_scale > 0:
        wrong = f"cfg_scale {config.cfg_scale} is not replayed; use cfg_scale 0"
    elif policy.revises:
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
    show: Callable[[str, int], None] = lambda stage, done: None,
) -> Observations:
    """Decode requests and measure each of their passes.

    Args:
      lm: the model; its first replica replays.
      requests: of one policy and canvas.
      threshold: confidence that makes an anchor.
      batch_size: rows decoded, and replayed, at once.
      show: told `decode` or `replay` and how many requests are through.

    Returns:
      The measurements, in the order of the requests.

    Raises:
      UserError: nothing to measure, or options that a replay does not cover.
    """
    if not requests:
        raise UserError("analyze: no prompts")
    for r in requests:
        check(r.config, f"record {r.id}")
        if r.infill:
            raise UserError(f"record {r.id}: infilling is not analysed; give a prompt")
    engine = lm.engine(batch_size)
    made: dict[int, Completion] = {}
    for i, completion in engine.as_completed(requests):
        made[i] = completion
        show("decode", len(made))
    groups: dict = {}
    for i in range(len(requests)):
        groups.setdefault(engine.program(requests[i]), []).append(i)
    rows: dict[int, dict[str, np.ndarray]] = {}
    for program, members in groups.items():
        for at in range(0, len(members), batch_size):
            batch = members[at : at + batch_size]
            pairs = [(requests[i], made[i]) for i in batch]
            out = _replay(
                engine.replicas[0].params, pairs, program, batch_size, np.float32(threshold), lm
            )
            rows |= dict(zip(batch, out, strict=True))
            show("replay", len(rows))
    stacked = {name: np.stack([rows[i][name] for i in range(len(requests))]) for name in rows[0]}
    return Observations(block_length=requests[0].config.block_length, **stacked)


def answer_positions(ids: Sequence[int], eos_id: int) -> np.ndarray:
    """(C,) bool: the canvas up to and including its first eos, or all of it."""
    ends = np.flatnonzero(np.asarray(ids) == eos_id)
    return np.arange(len(ids)) <= (ends[0] if len(ends) else len(ids))


def _replay(params, pairs, program, slots: int, threshold, lm: LM) -> list[dict[str, np.ndarray]]:
    """Replay at most `slots` rows of one program; free slots hold rows without a step."""
    whole = replay_program(program)
    n, c = len(pairs), program.gen_length
    final = np.full((slots, c), lm.config.pad_token_id, np.int32)
    commit = np.full((slots, c), -1, np.int32)
    answer = np.zeros((slots, c), bool)
    for b, (_, completion) in enumerate(pairs):
        final[b] = completion.output_ids
        commit[b] = completion.commit_step
        answer[b] = answer_positions(completion.output_ids, lm.config.eos_token_id)
    steps = np.array([completion.steps for _, completion in pairs], np.int32)
    state = initial_state([request for request, _ in pairs], whole, slots)
    block_length = pairs[0][0].config.block_length
    out = replay_jit(
        params, state, final, commit, answer, steps.max(), threshold, whole, block_length
    )
    host = jax.tree.map(np.asarray, out)._asdict()
    host |= {"commit_step": commit, "answer": answer, "steps": steps}
    return [{name: value[b] for name, value in host.items()} for b in range(n)]
