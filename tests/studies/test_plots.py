"""What the plots of evaluations, grids and analyses may not do: hide and exaggerate."""

import itertools
import json
from pathlib import Path

import pytest

from leapjax.studies import ablation_plots, observation_plots
from leapjax.studies.evaluation_plot import rows_figure
from leapjax.studies.observation_report import markdown

pytest.importorskip("matplotlib", reason="needs the extra plots")
OBSERVATIONS = Path(__file__).parents[2] / "docs" / "observations.json"


def evaluation(*steps, cache="none", interval=(-0.002, 0.002)):
    rows = [("greedy", 40.0), *((f"p{i}", s) for i, s in enumerate(steps))]
    numbers = {"accuracy": 0.8, "difference": 0.0, "difference_interval": interval}
    return {
        "settings": {"task": "t", "split": "heldout", "gen_length": 64},
        "n": 1000,
        "rows": [
            {
                "policy": name,
                "label": name,
                "cache": "none" if name == "greedy" else cache,
                "groups": {"all": numbers | {"eos_steps": s, "eos_steps_share": s / 40}},
            }
            for name, s in rows
        ],
    }


def test_rows_with_equal_numbers_have_lines_of_their_own():
    differences, steps = rows_figure(evaluation(2.6, 3.0, 3.0, 3.0)).axes
    assert steps.get_xscale() == "log"
    points = [tuple(line.get_xydata()[0]) for line in steps.lines]
    assert len(set(points)) == len({y for _, y in points}) == 5
    ticks = [t for t in steps.get_xticks() if steps.get_xlim()[0] <= t <= steps.get_xlim()[1]]
    assert ticks == [2, 5, 10, 20, 50]
    labels = [t.get_text() for t in differences.get_yticklabels()]
    assert labels == ["p0: 80.0 %", "p1: 80.0 %", "p2: 80.0 %", "p3: 80.0 %", "greedy: 80.0 %"]


def test_the_axis_of_differences_is_not_filled_by_noise():
    left, right = rows_figure(evaluation(3.0)).axes[0].get_xlim()
    assert left == -right and right >= 2
    # Nor is it lost to a single problem, whose interval has no bounds.
    wide = rows_figure(evaluation(3.0, interval=(float("-inf"), float("inf"))))
    assert wide.axes[0].get_xlim()[1] == pytest.approx(108)


def grid(accuracy, steps):
    values = itertools.product((0.8, 0.9), (0.5, 0.7))
    points = [
        {
            "values": {"threshold": a, "relaxed_threshold": b},
            "accuracy": accuracy(a, b),
            "accuracy_interval": [accuracy(a, b) - 0.06, accuracy(a, b) + 0.05],
            "steps": steps(a, b),
        }
        for a, b in values
    ]
    greedy = {"accuracy": 0.8, "accuracy_interval": [0.74, 0.85], "steps": 43.0}
    return {
        "settings": {"task": "t", "split": "heldout", "seed": 1},
        "model": {"name": "m", "hash": None},
        "n": 200,
        "axes": {"threshold": [0.8, 0.9], "relaxed_threshold": [0.5, 0.7]},
        "points": points,
        "greedy": [greedy],
    }


def bars(fig):
    return [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]


def test_no_colour_bar_spans_one_constant_value():
    fig = ablation_plots.heat_map(grid(lambda a, b: 0.8, lambda a, b: 3 * a + b))
    assert [bar.get_ylabel() for bar in bars(fig)] == ["mean steps"]
    assert "accuracy 80.0 % at every point" in " ".join(fig.get_suptitle().split())
    assert ablation_plots.heat_map(grid(lambda a, b: 0.8, lambda a, b: 3.0)) is None


def test_colours_of_accuracy_span_the_intervals():
    fig = ablation_plots.heat_map(grid(lambda a, b: 0.75 + b / 50, lambda a, b: 3 * a + b))
    bar = bars(fig)[0]
    assert bar.get_ylim() == pytest.approx((70.0, 81.4))


def test_a_grid_of_equal_accuracies_keeps_the_scale_of_its_intervals():
    report = grid(lambda a, b: 0.8, lambda a, b: 3 * a + b)
    low, high = ablation_plots.pareto(report).axes[0].get_ylim()
    assert low <= 74 and high >= 85


def test_each_policy_has_a_front_of_its_own():
    report = grid(lambda a, b: 0.8 - (b - 0.5) * (a < 0.9), lambda a, b: 3.0)
    report["axes"]["policy"] = ["localleap", "placebo"]
    for p in report["points"]:
        p["values"]["policy"] = "localleap" if p["values"]["threshold"] < 0.9 else "placebo"
    fig = ablation_plots.pareto(report)
    labels = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert [t for t in labels if " points of " in t] == [
        "2 points of localleap",
        "2 points of placebo",
    ]
    assert [t[0] for t in labels if ": threshold" in t] == ["1", "2"]


def test_distances_with_few_commits_are_left_out():
    rows = [
        {"kind": "propagated", "distance": d, "clean": True, "commits": n, "share": 0.2}
        | {"interval": [0.1, 0.4], "confidence": 0.8}
        for d, n in ((1, 50), (2, 10), (3, 9))
    ]
    report = grid(lambda a, b: 0.8, lambda a, b: 3.0)
    assert ablation_plots.commits(report) is None
    report["points"][0]["commits"] = rows
    (axes,) = ablation_plots.commits(report).axes
    crosses = next(line for line in axes.lines if line.get_marker() == "x")
    assert list(crosses.get_xdata()) == [1, 2]
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("name", ["delays", "by_confidence", "by_distance"])
def test_the_figures_of_an_analysis(name):
    fig = getattr(observation_plots, name)(json.loads(OBSERVATIONS.read_text()))
    for axes in fig.axes:
        if name == "by_distance":  # positions are whole numbers
            assert all(tick == int(tick) for tick in axes.get_xticks())
        if name == "by_confidence":  # no label stands beside the axes
            low, high = axes.get_xlim()
            assert all(low < tick < high for tick in axes.get_xticks())
        if name != "delays":  # bands and distances stand beside each other
            x = [float(x) for line in axes.lines for x in line.get_xdata()]
            colours = {}
            for line in axes.lines:
                for value in line.get_xdata():
                    colours.setdefault(round(float(value), 6), set()).add(line.get_color())
            assert x and all(len(found) == 1 for found in colours.values())


def test_the_page_of_observations_is_made_of_its_data():
    data = json.loads(OBSERVATIONS.read_text())
    page = OBSERVATIONS.with_suffix(".md").read_text()
    mark = "<!-- shorter: --limit 200 -> --limit 2 -->\n"  # for tests/test_docs_run.py
    assert mark in page and page.replace(mark, "") == markdown(data)
