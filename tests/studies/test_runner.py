"""Rows of one stream: one compilation a structure, each answer a plain decode's, resumable."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

import leapjax
from leapjax import tasks
from leapjax.config import DecodeConfig
from leapjax.studies.runner import decode_settings, greedy, setting_key
from leapjax.studies.setting_grids import build, parse_axis
from leapjax.tasks.base import Problem

LLADA = str(Path(__file__).parents[1] / "golden" / "llada-a")
BASE = DecodeConfig(gen_length=16, block_length=8)
PROBLEMS = [Problem(f"p{i}", f"{i} pens", f"#### {i}", str(i)) for i in range(3)]


@pytest.fixture(scope="module")
def lm():
    return leapjax.load(LLADA)


TASK = tasks.get("wordproblems")


def run(lm, configs, folder=None, problems=PROBLEMS, **more):
    return decode_settings(lm, TASK, problems, configs, folder, batch_size=8, **more)


def test_a_hundred_points_are_one_compilation(compilations, monkeypatch):
    lm = leapjax.load(LLADA)
    axes = ["threshold=0.5:0.95:5", "relaxed_threshold=0.1:0.5:5", "radius=0,1,4,8"]
    points = build([parse_axis(a) for a in axes], BASE).points
    assert len(points) == 100
    streams = []
    engine_for = lm.engine_for
    monkeypatch.setattr(lm, "engine_for", lambda *a: streams.append(a) or engine_for(*a))
    with compilations.seen() as compiled:
        made = run(lm, [p.config for p in points], problems=PROBLEMS[:1])
    assert compiled.count("run") == 1, compiled
    assert streams == [(100, 8)]  # all settings are rows of one stream
    assert len({a["steps"] for p in points for a in made[p.config]}) > 3  # the numbers matter
    # A block of another length is another program, and only one more.
    with compilations.seen() as compiled:
        other = [p.config.replace(block_length=16) for p in points[:10]]
        run(lm, [*other, *(p.config for p in points[:10])], problems=PROBLEMS[:1])
    assert compiled.count("run") == 1, compiled


def test_a_points_result_is_a_plain_decodes(lm):
    configs = [
        BASE.replace(threshold=t, relaxed_threshold=r, radius=d)
        for t, r, d in itertools.product((0.6, 0.9), (0.2, 0.5), (0, 3))
    ]
    # Its noise is the row's own, so a policy that draws agrees too.
    configs.append(BASE.replace(policy="placebo", threshold=0.6, relaxed_threshold=0.2, radius=1))
    configs.append(greedy(BASE))
    made = run(lm, configs, details=True)
    for config in configs:
        records = [{"id": p.id, "prompt": p.question} for p in PROBLEMS]
        plain = lm.generate(records, config, batch_size=8)
        for answer, c in zip(made[config], plain, strict=True):
            assert (answer["text"], answer["steps"]) == (c.text, c.steps)
            assert answer["output_ids"] == c.output_ids
            assert answer["commit_step"] == c.commit_step
            assert answer["commit_kind"] == c.commit_kind


class Stopped(Exception):
    pass


def test_an_interrupted_run_goes_on(lm, tmp_path, monkeypatch):
    configs = [BASE.replace(threshold=0.6, relaxed_threshold=0.2, radius=r) for r in (0, 1, 2, 3)]

    def stop(done):
        if done >= 5:
            raise Stopped

    with pytest.raises(Stopped):
        run(lm, configs, tmp_path, show=stop)
    (file,) = tmp_path.iterdir()
    kept = file.read_bytes()
    assert kept.count(b"\n") == 1 + 5
    seen = []
    made = run(lm, configs, tmp_path, show=seen.append)
    assert seen == list(range(5, 13))  # nothing is decoded twice
    assert file.read_bytes().startswith(kept)
    assert made == run(lm, configs)
    # A wider grid takes what is there, and every line says which setting it is of.
    more = [*configs, configs[0].replace(radius=9)]
    seen.clear()
    run(lm, more, tmp_path, show=seen.append)
    assert seen[0] == 12 and seen[-1] == 15
    lines = [json.loads(x) for x in file.read_text().splitlines()[1:]]
    assert {x["numbers"]["radius"] for x in lines} == {0, 1, 2, 3, 9}
    # With everything there the model is not asked.
    monkeypatch.setattr(lm, "stream", None)
    assert run(lm, configs, tmp_path) == made


def test_keys_tell_settings_apart():
    same = BASE.replace(threshold=0.9, relaxed_threshold=0.75, radius=4, decay=0.0)
    assert setting_key(same) == setting_key(BASE)
    changed = dict(threshold=0.8, relaxed_threshold=0.7, radius=5, radius_left=3, decay=0.1)
    keys = {setting_key(dataclasses.replace(BASE, **{n: v})) for n, v in changed.items()}
    assert len(keys | {setting_key(BASE)}) == 6
