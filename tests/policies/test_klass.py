"""KLASS: its histories position by position, in plain Python, over a block's passes."""

import numpy as np

from tests.policies.batches import LEVELS, WIDTH, check_run, open_positions, surest

# Three distributions, far from one another and exactly equal to themselves.
SHAPES = np.log([[0.9, 0.06, 0.04], [0.2, 0.5, 0.3], [0.01, 0.01, 0.98]])


class Rule:
    """Positions above the confidence whose last h divergences are all below epsilon."""

    def __init__(self, row):
        self.options = row["own"] | {"threshold": row["threshold"]}
        self.last = None
        self.history = [[] for _ in row["masked"]]

    def step(self, row):
        now = row["log_probs"]
        for i, history in enumerate(self.history):
            if self.last is None:
                history.append(float("inf"))
            else:
                q = zip(now[i], self.last[i], strict=True)
                history.append(sum(np.exp(a) * (a - b) for a, b in q))
        self.last = now
        left = open_positions(row)
        o, h = self.options, self.options["kl_history"]
        ready = [
            i
            for i in left
            if row["confidence"][i] > o["threshold"]
            and len(self.history[i]) >= h
            and all(x < o["kl_threshold"] for x in self.history[i][-h:])
        ]
        if ready:
            return {i: "anchor" for i in ready}
        return {surest(row): "top1"} if left else {}


def change(rng, proposal, rows):
    """Distributions that mostly stay as they are, and confidences that are often high."""
    for r in rows:
        before = r.get("shape", rng.integers(0, 3, WIDTH))
        r["shape"] = np.where(rng.random(WIDTH) < 0.8, before, rng.integers(0, 3, WIDTH))
        r["log_probs"] = SHAPES[r["shape"]]
        r["confidence"] = [LEVELS[max(x, y)] for x, y in rng.integers(0, 5, (WIDTH, 2))]
    return proposal._replace(
        confidence=np.array([r["confidence"] for r in rows], np.float32),
        log_probs=np.array([r["log_probs"] for r in rows], np.float32),
    )


def test_passes_are_the_published_rule():
    check_run("klass", Rule, change=change, examples=150)
