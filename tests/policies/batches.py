"""Coarse random inputs for policies: ties, exact hits, empty rows, extreme radii."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.policies import PARAMETERS, POLICIES, Pass
from leapjax.types import COMMIT, COMMIT_KINDS, REOPEN, Attention, Proposal

ROWS, WIDTH, VOCAB = 4, 9, 3
FIRST, LEFT = 2, 5  # pads in front of the row, columns in front of the window
LEVELS = [0.0, 0.25, 0.5, 0.75, 1.0]  # few values, so that ties and exact hits are common
RADII = [0, 1, 2, 3, WIDTH - 1, WIDTH, 2**29, 2**31 - 1]
FIELDS = ("confidence", "margin", "entropy", "uniform", "surprise", "recheck")
SHARED = ("threshold", "relaxed_threshold", "radius")
OWN = [n for n, p in PARAMETERS.items() if p.traced and n not in (*SHARED, "steps")]
NOISE = len(FIELDS) * WIDTH + 8 + len(OWN)  # bytes a row is made of


def levels(name):
    """Values that a parameter may have: the least, the default and coarse ones."""
    p = PARAMETERS[name]
    if p.kind is bool:
        return [False, True]
    low, usual = 0 if p.low is None else p.low, p.default or 0
    values = [p.kind(x) for x in (low, usual, 2 * usual, 0.25, 0.5, 1, 3)]
    high = max(values) if p.high is None else p.high
    return list(dict.fromkeys(x for x in values if low <= x <= high and (x > low or not p.above)))


def row(noise: bytes):
    """Bytes -> one row as plain Python; bytes, because Hypothesis draws them fast."""
    fields = {
        name: [LEVELS[x % 5] for x in noise[n * WIDTH : (n + 1) * WIDTH]]
        for n, name in enumerate(FIELDS)
    }
    noise = noise[len(FIELDS) * WIDTH :]
    kind, at, sure, share, far, quota, low, high = noise[:8]
    bits = low + 256 * high
    masked = {0: [True] * WIDTH, 1: [False] * WIDTH, 2: [i == at % WIDTH for i in range(WIDTH)]}
    allowed = [x for x in LEVELS if x <= LEVELS[sure % 5]]
    own = {n: levels(n)[x % len(levels(n))] for n, x in zip(OWN, noise[8:], strict=True)}
    return fields | {
        "masked": masked.get(kind % 6, [bool(bits >> i & 1) for i in range(WIDTH)]),
        "threshold": LEVELS[sure % 5],
        "relaxed_threshold": allowed[share % len(allowed)],
        "radius": RADII[far % len(RADII)],
        "quota": quota % (WIDTH + 3),
        "own": own,
    }


def rows_of(count=ROWS):
    """So many rows."""
    one = st.binary(min_size=NOISE, max_size=NOISE).map(row)
    return st.lists(one, min_size=count, max_size=count)


def batch():
    """ROWS rows."""
    return rows_of(ROWS)


def log_probs(row):
    """(W, V): the chosen token as probable as the row's confidence says, about."""
    sure = np.clip(np.array(row["confidence"]), 0.05, 0.9)[:, None]
    return np.log(np.concatenate([sure, (1 - sure) * 0.6, (1 - sure) * 0.4], axis=1))


# What rows hold beyond their windows: each has a place here, which follows from its window.
_DRAWN = np.random.default_rng(0).integers(0, 6, 1000 + (LEFT + WIDTH) ** 2)


def _drawn(row, *shape):
    place = hash(tuple(x for n in FIELDS[:3] for x in row.get(n, ()))) % 1000
    return _DRAWN[place : place + np.prod(shape)].reshape(shape)


def attention_of(row):
    """(T, T): what positions attend to, in few levels; 0 at pads."""
    levels = np.float32([0, 0, 0.03125, 0.0625, 0.125, 0.5])
    found = levels[_drawn(row, LEFT + WIDTH, LEFT + WIDTH)]
    found[:FIRST], found[:, :FIRST] = 0, 0
    return found


def sure_of(row):
    """(T,): the confidence at every column; 0 at pads."""
    found = np.float32([0.25, 0.25, 0.5, 0.9, 0.9, 1.0])[_drawn(row, LEFT + WIDTH)]
    found[:FIRST] = 0
    return found


def commit_of(policy, **static):
    """A policy's `commit`, with the values of its static parameters, which are no arrays."""
    own = {n: p.default for n, p in policy.reads.items() if not p.traced} | static

    def commit(proposal, masked, info):
        return policy.commit(proposal, masked, info._replace(parameters=info.parameters | own))

    return commit


def own_value(row, name):
    """A parameter's value in a row; what the row leaves out has its default."""
    p = PARAMETERS[name]
    usual = row.get(p.follows, 0) if p.follows else p.default or 0
    shared = name in row and name not in FIELDS  # `margin` is a field and a parameter
    return row[name] if shared else row.get("own", {}).get(name, usual)


def stack(rows, policy=None):
    """What a policy takes: (Proposal, masked, Pass) of NumPy arrays.

    With a policy its memory is there, as a block begins, and what it may change. Rows may leave out
    what is not read.
    """

    def column(name, dtype):
        return np.array([r[name] for r in rows], dtype)

    b = len(rows)
    dtypes = {int: np.int32, float: np.float32, bool: np.bool_}
    numbers = {
        name: np.array([own_value(r, name) for r in rows], dtypes[p.kind])
        for name, p in PARAMETERS.items()
        if p.traced and (policy is None or name in policy.reads)
    }
    zeros = [0.0] * WIDTH
    values = {n: np.array([r.get(n, zeros) for r in rows], np.float32) for n in FIELDS}
    attention = np.array([attention_of(r) for r in rows])
    values["attention"] = Attention(attention[:, LEFT:], attention.sum(axis=1))
    values["sure"] = np.array([sure_of(r) for r in rows])
    values["log_probs"] = np.array([log_probs(r) for r in rows], np.float32)
    token = np.zeros((b, WIDTH), np.int32)
    masked = column("masked", bool)
    columns = np.broadcast_to(np.arange(LEFT, LEFT + WIDTH, dtype=np.int32), (b, WIDTH))
    memory = decided = standing = None
    if policy is not None:
        decided, standing = (
            ~masked,
            np.broadcast_to(np.arange(WIDTH, dtype=np.int32) % 2, (b, WIDTH)),
        )
    if policy is not None and policy.memory is not None:
        shapes = policy.memory(WIDTH, VOCAB)
        memory = {name: np.zeros((b, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    info = Pass(
        quota=column("quota", np.int32),
        parameters=numbers,
        columns=columns,
        block=np.full(b, LEFT, np.int32),
        open=np.concatenate([np.zeros((b, LEFT), bool), masked], axis=1),
        first=np.full(b, FIRST, np.int32),
        end=np.full(b, LEFT + WIDTH, np.int32),
        memory=memory,
        decided=decided,
        standing=standing,
    )
    return Proposal(token=token, **values), masked, info


def check_rule(name, rule, examples=200, **static):
    """A policy's commits, with their reasons, are what its rule says of each row alone.

    Args:
      name: the policy.
      rule: a row -> {position: kind}, in plain Python.
      examples: how many batches to try.
      **static: values of its static parameters.
    """
    commit = jax.jit(commit_of(POLICIES[name], **static))

    @settings(max_examples=examples)
    @given(batch())
    def check(rows):
        decision = commit(*stack(rows))
        got, kind = np.asarray(decision.action == COMMIT), np.asarray(decision.kind)
        for b, row in enumerate(rows):
            chosen = {int(i): COMMIT_KINDS[kind[b, i]] for i in np.flatnonzero(got[b])}
            assert chosen == rule(row), row

    check()


def reaches(confidence, threshold):
    """A confidence is at least the threshold; none reaches 1, to which float32 rounds."""
    return confidence >= threshold and threshold < 1


def open_positions(row):
    """Indices of a row's masks."""
    return [i for i, m in enumerate(row["masked"]) if m]


def surest(row):
    """The most confident masked position, the leftmost of equals; None without masks."""
    return max(open_positions(row), key=lambda i: row["confidence"][i], default=None)


def is_best(chosen, score, row, slack=1e-6):
    """`chosen` holds as many of the row's masks as its quota asks for, none worse than another.

    For scores that a float32 kernel and Python round differently: near ties may go either way.
    """
    left = open_positions(row)
    assert len(chosen) == min(row["quota"], len(left)) and set(chosen) <= set(left)
    rest = [score[i] for i in left if i not in chosen]
    return not chosen or not rest or min(score[i] for i in chosen) >= max(rest) - slack


def check_run(name, rule, examples=60, change=None):
    """A policy with a memory does what its rule says, pass after pass of one block.

    Args:
      name: the policy.
      rule: a row -> an object whose `step(row)` gives {position: kind} for the pass, `back` for
        what opens again; the row's fields change from pass to pass, its masks as they commit.
      examples: how many batches to try.
      change: (rng, proposal, rows) -> proposal, for fields that a row does not hold.
    """
    policy = POLICIES[name]
    commit = jax.jit(commit_of(policy))

    @settings(max_examples=examples)
    @given(st.integers(0, 2**31))
    def check(seed):
        rng = np.random.default_rng(seed)
        rows = [row(rng.bytes(NOISE)) for _ in range(ROWS)]  # most are long runs
        rules = [rule(r) for r in rows]
        rows = [dict(r, masked=list(r["masked"])) for r in rows]
        _, begun, info = stack(rows, policy)
        memory = info.memory
        for _ in range(WIDTH + 1):
            for r in rows:
                for name in ("confidence", "recheck"):
                    r[name] = [LEVELS[x] for x in rng.integers(0, 5, WIDTH)]
            proposal, masked, info = stack(rows)
            info = info._replace(decided=~masked & begun)
            if change is not None:
                proposal = change(rng, proposal, rows)
            decision = jax.device_get(commit(proposal, masked, info._replace(memory=memory)))
            memory = decision.memory
            for b, r in enumerate(rows):
                places = np.flatnonzero(decision.action[b] == COMMIT).tolist()
                chosen = {i: COMMIT_KINDS[decision.kind[b, i]] for i in places}
                back = np.flatnonzero(decision.action[b] == REOPEN).tolist()
                chosen |= {i: "back" for i in back}
                assert not any(r["masked"]) or chosen == rules[b].step(r), (r, memory)
                for i in chosen:
                    r["masked"][i] = chosen[i] == "back"
        assert not any(any(r["masked"]) for r in rows)

    check()
