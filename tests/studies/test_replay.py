"""The replay against a transcription that stores every pass of the decode."""

import collections
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig
from leapjax.studies.observations import answer_positions, collect
from leapjax.studies.replay import NO_ANCHOR
from tests.studies import transcription

GOLDEN = Path(__file__).parents[1] / "golden"
QUESTIONS = (
    "Tom has 3 apples. He buys 4 more. How many apples has he?",
    "A box holds 6 eggs. How many eggs are in 2 boxes?",
    "Ann has 9 pens and gives 2 away. How many are left?",
)
SMALL = {"gen_length": 24, "block_length": 8}
CASES = [
    ("low_confidence", {"early_stop": True}),
    ("localleap", {"early_stop": False, "threshold": 0.85, "relaxed_threshold": 0.4}),
]


@functools.cache
def model(name):
    return leapjax.load(GOLDEN / name)


def requests(lm, config):
    return [lm.request({"prompt": q}, config, line=i) for i, q in enumerate(QUESTIONS, 1)]


def counted(table):
    """A row's table as a Counter of the transcription's keys."""
    out = collections.Counter()
    for block, answer, level, distance in np.argwhere(table).tolist():
        key = (bool(block), bool(answer), level, None if distance == NO_ANCHOR else distance)
        out[key] = int(table[block, answer, level, distance])
    return out


@pytest.mark.parametrize("policy,options", CASES, ids=[p for p, _ in CASES])
@pytest.mark.parametrize("name", ["llada-a", "dream-a"])
def test_a_replay_finds_what_the_stored_passes_say(name, policy, options):
    lm, threshold = model(name), 0.7
    config = DecodeConfig(policy=policy, **SMALL, **options)
    seen = collect(lm, requests(lm, config), threshold=threshold, batch_size=2)
    assert seen.differs.tolist() == [0] * len(QUESTIONS)
    total = 0
    for b, request in enumerate(requests(lm, config)):
        canvas, commit, passes = transcription.decode(lm, request.ids, config)
        eos = lm.config.eos_token_id
        since, pairs, agree, close = transcription.measure(canvas, commit, passes, threshold, eos)
        assert close > 1e-6, "a confidence too close to a bin's end to say; change the questions"
        assert seen.steps[b] == len(passes)
        assert seen.commit_step[b].tolist() == commit
        assert seen.since[b].tolist() == since
        assert counted(seen.pairs[b]) == pairs
        assert counted(seen.agree[b]) == collections.Counter({k: n for k, n in agree.items() if n})
        total += sum(pairs.values())
        # Not vacuous: proposals changed their mind, and anchors had neighbours.
        assert sum(agree.values()) < sum(pairs.values())
    assert total > 50
    assert seen.pairs[:, :, :, :, 1:NO_ANCHOR].sum() > 0


def test_one_compilation_a_shape(compilations):
    lm = model("llada-a")
    config = DecodeConfig(policy="confidence_threshold", gen_length=16, block_length=8)
    with compilations.seen() as names:
        collect(lm, requests(lm, config), threshold=0.9, batch_size=2)
    assert names.count("replay") == 1  # two batches, the second half empty
    other = config.replace(threshold=0.5)
    with compilations.seen() as names:
        collect(lm, requests(lm, other)[:2], threshold=0.6, batch_size=2)
    assert "replay" not in names


class Stopped(Exception):
    pass


def test_an_interrupted_analysis_goes_on(tmp_path):
    lm = model("llada-a")
    asked = requests(lm, DecodeConfig(policy=CASES[1][0], **SMALL, **CASES[1][1]))
    seen = []

    def run(stop=None):
        def show(stage, done):
            seen.append((stage, done))
            if (stage, done) == stop:
                raise Stopped

        seen.clear()
        return collect(lm, asked, threshold=0.7, batch_size=2, folder=tmp_path, show=show)

    for stop in (("decode", 1), ("replay", 2)):
        with pytest.raises(Stopped):
            run(stop)
    made = run()
    # Nothing is decoded or replayed twice.
    assert seen == [("decode", 3), ("replay", 2), ("replay", 3)]
    whole = collect(lm, asked, threshold=0.7, batch_size=2)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(made, field.name), getattr(whole, field.name))
    # Another threshold measures anew what is decoded already.
    with pytest.raises(Stopped):
        collect_at = {"threshold": 0.8, "batch_size": 2, "folder": tmp_path}
        collect(lm, asked, **collect_at, show=lambda *now: _stop(now == ("replay", 0)))


def _stop(now):
    if now:
        raise Stopped


def test_the_answer_ends_with_the_first_eos():
    assert answer_positions([3, 7, 0, 0], (0,)).tolist() == [True, True, True, False]
    assert answer_positions([3, 7], (0,)).tolist() == [True, True]


@pytest.mark.parametrize(
    "options,says",
    [
        ({"cache": "prefix"}, "cache none"),
        ({"temperature": 0.5}, "temperature 0"),
        ({"cfg_scale": 1.0}, "cfg_scale 0"),
        ({"policy": "wino"}, "another policy"),
        ({"policy": "credit"}, "another policy"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_what_a_replay_would_not_reproduce_is_refused(options, says):
    lm = model("llada-a")
    with pytest.raises(leapjax.UserError, match=says):
        collect(lm, requests(lm, DecodeConfig(**SMALL, **options)), batch_size=2)


def test_infilling_and_nothing_are_refused():
    lm = model("llada-a")
    mask = lm.config.mask_token_id
    record = {"infill_ids": [5, mask, mask, 6]}
    with pytest.raises(leapjax.UserError, match="infilling"):
        collect(lm, [lm.request(record, DecodeConfig(**SMALL))], batch_size=1)
    with pytest.raises(leapjax.UserError, match="no prompts"):
        collect(lm, [], batch_size=1)
