"""Experts beside a dense model: equal active parameters, touched experts, and the command."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest

from leapjax.benchmarks import models
from leapjax.benchmarks.pass_timing import program_of
from leapjax.benchmarks.workload import Case
from leapjax.cli.benchmark_runs import SCRIPTS
from leapjax.models import param_shapes
from leapjax.testing import tiny_config

sys.path.append(str(SCRIPTS / "timings"))
import expert_passes  # noqa: E402


def test_as_many_parameters_are_active():
    dense = models.MODEL_60M
    shapes = param_shapes(expert_passes.with_experts(dense, 64, 8))["layers"]
    _, count, d, width = shapes["experts_gate"]
    assert (count, d, 8 * width) == (64, dense.d_model, dense.mlp_hidden_size)
    assert "gate" not in shapes and shapes["q"] == param_shapes(dense)["layers"]["q"]


@pytest.mark.slow
@pytest.mark.parametrize("ties", [True, False])
def test_touched_experts_are_counted(ties):
    config = expert_passes.with_experts(tiny_config(n_layers=1), 40, 3)
    lm = models.random_lm(config)
    if ties:  # every token chooses the first three
        params = jax.tree.map(lambda x: x, lm.params)
        params["layers"]["router"] = jnp.zeros_like(params["layers"]["router"])
        lm = models.LM(params, config, None)
    case = Case("dual", 2, 4, 8, 4, 1)
    program = program_of(case, config, "float32")
    counts = expert_passes.touched(lm.replicas[0].params, case, program)
    assert [len(counts[kind]) for kind in ("masks", "random")] == [3, 3]
    windows = counts["masks"] + counts["random"]
    assert windows == [3] * 6 if ties else all(3 <= n <= 24 for n in windows)
    assert ties or min(counts["random"]) > 3


def case(mixed):
    """What `measure` gives, of round numbers."""

    def of(x):
        return {"median": x, "min": x / 2, "max": x * 2, "n": 3}

    floors = {"touched": of(60), "bytes": 5e8, "bytes_s": 0.0125, "flops_s": 0.01}
    window = {"dense": of(0.01), "mixed": of(0.02), "ratio": of(2.0), "of_floor": of(1.6)} | floors
    return {
        "batch": 1,
        "full": {"dense": of(0.1), "mixed": of(mixed), "ratio": of(mixed / 0.1)},
        "masks": window,
        "random": window,
    }


def test_tables():
    passes, floors = expert_passes.text([case(0.12)]).split("\n\n")
    assert "| 1 | full | 100.00 (50.00-200.00) | 120.00 (60.00-240.00) | 1.20 (0." in passes
    assert "| 1 | window, decoding | 10.00" in passes
    assert "| 1 | window of random tokens | 60 (30-120) | 0.500 | 12.50 | 10.00 | 1.60" in floors


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    found, document = tmp_path / "found.json", tmp_path / "page.md"
    words = ["--quick", "--json", str(found), "--write", str(document)]
    assert expert_passes.main(words) == 0
    assert "its numbers mean nothing" in document.read_text()
    (row,) = json.loads(found.read_text())["experts"]["rows"]
    own = row["random"]
    floor = max(own["bytes_s"], own["flops_s"])
    assert own["of_floor"]["median"] == pytest.approx(own["mixed"]["median"] / floor)
    assert 2 <= own["touched"]["min"] <= own["touched"]["max"] <= 8
    assert "| 2 | window of random tokens |" in capsys.readouterr().out
