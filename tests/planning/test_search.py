"""What is tried on a slice, and how a plan comes about."""

import dataclasses

import jax
import pytest

from leapjax.cli import plan as command
from leapjax.cli import plan_table
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.ops import hardware
from leapjax.planning import (
    candidates,
    chips,
    models,
    search,
)
from leapjax.sharding import MeshShape


def test_stored_results_are_not_made_again(tmp_path):
    store = search.Store(tmp_path / "plans.jsonl")
    assert store.get("a", lambda: {"total": 1}) == {"total": 1}
    again = search.Store(tmp_path / "plans.jsonl")
    assert again.get("a", lambda: pytest.fail("compiled again")) == {"total": 1}
    (tmp_path / "plans.jsonl").write_text("nonsense")
    with pytest.raises(UserError, match="remove it"):
        search.Store(tmp_path / "plans.jsonl")


def work(**changes):
    config = DecodeConfig(gen_length=256, cache="dual")
    made = candidates.Workload(models.find("llada-8b"), config, 512, "bfloat16")
    return dataclasses.replace(made, **changes)


def found(work, where):
    where = chips.parse(where)
    meshes = candidates.meshes(work, where)
    return [c for mesh in meshes for c in candidates.candidates(work, where, mesh)]


def test_rows_and_forms_are_searched():
    both = work(quantize=(None, "int8"), refresh_group=1)
    [one] = found(both, "v5e:1x1")  # 16 GB of weights or 8, and 0.4 GB a row
    assert one.quantize == "int8" and one.rows[0] <= 16 and one.rows[-1] == 1
    assert set(one.rows) <= {1, 2, 3, 4, 6, 8, 12, 16} and list(one.rows) == sorted(one.rows)[::-1]
    tried = candidates.best(found(both, "v5e:2x4"), 2)
    assert [c.speed for c in tried] == sorted((c.speed for c in tried), reverse=True)
    forms = [c.quantize for c in tried]
    assert forms.count(None) == forms.count("int8") == 2
    speeds = {}
    for rows in one.rows:
        alone = dataclasses.replace(both, batch=rows)
        [given] = found(alone, "v5e:1x1")
        assert given.rows == (rows,)
        speeds[rows] = given.speed
    # More rows would hardly be faster, and fewer are slower.
    assert speeds[one.rows[0]] > 0.97 * max(speeds.values()) > speeds[1]


def test_a_given_batch_leaves_no_device_without_a_row():
    tried = {c.mesh: c.rows for c in found(work(batch=4), "v6e:2x4")}
    assert MeshShape(data=8) not in tried and tried[MeshShape(data=4, tensor=2)] == (1,)


def test_a_sweep_has_a_row_a_mesh():
    """A replica's mesh comes once, on the smallest slice that one can rent."""
    made = candidates.replicas(work(), "v5p", 16)
    assert {(str(where), mesh) for where, mesh in made if mesh.fsdp == 1} == {
        ("v5p:2x2x1", MeshShape(data=4)),
        ("v5p:2x2x1", MeshShape(data=2, tensor=2)),
        ("v5p:2x2x1", MeshShape(tensor=4)),
        ("v5p:2x2x2", MeshShape(tensor=8)),
        ("v5p:2x2x4", MeshShape(tensor=16)),
    }


def test_refresh_group_is_the_engines_on_a_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    default = hardware.defaults().refresh_group(768, "bfloat16")
    assert work().program(chips.CHIPS["v5e"]).refresh_group == default == 1


def test_turns_are_those_of_the_chip():
    """So many rows that a turn takes as long for its FLOPs as for the weights' bytes."""
    for name, groups in {"v5e": (30, 3), "v5p": (20, 2), "v6e": (70, 8), "7x": (39, 4)}.items():
        chip = chips.CHIPS[name]
        for kind in chip.kinds:
            ridge = hardware.of_tpu(kind).ridge
            assert ridge == pytest.approx(chip.flops / chip.bandwidth, rel=0.003)
        for block, group in zip((4, 32), groups, strict=True):
            config = DecodeConfig(gen_length=256, block_length=block)
            made = work(model=models.find("sdar-8b"), config=config).program(chip)
            assert made.cache == "block" and made.refresh_group == group


def planned(where, chips, cycles, bytes, fits=True):
    each = {"cycles": cycles, "bytes": bytes, "bound": 2000.0}
    return {
        "topology": where,
        "chips": chips,
        "fits": fits,
        "estimated": {"tokens_per_s_chip": each},
    }


def test_recommendation_is_the_cheapest_that_fits():
    """By the slower of two estimates."""
    plans = [
        planned("v5e:2x4", 8, 100.0, 400.0),
        planned("v6e:2x2", 4, 350.0, 300.0),
        planned("v6e:1x1", 1, 900.0, 900.0, fits=False),
    ]
    assert search.recommend(plans, {})["topology"] == "v6e:2x2"
    assert search.recommend(plans, {"v5e": 1.0, "v6e": 4.0})["topology"] == "v5e:2x4"
    assert search.recommend(plans[2:], {}) is None


def test_what_tokens_and_a_job_cost():
    """10,000 tokens/s on 100 chips: a million tokens are 10,000 seconds of a chip."""
    plan = planned("v5e:10x10", 100, 100.0, 400.0)
    hours = 10_000 / 3600
    found = search.cost(plan, {"v5e": 1.8}, tokens=250_000_000)
    assert found["chip_hours_million_tokens"] == pytest.approx(hours)
    assert found["price_million_tokens"] == pytest.approx(1.8 * hours)  # 5
    assert found["price_job"] == pytest.approx(250 * 5.0)
    assert plan_table.cost(found, 1_000_000, 250) == (
        "estimated: a million tokens: 2.78 chip hours, price 5.00; 1,000,000 records of 250 "
        "tokens: 694 chip hours, price 1,250.00"
    )
    assert search.cost(plan, {"v6e": 1.8}).keys() == {"chip_hours_million_tokens"}
    assert command._prices("1.2,v6e=3")["v5e"] == 1.2 and command._prices("1.2,v6e=3")["v6e"] == 3


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--topology", "v5e:2x4", "--sweep"],
        ["--topology", "v9:1x1"],
        ["--sweep", "v9"],
        ["--topology", "v5e:2x4", "--tokens-per-step", "0"],
        ["--topology", "v5e:2x4", "--model", "nothing/here"],
        ["--topology", "v5e:2x4", "--chip-hour", "v5e"],
        ["--topology", "v5e:2x4", "--chip-hour", "-1"],
        ["--topology", "v5e:2x4", "--config", "x.yaml"],
        ["--topology", "v5e:2x4", "--quantize", "int4"],
        ["--sweep", "v5e", "--mesh", "tensor=8"],
    ],
)
def test_bad_input_is_one_line(argv, capsys):
    assert command.main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_plan_takes_fewer_rows_until_it_fits(monkeypatch):
    def made(total):
        parts = dict.fromkeys(("window pass", "refresh pass", "besides", "outside"), 10**9)
        return {
            "counted": {"total": total, "moved": parts, "collectives": []},
            "estimated": {"cycles": parts},
            "measured": {},
        }

    where, mesh = chips.parse("v5e:2x4"), MeshShape(data=4, tensor=2)
    one = candidates.Candidate(where, mesh, None, (16, 12, 8, 6, 4), 300.0)
    for answers, rows, error in (
        ([made(15 * 10**9)], 16, None),
        ([{"error": "no room"}, made(17_015_768_576), made(15 * 10**9)], 8, None),
        ([{"error": "no room"}] * 3 + [made(17_015_768_576)], None, "needs 17.0 GB a device of 16"),
        ([{"error": "took long", "ended": "timed out"}], None, "took long"),
        ([{"error": "aborted", "ended": "aborted"}, made(15 * 10**9)], 12, None),
    ):
        left = iter(answers)
        monkeypatch.setattr(search, "_compile", lambda *how, left=left: next(left))
        got = search.plan(work(), one, search.Store(None), 60.0)
        assert next(left, None) is None  # no more were made
        assert (got["fits"], got.get("rows_a_replica")) == (rows is not None, rows)
        assert error is None or error in got["error"]
        assert ("error" in got) is not got["fits"]
        assert len(got["failed"]) == len(answers) - got["fits"]
        if rows:
            assert 0 < search.tokens_per_s(got) < 300
