import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import tasks
from leapjax.errors import UserError
from leapjax.models import ModelConfig
from leapjax.tasks import dependence, dependency, dependency_tokenizer
from leapjax.tasks.base import Problem
from leapjax.tasks.dependency_kinds import KINDS, completions, squares
from leapjax.tasks.dependency_templates import TEMPLATES
from leapjax.tasks.wordproblem_tokenizer import save
from leapjax.text import load_codec

STRATA = dependency.STRATA


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = dependency_tokenizer.build()
    assert tokenizer.get_vocab_size() == 717  # frozen: a trained model depends on its ids
    save(folder, tokenizer)
    return load_codec(folder, ModelConfig("llada", 717, 8, 1, 1, 1, 8, 8, 1e4, 1e-5, 640, 1, 0, 0))


def corrupted(rng, text):
    """The text with one of its characters replaced by another of the same sort."""
    places = [i for i, c in enumerate(text) if c.isdecimal() or c.isupper()]
    place = places[int(rng.integers(len(places)))]
    others = "23456789" if text[place].isdecimal() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    other = rng.choice([c for c in others if c != text[place]])
    return text[:place] + other + text[place + 1 :]


@given(st.integers(0, 2**31), st.sampled_from(dependency.SPLITS), st.sampled_from(STRATA))
@settings(max_examples=20, deadline=None)
def test_problems_follow_from_seed_split_task_and_index(seed, split, stratum):
    short = dependency.generate(seed, split, stratum, 3)
    assert dependency.generate(seed, split, stratum, 6)[:3] == short
    assert len({p.id for p in short}) == 3
    for p in short:
        assert dependency.split_of(p.metadata["kind"], p.question) == split
        assert p.stratum == stratum


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.sampled_from(STRATA))
@settings(max_examples=20, deadline=None)
def test_splits_share_no_question_whatever_the_seeds(one, other, stratum):
    found = [
        {p.question for p in dependency.generate(seed, split, stratum, 8)}
        for seed, split in ((one, "train"), (other, "heldout"), (one, "tune"))
    ]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


@pytest.mark.parametrize("stratum", STRATA)
def test_gold_answers_are_right_and_corrupted_ones_wrong(stratum):
    rng = np.random.default_rng(1)
    for p in dependency.generate(0, "heldout", stratum, 25):
        assert dependency.score(p.answer, p) and dependency.score_strict(p.answer, p)
        assert not dependency.score("", p) and not dependency.score_strict("", p)
        assert not dependency.score(p.answer[:-1], p)
        # Another letter of the pool or the line may give another valid answer, as it should.
        if p.metadata["kind"] not in ("list", "waiting"):
            wrong = corrupted(rng, p.answer)
            assert not dependency.score(wrong, p), (p.question, wrong)


def problem(kind, question, answer=""):
    return Problem("", question, answer, answer, kind, {"kind": kind}, TEMPLATES[kind])


@pytest.mark.parametrize(
    ("kind", "question", "right", "wrong"),
    [
        ("copy", "ABBA", ["ABBA"], ["ABAB", "ABBAA"]),
        ("reverse", "ABC", ["CBA"], ["ABC"]),
        ("sort", "BCAB", ["ABBC"], ["ABC", "BABC"]),
        ("replace", "A=X\nBAXA", ["BXXX"], ["BAXA", "BXAX"]),
        ("latin", "12..\n....\n....\n..21", ["1234\n4312\n2143\n3421"], ["1234\n3412\n4321\n2143"]),
        ("waiting", "ABC\nD joins behind A\nB leaves\nE joins", ["ADCE"], ["DACE", "ADC"]),
        ("waiting", "ABC\nsomeone leaves", ["AB", "AC", "BC"], ["BA", "ABC", "A"]),
        ("sums", "95+17", ["112"], ["0112", "12"]),
        ("list", "2\nABC", ["AB", "CA"], ["AA", "AD", "ABC"]),
        (
            "json",
            "fig=12,egg=34",
            ['{"fig":12,"egg":34}', '{"egg":34,"fig":12}'],
            ['{"fig":34,"egg":12}', '{"fig":12}', '{"fig":12,"egg":34,"egg":34}', "[1]", "[[1,2]]"],
        ),
    ],
)
def test_any_valid_answer_counts(kind, question, right, wrong):
    asked = problem(kind, question)
    assert [dependency.score_strict(t, asked) for t in right] == [True] * len(right)
    assert [dependency.score_strict(t, asked) for t in wrong] == [False] * len(wrong)


@pytest.mark.parametrize(
    ("kind", "question", "text"),
    [
        ("copy", "ABBA", "The copy: a b b a."),
        ("sums", "95+17", "95+17 = 0112"),
        ("list", "2\nABC", "A, C"),
        ("latin", "12..\n....\n....\n..21", "1 2 3 4\n4 3 1 2\n2 1 4 3\n3 4 2 1"),
        ("json", "fig=12,egg=34", 'Here: {"egg": "34", "Fig": 12}'),
    ],
)
def test_the_lenient_parser_forgives_form_and_the_strict_one_does_not(kind, question, text):
    asked = problem(kind, question)
    assert dependency.score(text, asked) and not dependency.score_strict(text, asked)


@pytest.mark.parametrize("stratum", STRATA)
def test_prompts_and_answers_fit_in_tokens(codec, stratum):
    long = stratum.endswith("-long")
    task, longest = tasks.get(stratum), 0
    assert stratum in tasks.DEPENDENCY and (task.gen_length == 32 or not stratum.endswith("-short"))
    for p in dependency.generate(0, "tune", stratum, 40):
        answer = codec.encode(p.answer, control=False)
        longest = max(longest, len(answer))
        assert len(answer) < task.gen_length <= (256 if long else 128)
        prompts = [task.record(p, i)["prompt"] for i in range(8)]
        assert max(len(codec.encode_prompt(t)) for t in prompts) <= (280 if long else 128)
        assert codec.decode(answer) == p.answer
    assert longest > 128 or not long


def test_unseen_wordings_are_never_trained():
    rng = np.random.default_rng(0)
    for name in dependency.STRATA:
        task = tasks.get(name)
        assert len(set(task.templates)) == 8 and task.unseen_templates == (6, 7)
        prompts = [dependency.sample(rng, name, 8) for _ in range(60)]
        used = {
            i
            for prompt, p in prompts
            for i in range(8)
            if prompt == p.templates[i].format(question=p.question)
        }
        assert used == set(range(6))
        assert all(
            dependency.split_of(p.metadata["kind"], p.question) == "train" for _, p in prompts
        )


def test_every_wording_is_made_of_whole_words():
    """All words are tokens (JSON is four letters), and all of them occur in trained wordings."""
    tokenizer = dependency_tokenizer.build()
    words = [
        {i: set(tokenizer.encode(t.format(question="\n")).tokens) for i, t in enumerate(ts)}
        for ts in TEMPLATES.values()
    ]
    trained = {w for task in words for i in range(6) for w in task[i]}
    unseen = {w for task in words for i in (6, 7) for w in task[i]}
    assert unseen <= trained
    letters = {w for w in trained if len(w.strip()) == 1 and w.strip().isalpha()}
    assert letters == {" a", " A", " Z", " J", "S", "O", "N"}


def test_the_family_is_one_task_with_each_as_a_stratum():
    family = tasks.get("dependency")
    assert family.strata == tuple(KINDS) and family.gen_length == 128
    found = family.problems("tune", limit=18)
    assert [sum(p.stratum == s for p in found) for s in family.strata] == [2] * 9
    assert family.record(found[0], 7)["prompt"] == TEMPLATES["copy"][7].format(
        question=found[0].question
    )
    assert tasks.get("sort").problems("tune", limit=2) == found[4:6]
    with pytest.raises(UserError, match="template 8 is unknown"):
        family.record(found[0], 8)
    with pytest.raises(UserError, match="stratum 'shuffle' is unknown"):
        family.problems("tune", strata=["shuffle"], limit=1)


def test_there_are_576_latin_squares_of_order_four():
    assert len(set(squares())) == 576
    assert len(completions("....\n....\n....\n....")) == 576


def brute(question, kind):
    """Total correlation by enumeration of valid answers of letters."""
    import itertools

    line = question.split("\n")[-1] if kind == "list" else question.split("\n")[0]
    answers = [
        "".join(a)
        for n in range(1, len(line) + 1)
        for a in itertools.permutations(line, n)
        if KINDS[kind].right(question, "".join(a))
    ]
    rows = np.array([list(a) for a in answers])
    total = 0.0
    for column in rows.T:
        share = np.unique(column, return_counts=True)[1] / len(rows)
        total -= float((share * np.log(share)).sum())
    return total - math.log(len(answers))


@pytest.mark.parametrize(
    ("kind", "question"), [("list", "3\nABCDE"), ("waiting", "ABCDEF\nsomeone leaves")]
)
def test_total_correlation_is_that_of_the_enumeration(kind, question):
    found = dependence.of(problem(kind, question))
    assert found.total_correlation == pytest.approx(brute(question, kind), abs=1e-9)


def test_dependence_by_task():
    json = dependence.of(problem("json", "fig=12,egg=34"))
    assert json.total_correlation == pytest.approx(6 * math.log(2) - math.log(2))
    for name in ("copy", "reverse", "sort", "replace", "sums"):
        found = dependence.measure(name, 5)
        assert (found["total_correlation"], found["at_once"]) == (0.0, 1.0)
    for name in ("latin", "waiting", "list", "json"):
        found = dependence.measure(name, 40)
        assert found["total_correlation"] > 0.5 and found["at_once"] < 0.9
