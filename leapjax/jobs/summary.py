"""Counts of a run, and the line that shows them."""

import dataclasses
import time
from collections.abc import Collection
from typing import Any

from leapjax.serve.prefills import Prefills
from leapjax.serve.refreshes import Refreshes
from leapjax.types import Completion
from leapjax.wording import plural, times_fewer


@dataclasses.dataclass
class Summary:
    """Counts over the completions of a run."""

    ends: tuple[int, ...] = ()  # ids that end an answer (`DecodeConfig.end_ids`); () is no end
    answers: int = 0  # completions
    tokens: int = 0  # output ids before the first end
    steps: int = 0  # summed over the rows
    committed: int = 0  # positions that a step committed, without those that early stop filled
    edits: int = 0  # later changes of committed tokens
    seconds: float = 0.0  # from `started` to the last completion
    chips: float = 0.0  # that worked meanwhile
    # Of KV caches, and of tokens of prompts; they depend on the batch, not on the answers alone.
    refreshes: Refreshes = dataclasses.field(default_factory=Refreshes)
    prefills: Prefills = dataclasses.field(default_factory=Prefills)
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def add(self, completion: Completion) -> None:
        """Count one completion."""
        counts = counts_of(completion, self.ends)
        self.answers += 1
        self.tokens += counts["tokens"]
        self.steps += counts["steps"]
        self.committed += counts["committed"]
        self.edits += len(completion.edits or ())
        self.seconds = time.perf_counter() - self.started

    def to_json(self) -> dict[str, Any]:
        """The counts, for `from_json` in another process."""
        counts = dataclasses.asdict(self)
        return {name: counts[name] for name in counts.keys() - {"ends", "started"}}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Summary":
        """The counts that another process gave; those that it lacks are 0."""
        refreshes, prefills = value.get("refreshes", {}), value.get("prefills", {})
        more = {"refreshes": Refreshes(**refreshes), "prefills": Prefills(**prefills)}
        return Summary(**(value | more))

    def line(self) -> str:
        """The summary, for people."""
        answers = plural(self.answers, "answer")
        if not self.steps:
            return f"{answers}, nothing decoded"
        ratio = times_fewer(self.steps, self.committed)
        fewer = "as many passes as" if ratio == "as many" else f"{ratio} passes than"
        edits = f", {plural(self.edits, 'edit')}" if self.edits else ""
        return (
            f"{answers}, {plural(self.tokens, 'token')} in {self.seconds:.1f} s "
            f"({self.tokens / max(self.seconds, 1e-9):.1f} tokens/s, compiling included), "
            f"{self.tokens / self.steps:.2f} tokens per step, "
            f"{fewer} one token a step{edits}{self._refreshed()}{self._prefilled()}"
        )

    def _refreshed(self) -> str:
        """The refreshes, for people; nothing without a KV cache."""
        if not self.refreshes.refreshed_rows:
            return ""
        found = self.refreshes
        return (
            f", {plural(found.refreshed_rows, 'row')} refreshed, "
            f"{found.refresh_rows_wanted} wanted (about {found.share:.0%} of the time)"
        )

    def _prefilled(self) -> str:
        """The prefills, for people; nothing without any."""
        found = self.prefills
        if not found.wanted:
            return ""
        return (
            f", {found.prefilled:,} of {found.wanted:,} prompt tokens prefilled "
            f"({found.ratio:.2f} times the distinct ones)"
        )


def counts_of(completion: Completion, ends: Collection[int]) -> dict[str, int]:
    """What a completion adds to a job's counts; `ends` as for `Summary`."""
    ids, commits = completion.output_ids, completion.commit_step
    decided = [n for n, step in enumerate(commits) if step != -2]  # -2: given, not decoded
    end = next((n for n in decided if ids[n] in ends), len(ids))
    return {
        "rows": 1,
        "tokens": sum(n < end for n in decided),
        "steps": completion.steps,
        "committed": sum(step >= 0 for step in commits),
        "full_passes": completion.full_passes,
        "nfe": completion.nfe,
        "stopped": int(completion.finish_reason == "stop"),
    }
