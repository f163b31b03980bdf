"""SlowFast: the authors' two phases, in plain Python, over a block's passes."""

import statistics

import numpy as np

from tests.policies.batches import WIDTH, check_run, open_positions, reaches


class Rule:
    """Explore for so many passes, then fill the span that was found, and again."""

    def __init__(self, row):
        self.o = row["own"] | {"threshold": row["threshold"], "w": len(row["masked"])}
        self.begin, self.end = 0, 0
        self.cycle()

    def cycle(self):
        self.begin, self.explored, self.history, self.settled = self.end, 0, [], False

    def step(self, row):
        left = open_positions(row)
        if not left:
            return {}
        if self.explored == self.o["explore_steps"]:
            span = [i for i in left if self.begin <= i < self.end]
            if span:
                return self.fill(row, span)
            self.cycle()
        rest = [i for i in left if i >= self.begin]
        self.explore(row, rest)
        return self.fill(row, rest)

    def explore(self, row, rest):
        if not self.settled:
            far = [i for i in rest if row["confidence"][i] >= self.o["explore_threshold"]]
            length = (max(far) - self.begin if far else 0) + 1
            self.history.append(max(1, min(self.begin + length, self.o["w"])))
            recent = self.history[-2:]
            if len(recent) == 2 and statistics.pstdev(recent) < 1:
                self.end, self.settled = recent[-1], True
            elif len(recent) == 2 or self.explored == self.o["explore_steps"] - 1:
                self.end = int(statistics.mean(recent))
        self.explored += 1

    def fill(self, row, scope):
        sure = [i for i in scope if reaches(row["confidence"][i], self.o["threshold"])]
        if len(sure) > 1:
            return {i: "anchor" for i in sure}
        return {max(scope, key=lambda i: row["confidence"][i]): "top1"}


def change(rng, proposal, rows):
    """Confidence that ends somewhere within the block, so that spans end there, too."""
    for r in rows:
        end = int(rng.integers(1, WIDTH + 1))
        r["confidence"] = [c if i < end else 0.0 for i, c in enumerate(r["confidence"])]
    return proposal._replace(confidence=np.array([r["confidence"] for r in rows], np.float32))


def test_passes_are_the_published_rule():
    check_run("slowfast", Rule, examples=300, change=change)
