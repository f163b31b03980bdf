"""Prompts and scorers of the published benchmarks, on small problems of our own."""

import json
import sys
import types

import pytest

from leapjax.errors import UserError
from leapjax.tasks import code, competition_math, gsm8k, humaneval, ifeval, mbpp
from leapjax.tasks.benchmark import read


def solved(answer="3 + 4 = 7\n#### 1,007"):
    return gsm8k.parse({"question": "How many?", "answer": answer}, "f line 1")


@pytest.mark.parametrize(
    ("text", "flexible", "strict"),
    [
        ("So it is\n#### 1007", True, True),
        ("#### $1,007.", True, False),  # the harness's strict pattern takes no dollar sign
        ("#### 1,007.", True, True),
        ("The answer is $1,007.", True, False),
        ("#### 1007 because 3 + 4", False, True),
        ("#### 1008", False, False),
        ("#### -1007", False, False),
        ("#### 1007.5", False, False),
        ("no idea", False, False),
        ("", False, False),
    ],
)
def test_gsm8k(text, flexible, strict):
    assert gsm8k.score(text, solved()) == {"flexible": flexible, "strict": strict}


def test_gsm8k_prompt():
    assert gsm8k.ask(solved()) == "Question: How many?\nAnswer:"
    assert gsm8k.shot(solved("so #### 2")) == "Question: How many?\nAnswer: so #### 2"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{x}", "x"),
        (r"$\boxed 7$ here", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\frac{1}{2", None),
        ("none", None),
    ],
)
def test_boxed(text, found):
    assert competition_math.boxed(text) == found


@pytest.mark.parametrize(
    ("these", "those", "same"),
    [
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"\frac 1 2", r"0.5", True),
        (r"\frac{1}2", r"\tfrac{1}{2}", True),
        (r"-\frac{3}{4}", "-0.75", True),
        (r"10,000", "10000", True),
        (r"x = 5", "5", True),
        (r"$5$", "5", True),
        (r"5\text{ cm}", "5", True),
        (r"90^\circ", "90", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        (r"\sqrt2", r"\sqrt{2}", True),
        (r"\sqrt[3]{8}", r"\sqrt[3]8", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\$18.90", "18.90", True),
        (r"50\%", "50", True),
        ("0,1", "01", False),
        ("(1,2)", "(2,1)", False),
        (r"\frac12", r"\frac21", False),
        ("1/0", "0", False),
        ("x+1", "1+x", False),  # no computer algebra here
        (r"\pi", "3.14", False),
        (r"\sqrt{2}", "2", False),
        ("", "", False),
    ],
)
def test_equal(these, those, same):
    a, b = competition_math.normalise(these), competition_math.normalise(those)
    assert competition_math.equal(a, b) is same
    assert competition_math.equal(b, a) is same


def test_math():
    p = competition_math.parse({"problem": "P?", "solution": r"So \boxed{\frac12}."}, "f line 1")
    assert competition_math.ask(p) == "Problem:\nP?\n\nSolution:"
    said = r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct."
    assert competition_math.score(said, p) == {"sentence": True, "boxed": False}
    assert competition_math.score(r"it is \boxed{0.5}", p) == {"sentence": False, "boxed": True}
    cut = "Final Answer: The final answer is $0.5$."
    assert competition_math.score(cut, p)["sentence"]
    assert competition_math.score(r"\boxed{2}", p) == {"sentence": False, "boxed": False}
    with pytest.raises(UserError, match="no .boxed"):
        competition_math.parse({"problem": "P?", "solution": "4"}, "f line 1")


ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\ndef add(a, b):\n    """Sum.\n    """\n',
    "test": "def check(f):\n    assert f(1, 2) == 3\n",
    "entry_point": "add",
}


@pytest.mark.parametrize(
    "text",
    [
        "    return a + b\n",
        "```python\ndef add(a, b):\n    return a + b\n```\nThis adds.",
        "Sure:\n```python\ndef help(a):\n    return a\n\ndef add(a, b):\n    return help(a) + b\n"
        "\nassert add(1, 1) == 3\n```\nand ```python\n1 +\n```",
    ],
)
def test_humaneval_takes_the_answer(text):
    source = humaneval.program(text, humaneval.parse(ADD, "f line 1"))
    exec(source, {})
    with pytest.raises(AssertionError):
        exec(source.replace("== 3", "== 4"), {})


def test_humaneval_drops_what_is_not_needed():
    p = humaneval.parse(ADD, "f line 1")
    text = (
        "```python\ndef add(a, b):\n    return a - b\n\ndef other():\n    return 1\nprint(1)\n```"
    )
    made = humaneval.solution(text, p)
    assert made == "import math\ndef add(a, b):\n    return a - b"
    assert "def add" not in humaneval.solution("```python\nno code )(\n```", p)


def test_longest_code_is_the_definition():
    text = "x = 1\nwords that are not code\ny = 1\n\nz = 2\nwords again, and\nq = 1\nr = 2"

    def direct(text):
        lines, best, span = text.split("\n"), 0, (0, 0)
        for i in range(len(lines)):
            for j in range(i + 1, len(lines)):
                part = lines[i : j + 1]
                try:
                    compile("\n".join(part), "x", "exec")
                except SyntaxError:
                    continue
                if (n := sum(bool(x.strip()) for x in part)) > best:
                    best, span = n, (i, j)
        return [x for x in lines[span[0] : span[1] + 1] if x.strip()]

    for case in (text, "a b\nc d", "def f():\n  return 1\n\noops here\n\nx=1\ny=2\nz=3"):
        assert [x for x in code.longest_code(case).split("\n") if x.strip()] == direct(case)


TASK = {
    "task_id": 11,
    "text": "Double a number.",
    "code": "def d(x):\n    return 2 * x",
    "test_list": ["assert d(1) == 2", "assert d(2) == 4", "assert d(0) == 0"],
}


def test_mbpp():
    p = mbpp.parse(TASK, "f line 1")
    asked = mbpp.ask(p)
    assert asked.endswith("pass these tests:\n\nassert d(1) == 2\nassert d(2) == 4\n"
                          "assert d(0) == 0\n[BEGIN]\n")  # fmt: skip
    assert mbpp.shot(p) == asked + TASK["code"] + "\n[DONE]"
    exec(mbpp.program(TASK["code"], p), {})
    with pytest.raises(AssertionError):
        exec(mbpp.program("def d(x):\n    return x", p), {})


IF = {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"],
      "kwargs": [{}]}  # fmt: skip


def test_ifeval():
    pytest.importorskip("lm_eval.tasks.ifeval.utils", exc_type=ImportError)
    p = ifeval.parse(IF, "f line 1")
    both = dict.fromkeys(ifeval.MEASURES)
    assert ifeval.score("no comma here", p) == {k: True for k in both}
    assert ifeval.score("a, comma", p) == {k: False for k in both}


def test_ifeval_gives_the_checkers_the_record(monkeypatch):
    """What the harness's function is given, where its packages are not installed."""

    def process_results(doc, results):
        assert doc.keys() >= {"key", "prompt", "instruction_id_list", "kwargs"}
        assert len(doc["kwargs"]) == len(doc["instruction_id_list"])
        strict = "," not in results[0]
        return {"prompt_level_strict_acc": strict, "prompt_level_loose_acc": True, "x": [strict]}

    fake = types.SimpleNamespace(process_results=process_results)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ifeval.utils", fake)
    ifeval.checker.cache_clear()
    p = ifeval.parse(IF, "f line 1")
    found = {text: ifeval.score(text, p) for text in ("fine", "a, b")}
    ifeval.checker.cache_clear()
    assert found["fine"] == {k: True for k in ifeval.MEASURES}
    assert found["a, b"]["prompt_level_strict_acc"] is False


def test_ifeval_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.ifeval.utils", None)
    ifeval.checker.cache_clear()
    with pytest.raises(UserError, match="pip install"):
        ifeval.checker()


@pytest.mark.parametrize(
    ("module", "good", "missing"),
    [
        (gsm8k, {"question": "q", "answer": "#### 1"}, "answer"),
        (competition_math, {"problem": "p", "solution": r"\boxed{1}"}, "solution"),
        (humaneval, ADD, "entry_point"),
        (mbpp, TASK, "test_list"),
        (ifeval, IF, "kwargs"),
    ],
)
def test_bad_lines(module, good, missing, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(good) + "\n")
    assert len(read(str(file), module.BENCHMARK.parse)) == 1
    bad = {k: v for k, v in good.items() if k != missing}
    file.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{missing}"):
        read(str(file), module.BENCHMARK.parse)
    file.write_text("")
    with pytest.raises(UserError, match="no problems"):
        read(str(file), module.BENCHMARK.parse)
