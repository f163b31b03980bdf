import json
import math

import numpy as np
import pytest

from leapjax.errors import UserError
from leapjax.studies.counts import counts
from leapjax.studies.statistics import front, paired_difference, wilson
from leapjax.types import Completion

EOS = 9


@pytest.mark.parametrize("right, n", [(0, 5), (5, 5), (1, 1), (90, 100), (4321, 5000)])
def test_wilson_solves_its_equation(right, n):
    """The ends are the shares q at which |p − q| = z sqrt(q (1 − q) / n)."""
    p, low_high = right / n, wilson(right, n)
    a, b, c = n + 1.959964**2, -(2 * right + 1.959964**2), n * p * p
    root = math.sqrt(b * b - 4 * a * c)
    assert low_high == pytest.approx(((-b - root) / (2 * a), (-b + root) / (2 * a)), abs=1e-6)
    assert 0 <= low_high[0] <= p <= low_high[1] <= 1


def test_paired_difference_against_numpy():
    rng = np.random.default_rng(0)
    these, those = rng.random(200) < 0.9, rng.random(200) < 0.8
    d = these.astype(float) - those.astype(float)
    half = 1.959964 * np.std(d, ddof=1) / np.sqrt(200)
    mean, interval = paired_difference(these.tolist(), those.tolist())
    assert mean == pytest.approx(d.mean())
    assert interval == pytest.approx((d.mean() - half, d.mean() + half), abs=1e-7)
    assert paired_difference([True] * 3, [True] * 3) == (0.0, (0.0, 0.0))
    assert paired_difference([True], [False]) == (1.0, (-1.0, 1.0))


def completion(ids, commit, steps):
    kinds = ["none" if s < 0 else "anchor" for s in commit]
    return Completion("a", "", ids, "stop", steps, steps, steps, commit, kinds, [1.0] * len(ids))


def test_steps_to_the_first_eos():
    # Padding (step 0) before the answer (steps 1, 4), a late padding (7), early stop's (-1).
    c = counts(completion([1, 2, EOS, EOS, 5, EOS], [4, 1, 0, 7, 7, -1], 8), [EOS])
    assert c == {"tokens": 2, "steps": 8, "eos_steps": 5, "answer_steps": 3} | {
        "full_passes": 8,
        "nfe": 8,
    }
    # Two positions of one step are one step of the answer.
    c = counts(completion([1, 2, 3, EOS], [2, 2, 0, 5], 6), [EOS])
    assert (c["tokens"], c["eos_steps"], c["answer_steps"]) == (3, 6, 3)
    # Without an eos, all of them.
    c = counts(completion([1, 2, 3, 4], [0, 1, 1, 1], 3), [EOS])
    assert (c["tokens"], c["eos_steps"], c["answer_steps"]) == (4, 3, 2)
    # Any id that ends an answer, not eos alone.
    c = counts(completion([1, 7, EOS, EOS], [1, 0, -1, -1], 2), (7, EOS))
    assert (c["tokens"], c["eos_steps"], c["answer_steps"]) == (1, 2, 2)
    # Nothing but eos.
    c = counts(completion([EOS, EOS], [0, -1], 1), [EOS])
    assert (c["tokens"], c["eos_steps"], c["answer_steps"]) == (0, 1, 1)


def test_gsm8k_file(tmp_path):
    from leapjax import tasks

    file = tmp_path / "p.jsonl"
    lines = [{"question": f"Q{i}?", "answer": f"So.\n#### 1,00{i}"} for i in range(3)]
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    task = tasks.get(f"gsm8k:{file}")
    found = task.problems(limit=2)
    assert [(p.question, p.final) for p in found] == [("Q0?", "1000"), ("Q1?", "1001")]
    assert task.score("#### 1000", found[0]) and not task.score("1000", found[0])
    file.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match="line 1: the answer has no final"):
        task.problems()
    for name in ("gsm8k", "wordproblem", "wordproblems:x"):
        with pytest.raises(UserError, match="is unknown"):
            tasks.get(name)


def test_the_same_problems_again():
    from leapjax import tasks

    task = tasks.get("wordproblems")
    few, many = task.problems(limit=7, seed=3), task.problems(limit=20, seed=3)
    assert len(few) == 7 and {p.id for p in few} < {p.id for p in many}
    assert {p.stratum for p in few} == set(task.strata)
    with pytest.raises(UserError, match="split 'train' is unknown"):
        task.problems("train")


def test_front():
    def found(*points):
        return front([s for s, _ in points], [-a for _, a in points])

    assert found((5, 0.9), (3, 0.8), (4, 0.7), (2, 0.5), (3, 0.6)) == [3, 1, 0]
    assert found((3, 0.8), (3, 0.8), (4, 0.8)) == [0]
