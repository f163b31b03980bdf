"""Exact costs of a decode's commits: against enumeration, and sampled decodes against the chain."""

import collections

import numpy as np
import pytest

import leapjax
from leapjax import chains
from leapjax.studies.chain_costs import commit_costs
from leapjax.testing import tiny_config, tiny_params
from tests.models.enumeration import conditionals, joint

TOKENS, CANVAS = 4, 6


def as_table(lm, length):
    return joint(lm.params, TOKENS, length)


def by_enumeration(table, prompt, answer):
    """Joint and separate log-probability of each pass, from the table of all sequences."""
    mask, out = TOKENS + 1, []
    row = list(prompt) + [mask] * CANVAS
    for step in range(answer.steps):
        chosen = [i for i, s in enumerate(answer.commit_step) if s == step]
        each = conditionals(table, row, mask)
        tokens = {len(prompt) + i: answer.output_ids[i] for i in chosen}
        separate = sum(np.log(each[i, t]) for i, t in tokens.items())
        before = table[tuple(slice(None) if i == mask else i for i in row)].sum()
        for i, t in tokens.items():
            row[i] = t
        after = table[tuple(slice(None) if i == mask else i for i in row)].sum()
        out.append((np.log(after / before), separate))
    return np.array(out)


def test_costs_of_passes_equal_enumeration():
    config = tiny_config("chain", vocab_size=TOKENS + 2)
    lm = leapjax.LM(tiny_params(config, 1, logit_std=3.0), config, codec=None)
    prompts = [[0, 1, 2], [3], [2, 2]]
    settings = {"gen_length": CANVAS, "block_length": CANVAS, "threshold": 0.4}
    answers = lm.generate(prompts, policy="confidence_threshold", temperature=1.0, **settings)
    assert max(np.bincount(a.commit_step).max() for a in answers) > 2
    got = commit_costs(lm, prompts, answers)
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        want = by_enumeration(as_table(lm, len(prompt) + CANVAS), prompt, answer)
        both = np.stack([got.joint[b], got.separate[b]], axis=1)
        np.testing.assert_allclose(both[: answer.steps], want, atol=2e-6, rtol=1e-6)
        assert not both[answer.steps :].any()
    total = chains.log_joint(lm, [[0, 1, 2] + answers[0].output_ids], [[True] * 3 + [False] * 6])
    np.testing.assert_allclose(got.joint[0].sum(), total[0], atol=1e-5)
    assert got.correlation is None


def test_dependence_of_a_chain_over_tokens():
    """Total correlation and lautum information of a pass, against enumeration."""
    lm = chains.synthetic(TOKENS, TOKENS, 0.8, seed=2)
    table, mask = as_table(lm, 7), TOKENS + 1
    commits = [0, 1, 0, 0, 1, 0]
    answer = {"output_ids": [0, 1, 2, 3, 0, 1], "commit_step": commits}
    got = commit_costs(lm, [[2]], [answer])
    row = [2] + [mask] * 6
    for step in range(2):
        places = [1 + i for i, s in enumerate(commits) if s == step]
        left = table[tuple(slice(None) if i == mask else i for i in row)]
        still = [i for i in range(7) if row[i] == mask]
        p = left.sum(tuple(still.index(i) for i in still if i not in places)) / left.sum()
        apart = np.ones(())
        for axis in range(p.ndim):
            apart = np.multiply.outer(apart, p.sum(tuple(a for a in range(p.ndim) if a != axis)))
        gap = np.log(p) - np.log(apart)
        np.testing.assert_allclose(got.correlation[0, step], (p * gap).sum(), atol=2e-6)
        np.testing.assert_allclose(got.lost[0, step], -(apart * gap).sum(), atol=5e-6)
        for i in places:
            row[i] = answer["output_ids"][i - 1]


@pytest.mark.parametrize("passes", [4, 1])
def test_samples_are_distributed_as_the_conditionals_say(passes):
    """One token a pass: the chain's own distribution. All at once: the product of the marginals."""
    lm, count = chains.synthetic(TOKENS, TOKENS, 0.7, seed=1), 3000
    options = {"gen_length": 4, "block_length": 4, "policy": "sequential", "steps": passes}
    answers = lm.generate([[1]] * count, temperature=1.0, batch_size=500, **options)
    seen = collections.Counter(tuple(a.output_ids) for a in answers)
    want = as_table(lm, 5)[1] / as_table(lm, 5)[1].sum()
    if passes == 1:
        each = conditionals(as_table(lm, 5), [1, *[TOKENS + 1] * 4], TOKENS + 1)[1:, :]
        product = np.einsum("a,b,c,d->abcd", *each)
        assert abs(product - want).sum() / 2 > 0.2  # the two can be told apart
        want = product
    got = np.zeros_like(want)
    for tokens, n in seen.items():
        got[tokens] = n
    common = want * count >= 5
    expected = np.append(want[common], want[~common].sum()) * count
    counts = np.append(got[common], got[~common].sum())
    freedom = len(counts) - 1
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < freedom + 4 * np.sqrt(2 * freedom)


def test_synthetic_chains_have_the_eigenvalue_asked_for():
    for eigenvalue in (0.3, 0.95):
        lm = chains.synthetic(6, 4, eigenvalue, seed=3, noise=0.1)
        assert abs(chains.second_eigenvalue(lm) - eigenvalue) < 1e-5
    drawn = chains.sample(lm, 400, 30, seed=1)
    stationary = np.exp(lm.params["initial"]) @ np.exp(lm.params["emission"])
    shares = np.bincount(drawn.ravel(), minlength=6)[:4] / drawn.size
    np.testing.assert_allclose(shares, stationary[:4], atol=0.05)


def test_fit_raises_the_likelihood(tmp_path):
    """In each iteration; the chain that is found predicts as well as the one that it came from."""
    truth = chains.synthetic(3, TOKENS, 0.9, seed=5, noise=0.05)
    rows = chains.sample(truth, 60, 30, seed=2)
    nats = []
    options = {"iterations": 40, "smoothing": 0.0, "show": lambda number, value: nats.append(value)}
    lm = chains.fit([list(r) for r in rows], 3, TOKENS + 2, **options)
    assert all(b > a - 1e-5 for a, b in zip(nats, nats[1:], strict=False))
    assert nats[-1] > nats[0] + 0.3
    fresh = chains.sample(truth, 60, 30, seed=3)
    gap = chains.log_likelihood(truth, fresh) - chains.log_likelihood(lm, fresh)
    assert gap.mean() / 30 < 0.05
    chains.save(tmp_path / "fitted", lm)
    again = leapjax.load(tmp_path / "fitted")
    np.testing.assert_array_equal(again.logits([[0, 5, 1]]), lm.logits([[0, 5, 1]]))


BAD = {
    "eigenvalue is 1.5; expected a number between 0 and 1": lambda: chains.synthetic(4, 4, 1.5),
    "states is 1; expected": lambda: chains.synthetic(1, 4, 0.5),
    "noise is 1": lambda: chains.synthetic(4, 4, 0.5, noise=1),
    "expected sequences of at least one token": lambda: chains.fit([[0], []], 2, 6),
    "ids: expected whole numbers from 0 to 5": lambda: chains.fit([[0, 9]], 2, 6),
    "only a chain has exact likelihoods": lambda: chains.log_likelihood(
        leapjax.LM(tiny_params(tiny_config()), tiny_config(), codec=None), [[1]]
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(message):
    with pytest.raises(leapjax.UserError) as e:
        BAD[message]()
    assert message in str(e.value) and "\n" not in str(e.value)
