"""Prefixes that prompts share: prefilled once, whoever holds them, and answers stay the same."""

import functools
import random
import threading
from pathlib import Path

import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig
from leapjax.cli import decode
from leapjax.errors import UserError
from leapjax.serve.prefills import Distinct, Prefills
from leapjax.serve.prefixes import Prefixes, common, prefix_of
from leapjax.serve.sizes import bucket
from leapjax.testing import tiny_config, tiny_params

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("sdar", "fast_dllm_v2", "llada2", "sdar_moe")
CONFIG = DecodeConfig(gen_length=8, threshold=0.7, relaxed_threshold=0.3)


@functools.cache
def model(family):
    config = tiny_config(family, max_length=2048)
    return leapjax.LM(tiny_params(config), config, codec=None)


def few_shot(count, prefix, seed=0, systems=1, tails=(20, 80)):
    """Prompts that begin alike and end differently."""
    rng = np.random.default_rng(seed)
    heads = [rng.integers(0, 37, prefix).tolist() for _ in range(systems)]
    return [
        {
            "id": f"r{n}",
            "prompt_ids": heads[rng.integers(systems)]
            + rng.integers(0, 37, rng.integers(*tails)).tolist(),
        }
        for n in range(count)
    ]


def answers(lm, records, slots, share, **options):
    """Answers, and the counts of their prefills."""
    engine = lm.engine(slots, share_prefix=share)
    before = engine.progress.prefills
    config = CONFIG.replace(**options)
    found = list(engine.stream([lm.request(r, config, line=n) for n, r in enumerate(records, 1)]))
    return found, engine.progress.prefills - before


def distinct_tokens(lm, records):
    """Counted another way: distinct beginnings of whole blocks, as tuples."""
    w = lm.config.block_length
    seen = set()
    for record in records:
        ids = record["prompt_ids"]
        whole = len(ids) // w
        if lm.config.seeds_blocks and len(ids) % w == 0:
            whole -= 1  # the loop stores the last one
        seen |= {tuple(ids[: w * n]) for n in range(1, whole + 1)}
    return len(seen) * w


@pytest.mark.parametrize(
    "family, count, prefix",
    [
        ("sdar", 40, 203),
        pytest.param("fast_dllm_v2", 100, 203, marks=pytest.mark.slow),
        pytest.param("sdar", 100, 995, marks=pytest.mark.slow),
        pytest.param("fast_dllm_v2", 100, 995, marks=pytest.mark.slow),
    ],
)
def test_a_few_shot_job_prefills_its_prefix_once(family, count, prefix):
    """Requests on both sides of a bucket's edge."""
    lm, records = model(family), few_shot(count, prefix)
    assert len({bucket(len(r["prompt_ids"])) for r in records}) == 2
    together, counts = answers(lm, records, 8, "on")
    assert counts.distinct == distinct_tokens(lm, records)
    assert counts.prefilled <= 1.05 * counts.distinct
    assert counts.wanted > 3 * counts.distinct or prefix < 300
    alone, each = answers(lm, records, 8, "off")
    assert together == alone
    assert each.prefilled == each.wanted == counts.wanted
    assert each.distinct == counts.distinct
    assert [a.id for a in together] == [r["id"] for r in records]


@pytest.mark.parametrize(
    "family, options",
    [
        ("fast_dllm_v2", {"cfg_scale": 1.0}),
        ("sdar", {"temperature": 0.7, "seed": 3}),
    ],
    ids=str,
)
def test_answers_are_those_without_sharing(family, options):
    """Three slots, three systems: prefixes are evicted and come back."""
    lm, records = model(family), few_shot(12, 30, systems=3, tails=(1, 9))
    want, counts = answers(lm, records, 3, False, **options)
    got, shared = answers(lm, records, 3, True, **options)
    assert got == want
    assert shared.prefilled < counts.prefilled == counts.wanted


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [1, 2, 7])
def test_answers_at_any_number_of_slots(family, slots):
    lm, records = model(family), few_shot(40, 150, systems=2)
    for options in ({}, {"cfg_scale": 1.0}, {"temperature": 0.7}):
        want, _ = answers(lm, records, slots, "off", **options)
        got, counts = answers(lm, records, slots, "on", **options)
        assert got == want
        assert counts.prefilled < counts.wanted


def test_samples_of_a_prompt_share_all_of_it():
    from leapjax.jobs.loop import Loop
    from leapjax.jobs.source import from_prompts
    from leapjax.records import Intake

    lm = model("sdar")
    found = {}
    for share in ("on", "off"):
        kept = []

        class Sink:
            def write(self, completion, kept=kept):
                kept.append(completion)

            def settle(self, item):
                pass

        config = lm.options(CONFIG.replace(temperature=0.8))
        intake = Intake(config, lm.config, None, samples=5)
        loop = Loop(lm, intake, Sink(), batch_size=3, share_prefix=share)
        prompts = [{"prompt_ids": list(range(n, n + 20))} for n in (1, 7)]
        found[share] = kept, loop.run(from_prompts(prompts))
    assert found["on"][0] == found["off"][0]
    assert len({tuple(c.output_ids) for c in found["on"][0]}) > 2
    counts = found["on"][1].prefills
    assert counts == Prefills(wanted=200, prefilled=40, distinct=40)
    assert "40 of 200 prompt tokens prefilled (1.00 times" in found["on"][1].line()
    assert found["off"][1].prefills == Prefills(wanted=200, prefilled=200, distinct=40)


def test_a_stream_keeps_prefixes_while_it_waits_and_no_longer():
    lm, records = model("sdar"), few_shot(4, 40, tails=(2, 20))
    engine = lm.engine(2)
    before, answered = engine.progress.prefills, threading.Semaphore(1)

    def one_by_one():
        for record in records:
            answered.acquire(timeout=60)
            yield record

    found = engine.stream(
        one_by_one(), prepare=lambda record: (lm.request(record, CONFIG),), threaded=True
    )
    for completion in found:
        assert engine.unfinished == 0 and len(completion.output_ids) >= 8
        answered.release()
    counts = engine.progress.prefills - before
    assert counts.prefilled == counts.distinct
    assert not any(engine._lanes)


def test_idle_lanes_make_room(monkeypatch):
    """Two buckets with memory for one lane: the prefix is computed anew, answers stay."""
    lm, tails = model("sdar"), ((1, 40), (60, 100))
    pairs = zip(*(few_shot(6, 203, tails=t) for t in tails), strict=True)
    records = [{**r, "id": f"{n}"} for n, r in enumerate(r for pair in pairs for r in pair)]
    want, free = answers(lm, records, 2, "on")
    assert free.prefilled < free.distinct + 100  # less than half the prefix
    engine, most = lm.engine(2), []
    largest = max(x.footprint for x in engine._executables._made.values())
    monkeypatch.setattr(engine, "memory_limit", sum(largest) + 1)
    before = engine.progress.prefills
    stream = engine.stream(
        [lm.request(r, CONFIG) for r in records], lambda p: most.append(len(engine._lanes[0]))
    )
    assert list(stream) == want and set(most) == {1}
    counts = engine.progress.prefills - before
    assert free.prefilled + 200 <= counts.prefilled < counts.wanted


def test_counts_and_sharing_are_refused_where_there_is_no_prefill():
    lm = leapjax.LM(tiny_params(tiny_config()), tiny_config(), codec=None)
    with pytest.raises(UserError, match="share_prefix is on, but in llada a prompt's keys"):
        lm.stream(["a"], share_prefix="on")
    with pytest.raises(UserError, match="share_prefix is 'maybe'; choose one of auto, on, off"):
        lm.stream(["a"], share_prefix="maybe")
    with pytest.raises(UserError, match="cache none keeps nothing; choose cache block"):
        model("sdar").stream(["a"], CONFIG, cache="none", share_prefix=True)
    _, counts = answers(lm, [{"prompt_ids": [1, 2]}], 1, "auto", block_length=8)
    assert counts == Prefills()


@pytest.mark.parametrize(
    "word, said",
    [("on", "share_prefix is on, but in llada"), ("maybe", "share_prefix is 'maybe'"), ("off", "")],
)
def test_a_config_file_may_set_it(tmp_path, capsys, word, said):
    file = tmp_path / "options.yaml"
    file.write_text(f"share_prefix: {word}\ngen_length: 8\nblock_length: 8\n")
    argv = ["--model", str(GOLDEN / "llada-a"), "--config", str(file), "--prompt", "Tom"]
    assert decode.main(argv) == (2 if said else 0)
    error = capsys.readouterr().err
    assert said in error and (error.count("\n") == 1 or not said)


def test_the_least_useful_slot_is_overwritten():
    slots = Prefixes(4)
    shared, own = prefix_of(range(10), 1), prefix_of(range(50, 60), 1)
    slots.fill(0, shared)
    slots.fill(1, own)
    more = prefix_of((*range(8), 90), 1)
    assert slots.longest(more) == (8, 0)
    assert slots.choose([0, 1, 2], more) == 0  # what others share of it stays
    assert slots.choose([0, 1, 2], own) == 1  # nothing to copy
    new = prefix_of((70, 71), 1)
    assert slots.longest(new)[0] == 0
    assert slots.choose([0, 1, 2, 3], new) == 2  # empty
    assert slots.choose([0, 1], new) == 1  # nobody shared that
    slots.fill(3, shared[:9])
    assert slots.choose([0, 1], new) == 1  # longer out of use
    slots.fill(1, own)
    slots.longest(own)
    assert slots.choose([0, 1], new) == 0  # slot 3 has it too


def test_common_blocks_by_brute_force():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.randrange(2) for _ in range(rng.randrange(0, 13, 3))] for _ in range(2))
        want = 0
        while want * 3 < min(len(a), len(b)) and a[: want * 3 + 3] == b[: want * 3 + 3]:
            want += 1
        assert common(prefix_of(a, 3), prefix_of(b, 3)) == want


def test_many_distinct_hashes_are_estimated():
    rng = random.Random(1)
    some, keys = Distinct(1024), [rng.getrandbits(64) for _ in range(40_000)]
    for n, key in enumerate(keys, 1):
        some.add(key)
        some.add(keys[rng.randrange(n)])
        assert n >= 1024 or some.count == n
    assert abs(some.count / len(keys) - 1) < 0.1 and len(some._kept) == 1024
