"""The floor's formulas against counts by hand."""

import pytest

from leapjax.benchmarks import machine as machines
from leapjax.benchmarks.machine import Machine
from leapjax.cli import benchmark, benchmark_runs
from leapjax.planning import work
from leapjax.testing import tiny_config

# D 16, L 2, H 4, K 2, E 4, F 24, V 40.
CONFIG = tiny_config("llada", n_kv_heads=2)
T, W = 20, 8


def product(rows, inner, columns):
    """FLOPs of (rows, inner) @ (inner, columns)."""
    return 2 * rows * inner * columns


def layer(positions, outputs):
    """One layer: keys and values at `positions`, what reads them at `outputs`."""
    keys_values = 2 * product(positions, 16, 8)
    query_and_output = 2 * product(outputs, 16, 16)
    mlp = 2 * product(outputs, 16, 24) + product(outputs, 24, 16)
    scores_and_mixing = 4 * (product(outputs, 4, T) + product(outputs, T, 4))  # a head
    return keys_values + query_and_output + mlp + scores_and_mixing


WEIGHTS = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24) + 40 * 16
CACHE = 2 * 2 * T * 2 * 4  # keys and values, layers, columns, heads, width


def test_full_pass():
    got = work.full_pass(CONFIG, 3, T, W, cached=False)
    assert got.flops == 3 * (layer(T, T) + layer(T, W) + product(W, 16, 40))
    assert got.bytes == 4 * WEIGHTS
    assert work.full_pass(CONFIG, 3, T, W, cached=True).bytes == 4 * (WEIGHTS + 3 * CACHE)


def test_window_pass():
    got = work.window_pass(CONFIG, 3, T, W, item=2)
    assert got.flops == 3 * (2 * layer(W, W) + product(W, 16, 40))
    assert got.bytes == 2 * (WEIGHTS + 3 * CACHE)


def test_the_larger_floor_counts():
    machine = Machine(100.0, "", 10.0, 0, 0, 1)
    assert machine.seconds(work.Work(flops=200, bytes=10)) == 2
    assert machine.seconds(work.Work(flops=200, bytes=50)) == 5


def test_decode_adds_up_its_passes(monkeypatch):
    """Rows that need more passes than others pass on alone."""
    monkeypatch.syspath_prepend(benchmark_runs.SCRIPTS)
    from against_torch.comparison import least_seconds  # needs no torch
    from against_torch.job import Decoded

    machine = Machine(1.0, "", 1e30, 0, 0, 1)  # FLOPs are seconds
    decoded = Decoded([], steps=[10, 6], full_passes=[2, 2], iterations=11)
    full = work.full_pass(CONFIG, 1, T, W, True).flops
    short = work.window_pass(CONFIG, 1, T, W).flops
    got = least_seconds(machine, CONFIG, decoded, T, W, True)
    assert got == pytest.approx(4 * full + 12 * short)
    machine = Machine(1e30, "", 1.0, 0, 0, 1)  # bytes are
    got = least_seconds(machine, CONFIG, decoded, T, W, True)
    weights, cache = 4 * WEIGHTS, 4 * CACHE
    assert got == pytest.approx(2 * (weights + 2 * cache) + 8 * weights + 12 * cache)
    uncached = Decoded([], steps=[5], full_passes=[5], iterations=5)
    got = least_seconds(machine, CONFIG, uncached, T, W, False)
    assert got == pytest.approx(5 * weights)


@pytest.mark.parametrize(
    ("sizes", "want"),
    [(("48K", "2M", "480M"), 480 * 2**20), (("1024",), 1024), ((), machines.UNKNOWN_CACHE)],
)
def test_last_level_cache(tmp_path, sizes, want):
    for i, text in enumerate(sizes):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(f"{text}\n")
    assert machines.last_level_cache(tmp_path) == want


def test_measuring_gives_rates():
    machine = machines.measure(quick=True, besides=["bfloat16"])
    assert machine.flops_per_s > 0 and machine.bytes_per_s > 0
    assert machine.flops_by.endswith("64 x 64, float32")
    assert machine.spreads.keys() == {"float32", "bfloat16", "copy"}
    assert machine.spreads["float32"]["max"] == machine.flops_per_s
    assert all(each["min"] > 0 for each in machine.spreads.values())


def test_without_a_checkout_the_comparison_says_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_runs, "SCRIPTS", tmp_path)
    assert benchmark.main(["--against", "torch"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "scripts/benchmark.py --against torch" in error
