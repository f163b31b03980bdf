"""The engine under random interleavings of submit, step and cancel, and with little memory."""

import functools
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import leapjax
from leapjax import DecodeConfig
from leapjax.cli import decode
from leapjax.serve.memory import together
from leapjax.serve.sizes import bucket
from leapjax.testing import tiny_config, tiny_params

MODEL = tiny_config()
GOLDEN = Path(__file__).parent / "golden"
PLAIN = DecodeConfig(gen_length=8, block_length=4, threshold=0.7, relaxed_threshold=0.3)
CONFIGS = (
    PLAIN,
    PLAIN.replace(cache="dual"),
    PLAIN.replace(policy="wino", **{"threshold": 0.4, "relaxed_threshold": None}),
)


BLOCKS = DecodeConfig(gen_length=12, threshold=0.7, relaxed_threshold=0.3)
BLOCK_CAUSAL = (BLOCKS, BLOCKS.replace(cache="none"), BLOCKS.replace(early_stop="on_eos"))
EDITING = (
    BLOCKS.replace(editing_threshold=0.2, max_post_steps=3),
    BLOCKS.replace(cache="none"),
    DecodeConfig(policy="joint_threshold", gen_length=12, threshold=0.5, editing_threshold=0.0),
)
CONFIGS_OF = {"llada": CONFIGS, "llada_moe": CONFIGS, "llada2": EDITING}


def new_lm(family):
    model = tiny_config(family)
    return leapjax.LM(tiny_params(model), model, codec=None)


@functools.cache
def the_lm(family):
    return new_lm(family)


@functools.cache
def the_engine(family):
    """Three slots, so that rows wait, meet others and are refilled."""
    return the_lm(family).engine(3)


@functools.cache
def the_alone_engine(family):
    """Another, where no row gets anything from another; what is compiled is the same."""
    engine = new_lm(family).engine(3, share_prefix="off")
    engine._executables = the_engine(family)._executables
    return engine


@functools.cache
def request(family, kind, length, seed):
    """Prompts of any two seeds differ in their last tokens, sometimes in all."""
    config = CONFIGS_OF.get(family, BLOCK_CAUSAL)[kind]
    ids = np.random.default_rng(seed % 2).integers(0, 37, length).tolist()
    ids[-3:] = np.random.default_rng(seed).integers(0, 37, len(ids[-3:])).tolist()
    name = f"{kind}-{length}-{seed}"
    return the_lm(family).request({"id": name, "prompt_ids": ids}, config)


@functools.cache
def alone(family, asked):
    return next(iter(the_alone_engine(family).stream([asked])))


class Interleaving(RuleBasedStateMachine):
    """Whatever happens around it, a request that is not cancelled gets the answer it gets alone."""

    family = "llada"

    def __init__(self):
        super().__init__()
        self.engine = the_engine(self.family)
        self.open, self.answered, self.cancelled = {}, {}, set()

    @rule(kind=st.integers(0, 2), length=st.sampled_from([1, 5, 33]), seed=st.integers(0, 3))
    def submit(self, kind, length, seed):
        asked = request(self.family, kind, length, seed)
        self.open[self.engine.submit(asked)] = asked

    @rule()
    def step(self):
        for ticket, completion in self.engine.step():
            assert completion == alone(self.family, self.open.pop(ticket))
            self.answered[ticket] = completion

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        assert self.engine.cancel(ticket)
        assert not self.engine.cancel(ticket)
        del self.open[ticket]

    @rule()
    def cancel_what_is_answered(self):
        assert not any(self.engine.cancel(ticket) for ticket in self.answered)

    @invariant()
    def counts_agree(self):
        assert self.engine.unfinished == len(self.open)

    def teardown(self):
        for _ in range(10_000):
            if not self.open:
                break
            self.step()
        assert not self.open and self.engine.step() == []
        assert not any(self.engine._lanes)  # every slot is free, and so is its memory


_SETTINGS = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
Interleaving.TestCase.settings = hypothesis.settings(
    max_examples=40, stateful_step_count=20, derandomize=True, **_SETTINGS
)
TestInterleavings = Interleaving.TestCase


class Sdar(Interleaving):
    """Block-causal rows: slots keep what they held, and give it to others."""

    family = "sdar"


class FastDllm(Interleaving):
    """The same with seeded blocks and sub-blocks."""

    family = "fast_dllm_v2"


class Moe(Interleaving):
    """Experts: a row's are its own, whoever is beside it."""

    family = "llada_moe"


class Llada2(Interleaving):
    """Experts, blocks that stay open to edits, and a canvas that overhangs."""

    family = "llada2"


for machine in (Sdar, FastDllm, Moe, Llada2):
    machine.TestCase.settings = hypothesis.settings(
        max_examples=12, stateful_step_count=20, derandomize=True, **_SETTINGS
    )
TestSdar, TestFastDllm = Sdar.TestCase, FastDllm.TestCase


class Thousand(Interleaving):
    """The same, a thousand times."""


Thousand.TestCase.settings = hypothesis.settings(
    max_examples=1000, stateful_step_count=30, derandomize=True, **_SETTINGS
)


@pytest.mark.slow
class TestAThousandInterleavings(Thousand.TestCase):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Sdar, FastDllm, Moe, Llada2])
def test_hundreds_of_interleavings_of_other_families(machine):
    many = hypothesis.settings(machine.TestCase.settings, max_examples=300)
    run_state_machine_as_test(machine, settings=many)


def test_a_producer_that_waits_for_its_answer_gets_it():
    """One request, its answer, the next request: nothing is read ahead of need."""
    lm = leapjax.LM(tiny_params(MODEL), MODEL, codec=None)
    answers = queue.Queue()

    def producer():
        for n in range(3):
            yield {"id": n, "prompt_ids": [1, 2, n]}
            assert answers.get(timeout=60).id == n

    for completion in lm.stream(producer(), PLAIN, batch_size=3):
        answers.put(completion)


def test_a_pipe_that_waits_for_each_answer(monkeypatch):
    """`decode --input -` as a service: one line in, one line out."""
    asks, answers = os.pipe(), os.pipe()
    monkeypatch.setattr(sys, "stdin", open(asks[0], encoding="utf-8"))
    monkeypatch.setattr(sys, "stdout", open(answers[1], "w", encoding="utf-8"))
    got = []

    def client():
        with open(asks[1], "w") as out, open(answers[0]) as back:
            for n in range(3):
                print(json.dumps({"id": n, "prompt_ids": [1, 2, n]}), file=out, flush=True)
                got.append(json.loads(back.readline())["id"])

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    flags = ["--model", str(GOLDEN / "llada-a"), "--gen-length", "8", "--block-length", "8"]
    assert decode.main([*flags, "--input", "-", "--batch-size", "2"]) == 0
    thread.join(60)
    assert got == [0, 1, 2]


def test_a_slow_producer_holds_up_no_row():
    lm = leapjax.LM(tiny_params(MODEL), MODEL, codec=None)
    release = threading.Event()

    def producer():
        yield {"id": 0, "prompt_ids": [1]}
        release.wait(60)
        yield {"id": 1, "prompt_ids": [2]}

    stream = lm.stream(producer(), PLAIN, batch_size=3)
    assert next(stream).id == 0
    release.set()
    assert [c.id for c in stream] == [1]


def test_five_buckets_stay_within_the_budget():
    """Lanes of five prompt buckets at once would take more than there is: some drain first."""
    model = tiny_config(n_layers=1)
    lm = leapjax.LM(tiny_params(model), model, codec=None)
    # Rows of unlike steps, so that a lane's rows do not all finish in the same chunk.
    config = [PLAIN.replace(cache="dual", threshold=t, relaxed_threshold=t) for t in (0.01, 0.9)]
    lengths = [10, 40, 70, 100, 150]
    assert len({bucket(n) for n in lengths}) == 5
    requests = [
        lm.request({"id": n, "prompt_ids": [3] * (lengths[n % 5] + n % 7)}, config[n // 5 % 2])
        for n in range(30)
    ]
    engine = lm.engine(2)
    want = list(engine.stream(requests))
    made = [c.footprint for c in engine._executables._made.values()]
    largest = max(made, key=lambda f: f.state)
    engine.memory_limit = together([largest, min(made, key=lambda f: f.state)])
    assert engine.memory_limit < together(made)
    weights = sum(x.nbytes for x in jax.live_arrays())
    most = 0

    def look(progress):
        nonlocal most
        states = sum(
            f.state for f in (engine._executables._made[0, p].footprint for p in engine._lanes[0])
        )
        lanes = [engine._executables._made[0, p].footprint for p in engine._lanes[0]]
        assert together(lanes) <= engine.memory_limit
        live = sum(x.nbytes for x in jax.live_arrays()) - weights
        assert live <= states + 200_000  # what finished rows left behind goes soon
        most = max(most, len(lanes))

    assert list(engine.stream(requests, look)) == want
    assert 1 < most < 5
    assert not engine._lanes[0]


@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_a_failing_device_loses_no_request(monkeypatch, family):
    """What sat on it waits again, and gets the answer that it would have had."""
    lm = new_lm(family)
    engine = lm.engine(2)
    prompts = [[*range(8 * (family == "sdar")), n + 1] for n in range(5)]
    requests = [lm.request({"id": n, "prompt_ids": p}, PLAIN) for n, p in enumerate(prompts)]
    want = list(engine.stream(requests))
    tickets = [engine.submit(r) for r in requests]
    answers = dict(engine.step())
    from leapjax.serve.lane import Lane

    start = Lane.start

    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

    monkeypatch.setattr(Lane, "start", fail)
    with pytest.raises(jax.errors.JaxRuntimeError):
        while True:
            answers |= engine.step()
    monkeypatch.setattr(Lane, "start", start)
    while engine.unfinished:
        answers |= engine.step()
    assert [answers[t] for t in tickets] == want


def test_two_threads_share_an_engine():
    lm = leapjax.LM(tiny_params(MODEL), MODEL, codec=None)
    requests = [lm.request({"id": n, "prompt_ids": [n + 1]}, PLAIN) for n in range(12)]
    engine = lm.engine(2)
    want = list(engine.stream(requests))
    made = {}

    def work(name):
        made[name] = list(engine.stream(requests))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert all(made[n] == want for n in range(3))


def test_as_completed_names_each_request():
    lm = leapjax.LM(tiny_params(MODEL), MODEL, codec=None)
    engine = lm.engine(3)
    requests = [lm.request({"id": n, "prompt_ids": [n + 1] * (1 + 8 * n)}, PLAIN) for n in range(9)]
    want = list(engine.stream(requests))
    found = dict(engine.as_completed(requests))
    assert [found[n] for n in range(9)] == want
    assert list(engine.as_completed([])) == list(engine.stream([])) == []


def test_a_closed_stream_leaves_no_thread_and_no_lane():
    lm = leapjax.LM(tiny_params(MODEL), MODEL, codec=None)
    stream = lm.stream(({"id": n, "prompt_ids": [1]} for n in range(10**6)), PLAIN, batch_size=2)
    next(stream)
    stream.close()
    engine = lm.engine(2)
    assert engine.unfinished == 0
    engine.step()
    assert not engine._lanes[0]
    deadline = time.monotonic() + 10
    while any(t.name == "leapjax-feed" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
