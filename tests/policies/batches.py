"""Coarse random inputs for policies: ties, exact hits, empty rows, extreme radii."""

import numpy as np
from hypothesis import strategies as st

from leapjax.policies import Pass
from leapjax.types import Proposal, RowOptions

ROWS, WIDTH = 4, 9
LEVELS = [0.0, 0.25, 0.5, 0.75, 1.0]  # few values, so that ties and exact hits are common
RADII = [0, 1, 2, 3, WIDTH - 1, WIDTH, 2**29, 2**31 - 1]
FIELDS = ("confidence", "margin", "entropy", "uniform")


@st.composite
def rows(draw):
    """One row as plain Python."""
    levels = st.lists(st.sampled_from(LEVELS), min_size=WIDTH, max_size=WIDTH)
    kind = draw(st.sampled_from(["some", "some", "all", "none", "one"]))
    masked = {"all": [True] * WIDTH, "none": [False] * WIDTH}.get(kind)
    if kind == "one":
        at = draw(st.integers(0, WIDTH - 1))
        masked = [i == at for i in range(WIDTH)]
    if masked is None:
        masked = draw(st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH))
    threshold = draw(st.sampled_from(LEVELS))
    return {name: draw(levels) for name in FIELDS} | {
        "masked": masked,
        "threshold": threshold,
        "relaxed_threshold": draw(st.sampled_from([x for x in LEVELS if x <= threshold])),
        "radius": draw(st.sampled_from(RADII)),
        "quota": draw(st.integers(0, WIDTH + 2)),
    }


def batch(min_size=ROWS, max_size=ROWS):
    return st.lists(rows(), min_size=min_size, max_size=max_size)


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
