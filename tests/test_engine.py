"""The engine: order, laziness, refill, mixed programs, and streams that don't meet."""

import itertools

import jax
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig
from leapjax.errors import UserError
from leapjax.progress import announced
from leapjax.serve import engine, lowering
from leapjax.serve.lane import Lane
from leapjax.serve.sizes import bucket, slots_for
from leapjax.testing import tiny_config, tiny_params

MODEL = tiny_config()
CONFIG = DecodeConfig(gen_length=8, block_length=4, threshold=0.7, relaxed_threshold=0.3)


@pytest.fixture
def lm(request):
    """A model of each test's own: its compiled programs go with it."""
    model = tiny_config(getattr(request, "param", "llada"))
    return leapjax.LM(tiny_params(model), model, codec=None)


def records(count, longest=30, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return [
        {"id": f"r{n}", "prompt_ids": rng.integers(0, 38, k).tolist()}
        for n, k in enumerate(lengths)
    ]


def asked(lm, lines, config=CONFIG):
    return [lm.request(line, config, line=n) for n, line in enumerate(lines, 1)]


def test_refilled_rows_answer_as_alone_and_in_order(lm):
    """Three slots, eleven requests whose lengths of work differ."""
    requests = asked(lm, records(11))
    alone = [next(lm.stream([r], batch_size=3)) for r in requests]
    together = list(lm.stream(requests, batch_size=3))
    assert together == alone
    assert [c.id for c in together] == [r.id for r in requests]
    assert len({c.steps for c in alone}) > 1  # rows do finish at different times
    assert all(len(c.output_ids) == 8 for c in alone)


def test_reading_is_lazy_and_bounded(lm):
    read = 0

    def source():
        nonlocal read
        for request in itertools.cycle(asked(lm, records(5))):
            read += 1
            yield request

    found = lm.engine(2)
    stream = found.stream(source())
    assert read == 0
    for answered in range(40):
        completion = next(stream)
        assert completion.id == f"r{answered % 5}"
        assert read <= answered + 1 + found.look_ahead
    stream.close()


def test_mixed_buckets_and_programs(lm, compilations):
    """Lengths on both sides of a bucket's edge, infills, other policies: in input order."""
    # A canvas of this test's own: jax keeps what other tests compiled.
    base = CONFIG.replace(gen_length=16)
    other = DecodeConfig(policy="low_confidence", gen_length=16, block_length=8)
    mask = MODEL.mask_token_id
    lines, configs = records(9, longest=40), [base, base, other]
    for n in (1, 6):
        lines[n]["prompt_ids"] = [7] * 33
    requests = [lm.request(r, configs[n % 3], line=n) for n, r in enumerate(lines)]
    requests[4] = lm.request({"id": "hole", "infill_ids": [1, mask, 2, mask, mask, 3]}, base)
    programs = {lm.engine(2).program(r) for r in requests}
    assert len(programs) >= 4
    with compilations.seen() as compiled:
        together = list(lm.stream(requests, batch_size=2))
    assert compiled.count("run") == len(programs)
    assert [c.id for c in together] == [r.id for r in requests]
    with compilations.none():
        alone = [next(lm.stream([r], batch_size=2)) for r in requests]
    assert together == alone
    assert together[4].output_ids[0::5] == [1, 3] and len(together[4].output_ids) == 6


def test_numbers_share_a_program(lm, compilations):
    lines = records(6)
    for n, line in enumerate(lines):
        line["options"] = {"threshold": 0.4 + 0.1 * n, "radius": n}
    requests = asked(lm, lines)
    with compilations.seen() as compiled:
        together = list(lm.stream(requests, batch_size=4))
    assert compiled.count("run") == 1
    assert together == [next(lm.stream([r], batch_size=4)) for r in requests]


def test_a_stream_that_is_closed_leaves_the_next_one_right(lm):
    requests = asked(lm, records(9))
    want = list(lm.stream(requests, batch_size=2))
    broken = lm.stream(requests[::-1], batch_size=2)
    next(broken)
    broken.close()
    assert list(lm.stream(requests, batch_size=2)) == want
    # Two at once don't meet either.
    first, second = lm.stream(requests, batch_size=2), lm.stream(requests[::-1], batch_size=2)
    pairs = list(zip(first, second, strict=True))
    assert [a for a, _ in pairs] == want
    assert [b for _, b in pairs] == want[::-1]


def test_a_failing_source_passes_its_error_on(lm):
    def source():
        yield from asked(lm, records(2))
        raise ValueError("broken line")

    with pytest.raises(ValueError, match="broken line"):
        list(lm.stream(source(), batch_size=2))


def test_each_chunk_sees_progress_and_may_end_the_stream(lm):
    requests, seen = asked(lm, records(4)), []
    list(lm.stream(requests, batch_size=2, each_chunk=lambda p: seen.append(p.running)))
    assert seen and all(0 < n <= 2 for n in seen)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(lm.stream(requests, batch_size=2, each_chunk=stop))
    assert len(list(lm.stream(requests, batch_size=2))) == 4


@pytest.mark.parametrize("lm", ["sdar"], indirect=True)
def test_rows_in_flight_count_by_their_own_canvas(lm, monkeypatch):
    """An infilled sequence is longer than the canvas of the options; blocks end one by one."""
    monkeypatch.setattr(engine, "CHUNK", 1)
    monkeypatch.setattr(engine, "_SHORT_CHUNK", 1)
    ids, mask, seen = [5] * 24, lm.config.mask_token_id, []
    ids[6], ids[13], ids[21] = mask, mask, mask
    config = CONFIG.replace(early_stop="off")
    asked = [lm.request({"infill_ids": ids}, config), lm.request({"prompt_ids": [1] * 7}, config)]
    for request in asked:
        seen.append(parts := [])
        stream = lm.engine(2).stream([request], lambda p: seen[-1].append(p.rows_in_flight_done))
        assert len(list(stream)) == 1
        assert parts == sorted(parts)
    assert set(seen[0]) == {0, 12 / 24, 20 / 24}
    assert set(seen[1]) == {0, 1 / 9, 5 / 9}  # the canvas ends with the block of its eighth token


def test_nothing_asked_nothing_answered(lm, compilations):
    with compilations.none():
        assert list(lm.stream([], batch_size=2)) == []


def test_buckets_grow_by_halves_and_hold_the_prompt():
    sizes = sorted({bucket(n) for n in range(3000)})
    assert sizes[:8] == [32, 64, 96, 128, 192, 256, 384, 512]
    assert all(bucket(s) == s and bucket(s + 1) > s for s in sizes[:-1])


def test_slots():
    assert slots_for(5, 3, 16) == 3
    assert [slots_for(n, None, 16) for n in (None, 0, 1, 5, 16, 99)] == [16, 1, 1, 8, 16, 16]


class Refusing:
    """A lowered program whose compiler, as libtpu's, refuses what does not fit."""

    def __init__(self, lowered, slots, most):
        self.lowered, self.slots, self.most = lowered, slots, most

    def compile(self):
        if self.slots > self.most:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
                "space hbm. Used 40.00G of 31.25G hbm."
            )
        return self.lowered.compile()


@pytest.mark.parametrize(
    "lm, part, most, fixed",
    [
        ("llada", "lower_run", 2, False),
        ("llada", "lower_run", 0, False),
        ("llada", "lower_run", 2, True),
        ("sdar", "lower_prefill", 2, False),
    ],
    indirect=["lm"],
)
def test_a_compiler_that_refuses_is_asked_for_fewer_rows(
    lm, monkeypatch, capsys, part, most, fixed
):
    lower, tried = getattr(lowering, part), []

    def refusing(params, program, slots, placement):
        tried.append(slots)
        return Refusing(lower(params, program, slots, placement), slots, most)

    monkeypatch.setattr(lowering, part, refusing)
    stream = lm.stream(asked(lm, records(8)), batch_size=8 if fixed else None)
    if most and not fixed:
        with announced():
            assert len(list(stream)) == 8
        assert tried == [8, 4, 2]
        said = capsys.readouterr().err
        assert "decoding 2 rows at once, not 8: 4 do not fit in memory, says the compiler" in said
        return
    what = "8 rows at once; choose a smaller --batch-size" if fixed else "1 row at once; shorten"
    with pytest.raises(UserError, match=f"no memory for {what}"):
        list(stream)


@pytest.mark.parametrize(
    "lm, where",
    [("llada", "__init__"), ("llada", "start"), ("llada", "collect"), ("sdar", "_fill")],
    indirect=["lm"],
)
def test_a_device_that_runs_out_of_memory_gets_fewer_rows(lm, monkeypatch, capsys, where):
    """Where the state is made, where a chunk or a prefill starts, and where a failure is seen."""
    want = list(lm.stream(asked(lm, records(8)), batch_size=1))
    method, tried = getattr(Lane, where), []

    def failing(lane, *args, **settings):
        slots = args[2] if where == "__init__" else lane.slots
        tried.append(slots)
        if slots > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return method(lane, *args, **settings)

    monkeypatch.setattr(Lane, where, failing)
    with announced():
        assert list(lm.stream(asked(lm, records(8)))) == want
    assert tried[:3] == [8, 4, 2] and set(tried[3:]) <= {2}
    said = capsys.readouterr().err
    assert "decoding 2 rows at once, not 8: the device had no memory for 4" in said
    monkeypatch.undo()
    assert lm.engine_for(8).progress.finished == 8  # restarted rows count once

    monkeypatch.setattr(Lane, where, failing)
    stream = lm.stream(asked(lm, records(8)), batch_size=8)
    with pytest.raises(UserError, match="8 rows at once; choose a smaller --batch-size"):
        list(stream)
