import re

import numpy as np
import pytest
from tokenizers import Tokenizer

from leapjax import tasks
from leapjax.errors import UserError
from leapjax.models import ModelConfig
from leapjax.tasks import wordproblem_tokenizer, wordproblems
from leapjax.tasks.base import Problem, extract_final, normalise, score, score_strict
from leapjax.text import load_codec

STORIES = [s for s in wordproblems.STRATA if s != "drill"]


def pairs(split, stratum, n):
    return {
        (p.metadata["template"].split("/")[1], tuple(p.metadata["operands"]))
        for p in wordproblems.generate(3, split, stratum, n)
    }


def test_same_seed_same_problems_and_a_longer_list_begins_with_the_shorter():
    short = wordproblems.generate(1, "heldout", "main", 20)
    assert wordproblems.generate(1, "heldout", "main", 40)[:20] == short
    assert wordproblems.generate(2, "heldout", "main", 20) != short
    assert len({p.id for p in short}) == 20


@pytest.mark.parametrize("stratum", wordproblems.STRATA)
def test_held_out_pairs_are_never_trained(stratum):
    n = 60 if stratum == "drill" else 1500
    assert not pairs("train", stratum, n) & pairs("heldout", stratum, min(n, 400))


@pytest.mark.parametrize("stratum", ("easy", "main"))
def test_thresholds_are_tuned_on_pairs_that_no_report_uses(stratum):
    tuned = pairs("tune", stratum, 300)
    assert not tuned & (pairs("heldout", stratum, 400) | pairs("unseen", stratum, 100))


@pytest.mark.parametrize("stratum", STORIES)
def test_unseen_templates_are_never_trained(stratum):
    def templates(split, n):
        return {name for name, _ in pairs(split, stratum, n)}

    everywhere = {
        t.id.split("/")[1] for s in STORIES for t in wordproblems.templates(s, unseen=False)
    }
    assert not templates("unseen", 200) & everywhere


def test_about_a_tenth_of_the_templates_is_unseen():
    for stratum in ("main", "long", "distractor"):
        counts = [len(wordproblems.templates(stratum, unseen)) for unseen in (False, True)]
        assert 0.06 < counts[1] / sum(counts) < 0.15


@pytest.mark.parametrize("split", wordproblems.SPLITS)
@pytest.mark.parametrize("stratum", STORIES)
def test_solutions_are_right(stratum, split):
    for problem in wordproblems.generate(0, split, stratum, 150):
        equations = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", problem.answer)
        assert len(equations) in wordproblems.STEPS[stratum]
        for left, op, right, result in equations:
            a, b = int(left), int(right)
            assert {"+": a + b, "-": a - b, "*": a * b}[op] == int(result)
            if stratum != "large":
                assert max(a, b, int(result)) <= wordproblems.LIMIT
        assert problem.answer.endswith(f"\n#### {equations[-1][3]}")
        assert problem.final == equations[-1][3]
        assert score(problem.answer, problem)
        assert "{" not in problem.question + problem.answer


def test_too_many_problems_is_an_error_and_not_an_endless_search():
    with pytest.raises(UserError, match="fewer than 5000 different problems"):
        wordproblems.generate(0, "heldout", "drill", 5000)
    with pytest.raises(UserError, match="has no templates"):
        wordproblems.generate(0, "unseen", "drill", 1)
    with pytest.raises(UserError, match="stratum 'mian' is unknown"):
        wordproblems.generate(0, "heldout", "mian", 1)
    with pytest.raises(UserError, match="split 'test' is unknown"):
        wordproblems.generate(0, "test", "main", 1)


def test_answers_fit_the_canvas_of_64():
    tokenizer = wordproblem_tokenizer.build()
    lengths = [
        len(tokenizer.encode(p.answer).ids)
        for s in STORIES
        for p in wordproblems.generate(5, "heldout", s, 300)
    ]
    assert max(lengths) < 64  # and an eos
    assert np.percentile(lengths, 99) * 1.5 >= 64


def test_every_line_of_a_solution_has_one_length():
    """A decoder that fills in many lines at once need not guess where each begins."""
    tokenizer = wordproblem_tokenizer.build()
    small = [s for s in STORIES if s != "large"]
    problems = [p for s in small for p in wordproblems.generate(6, "train", s, 300)]
    lines = {line for p in problems for line in p.answer.split("\n")[:-1]}
    assert {len(tokenizer.encode(line + "\n").ids) for line in lines} == {13}


@pytest.mark.parametrize("stratum", wordproblems.STRATA)
def test_tokenizer_round_trip_in_whole_words(stratum):
    tokenizer = wordproblem_tokenizer.build()
    for problem in wordproblems.generate(0, "train", stratum, 80):
        for text in (problem.question, problem.answer):
            encoded = tokenizer.encode(text)
            assert tokenizer.decode(encoded.ids) == text
            # Nothing falls apart into letters: no two letter tokens in a row.
            assert not re.search(r"(?:^|\|)[a-z]\|[a-z](?:\||$)", "|".join(encoded.tokens))


@pytest.mark.parametrize(
    "text",
    ["", " ", "Zebra's naïve café = 12345.6\t日本 \U0001f600\r\n\n  end ", "#####", "x" * 300],
)
def test_tokenizer_takes_any_text(text):
    tokenizer = wordproblem_tokenizer.build()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_numbers_are_single_tokens():
    tokenizer = wordproblem_tokenizer.build()
    for n in range(100):
        assert tokenizer.encode(f"{n} is {n}").tokens == [f"{n}", " is", f" {n}"]
    assert tokenizer.encode("has 237").tokens[-2:] == [" 2", "37"]


def test_saved_files_are_ordinary_and_the_codec_renders_what_training_sees(tmp_path):
    wordproblem_tokenizer.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    eos, mask = (tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|mdm_mask|>"))
    size = tokenizer.get_vocab_size()
    model = ModelConfig("llada", size, 8, 1, 1, 1, 8, 8, 1e4, 1e-5, 64, mask, eos, eos)
    codec = load_codec(tmp_path, model)
    assert codec.is_instruct and codec.eot_id == eos
    question = wordproblems.generate(0, "train", "easy", 1)[0].question
    spelled = f"<|startoftext|><|user|>{question}<|assistant|>"
    assert codec.encode_prompt(question) == tokenizer.encode(spelled).ids


def test_final_number():
    assert extract_final("so\n#### 1,234.50\n#### 7") == "1234.5"
    assert extract_final("#### $ -08") == "-8"
    assert extract_final("the answer is 4") is None
    assert normalise("0.0") == "0" and normalise("007") == "7"


@pytest.mark.parametrize(
    "text, lenient, strict",
    [
        ("6 + 6 = 12\n#### 12", True, True),
        (" #### 12\n", True, True),
        ("#### 1,2", True, True),
        ("#### 12.0", True, True),
        ("#### $12", True, False),
        ("####12", True, False),
        ("#### 12 pens", True, False),
        ("#### 12\nor so", True, False),
        ("#### 12\n#### 12", True, False),
        ("so #### 12", True, False),
        ("#### 13\n#### 12", False, False),
        ("12", False, False),
        ("", False, False),
    ],
)
def test_the_strict_parser_accepts_the_asked_form_only(text, lenient, strict):
    twelve = Problem("a", "6 + 6?", "#### 12", "12")
    assert (score(text, twelve), score_strict(text, twelve)) == (lenient, strict)


def test_templates_word_a_question_in_eight_ways():
    task = tasks.get("wordproblems")
    problem = Problem("a", "Is {x} 7?", "#### 7", "7")
    asked = [task.record(problem, i) for i in range(len(task.templates))]
    assert asked[0] == task.record(problem) == {"id": "a", "prompt": "Is {x} 7?"}
    prompts = [record["prompt"] for record in asked]
    assert len(set(prompts)) == 8 and all("Is {x} 7?" in prompt for prompt in prompts)
    assert set(task.unseen_templates) == {6, 7}
    for unknown in (-1, 8):
        with pytest.raises(UserError, match=f"template {unknown} is unknown"):
            task.record(problem, unknown)
