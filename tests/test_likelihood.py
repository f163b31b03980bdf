"""The Monte Carlo bound against the same bound with every mask subset enumerated."""

import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import leapjax
from leapjax.errors import UserError
from leapjax.likelihood import likelihoods, masks

GOLDEN = Path(__file__).parent / "golden"


MODELS = ["llada-a", "dream-a", "sdar-a", "fast-dllm-v2-a"]
MODELS += [
    pytest.param(name, marks=pytest.mark.slow) for name in ("llada-moe-a", "llada2-a", "sdar-moe-a")
]


@pytest.fixture(scope="module", params=MODELS)
def lm(request):
    return leapjax.load(GOLDEN / request.param)


def enumerated(lm, prompt, answer):
    """The definition, subset by subset, from `lm.logits`; of block-causal models block by block."""
    if not lm.config.block_causal:
        return enumerated_part(lm, prompt, answer)
    total, block = 0.0, lm.config.block_length
    while answer:
        part = answer[: block - len(prompt) % block]
        answer = answer[len(part) :]
        if lm.config.seeds_blocks and len(prompt) % block == 0:
            last = np.asarray(lm.logits([prompt]), np.float64)[0, -1]
            total += last[part[0]] - np.logaddexp.reduce(last)
            prompt, part = [*prompt, part[0]], part[1:]
        total += enumerated_part(lm, prompt, part)
        prompt = prompt + part
    return total


def enumerated_part(lm, prompt, answer):
    length, total = len(answer), 0.0
    if not answer:  # what was seeded was all
        return total
    counts = range(1, length + 1)
    subsets = [s for n in counts for s in itertools.combinations(range(length), n)]
    rows = [
        prompt + [lm.config.mask_token_id if i in s else answer[i] for i in range(length)]
        for s in subsets
    ]
    log_p = np.asarray(jax.nn.log_softmax(lm.logits(rows), axis=-1), np.float64)
    for s, row in zip(subsets, log_p, strict=True):
        at = [len(prompt) + i - int(lm.config.shift_logits) for i in s]
        gained = sum(row[a, answer[i]] for a, i in zip(at, s, strict=True))
        total += length / len(s) * gained / math.comb(length, len(s)) / length
    return total


def test_estimate_is_the_enumerated_bound(lm):
    pairs = [([5, 9, 3], [7, 2, 11, 4]), ([8], [6]), ([4, 4, 4, 4, 4], [1, 2, 3])]
    if lm.config.seeds_blocks:  # both sides of a border, and right behind one
        pairs = [([4, 7] * 15, [1, 2, 5, 9, 3]), ([3, 1] * 16, [6])]
    runs = [likelihoods(lm, pairs, samples=64, seed=s) for s in range(30)]
    for index, (prompt, answer) in enumerate(pairs):
        found = np.array([run[index].bound for run in runs])
        error = found.std(ddof=1) / math.sqrt(len(found))
        want = enumerated(lm, prompt, answer)
        # A single token is masked in every sample: no noise, only rounding.
        assert abs(found.mean() - want) <= 4 * error + 1e-4 * abs(want), (index, want)
        # The error that is reported is that of independent samples, an upper estimate.
        assert error * math.sqrt(30) <= 1.5 * np.mean([r[index].error for r in runs]) + 1e-4


def test_a_pair_does_not_depend_on_the_others(lm):
    pairs = [([5, 9, 3], [7, 2, 11, 4]), ([8] * 40, [6, 1, 2]), ([5, 9], [7, 2, 11])]
    together = likelihoods(lm, pairs, samples=6, batch_size=4)
    for pair, got in zip(pairs, together, strict=True):
        (alone,) = likelihoods(lm, [pair], samples=6, batch_size=4)
        assert got.bound == pytest.approx(alone.bound, rel=1e-5)


def test_masks_are_uniform():
    seen = np.concatenate([masks(4, 8, np.random.default_rng(s)) for s in range(4000)])
    counts = np.bincount(seen.sum(axis=1), minlength=5)
    assert counts[0] == 0
    assert np.allclose(counts[1:] / len(seen), 0.25, atol=0.01)
    for count in (1, 2, 3):
        sets = seen[seen.sum(axis=1) == count] @ (1 << np.arange(4))
        share = np.unique(sets, return_counts=True)[1] / len(sets)
        assert len(share) == math.comb(4, count)
        assert np.allclose(share, 1 / len(share), atol=0.03)


def test_bad_pairs(lm):
    for pair, message in [
        (([], [1]), "at least one token"),
        (([1], []), "at least one token"),
        (([1], [10**6]), "outside the vocabulary"),
        (([1] * lm.config.max_length, [1]), "shorten the prompt"),
    ]:
        with pytest.raises(UserError, match=message):
            likelihoods(lm, [([1], [2]), pair])
