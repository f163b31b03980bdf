"""The harness runs local tasks on a golden model; nothing is fetched."""

import json
import math
from pathlib import Path

import pytest

import leapjax
from leapjax.errors import UserError

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (extra eval)")

GOLDEN = Path(__file__).parents[1] / "golden"
LLADA = str(GOLDEN / "llada-a")
OPTIONS = {"gen_length": 16, "block_length": 8, "batch_size": 4, "mc_num": 8}


@pytest.fixture(
    scope="module", params=["llada-a", pytest.param("llada-moe-a", marks=pytest.mark.slow)]
)
def lm(request):
    return leapjax.load(GOLDEN / request.param)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with one multiple-choice and one generation task over local JSONL."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [
        {"question": f"{a} pens and {b} pens?", "choices": [f"{a + b}", "none"], "label": 0}
        for a, b in ((1, 2), (3, 4), (5, 6))
    ]
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in docs))
    shared = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\n"
        "test_split: test\ndoc_to_text: '{{question}}'\n"
    )
    (tmp_path / "choice.yaml").write_text(
        "task: local_choice\noutput_type: multiple_choice\n" + shared + "doc_to_choice: choices\n"
        "doc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "generate.yaml").write_text(
        "task: local_generate\noutput_type: generate_until\n"
        + shared
        + "doc_to_target: '{{choices[0]}}'\n"
        "generation_kwargs: {until: [e], do_sample: false, temperature: 0.0}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def model(lm, **changes):
    from leapjax.integrations.lm_eval import LeapjaxLM

    return LeapjaxLM(lm=lm, **(OPTIONS | changes))


def test_the_harness_runs_local_tasks(lm, tasks):
    from lm_eval.api.registry import get_model

    made = model(lm)
    assert get_model("leapjax") is type(made)
    results = lm_eval.simple_evaluate(
        made, tasks=["local_choice", "local_generate"], task_manager=tasks, bootstrap_iters=0
    )
    choice, generate = (results["samples"][t] for t in ("local_choice", "local_generate"))
    assert len(choice) == len(generate) == 3
    assert 0 <= results["results"]["local_choice"]["acc,none"] <= 1
    # The choice is that of the larger bound, which is the estimator's own.
    from leapjax.likelihood import likelihoods

    for doc in choice:
        pairs = [made._encode_pair(*strings) for strings in doc["arguments"]]
        found = [x.bound for x in likelihoods(lm, pairs, samples=8, batch_size=4)]
        got = [r[0][0] for r in doc["resps"]]
        assert got == pytest.approx(found, rel=1e-5) and all(math.isfinite(x) for x in got)
        assert doc["acc"] == float(found[0] >= found[1])
    # An answer is what a plain decode gives, cut at the stop string.
    for doc in generate:
        ids = lm.codec.encode_prompt(doc["doc"]["question"], raw=True)
        config = leapjax.DecodeConfig(gen_length=16, block_length=8)
        (want,) = lm.generate([{"prompt_ids": ids, "stop": ["e"]}], config)
        assert doc["resps"][0][0] == want.text and "e" not in want.text


def test_templates(lm):
    made, words = model(lm), [{"role": "user", "content": "Hal has 4 pens."}]
    want = lm.codec.encode_chat(words)
    assert made.tok_encode(made.apply_chat_template(words)) == want
    turn = model(lm, user_turn=True)
    assert list(turn._request(0, "Hal has 4 pens.", {}).ids) == want
    with pytest.raises(UserError, match="gen_prefix"):
        made.apply_chat_template(words, add_generation_prompt=False)


def test_generation_options(lm):
    made = model(lm)
    config = made._request(0, "a", {"until": "x", "do_sample": False, "temperature": 0.7}).config
    assert config.temperature == 0 and config.gen_length == 16
    assert made._request(0, "a", {"temperature": 0.7}).config.temperature == 0.7
    assert made._request(0, "a", {"do_sample": "true", "top_k": "3"}).config.temperature == 1
    with pytest.raises(UserError, match="unknown option 'num_beams'"):
        made._request(0, "a", {"num_beams": 4})
    with pytest.raises(UserError, match="did you mean 'threshold'"):
        model(lm, treshold=0.5)
    with pytest.raises(UserError, match="batch_size is 'x'"):
        model(lm, batch_size="x")


@pytest.mark.parametrize("length", [12, 12.0, "12", "12.0"])
@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens"])
def test_a_length_in_any_form(lm, name, length):
    from lm_eval.api.instance import Instance

    from leapjax.text import finish

    made = model(lm, logits_eos_inf=True)
    asked = Instance("generate_until", {}, ("Hal has", {name: length, "until": None}), 0)
    (text,) = made.generate_until([asked], disable_tqdm=True)
    ids = lm.codec.encode_prompt("Hal has", raw=True)
    config = leapjax.DecodeConfig(gen_length=16, block_length=8, logits_eos_inf=True)
    (whole,) = lm.generate([{"prompt_ids": ids}], config)
    assert text == finish(whole.output_ids[:12], lm.codec, lm.config, ())[0]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"max_gen_toks": -3}, "max_gen_toks is -3; expected a whole number of at least 1"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0"),
        ({"max_gen_toks": 2.5}, "max_gen_toks is 2.5"),
        ({"max_gen_toks": "many"}, "max_gen_toks is 'many'"),
        ({"max_gen_toks": True}, "max_gen_toks is True"),
        ({"max_gen_toks": [4]}, r"max_gen_toks is \[4\]"),
        ({"max_gen_toks": float("inf")}, "max_gen_toks is inf"),
        ({"max_gen_toks": 4, "max_tokens": 5}, "say different things"),
        ({"until": 5}, "until is 5; expected a text or a list of texts"),
        ({"until": ["a", None]}, r"until is \['a', None\]"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected a number"),
        ({"temperature": -1}, "temperature is -1.0; expected at least 0"),
        ({"do_sample": "maybe"}, "do_sample is 'maybe'; expected true or false"),
        ({"temperature": 1, "top_k": 1.5}, "top_k is 1.5; expected a whole number"),
    ],
)
def test_generation_options_that_are_refused(lm, asked, message):
    with pytest.raises(UserError, match=message) as e:
        model(lm)._request(0, "a", asked)
    assert "\n" not in str(e.value)


def test_what_has_no_effect_is_said_once(lm, caplog):
    made = model(lm)
    for _ in range(2):
        greedy = made._request(0, "a", {"do_sample": False, "temperature": 1})
    assert greedy.config.temperature == 0
    assert caplog.text.count("temperature 1 has no effect: the task says do_sample: false") == 1
    caplog.clear()
    made._request(0, "a", {"do_sample": False, "temperature": 0.0})
    made._request(0, "a", {"temperature": 1})
    assert not caplog.text


def test_an_instruct_model_without_its_template(lm, caplog):
    from lm_eval.api.instance import Instance

    asked = [Instance("generate_until", {}, ("Hal has", {}), 0)]
    assert lm.codec.is_instruct
    model(lm).generate_until(asked, disable_tqdm=True)
    assert caplog.text.count("its chat template was not applied") == 1
    caplog.clear()
    model(lm, user_turn="true").generate_until(asked, disable_tqdm=True)
    made = model(lm)
    made.apply_chat_template([{"role": "user", "content": "Hal has"}])
    made.generate_until(asked, disable_tqdm=True)
    assert not caplog.text
    for wrong in ({"mc_num": "x"}, {"mc_num": 0}, {"user_turn": "yes"}, {"check_greedy": 2}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
            model(lm, **wrong)


def test_canvas_follows_the_task_unless_said(lm):
    from leapjax.integrations.lm_eval import LeapjaxLM

    made = LeapjaxLM(lm=lm, policy="confidence_threshold")
    assert made._request(0, "a", {"max_gen_toks": 33}).config.gen_length == 64
    assert model(lm)._request(0, "a", {"max_gen_toks": 33}).config.gen_length == 16


def test_canvas_of_whole_blocks_has_room_for_the_answer():
    from leapjax.integrations.lm_eval import LeapjaxLM

    lm = leapjax.load(str(Path(LLADA).parent / "fast-dllm-v2-a"))
    asked = LeapjaxLM(lm=lm)._request(0, "Hal has", {"max_gen_toks": 32})
    assert 0 < len(asked.ids) < 32 and asked.config.gen_length == 64


def test_rolling_counts_every_token_once(lm):
    from lm_eval.api.instance import Instance

    made, text = model(lm), "Hal has 4 pens."
    (total,) = made.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True
    )
    from leapjax.likelihood import likelihoods

    ids = lm.codec.encode(text, control=True)
    (want,) = likelihoods(lm, [([lm.config.eos_token_id], ids)], samples=8, batch_size=4)
    assert total == pytest.approx(want.bound, rel=1e-5)


def test_greedy_flag(lm):
    made = model(lm, check_greedy=True)
    context = lm.codec.encode("Hal has", control=True)
    config = leapjax.DecodeConfig(
        policy="low_confidence", gen_length=3, block_length=3, early_stop=False
    )
    (done,) = lm.generate([{"prompt_ids": context}], config)
    other = [(i + 1) % 5 for i in done.output_ids]
    asked = [(("", ""), context, done.output_ids), (("", ""), context, other)]
    assert [g for _, g in made._loglikelihood_tokens(asked, disable_tqdm=True)] == [True, False]


def test_greedy_flag_of_a_block_causal_model():
    """Its canvas ends with a block, behind the continuation."""
    lm = leapjax.load(str(Path(LLADA).parent / "fast-dllm-v2-a"))
    context = lm.codec.encode("Hal has", control=True)
    w = lm.config.block_length
    gen = {"policy": "greedy", "gen_length": w, "early_stop": False}
    (done,) = lm.generate([{"prompt_ids": context}], **gen)
    answer = done.output_ids[: w - len(context) % w]  # to the end of the prompt's block
    made = model(lm, gen_length=w, block_length=w)
    other = [(i + 1) % 5 for i in answer]
    assert made._greedy([(context, answer), (context, other)]) == [True, False]


@pytest.mark.slow
def test_the_harness_command_line(tasks, tmp_path):
    """`python -m` registers the model, whatever the harness passes to it by default."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "leapjax.integrations.lm_eval", "--model", "leapjax"]
    command += ["--tasks", "local_generate", "--include_path", str(tmp_path), "--limit", "1"]
    command += ["--model_args", f"pretrained={LLADA},gen_length=16,block_length=8"]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out"), "--log_samples"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_local_generate_*.jsonl")
    assert json.loads(samples.read_text())["resps"][0][0]
