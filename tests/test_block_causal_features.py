"""What is around the decode, with block-causal models: commands, studies, other number types."""

import io
import json
from pathlib import Path

import pytest

import leapjax
from leapjax.cli import main as commands
from leapjax.cli.decode import main as decode

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {"sdar": GOLDEN / "sdar-a", "fast_dllm_v2": GOLDEN / "fast-dllm-v2-a"}
# Blocks of 8: prompts shorter than a block, exactly one, and longer.
SMALL = {"gen_length": 16, "block_length": 8}
FLAGS = ["--gen-length", "16", "--block-length", "8"]
RECORDS = [
    {"id": "text", "prompt": "Hal has 4 pens."},
    {"id": "block", "prompt_ids": [4, 9, 2, 7, 1, 8, 3, 6]},
    {"id": "short", "prompt_ids": [5], "options": {"early_stop": "settled"}, "topic": "pens"},
    {"id": "gap", "infill_ids": [3, -1, 5, -1, 7, 7, 7, 7, *[9] * 8, 4, 4, -1]},
    {"id": "turn", "messages": [{"role": "user", "content": "Hi"}]},
]

# A block that is not the checkpoint's is allowed, with a note.
pytestmark = pytest.mark.filterwarnings("ignore:block_length is 8; the model was trained with")


@pytest.fixture(params=FOLDERS)
def family(request):
    return request.param


def records(lm):
    mask = lm.config.mask_token_id
    found = json.loads(json.dumps(RECORDS))
    for record in found:
        if "infill_ids" in record:
            record["infill_ids"] = [mask if i < 0 else i for i in record["infill_ids"]]
    return found


@pytest.mark.parametrize(
    "family", ["sdar", pytest.param("fast_dllm_v2", marks=pytest.mark.slow)], indirect=True
)
def test_records_of_every_kind_in_a_pipe(family, monkeypatch, capsys):
    """Each answer is that of the record alone, from Python."""
    lm = leapjax.load(FOLDERS[family])
    lines = "".join(json.dumps(r) + "\n" for r in records(lm))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    argv = ["--model", str(FOLDERS[family]), "--input", "-", "--output", "-", "--details", *FLAGS]
    assert decode(argv) == 0
    streams = capsys.readouterr()
    assert "the model was trained with" in streams.err
    got = [json.loads(line) for line in streams.out.splitlines()]
    with pytest.warns(UserWarning, match="block_length is 8; the model was trained with"):
        want = [next(lm.stream([r], batch_size=1, **SMALL)) for r in records(lm)]
    assert len(got) == len(RECORDS)
    for one, alone in zip(got, want, strict=True):
        for name in ("id", "text", "output_ids", "steps", "nfe", "commit_step", "commit_kind"):
            assert one[name] == getattr(alone, name), (one["id"], name)
    gap = got[3]
    assert [s == -2 for s in gap["commit_step"]] == [i >= 0 for i in RECORDS[3]["infill_ids"]]
    assert got[2]["metadata"] == {"topic": "pens"}


def run(argv, capsys):
    assert commands.main(argv) == 0, capsys.readouterr().err
    return capsys.readouterr()


@pytest.mark.slow
def test_samples(family, tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    argv = [
        "decode",
        "--model",
        str(FOLDERS[family]),
        "--prompt",
        "Hi",
        "--temperature",
        "1",
        *FLAGS,
    ]
    run([*argv, "--num-samples", "2", "--output", str(path)], capsys)
    made = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["sample"] for r in made] == [0, 1]
    assert made[0]["output_ids"] != made[1]["output_ids"]
    # The noise does not know of the cache.
    again = tmp_path / "again.jsonl"
    run([*argv, "--num-samples", "2", "--cache", "none", "--output", str(again)], capsys)
    other = [json.loads(line) for line in again.read_text().splitlines()]
    assert [r["output_ids"] for r in made] == [r["output_ids"] for r in other]


@pytest.mark.slow
def test_a_trace_shows_seeds(tmp_path, capsys):
    page = tmp_path / "t.html"
    argv = ["decode", "--model", str(FOLDERS["fast_dllm_v2"]), "--prompt", "Why?", *FLAGS]
    run([*argv, "--trace", str(page)], capsys)
    assert '"kind":"seed"' in page.read_text()


@pytest.mark.slow
def test_a_chat(family, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/quit\n"))
    out = run(["decode", "--model", str(FOLDERS[family]), "--chat", *FLAGS], capsys).out
    (answer,) = leapjax.load(FOLDERS[family]).generate(["Hi"], **SMALL)
    assert answer.text in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "--policies", "greedy,localleap", "--limit", "2"],
        ["ablate", "--grid", "threshold=0.8,0.9", "block_length=8,16", "--limit", "2"],
        ["ablate", "--grid", "radius=1,4", "--commits", "--limit", "2"],
        ["calibrate", "--task", "wordproblems", "--limit", "12", "--max-disagreement", "0.9"],
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_studies(family, argv, tmp_path, capsys):
    common = ["--model", str(FOLDERS[family]), "--gen-length", "32"]
    assert commands.main([*argv, *common, "--output", str(tmp_path / "o")]) in (0, 1)
    assert list((tmp_path / "o").glob("*.json")) and capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"quantize": "int8"}, {"dtype": "bfloat16"}], ids=str)
def test_rows_alone_and_together_in_other_number_types(family, how):
    lm = leapjax.load(FOLDERS[family], **how)
    prompts = [[1, 2, 3], [4] * 8, [5] * 19]
    alone = [lm.generate([{"id": n, "prompt_ids": p}], batch_size=3, **SMALL)[0]
             for n, p in enumerate(prompts)]  # fmt: skip
    asked = [{"id": n, "prompt_ids": p} for n, p in enumerate(prompts)]
    assert lm.generate(asked, batch_size=3, **SMALL) == alone


@pytest.mark.slow
def test_ray_decodes_what_the_command_decodes(family):
    pa_json = pytest.importorskip("pyarrow.json", reason="needs Ray Data (extra ray)")
    from leapjax.integrations.ray import Decoder

    made = [{"id": str(n), "prompt_ids": [n] * n} for n in (3, 8, 17)]
    table = pa_json.read_json(io.BytesIO("".join(json.dumps(r) + "\n" for r in made).encode()))
    got = Decoder(str(FOLDERS[family]), rows=2, **SMALL)(table).to_pylist()
    want = leapjax.load(FOLDERS[family]).generate(made, **SMALL)
    assert [r["output_ids"] for r in got] == [c.output_ids for c in want]


def test_an_analysis_is_refused_in_one_line(family, tmp_path, capsys):
    argv = ["analyze", "--model", str(FOLDERS[family]), "--output", str(tmp_path / "o")]
    assert commands.main(argv) == 2
    err = capsys.readouterr().err
    assert "the model is block-causal" in err and err.count("\n") == 1
    assert not (tmp_path / "o").exists()
