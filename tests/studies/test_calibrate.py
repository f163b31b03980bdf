"""`leapjax calibrate` from end to end on a golden model, and its parts on made-up answers."""

import json
from pathlib import Path

import pytest

import leapjax
from leapjax.cli.calibrate import main
from leapjax.cli.decode import main as decode
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.studies import ladders
from leapjax.studies.calibration import Comparison, answer_key, calibrate, greedy_setting
from leapjax.tasks.base import extract_final

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
BASE = DecodeConfig(gen_length=16, block_length=8)
SMALL = ["--model", LLADA, "--gen-length", "16", "--block-length", "8", "--batch-size", "4"]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", "off")


class Made(Comparison):
    """Answers that differ from greedy's on the prompts given, and remember what was asked."""

    def __init__(self, n, differing):
        super().__init__(None, [], BASE, None, batch_size=1)
        self.requests, self.differing, self.asked = range(n), differing, []

    def answers(self, config, name):
        if name == "greedy":
            assert config == greedy_setting(BASE)
            for i in self.requests:
                yield i, {"text": str(i), "steps": 16}
            return
        threshold = config.value("threshold")
        for i in self.requests:
            self.asked.append(name)
            text = f"{i}{'!' * (i in self.differing[threshold])}"
            yield i, {"text": text, "steps": round(100 * threshold)}


def settings(*thresholds):
    return [BASE.replace(policy="confidence_threshold", threshold=t) for t in thresholds]


def run(made, *thresholds, budget=0.05):
    return calibrate(made, settings(*thresholds), budget=budget, confidence=0.95)


def test_the_last_that_passes_is_chosen():
    # 100 prompts at 5 %: one disagreement passes (bound 4.7 %), two fail (6.2 %)
    made = Made(100, {0.9: set(), 0.8: {3}, 0.7: {3, 20, 21, 22}, 0.6: set()})
    result = run(made, 0.9, 0.8, 0.7, 0.6)
    assert result["chosen"] == 1 and result["untested"] == 1
    tested = result["tested"]
    assert [t["passes"] for t in tested] == [True, True, False]
    assert tested[1]["disagreements"] == 1
    assert tested[1]["bound"] == pytest.approx(0.0466, abs=1e-4)
    assert (tested[1]["steps"], result["greedy_steps"]) == (80, 16)
    # The third is given up at its second disagreement, the fourth is never decoded.
    assert tested[2]["prompts"] == 21 == made.asked.count("setting-03")
    assert "setting-04" not in made.asked


def test_none_qualifies():
    result = run(Made(100, {0.9: {0, 1}, 0.8: set()}), 0.9, 0.8)
    assert result["chosen"] is None and result["untested"] == 1 and len(result["tested"]) == 1


def test_too_few_prompts_are_refused():
    with pytest.raises(UserError, match="58 prompts are too few: .* needs 59"):
        run(Made(58, {0.9: set()}), 0.9)
    assert run(Made(59, {0.9: set()}), 0.9)["chosen"] == 0


def test_agreement():
    assert answer_key(None, "a #### 4") != answer_key(None, "b #### 4")
    assert answer_key(extract_final, "a #### 4") == answer_key(extract_final, "b #### 4.0")
    assert answer_key(extract_final, "a #### 4") != answer_key(extract_final, "a #### 5")
    # No final answer in either: the texts have to be the same.
    assert answer_key(extract_final, "4") != answer_key(extract_final, "5")


def test_default_ladder_goes_from_safe_to_fast():
    configs = ladders.DEFAULT.configs(BASE)
    numbers = [(c.value("threshold"), c.value("relaxed_threshold")) for c in configs]
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) == len(numbers)
    assert (0.9, 0.75) in numbers


def records(path, n):
    lines = [{"prompt": f"Hal has {i} pens and gets {i + 2} more."} for i in range(n)]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(path)


def test_end_to_end(tmp_path, capsys, compilations):
    prompts, out = records(tmp_path / "p.jsonl", 6), tmp_path / "out"
    rungs = tmp_path / "ladder.yaml"
    # With top-1 alone (nothing reaches 1) an answer is greedy's; 0 commits whole blocks.
    rungs.write_text(
        "policy: confidence_threshold\n"
        "settings:\n- {threshold: 1.0}\n- {threshold: 0.9999}\n- {threshold: 0.0}\n"
    )
    argv = [*SMALL, "--prompts", prompts, "--ladder", str(rungs), "--output", str(out)]
    argv += ["--max-disagreement", "0.4"]
    with compilations.seen() as compiled:
        assert main(argv) == 0
    # One program for greedy, one for all settings.
    assert compiled.count("run") == 2, compiled
    assert "fails (given up after" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert [t["passes"] for t in report["tested"]] == [True, True, False]
    assert report["model hash"] and report["n"] == 6 and report["versions"]["jax"]
    chosen = report["tested"][report["chosen"]]["config"]
    text = (out / "calibrated.yaml").read_text()
    assert f"# model hash: {report['model hash']}" in text
    assert "# answers that differ from greedy's: 0" in text

    # decode --config takes the file, and its answers are those that were calibrated.
    answers = tmp_path / "answers.jsonl"
    argv_decode = [
        "--config",
        str(out / "calibrated.yaml"),
        "--input",
        prompts,
        "--batch-size",
        "4",
    ]
    assert decode([*argv_decode, "--output", str(answers)]) == 0
    decoded = [json.loads(x) for x in answers.read_text().splitlines()]
    name = f"answers-setting-{report['chosen'] + 1:02d}-*.jsonl"
    (file,) = out.glob(name)
    kept = [json.loads(x) for x in file.read_text().splitlines()[1:]]
    assert sorted((r["text"], r["steps"]) for r in decoded) == sorted(
        (r["text"], r["steps"]) for r in kept
    )
    assert chosen["threshold"] in (1.0, 0.9999) and chosen["gen_length"] == 16

    # Results are not overwritten unasked; a rerun decodes nothing and says the same.
    assert main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    before = (out / "report.json").read_bytes(), file.read_bytes()
    assert main([*argv, "--overwrite"]) == 0
    assert ((out / "report.json").read_bytes(), file.read_bytes()) == before

    # None qualifies: status 1, and no file that says otherwise.
    rungs.write_text("policy: confidence_threshold\nsettings: [{threshold: 0.0}]\n")
    assert main([*argv, "--overwrite"]) == 1
    assert "No setting qualifies" in capsys.readouterr().out
    assert not (out / "calibrated.yaml").exists()


def test_promise_end_to_end(tmp_path, capsys):
    prompts, out = records(tmp_path / "p.jsonl", 12), tmp_path / "out"
    argv = [*SMALL, "--prompts", prompts, "--output", str(out), "--max-disagreement", "0.4"]
    status = main([*argv, "--check-promise", "20"])
    outcome = json.loads((out / "promise.json").read_text())["promise"]
    assert status == (0 if outcome["holds"] else 1)
    assert outcome["n"] == 6 and outcome["pool"] == 12
    assert sum(outcome["picked"]) + outcome["none"] == 20
    assert "confidence threshold 0.9" in capsys.readouterr().out
    assert not (out / "calibrated.yaml").exists()


def test_answers_go_on_where_they_were(tmp_path):
    lm = leapjax.load(LLADA)
    requests = [lm.request(f"{i} pens", BASE, line=i) for i in range(1, 6)]
    config = settings(0.5)[0]

    def compared(folder):
        return Comparison(lm, requests, BASE, folder, batch_size=2).compare(config, "x")

    part = compared(tmp_path)
    first = [next(part), next(part)]
    part.close()
    whole = sorted(compared(tmp_path))
    assert set(first) < set(whole)
    for file in tmp_path.iterdir():  # greedy's and this setting's
        assert len(file.read_text().splitlines()) == 6  # the settings, each prompt once
    assert len(list(tmp_path.iterdir())) == 2
    assert whole == sorted(compared(None))


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "no prompts; give --prompts"),
        (["--task", "wordproblems", "--limit", "100"], "100 prompts are too few: even without"),
        (["--task", "wordproblems", "--max-disagreement", "0"], "max_disagreement is 0.0"),
        (["--task", "wordproblems", "--confidence", "1"], "confidence is 1.0"),
        (["--task", "wordproblems", "--calibration-size", "9"], "goes with --check-promise"),
        (["--task", "wordproblems", "--check-promise", "0"], "--check-promise: '0' is not"),
        (["--prompts", "/no/such.jsonl"], "no such file"),
        (["--prompts", "BAD"], "record 1 has options"),
        (["--task", "wordproblems", "--ladder", "EMPTY"], "at least one setting"),
        (["--task", "wordproblems", "--ladder", "WORD"], "setting 1: unknown option 'treshold'"),
        (["--task", "wordproblems", "--ladder", "WRONG"], "setting 1: threshold is 2"),
        (["--task", "wordproblems", "--config", "POLICY"], "policy is the ladder's to set"),
        (["--task", "wordproblems", "--config", "HOT"], "temperature is 1.0"),
    ],
)
def test_bad_arguments(tmp_path, capsys, more, message):
    files = {
        "BAD": '{"prompt": "a", "options": {"threshold": 0.5}}',
        "EMPTY": "settings: []",
        "WORD": "settings: [{treshold: 0.5}]",
        "WRONG": "settings: [{threshold: 2}]",
        "POLICY": "policy: localleap",
        "HOT": "temperature: 1.0",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    argv = [str(tmp_path / a) if a in files else a for a in more]
    assert main([*SMALL, *argv, "--output", str(tmp_path / "out")]) == 2
    streams = capsys.readouterr()
    assert message in streams.err and streams.err.count("\n") == 1 and not streams.out
    assert not (tmp_path / "out").exists()
