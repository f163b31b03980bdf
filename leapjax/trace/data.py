"""What a trace holds: for each prompt, each policy's canvas with the step of every token.

A trace is made of Completions alone, so that whatever decoded them (a cache, a mesh, a
quantised model) is what one looks at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from leapjax.types import Completion, steps_until_shown

# Colours of the kinds on light and on dark ground, told apart without red against green, and a
# mark for those who see none. Kinds without a line (a policy's own) are shown as `schedule`.
KINDS = {
    "top1": ("▲", "top-1: the surest of the block"),
    "anchor": ("◆", "anchor: at least the threshold"),
    "propagated": ("◇", "propagated: near an anchor, at least the relaxed threshold"),
    "schedule": ("●", "schedule: its turn"),
    "seed": ("■", "seed: a block's first token, decided with the block before"),
    "early_stop": ("·", "filled in behind the end, by no pass"),
    "given": ("", "given from the start"),
}


@dataclasses.dataclass(frozen=True)
class Token:
    """One position of a canvas.

    Attributes:
      text: its token's text; a special token's spelling.
      step: the step that committed it, from 0; -1 filled by early stop, -2 given, -3 a seed.
      kind: a name in `KINDS`.
      confidence: of the proposal when committed, in [0, 1]; None where no pass decided.
      shown: steps done when it stands on the canvas.
      special: a control token, such as eos.
      same: greedy has the same token here; None for greedy itself.
    """

    text: str
    step: int
    kind: str
    confidence: float | None
    shown: int
    special: bool = False
    same: bool | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One policy's decode of one prompt.

    Attributes:
      policy: name in `leapjax.policies.ROWS`, or of the policy.
      options: what it reads, in words.
      steps: passes it took.
      decided: positions that a pass decided.
      answer: the text, before its end.
      tokens: the canvas, by position.
    """

    policy: str
    options: str
    steps: int
    decided: int
    answer: str
    tokens: tuple[Token, ...]


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt and what the policies made of it.

    Attributes:
      name: the record's id, with the sample's number where there are several.
      prompt: what was asked, as text.
      runs: one per policy, in the order asked for.
    """

    name: str
    prompt: str
    runs: tuple[Run, ...]

    @property
    def steps(self) -> int:
        """Of the slowest run."""
        return max(run.steps for run in self.runs)


@dataclasses.dataclass(frozen=True)
class Trace:
    """All that a page or picture shows.

    Attributes:
      model: its name.
      settings: canvas, block and the like, in words.
      items: by prompt, in input order.
    """

    model: str
    settings: str
    items: tuple[Item, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain objects, lists and numbers."""
        return dataclasses.asdict(self)


def run_of(
    policy: str,
    options: str,
    completion: Completion,
    codec,
    greedy: Completion | None = None,
) -> Run:
    """The run that a completion records.

    Args:
      policy: see `Run`.
      options: see `Run`.
      completion: what came out.
      codec: the model's `TextCodec`, for the texts of its tokens.
      greedy: the baseline's completion of the same prompt; None for the baseline itself.
    """
    ids = completion.output_ids
    texts = codec.tokens_of(ids)
    rows = zip(
        texts,
        ids,
        completion.commit_step,
        completion.commit_kind,
        completion.commit_confidence,
        steps_until_shown(completion.commit_step, completion.steps),
        strict=True,
    )
    tokens = []
    for place, (text, id_, step, kind, confidence, shown) in enumerate(rows):
        tokens.append(
            Token(
                text=text,
                step=step,
                kind=_kind(step, kind),
                confidence=None if step in (-1, -2) else round(confidence, 4),
                shown=shown,
                special=id_ in codec.special_ids or id_ == codec.eot_id,
                same=None if greedy is None else greedy.output_ids[place] == id_,
            )
        )
    decided = sum(step >= 0 for step in completion.commit_step)
    return Run(policy, options, completion.steps, decided, completion.text, tuple(tokens))


def _kind(step: int, kind: str) -> str:
    if step in (-1, -2):
        return "given" if step == -2 else "early_stop"
    return kind if kind in KINDS else "schedule"


def commits(run: Run) -> Sequence[int]:
    """How many positions each step of a run committed."""
    counts = [0] * run.steps
    for token in run.tokens:
        if token.step >= 0:
            counts[token.step] += 1
    return counts
