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
    """Attention between positions in this pass: [query, key]; each query's weights sum to 1.

    It is the mean over the query heads and the last four layers; 0 where the model's attention
    rule, or a pad, hides the key.

    Attributes:
      rows: (B, W, T) float32, the queries of the window.
      received: (B, T) float32, each key's sum over all queries of the row; None unless asked for.
    """

    rows: Any
    received: Any = None


class Proposal(NamedTuple):
    """The model's proposal for each position of the window.

    Attributes:
      token: (B, W) int32, the chosen token.
      confidence: (B, W) float32 in [0, 1], its probability before temperature and filters.
      margin: (B, W) float32 in [0, 1], best minus second-best probability; None unless asked for.
      entropy: (B, W) float32 in nats; None unless asked for.
      uniform: (B, W) float32 in [0, 1), noise of the row's own key; None unless asked for.
      held: (B, W) bool, positions that stay open even if chosen, because the model's top-1
        token is the mask; None except with Dream's schedule.
      surprise: (B, W) float32 in nats, -log of the chosen token's frequency in a corpus; None
        unless asked for.
      log_probs: (B, W, V) float32, the whole distribution; None unless asked for.
      recheck: (B, W) float32 in [0, 1], probability of the current token of a position, in a
        pass that doesn't see it; None unless asked for.
      attention: `Attention`; None unless asked for.
      sure: (B, T) float32 in [0, 1], top-1 probability of each column, decided ones included;
        0 outside the row. None unless asked for.
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
    """A policy's decision in one pass; `leapjax.policies.commits` makes the usual kind.

    Attributes:
      action: (B, W) int8, for each position `KEEP`, `COMMIT` (masked ones), `REPLACE` or `REOPEN`
        (ones that the policy decided earlier, if it declares that it does so).
      kind: (B, W) int8, codes of `COMMIT_KINDS`; read only where a token is committed.
      memory: the policy's memory for the block's next pass; None for most policies.
      token: (B, W) int32, what `REPLACE` writes, never the mask token; None: the proposed token.
    """

    action: Any
    kind: Any
    memory: Any = None
    token: Any = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One tokenised prompt or sequence to decode, with its options resolved.

    Attributes:
      id: the record's id, a string or an integer.
      ids: the prompt's token ids; for infilling, the whole sequence with mask ids where open.
      config: this request's `DecodeConfig`.
      infill: mask ids in `ids` are open, and no canvas is appended.
      seed: the record's own seed, or None to derive the key from the job's seed and the id.
      sample: number of this sample among several of the same prompt.
      metadata: other keys of the record, copied to the completion.
      stop: strings before which the text is cut.
      whole: the completion's text is that of the whole sequence, even beyond an eos.
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
    """The answer to one request (docs/contract.md, Records).

    Attributes:
      id: the request's id.
      text: the answer before the first eos, end-of-turn token or stop string.
      output_ids: token ids of the canvas (infilling: of the whole sequence).
      finish_reason: `stop` or `length`.
      steps: passes whose proposals went to this row's policy.
      full_passes: passes over the whole sequence.
      nfe: model evaluations; guidance makes two a pass.
      commit_step: the step that committed each position; -1 filled by early stop, -2 given, -3
        decided by no policy. Edits change neither this nor the next two.
      commit_kind: why each position was committed, names of `COMMIT_KINDS`.
      commit_confidence: the proposal's confidence at its commit, in [0, 1].
      edits: the later changes of committed tokens, by step and position, as (step, index in
        `output_ids`, new id); None if the decode makes no edits.
      committed_ids: `output_ids` as committed, before edits; None if `edits` is None. Not a key
        of records.
      sample: number of this sample among several, or None.
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
