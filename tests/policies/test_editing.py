"""Which committed tokens a pass rewrites, by plain Python."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax.policies import commits
from leapjax.policies.editing import with_edits
from leapjax.types import COMMIT, KEEP, REPLACE, TOP1
from tests.policies.batches import LEVELS, batch, stack

edit = jax.jit(lambda p, masked, info: with_edits(commits(masked, TOP1), p, info))


@given(batch(), st.data())
@settings(max_examples=60)
def test_a_surer_other_token_replaces_a_decided_one(rows, data):
    """Coarse numbers, so that ties and exact hits are common."""
    proposal, masked, info = stack(rows)
    ids = st.integers(0, 2)
    b, w = masked.shape
    draw = lambda one: np.array(data.draw(st.lists(one, min_size=b * w, max_size=b * w)))  # noqa: E731
    token, standing = (draw(ids).astype(np.int32).reshape(b, w) for _ in range(2))
    decided = draw(st.booleans()).reshape(b, w) & ~masked
    least = np.array([data.draw(st.sampled_from(LEVELS)) for _ in range(b)], np.float32)
    numbers = dict(info.parameters) | {"editing_threshold": least}
    info = info._replace(parameters=numbers, decided=decided, standing=standing)
    action = np.asarray(edit(proposal._replace(token=token), masked, info).action)
    for r in range(b):
        for i in range(w):
            want = COMMIT if masked[r, i] else KEEP
            if decided[r, i] and token[r, i] != standing[r, i]:
                if proposal.confidence[r, i] > least[r]:
                    want = REPLACE
            assert action[r, i] == want
