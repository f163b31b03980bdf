"""Which orderings hold: statistics against plain transcriptions, and reports with known truth."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leapjax.errors import UserError
from leapjax.studies import comparisons, outcomes
from leapjax.studies.evaluation_report import markdown, report_of
from leapjax.studies.statistics import Z, holm, kendall_tau, orders, paired_difference, paired_p

SCORES = st.integers(2, 6).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        min_size=n,
        max_size=n,
    )
)


@given(SCORES)
def test_tau_b_is_the_published_formula(scores):
    """(concordant - discordant) / sqrt((pairs - ties of one) (pairs - ties of the other))."""
    concordant = discordant = ties = others = 0
    for (a, b), (c, d) in itertools.combinations(scores, 2):
        concordant += (a - c) * (b - d) > 0
        discordant += (a - c) * (b - d) < 0
        ties += a == c
        others += b == d
    pairs = math.comb(len(scores), 2)
    (got,) = kendall_tau(*(orders(np.array(x)[:, None]) for x in zip(*scores, strict=True))).ravel()
    if ties == pairs or others == pairs:
        assert math.isnan(got)
    else:
        wanted = (concordant - discordant) / math.sqrt((pairs - ties) * (pairs - others))
        assert got == pytest.approx(wanted)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans()), min_size=2),
)
def test_the_clustered_interval_is_the_sandwich_formula(answers):
    groups: dict[str, list[int]] = {}
    for problem, this, that in answers:
        groups.setdefault(problem, []).append(this - that)
    mean = sum(map(sum, groups.values())) / len(answers)
    squares = sum(sum(d - mean for d in group) ** 2 for group in groups.values())
    clusters, these, those = zip(*answers, strict=True)
    found, (low, high) = paired_difference(these, those, clusters)
    assert found == pytest.approx(mean)
    if len(groups) == 1:
        assert (low, high) == (-1, 1)
    else:
        error = math.sqrt(len(groups) / (len(groups) - 1) * squares) / len(answers)
        assert (low, high) == pytest.approx((mean - Z * error, mean + Z * error))


def test_answers_to_one_problem_are_not_independent():
    """Eight wordings that all behave alike are worth no more than one."""
    rng = np.random.default_rng(0)
    these, those = rng.random((2, 50)) < [[0.9], [0.7]]
    once = paired_difference(these, those)
    every = paired_difference(np.tile(these, 8), np.tile(those, 8), [*range(50)] * 8)
    assert every[0] == pytest.approx(once[0])
    assert every[1] == pytest.approx(once[1])
    assert paired_p(np.tile(these, 8), np.tile(those, 8), [*range(50)] * 8) == pytest.approx(
        paired_p(these, those)
    )


@given(st.integers(0, 9), st.integers(0, 9))
def test_no_ordering_is_surer_than_its_sign_test(up, down):
    these, those = [1] * up + [0] * down + [1], [0] * up + [1] * down + [1]
    tosses = [sum(coins) for coins in itertools.product((0, 1), repeat=up + down)]
    extreme = [t for t in tosses if abs(2 * t - up - down) >= abs(up - down)]
    assert paired_p(these, those) >= len(extreme) / len(tosses) - 1e-12
    if up == 9 and down == 0:
        assert paired_p(these, those) < 0.005


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_in_turns(p):
    """The smallest of m against level / m, the next against level / (m - 1), until one fails."""
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] * (len(p) - place) >= level:
                break
            rejected.add(i)
        assert {i for i, value in enumerate(adjusted) if value < level} == rejected


def row(label, correct, cache="none", equal="", steps=5, **manifest):
    """A row of 2 templates x as many problems as there are; `correct` is (2, P)."""
    answers = [
        {
            **{"correct": bool(right), "strict": bool(right), "text": f"{label}{right}"},
            **{"problem": p, "template": t, "seed": 0, "stratum": "all", "seconds": 0.1},
            **dict.fromkeys(("eos_steps", "answer_steps", "full_passes", "nfe", "tokens"), 1),
            **{"steps": steps, "finish_reason": "stop"},
        }
        for t, template in enumerate(correct)
        for p, right in enumerate(template)
    ]
    shared = {"dtype": "float32", "cache": cache} | manifest
    policy = "greedy" if label == "greedy" else "p"
    told = {"label": label, "setting": label, "options": {"named": label}, "manifest": shared}
    return told | {"policy": policy, "cache": cache, "equal": equal, "answers": answers}


HEAD = {
    "model": {"name": "m", "hash": None, "dtype": "float32", "quantization": None},
    "settings": {
        **{"task": "t", "split": "heldout", "seed": 0, "batch_size": 8, "tuning": "others"},
        **{"gen_length": 64, "block_length": 32},
    },
    "device": "d",
    "n": 0,
}


def draws(*shares, n=200, seed=0):
    """Answers (2, n) that are right with these probabilities, drawn with one noise for all."""
    noise = np.random.default_rng(seed).random((2, n))
    return [noise < share for share in shares]


def test_one_ordering_holds_and_another_does_not():
    good, same, bad = draws(0.8, 0.79, 0.6)
    report = report_of(HEAD, [row("greedy", good), row("similar", same), row("worse", bad)])
    verdicts = {(c["a"], c["b"]): c["holds"] for c in report["comparisons"]}
    assert verdicts == {
        ("greedy", "similar"): False,
        ("greedy", "worse"): True,
        ("similar", "worse"): True,
    }
    told = markdown(report)
    hold, open_ = told.split("1 ordering not decided by these answers:")
    assert "- greedy is more accurate than worse: +" in hold and "similar is more accurate" in hold
    assert "greedy against similar" in open_ and "greedy against similar" not in hold
    assert "400 answers a row to 200 problems" in told
    # With many rows that differ by noise alone, a single one at 95 % does not hold jointly.
    crowd = [row(f"r{i}", draws(0.8, seed=i)[0]) for i in range(12)]
    report = report_of(HEAD, [row("greedy", good), *crowd])
    alone = [c for c in report["comparisons"] if c["p"] < 0.05]
    assert alone and not any(c["holds"] for c in report["comparisons"])
    assert "holds alone, not jointly" in markdown(report)


def test_no_more_than_one_report_in_twenty_claims_an_ordering_that_is_none():
    """Four equal rows, six comparisons, answers that depend on the problem."""
    rng, claims = np.random.default_rng(0), 0
    for _ in range(200):
        hard = rng.random(60)
        rows = [row(f"r{i}", (rng.random(60) < hard) * np.ones((2, 60), bool)) for i in range(4)]
        claims += any(c["holds"] for c in comparisons.compare({"": rows}))
    assert claims <= 0.05 * 200 + 2 * math.sqrt(200 * 0.05 * 0.95)


def test_text_that_differs_although_the_score_is_the_same():
    right = np.ones((2, 3), bool)
    report = report_of(HEAD, [row("greedy", right), row("other", right)])
    greedy, other = (r["groups"]["all"] for r in report["rows"])
    assert (greedy["corrupted"], other["corrupted"]) == (0.0, 1.0)
    assert other["difference"] == 0 and other["agreement"] == 0


def test_rows_that_missed_the_equal_cost_are_not_compared_there():
    good, bad = draws(0.8, 0.6)
    rows = [row("greedy", good), row("lead", good), row("near", bad, equal="steps", steps=5.2)]
    rows.append(row("far", bad, equal="steps", steps=7))
    facts = {"equal": "steps", "cache": "none", "reference": "lead", "target": 5, "tuned": 5}
    searches = [facts | {"label": label, "tried": 3} for label in ("near", "far")]
    report = report_of(HEAD, rows, searches, tolerance=0.05)
    assert [(e["label"], e["matched"]) for e in report["equal"]] == [("near", True), ("far", False)]
    pairs = [(c["a"], c["b"]) for c in report["comparisons"] if c["equal"] == "steps"]
    assert pairs == [("lead", "near")]
    assert "Not compared at equal steps: far costs 1.40 times what lead does" in markdown(report)


def test_rows_are_compared_within_a_cache():
    good, bad = draws(0.8, 0.6)
    rows = [row("greedy", good), row("a", good), row("a", bad, cache="dual")]
    report = report_of(HEAD, rows)
    assert [(c["a"], c["b"]) for c in report["comparisons"]] == [
        ("greedy, cache none", "a, cache none")
    ]
    assert "Rows that differ in cache (none, dual) are compared in the column" in markdown(report)
    report = report_of(HEAD, rows, allow_unequal=True)
    assert len(report["comparisons"]) == 3
    assert "UNEQUAL, compared all the same: cache (none, dual)" in markdown(report)
    assert "; unequal: cache" in markdown(report)


def tau(*shares):
    """Stability of three rows, right with probability shares[template][row]."""
    noise = np.random.default_rng(1).random((2, 300))
    right = [np.stack([noise[t] < shares[t][r] for t in (0, 1)]) for r in range(3)]
    return comparisons.stability([row(f"r{i}", x) for i, x in enumerate(right)])


def test_stability_tells_templates_from_samples():
    same = tau((0.2, 0.5, 0.8), (0.1, 0.5, 0.9))
    assert same["tau"] == same["same"] == same["other"] == 1 and same["interval"] == [1, 1]
    flipped = tau((0.2, 0.5, 0.8), (0.9, 0.5, 0.1))
    assert flipped["tau"] == flipped["other"] == -1 and flipped["same"] == 1
    assert flipped["flips"] == [("r1", "r0", 0, 1), ("r2", "r0", 0, 1), ("r2", "r1", 0, 1)]
    assert same["flips"] == []
    # Rows that do not differ: their order is noise under one template already.
    noisy = tau((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert noisy is None
    right = [np.random.default_rng(i).random((2, 300)) < 0.5 for i in range(3)]
    noisy = comparisons.stability([row(f"r{i}", x) for i, x in enumerate(right)])
    assert noisy["same"] < 0.5 and noisy["interval"][0] < 0 < noisy["interval"][1]


def folders(tmp_path, **manifest):
    """Two finished runs, the second with another manifest."""
    right, wrong = draws(0.8, 0.6)
    for name, own in (("one", {}), ("two", manifest)):
        rows = [row("greedy", right, **own), row(f"in {name}", wrong, **own)]
        (tmp_path / name).mkdir()
        text = outcomes.document(HEAD, rows, [])
        (tmp_path / name / outcomes.FILE).write_text(json.dumps(text))
    return [str(tmp_path / name) for name in ("one", "two")]


def test_finished_runs_are_compared_only_if_the_policy_is_all_that_differs(tmp_path):
    merged = outcomes.merge(folders(tmp_path), False)
    assert [r["label"] for r in merged["rows"]] == ["greedy", "in one", "in two"]
    report = report_of(*merged.values())
    assert len(report["comparisons"]) == 3 and report["comparisons"][0]["n"] == 400


def test_unequal_runs_are_refused_with_the_fields_that_differ(tmp_path):
    places = folders(tmp_path, dtype="bfloat16", device="other")
    with pytest.raises(UserError, match="one and .*two differ in dtype, device, so that"):
        outcomes.merge(places, False)
    merged = outcomes.merge(places, True)
    labels = [r["label"] for r in merged["rows"]]
    assert labels == ["greedy", "in one", "greedy [two]", "in two"]
    report = report_of(*merged.values(), allow_unequal=True)
    assert "UNEQUAL, compared all the same: dtype (float32, bfloat16), device (none, other)" in (
        markdown(report)
    )


def test_what_compare_refuses(tmp_path):
    (one, _) = folders(tmp_path)
    with pytest.raises(UserError, match="at least two folders"):
        outcomes.merge([one], False)
    with pytest.raises(UserError, match="outcomes.json: can't be read"):
        outcomes.merge([one, str(tmp_path)], False)
    (tmp_path / outcomes.FILE).write_text("{}")
    with pytest.raises(UserError, match="outcomes.json: is damaged"):
        outcomes.merge([one, str(tmp_path)], False)
