"""Every policy on the rows of block-causal models, pass after pass until their block is done.

Rows begin at column 0 and end before pads on the right; blocks lie on absolute positions, so a
row's first one may hold a part of the prompt; the masked positions may be those of a sub-block. A
block ends within as many passes as it has positions, whatever the policy: a schedule's quota may
exceed what is open, and its share of `steps_per_block` passes goes on where masks are left.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.decoding import schedule
from leapjax.policies import POLICIES, Pass
from leapjax.types import COMMIT, REOPEN, Attention, Proposal
from tests.policies.batches import FIELDS, LEVELS, OWN, commit_of, levels, own_value

ROWS, VOCAB = 3, 4
# (block, sub-block)
SIZES = [(1, 1), (2, 2), (4, 4), (4, 2)]


def every_commit(inputs, quotas):
    """One pass of every policy: name -> (masked, decided, memory) -> its decision."""
    out = {}
    for name, (proposal, masked, info) in inputs.items():
        policy = POLICIES[name]
        info = info._replace(quota=quotas)
        if policy.adjust is not None:
            barred = jnp.zeros((1, 1, VOCAB), bool)
            _, memory = policy.adjust(proposal.log_probs, barred, masked, info)
            info = info._replace(memory=memory)
        out[name] = commit_of(policy)(proposal, masked, info)
    return out


def layout(rng, block):
    """(prompt, first column of the active block, end, columns) of a row."""
    prompt = int(rng.integers(0, 2 * block))
    first = prompt // block + int(rng.integers(0, 2))
    blocks = first + 1 + int(rng.integers(0, 2))
    return prompt, first * block, blocks * block


class Rows:
    """The state of ROWS rows in their active blocks, for one policy."""

    def __init__(self, layouts, options, block, sub, policy):
        self.block, self.sub, self.policy = block, sub, policy
        self.length = 5 * block
        self.start = np.array([at for _, at, _ in layouts], np.int32)
        self.end = np.array([end for *_, end in layouts], np.int32)
        column = np.arange(self.length)[None, :]
        prompt = np.array([p for p, *_ in layouts])[:, None]
        begin = np.maximum(prompt, self.start[:, None])
        self.open = (column >= begin) & (column < self.end[:, None])
        self.columns = self.start[:, None] + np.arange(block, dtype=np.int32)
        self.decided = np.zeros((ROWS, block), bool)
        dtypes = {int: np.int32, float: np.float32, bool: np.bool_}
        self.parameters = {
            n: np.array([own_value(o, n) for o in options], dtypes[p.kind])
            for n, p in policy.reads.items()
            if p.traced
        }
        shapes = policy.memory(block, VOCAB) if policy.memory else None
        self.memory = shapes and {n: np.zeros((ROWS, *s), d) for n, (s, d) in shapes.items()}

    @property
    def window(self):
        return np.take_along_axis(self.open, self.columns, axis=1)

    @property
    def masked(self):
        """The open positions of the first sub-block that has any."""
        window = self.window
        part = np.arange(self.block) // self.sub
        active = part[np.argmax(window, axis=1)]
        return window & (part == active[:, None])

    def inputs(self, proposal):
        masked = self.masked
        part = np.arange(self.block) // self.sub
        active = part == part[np.argmax(masked, axis=1)][:, None]
        info = Pass(
            quota=None,
            parameters=self.parameters,
            columns=self.columns,
            block=self.start,
            open=self.open,
            first=np.zeros(ROWS, np.int32),
            end=self.end,
            memory=self.memory,
            decided=self.decided & active,
        )
        return proposal, masked, info

    def apply(self, decision):
        """Take a decision over; what it chose, as (row, place in the block)."""
        masked = self.masked
        commit, back = decision.action == COMMIT, decision.action == REOPEN
        assert not (commit & ~masked).any() and not (back & ~self.decided).any()
        self.decided = (self.decided | commit) & ~back
        for b in range(ROWS):
            self.open[b, self.columns[b]] = (self.window[b] & ~commit[b]) | back[b]
        self.memory = decision.memory
        return commit


def proposed(rng, block):
    """Coarse values of every field of a proposal."""
    fields = {n: rng.choice(LEVELS, (ROWS, block)).astype(np.float32) for n in FIELDS}
    logits = rng.integers(-2, 3, (ROWS, block, VOCAB)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    levels, t = np.float32([0, 0, 0.03125, 0.0625, 0.125, 0.5]), 5 * block
    attention = Attention(rng.choice(levels, (ROWS, block, t)), rng.choice(levels, (ROWS, t)))
    fields |= {"attention": attention, "sure": rng.choice(LEVELS, (ROWS, t)).astype(np.float32)}
    return Proposal(np.zeros((ROWS, block), np.int32), **fields, log_probs=log_probs)


def drawn(rng):
    """A row's options."""
    threshold, share = rng.choice(LEVELS, 2)
    own = {n: levels(n)[rng.integers(len(levels(n)))] for n in OWN}
    return {
        "threshold": threshold,
        "relaxed_threshold": threshold * share,
        "radius": int(rng.integers(0, 6)),
        "own": own,
    }


def run(commit, seed, block, sub, order=range(ROWS)):
    """Decode the active blocks of three rows: policy -> (commit, kind) of its passes."""
    rng = np.random.default_rng(seed)
    layouts = [layout(rng, block) for _ in range(ROWS)]
    options = [drawn(rng) for _ in range(ROWS)]
    passes = rng.integers(1, block + 2, ROWS)  # a schedule may have more passes than positions
    order = list(order)
    layouts, options, passes = ([x[i] for i in order] for x in (layouts, options, passes))
    states = {n: Rows(layouts, options, block, sub, p) for n, p in POLICIES.items()}
    seen = {name: [] for name in POLICIES}
    for step in range(block):
        proposal = jax.tree.map(lambda x: x[order], proposed(rng, block))
        full = np.full(ROWS, block, np.int32)
        at = np.full(ROWS, step, np.int32)
        quota = schedule.even(full, at, np.array(passes, np.int32))
        inputs = {n: state.inputs(proposal) for n, state in states.items()}
        decisions = jax.device_get(commit(inputs, quota))
        for name, state in states.items():
            left = state.window.sum(1)
            took = state.apply(decisions[name])
            assert (took.any(1) | (left == 0)).all(), (name, step)
            if not state.policy.reopens:
                assert (state.window.sum(1) < left)[left > 0].all()
            kind = np.where(took, decisions[name].kind, 0)
            seen[name].append((took, kind))
    for name, state in states.items():
        assert not state.window.any(), name
        behind = np.arange(state.length) >= state.end[:, None]
        assert not (state.open & behind).any(), name
    return seen


@pytest.mark.parametrize(("block", "sub"), SIZES)
def test_blocks_are_done_in_time_and_rows_are_independent(block, sub):
    commit = jax.jit(every_commit)
    for seed in range(25):
        want = run(commit, seed, block, sub)
        for order in ((2, 0, 1), (seed % ROWS,) * ROWS):
            moved = run(commit, seed, block, sub, order)
            for name in POLICIES:
                for a, b in zip(want[name], moved[name], strict=True):
                    for x, y in zip(a, b, strict=True):
                        np.testing.assert_array_equal(x[list(order)], y, err_msg=name)
