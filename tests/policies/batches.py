"""Coarse random inputs for policies: ties, exact hits, empty rows, extreme radii."""

import numpy as np
from hypothesis import strategies as st

from leapjax.policies import Pass
from leapjax.types import Proposal, RowOptions

ROWS, WIDTH = 4, 9
LEVELS = [0.0, 0.25, 0.5, 0.75, 1.0]  # few values, so that ties and exact hits are common
RADII = [0, 1, 2, 3, WIDTH - 1, WIDTH, 2**29, 2**31 - 1]
FIELDS = ("confidence", "margin", "entropy", "uniform")


def row(noise: bytes):
    """Bytes -> one row as plain Python; bytes, because Hypothesis draws them fast."""
    levels = {
        name: [LEVELS[x % 5] for x in noise[n * WIDTH : (n + 1) * WIDTH]]
        for n, name in enumerate(FIELDS)
    }
    kind, at, sure, share, far, quota, low, high = noise[4 * WIDTH :]
    bits = low + 256 * high
    masked = {0: [True] * WIDTH, 1: [False] * WIDTH, 2: [i == at % WIDTH for i in range(WIDTH)]}
    allowed = [x for x in LEVELS if x <= LEVELS[sure % 5]]
    return levels | {
        "masked": masked.get(kind % 6, [bool(bits >> i & 1) for i in range(WIDTH)]),
        "threshold": LEVELS[sure % 5],
        "relaxed_threshold": allowed[share % len(allowed)],
        "radius": RADII[far % len(RADII)],
        "quota": quota % (WIDTH + 3),
    }


def batch():
    """ROWS rows."""
    one = st.binary(min_size=4 * WIDTH + 8, max_size=4 * WIDTH + 8).map(row)
    return st.lists(one, min_size=ROWS, max_size=ROWS)


def stack(rows):
    """What a policy takes: (Proposal, masked, Pass) of NumPy arrays."""

    def column(name, dtype):
        return np.array([r[name] for r in rows], dtype)

    b = len(rows)
    options = RowOptions(
        threshold=column("threshold", np.float32),
        relaxed_threshold=column("relaxed_threshold", np.float32),
        radius=column("radius", np.int32),
        steps=np.ones(b, np.int32),
        temperature=np.zeros(b, np.float32),
        top_p=np.ones(b, np.float32),
        top_k=np.zeros(b, np.int32),
        cfg_scale=np.zeros(b, np.float32),
        early_stop=np.zeros(b, bool),
        logits_eos_inf=np.zeros(b, bool),
        confidence_eos_eot_inf=np.zeros(b, bool),
    )
    values = {name: column(name, np.float32) for name in FIELDS}
    token = np.zeros((b, WIDTH), np.int32)
    proposal = Proposal(token=token, **values)
    return proposal, column("masked", bool), Pass(column("quota", np.int32), options)
