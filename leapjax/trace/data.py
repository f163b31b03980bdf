"""What a trace holds: for each prompt, each policy's canvas with the step of every token.

A trace is made of Completions alone, so that whatever decoded them (a cache, a mesh, a
quantised model) is what one looks at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from leapjax.types import Completion, replaced, steps_until_shown

# Colours of the kinds on light and on dark ground, told apart without red against green, and a
# mark for those who see none. Kinds without a line (a policy's own) are shown as `schedule`. A
# token that was edited has that colour from then on, and both marks.
KINDS = {
    "top1": ("▲", "top-1: the surest of the block"),
    "anchor": ("◆", "anchor: at least the threshold"),
    "propagated": ("◇", "propagated: near an anchor, at least the relaxed threshold"),
    "schedule": ("●", "schedule: its turn"),
    "seed": ("■", "seed: a block's first token, decided with the block before"),
    "early_stop": ("·", "filled in behind the end, by no pass"),
    "given": ("", "given from the start"),
    "edited": ("✎", "edited: the token was replaced after its commit"),
}


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A token that stood at a position until an edit replaced it."""

    text: str  # as `Token.text`
    step: int  # the step that replaced it, from 0
    special: bool = False  # as `Token.special`
    same: bool | None = None  # as `Token.same`


@dataclasses.dataclass(frozen=True)
class Token:
    """One position of a canvas."""

    text: str  # its final token's text; a special token's spelling
    step: int  # the step that committed it, from 0; -1 filled by early stop, -2 given, -3 a seed
    kind: str  # a name in `KINDS`
    # of the proposal when committed, in [0, 1]; None where no pass decided
    confidence: float | None
    shown: int  # steps done when it stands on the canvas
    special: bool = False  # a control token, such as eos
    same: bool | None = None  # greedy has the same token here; None for greedy itself
    earlier: tuple[Earlier, ...] = ()  # the tokens that edits replaced, oldest first

    def after(self, done: int) -> tuple[Token | Earlier, int]:
        """What stands here after so many steps, and how often it was edited by then."""
        count = sum(e.step < done for e in self.earlier)
        return (*self.earlier, self)[count], count


@dataclasses.dataclass(frozen=True)
class Run:
    """One policy's decode of one prompt."""

    policy: str  # name in `leapjax.policies.ROWS`, or of the policy
    options: str  # what it reads, in words
    steps: int  # passes it took
    decided: int  # positions that a pass decided
    answer: str  # the text, before its end
    tokens: tuple[Token, ...]  # the canvas, by position

    def edits(self, done: int) -> int:
        """How many edits there were in so many steps."""
        return sum(token.after(done)[1] for token in self.tokens)


@dataclasses.dataclass(frozen=True)
class Item:
    """One prompt and what the policies made of it."""

    name: str  # the record's id, with the sample's number where there are several
    prompt: str  # what was asked, as text
    runs: tuple[Run, ...]  # one per policy, in the order asked for

    @property
    def steps(self) -> int:
        """Of the slowest run."""
        return max(run.steps for run in self.runs)


@dataclasses.dataclass(frozen=True)
class Trace:
    """All that a page or picture shows."""

    model: str  # its name
    settings: str  # canvas, block and the like, in words
    items: tuple[Item, ...]  # by prompt, in input order

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

    `codec`: the model's `TextCodec`, for the texts of its tokens; `greedy`: the baseline's
    completion of the same prompt; None for the baseline itself.
    """
    ids = completion.output_ids

    def looks(ids: Sequence[int], places: Sequence[int]) -> list[dict[str, Any]]:
        """Of tokens at these places of the canvas, what depends on the token alone."""
        return [
            {
                "text": text,
                "special": id_ in codec.special_ids or id_ == codec.eot_id,
                "same": None if greedy is None else greedy.output_ids[place] == id_,
            }
            for text, id_, place in zip(codec.tokens_of(ids), ids, places, strict=True)
        ]

    rows = zip(
        looks(ids, range(len(ids))),
        replaced(completion),
        completion.commit_step,
        completion.commit_kind,
        completion.commit_confidence,
        steps_until_shown(completion.commit_step, completion.steps),
        strict=True,
    )
    tokens = []
    for place, (look, before, step, kind, confidence, shown) in enumerate(rows):
        earlier = looks([id_ for _, id_ in before], [place] * len(before))
        tokens.append(
            Token(
                **look,
                step=step,
                kind=_kind(step, kind),
                confidence=None if step in (-1, -2) else round(confidence, 4),
                shown=shown,
                earlier=tuple(
                    Earlier(**e, step=at) for e, (at, _) in zip(earlier, before, strict=True)
                ),
            )
        )
    decided = sum(step >= 0 for step in completion.commit_step)
    return Run(policy, options, completion.steps, decided, completion.text, tuple(tokens))


def _kind(step: int, kind: str) -> str:
    if step in (-1, -2):
        return "given" if step == -2 else "early_stop"
    return kind if kind in KINDS else "schedule"
