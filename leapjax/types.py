"""The values that travel between the parts: what a pass proposes and what a policy decides.

Shapes: B rows, W window (the active block's columns), T sequence, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

# Why a position was committed; the codes stored in `commit_kind`, in this order.
COMMIT_KINDS = ("none", "top1", "anchor", "propagated", "schedule", "seed")
NONE, TOP1, ANCHOR, PROPAGATED, SCHEDULE, SEED = range(len(COMMIT_KINDS))

# What ends a row before its canvas is full: nothing; a finished block that holds a stop id; a stop
# id with no open position before it; the same in a pass that commits a stop id, or a finished block
# that holds one. Rows hold the index (docs/contract.md, Options).
EARLY_STOPS = ("off", "block", "settled", "on_eos")

# What a policy does with a position: nothing; decide an open one; put another token in place of
# one that it decided; open that one again.
KEEP, COMMIT, REPLACE, REOPEN = range(4)


# What a policy may need of the whole row: only a pass without a KV cache computes it.
ATTENTION = frozenset({"attention", "received"})
WHOLE_ROW = ATTENTION | {"sure", "recheck"}


class Attention(NamedTuple):
    """How much positions attend to each other in this pass: [query, key], each query's sum is 1.

    The mean over the query heads and the last four layers; 0 where the model's rule, or a pad,
    hides the key.

    Attributes:
      rows: (B, W, T) float32, the queries of the window.
      received: (B, T) float32, sums over all queries of the row; None unless asked for.
    """

    rows: Any
    received: Any = None


class Proposal(NamedTuple):
    """What the model offers for each position of the window.

    Attributes:
      token: (B, W) int32, the chosen token.
      confidence: (B, W) float32 in [0, 1], its probability before temperature and filters.
      margin: (B, W) float32 in [0, 1], best minus second-best probability; None unless asked for.
      entropy: (B, W) float32 in nats; None unless asked for.
      uniform: (B, W) float32 in [0, 1), noise of the row's own key; None unless asked for.
      held: (B, W) bool, positions that stay open even if chosen, because the model's best
        token is the mask; None but for Dream's schedule.
      surprise: (B, W) float32 in nats, -log of the chosen token's frequency in a corpus; None
        unless asked for.
      log_probs: (B, W, V) float32, the whole distribution; None unless asked for.
      recheck: (B, W) float32 in [0, 1], probability of the token that stands at a position, by a
        pass that doesn't see it; None unless asked for.
      attention: `Attention`; None unless asked for.
      sure: (B, T) float32 in [0, 1], probability of the most probable token of each column,
        decided ones included, and 0 outside the row; None unless asked for.
    """

    token: Any
    confidence: Any
    margin: Any = None
    entropy: Any = None
    uniform: Any = None
    held: Any = None
    surprise: Any = None
    log_probs: Any = None
    recheck: Any = None
    attention: Any = None
    sure: Any = None


class Decision(NamedTuple):
    """What a policy decides in one pass; `leapjax.policies.commits` makes the usual one.

    Attributes:
      action: (B, W) int8, for each position `KEEP`, `COMMIT` (what is masked), `REPLACE` or
        `REOPEN` (what the policy decided before, if it declares that it does so).
      kind: (B, W) int8, codes of `COMMIT_KINDS`; read where a token is committed.
      memory: what the policy remembers until the block's next pass; None for most.
      token: (B, W) int32, what `REPLACE` writes, never the mask token; None is what was proposed.
    """

    action: Any
    kind: Any
    memory: Any = None
    token: Any = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing to decode, tokenised, with its options resolved.

    Attributes:
      id: the record's id, a string or an integer.
      ids: the prompt's token ids; for infilling the whole sequence with mask ids where open.
      config: this request's `DecodeConfig`.
      infill: mask ids in `ids` are open, and no canvas is appended.
      seed: the record's own seed, or None to derive the key from the job's seed and the id.
      sample: which of several samples of the same prompt this is.
      metadata: other keys of the record, carried to the completion.
      stop: strings that cut the text.
      whole: the completion's text is that of the whole sequence, eos or not.
    """

    id: Any
    ids: tuple[int, ...]
    config: Any
    infill: bool = False
    seed: int | None = None
    sample: int | None = None
    metadata: dict | None = None
    stop: tuple[str, ...] = ()
    whole: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Completion:
    """What came out for one request (docs/contract.md, Records).

    Attributes:
      id: the request's id.
      text: the answer before the first eos, end-of-turn token or stop string.
      output_ids: token ids of the canvas (infilling: of the whole sequence).
      finish_reason: `stop` or `length`.
      steps: passes whose proposals were offered to this row's policy.
      full_passes: passes over the whole sequence.
      nfe: model evaluations; guidance makes two a pass.
      commit_step: the step that committed each position; -1 filled by early stop, -2 given, -3
        decided by no policy. Edits don't change it, nor the two below.
      commit_kind: why, names of `COMMIT_KINDS`.
      commit_confidence: the proposal's confidence when committed, in [0, 1].
      edits: the later changes of committed tokens, by step and position, as (step, index in
        `output_ids`, new id); None if the decode makes none.
      committed_ids: `output_ids` as they were committed, before the edits; None as `edits`. No key
        of a record.
      sample: which of several samples this is, or None.
      metadata: other keys of the record.
    """

    id: Any
    text: str
    output_ids: list[int]
    finish_reason: str
    steps: int
    full_passes: int
    nfe: int
    commit_step: list[int]
    commit_kind: list[str]
    commit_confidence: list[float]
    edits: list[list[int]] | None = None
    committed_ids: list[int] | None = None
    sample: int | None = None
    metadata: dict | None = None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        sample = "" if self.sample is None else f", sample={self.sample}"
        return (
            f"Completion(id={self.id!r}{sample}, text={text!r}, steps={self.steps}, "
            f"finish_reason={self.finish_reason!r})"
        )


def steps_until_shown(commit_step: Sequence[int], steps: int) -> list[int]:
    """How many steps are done when each position of a canvas holds its final token.

    Args:
      commit_step: of a completion; -3 stands as soon as all before it does, -2 from the start, -1
        at the end.

    >>> steps_until_shown([0, 1, -3, 2, -1], steps=3)
    [1, 2, 2, 3, 3]
    """
    latest, out = 0, []
    for step in commit_step:
        latest = max(latest, step + 1)
        out.append({-1: steps, -2: 0, -3: latest}.get(step, step + 1))
    return out


def replaced(completion: Completion) -> list[list[tuple[int, int]]]:
    """For each position the tokens that an edit replaced, oldest first.

    Args:
      completion: what came out.

    Returns:
      (the step of the edit, the id that stood there until then); empty where nothing was edited.

    >>> c = Completion(1, "", [7, 8], "length", 3, 3, 3, [0, 0], ["top1"] * 2, [0.5] * 2,
    ...                edits=[[1, 1, 9], [2, 1, 8]], committed_ids=[7, 5])
    >>> replaced(c)
    [[], [(1, 5), (2, 9)]]
    """
    out: list[list[tuple[int, int]]] = [[] for _ in completion.output_ids]
    if completion.edits and completion.committed_ids:
        standing = list(completion.committed_ids)
        for step, position, new in completion.edits:
            out[position].append((step, standing[position]))
            standing[position] = new
    return out
