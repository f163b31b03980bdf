"""Any processes, in any order of operations: the outputs are those of one that nothing disturbs."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leapjax.jobs import job, members
from tests.jobs.fakes import BAD, Disk, FakeLM, outputs
from tests.jobs.simulation import Simulation

QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FATES = st.one_of(st.just("crash"), st.floats(6, 3 * members.STALE))
PROCESSES = st.lists(
    st.fixed_dictionaries(
        {
            "start": st.floats(0, 40),
            "rate": st.floats(0.8, 1.2),
            "fate": st.dictionaries(st.integers(1, 250), FATES, max_size=2),
            "look_ahead": st.integers(1, 6),
        }
    ),
    max_size=4,
)


@pytest.fixture
def spec(spec):
    return lambda **changes: spec(**{"save_seconds": 0, "resume": True} | changes)


@pytest.fixture
def expected(spec, on_disk):
    disk = on_disk(Disk())
    job.run(FakeLM(), spec())
    return outputs(disk.contents())


def simulate(spec, monkeypatch, processes, seed, same_machine=False):
    """A job of these processes and, as some may all crash, of one that begins late."""
    sim = Simulation(spec, Disk(), seed, spec.shard_size, same_machine)
    sim.spec_order = {f"r{23 - n:04d}": n - 1 for n in range(1, 24)}
    for process in processes:
        sim.add(**process)
    sim.add(start=30.0)
    with sim.patched(monkeypatch):
        sim.run()
    return sim


def check(sim, expected):
    for process in sim.processes:
        assert process.crashed or isinstance(process.result, job.Result), process.result
    # A process that crashes at the very end may leave its own file.
    found = {n: d for n, d in sim.disk.contents().items() if not n.startswith("process-")}
    assert found.keys() == expected.keys() | {"journal"}
    assert outputs(found) == expected
    assert not sim.repeated
    answered = [i for process in sim.processes for i in process.lm.answered]
    assert set(answered) == {f"r{23 - n:04d}" for n in range(1, 24) if n not in BAD}
    # A process loses the two answers of the record that it has in hand. One that was taken for
    # dead also answers what it has read ahead.
    assert len(answered) - 36 <= 2 * sim.crashes + 14 * sim.stalls
    if not sim.crashes and not sim.stalls:
        last = json.loads(found["summary.json"])["last_run"]
        assert last["answers"] == 36


@QUICK
@given(processes=PROCESSES, seed=st.integers(0, 2**32), same_machine=st.booleans())
def test_any_interleaving(spec, monkeypatch, expected, processes, seed, same_machine):
    check(simulate(spec(), monkeypatch, processes, seed, same_machine), expected)


@pytest.mark.parametrize("turns", [20, 40, 80])
def test_shards_of_a_lost_machine_are_taken_over_within_30_seconds(
    spec, monkeypatch, expected, turns
):
    processes = [{"fate": {turns: "crash"}, "look_ahead": 9}, {}]
    sim = simulate(spec(), monkeypatch, processes, seed=turns)
    check(sim, expected)
    idle = min(t for t in sim.idle_at if t >= sim.crashed_at)  # before that it has other work
    assert members.STALE - members.BEAT <= sim.taken_over[0] - sim.crashed_at
    assert sim.taken_over[0] - idle <= 30


@pytest.mark.slow
@settings(QUICK, max_examples=600)
@given(processes=PROCESSES, seed=st.integers(0, 2**32), same_machine=st.booleans())
def test_many_interleavings(spec, monkeypatch, expected, processes, seed, same_machine):
    check(simulate(spec(), monkeypatch, processes, seed, same_machine), expected)
