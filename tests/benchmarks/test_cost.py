"""The cost model: what is fitted to made-up timings is what made them."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from leapjax.benchmarks.models import MODEL_60M
from leapjax.cli.benchmark_runs import SCRIPTS
from leapjax.planning import work

sys.path.append(str(SCRIPTS / "timings"))
import step_cost as cost  # noqa: E402

POINTS = cost.every_point((64, 256, 512), (1, 4, 16), (32_000, 128_000))


def rows(seconds):
    """Rows as `measure` gives them, for a model whose only change is its vocabulary."""
    out = []
    for point in POINTS:
        config = dataclasses.replace(MODEL_60M, vocab_size=point.vocab_size)
        terms = point.terms(config)
        out.append(
            dataclasses.asdict(point) | {"terms": terms, "seconds": {"median": seconds(terms)}}
        )
    return out


def test_a_fit_finds_what_made_the_timings():
    rates = np.array([2e11, 5e10, 1e11])
    found = cost.fit(rows(lambda terms: 0.004 + float(np.sum(np.array(terms[1:]) / rates))))
    assert found["overhead_s"] == pytest.approx(0.004, rel=1e-6)
    assert [found["rates"][n] for n in cost.TERMS[1:]] == pytest.approx(rates.tolist(), rel=1e-6)
    assert found["largest_error"] < 1e-6


def test_a_fit_tells_what_it_cannot_explain():
    found = cost.fit(rows(lambda terms: terms[1] ** 2 / 1e22 + 1e-3))
    assert found["largest_error"] > 0.2


def test_parts_are_the_floor():
    parts = work.full_pass_flops(MODEL_60M, 4, 96, 32)
    assert sum(parts.values()) == work.full_pass(MODEL_60M, 4, 96, 32, cached=False).flops
    assert parts["head"] == 4 * 32 * 2 * 512 * 32_000


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    document, data = tmp_path / "page.md", tmp_path / "cost.json"
    words = ["--quick", "--write", str(document), "--json", str(data)]
    assert cost.main(words) == 0
    shown = capsys.readouterr().out
    assert "| 1k | 32 | 1 |" in shown and "Fitted: overhead" in document.read_text()
    report = json.loads(data.read_text())["cost"]
    assert len(report["rows"]) == 8
    assert all(row["seconds"]["min"] > 0 for row in report["rows"])
