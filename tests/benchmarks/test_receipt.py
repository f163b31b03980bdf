"""Receipts: making one, what is refused, and the stored ones."""

import copy
import json
import math
import re
from pathlib import Path

import jax
import pytest

from leapjax.benchmarks import (
    known_answers,
    models,
    receipt_facts,
    receipt_fields,
    receipt_passes,
    receipt_plans,
)
from leapjax.benchmarks.machine import Machine
from leapjax.benchmarks.pass_timing import program_of
from leapjax.benchmarks.timing import summarise
from leapjax.benchmarks.workload import Case
from leapjax.cli.benchmark import main
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.errors import UserError
from leapjax.planning import audit, chips, need, roofline
from leapjax.planning.models import PRESETS
from leapjax.sharding import MeshShape, parse
from tests.planning import stored

PAGE = Path(__file__).parents[2] / "docs" / "receipts" / "README.md"
STORED = sorted(PAGE.parent.glob("*.json"))


@pytest.fixture(
    scope="module", params=["", pytest.param("data=2,tensor=2", marks=pytest.mark.slow)]
)
def made(request, tmp_path_factory):
    """The file of a receipt made here, and its mesh."""
    path = tmp_path_factory.mktemp("receipt") / "here.json"
    words = ["--receipt", str(path), "--quick", "--repeats", "2"]
    assert main([*words, *(["--mesh", request.param] if request.param else [])]) == 0
    return path, request.param


def test_a_receipt_says_what_this_device_did(made, capsys):
    path, mesh = made
    receipt = receipt_fields.read(str(path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert receipt["golden"]["equal"] and receipt["golden"]["caches"] == ["none", "dual"]
    assert receipt["device"]["platform"] == "cpu" and receipt["device"]["count"] == 8
    assert receipt["versions"]["jax"] == jax.__version__ and receipt["plan"]["chip"] is None
    assert receipt["options"]["mesh"] == (str(parse(mesh)) if mesh else None)
    replica = parse(mesh).replica if mesh else 1
    assert receipt["model"]["devices"] == replica
    dual, none = receipt["cases"]
    assert [p["pass"] for p in dual["passes"]] == ["window", "full"]
    assert [p["pass"] for p in none["passes"]] == ["full"]
    for case in (dual, none):
        for each in case["passes"]:
            seconds = each["seconds"]
            assert seconds["n"] == 2
            share = each["floor_s"] / seconds["median"]
            assert each["floor_share"]["median"] == pytest.approx(share, rel=1e-4)
            assert each["over_plan"]["bound"]["max"] == pytest.approx(
                seconds["max"] / each["planned_s"]["bound"], rel=1e-4
            )
    ragged = receipt["ragged"]
    assert ragged["tokens"] == 256 * ragged["requests"] == 256 * 3 * 2 * (2 if mesh else 1)
    assert 0 < ragged["device_share"]["median"] <= 1
    assert main(["--check-receipt", str(path)]) == 0
    assert capsys.readouterr().out == receipt_fields.table([receipt])


def test_nothing_private_is_in_a_receipt(made):
    """No host, user, path or value of the environment."""
    import getpass
    import os
    import platform

    text = made[0].read_text()
    words = {platform.node(), getpass.getuser(), str(Path.home()), os.getcwd(), str(made[0])}
    words |= {v for k, v in os.environ.items() if len(v) > 8 and not k.startswith("PYTEST")}
    quoted = set(re.findall(r'"([^"]*)"', text))
    assert not words & quoted and "/" not in text.replace("FLOP/s", "")
    assert str(made[0].parent) not in text


def test_an_answer_that_differs_is_named(monkeypatch):
    """One token of the third answer and the steps of another, without decoding."""
    known = json.loads(known_answers.PATH.read_text())
    found = copy.deepcopy([case["answers"] for case in known["cases"]])
    found[1][2]["tokens"][5] += 1
    found[1][4]["steps"] += 1
    answers = iter(found)
    monkeypatch.setattr(known_answers, "decode", lambda *_: next(answers))
    got = known_answers.compare()
    assert not got["equal"] and got["differs"] == [
        {"cache": "dual", "row": 2, "tokens": 1, "steps_known": 16, "steps": 16},
        {"cache": "dual", "row": 4, "tokens": 0, "steps_known": 16, "steps": 17},
    ]


def test_answers_of_another_model_are_refused(tmp_path, monkeypatch):
    known = json.loads(known_answers.PATH.read_text()) | {"model_hash": "0"}
    (tmp_path / "answers.json").write_text(json.dumps(known))
    monkeypatch.setattr(known_answers, "PATH", tmp_path / "answers.json")
    with pytest.raises(UserError, match="of another model"):
        known_answers.compare()


SUMMARY = summarise([1.0, 2.0, 4.0])
FAULTS = {
    "device.kind": (None, "device.kind is null; expected a line of text"),
    "device.count": (True, "device.count is true; expected a whole number"),
    "golden.equal": (1, "golden.equal is 1; expected true or false"),
    "device.host_load": (-1, "device.host_load is -1; expected a number of at least 0"),
    "plan.flops_per_s": (math.nan, "plan.flops_per_s is NaN; expected a number above 0"),
    "ragged.seconds": (SUMMARY | {"median": 5.0}, "expected n of at least 1, and 0 < min"),
    "floor.copy_bytes_per_s": ({"median": 1.0}, "expected n of at least 1, and 0 < min"),
    "cases": ({}, "cases is no list"),
    "model": ([], "model is no object"),
}


def example(fields=receipt_fields.FIELDS):
    """A receipt that passes, by the fields alone."""
    values = {
        "text": "x",
        "whole": 1,
        "number": 0.5,
        "amount": 0.0,
        "flag": True,
        "spread": SUMMARY,
    }
    if isinstance(fields, str):
        return values[fields.removesuffix("?")]
    if isinstance(fields, list):
        return [example(fields[0])]
    return {name: example(kind) for name, kind in fields.items()}


@pytest.mark.parametrize("path", FAULTS)
def test_a_faulty_receipt_is_refused(path, tmp_path, capsys):
    receipt, (value, said) = example(), FAULTS[path]
    *parents, name = path.split(".")
    part = receipt
    for parent in parents:
        part = part[parent]
    part[name] = value
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(receipt))
    assert main(["--check-receipt", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_field_too_many_or_too_few():
    receipt = example()
    assert list(receipt_fields.faults(receipt)) == []
    receipt["cases"][0]["passes"][0]["colour"] = "red"
    del receipt["ragged"]["slots"]
    receipt["versions"]["commit"] = receipt["floor"]["read_bytes_per_s"] = None  # not known: fine
    assert list(receipt_fields.faults(receipt)) == [
        "cases[0].passes[0].colour is unknown",
        "ragged.slots is missing",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no receipt"),
        ('{"receipt": 99}', "is a receipt of schema 99, this leapjax reads 1"),
    ],
)
def test_what_is_no_receipt(content, said, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    assert main(["--check-receipt", str(tmp_path / "x.json")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--receipt", "x.txt"], "not a file name that ends in .json"),
        (["--receipt", "no/such/folder/x.json"], "there is no folder"),
        (["--receipt", "folder.json"], "is not an ordinary file"),
        (
            ["--receipt", "x.json", "--models", "60m", "--json", "y"],
            "does not go with --json, --mod",
        ),
        (["--receipt", "x.json", "--mesh", "tensor=99"], "needs 99 devices, here are 8"),
        (["--receipt", "x.json", "--mesh", "tenser=2"], "did you mean"),
        (["--receipt", "x.json", "--floor"], "runs of their own"),
        (["--check-receipt", "x.json", "--quick"], "does not go with --quick"),
        (["--check-receipt", "x.json"], "can't be read"),
        (["--mesh", "tensor=2"], "--mesh goes with --receipt"),
    ],
)
def test_bad_input(words, said, tmp_path, monkeypatch, capsys):
    """Said before anything is timed, in one line; nothing is written."""
    (tmp_path / "folder.json").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known_answers, "compare", lambda *_: pytest.fail("decoded"))
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert said in error and error.count("\n") == 1 and not out
    assert [p.name for p in tmp_path.iterdir()] == ["folder.json"]


def test_stdout_and_an_interruption(tmp_path, monkeypatch, capsys):
    from leapjax.benchmarks import receipt

    monkeypatch.setattr(receipt, "make", lambda *_: example())
    assert main(["--receipt", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == example()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(receipt, "make", interrupted)
    assert main(["--receipt", str(tmp_path / "x.json")]) == 130
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("gb", "mesh", "layers"),
    [(1000, "", 32), (32, "", 32), (16, "", 15), (16, "tensor=2", 32), (1, "", 1)],
)
def test_layers_that_fit(gb, mesh, layers, monkeypatch):
    """By hand: 2.07 GB of embedding and head; a layer 0.44 GB, its two states of 8 rows 0.20."""
    monkeypatch.setattr(receipt_passes, "device_limit", lambda _: gb * 10**9)
    shape = parse(mesh) if mesh else MeshShape()
    wanted = receipt_passes.subject(shape, quick=False)
    wanted = receipt_passes.Subject("llada-8b", PRESETS["llada-8b"], "bfloat16", wanted.cases)
    assert {case.batch for case in wanted.cases} == {8}
    assert receipt_passes.layers_that_fit(wanted, shape) == layers


def test_a_device_that_runs_out_of_memory_times_fewer_layers(monkeypatch):
    tried = []

    def timed(lm, *_):
        tried.append(lm.config.n_layers)
        if len(tried) < 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        return {}

    monkeypatch.setattr(receipt_passes, "_timed", timed)
    machine = Machine(1.0, "", 1.0, 0, 0, 1)
    wanted = receipt_passes.subject(MeshShape(), quick=True)
    lm, _, cases = receipt_passes.time(wanted, None, machine, 1)
    assert tried[0] == models.TINY_8B.n_layers == 3 and lm.config.n_layers == 2
    assert cases == [{}, {}]


def test_the_plan_of_the_stream_is_the_engine_s_schedule(made):
    """The simulated passes are those that the engine ran; replicas share the rows as they may."""
    receipt = receipt_fields.read(str(made[0]))
    ragged = receipt["ragged"]
    near = 0.25 if made[1] else 0
    assert ragged["passes"] == pytest.approx(ragged["passes_planned"], rel=near, abs=0)
    # A row has eight blocks, so it refreshes eight times.
    assert ragged["refresh_rows_wanted"] == 8 * ragged["requests"] <= ragged["refreshed_rows"]
    over = ragged["seconds"]["median"] / ragged["planned_s"]
    assert ragged["over_plan"]["median"] == pytest.approx(over, rel=1e-4)


def test_devices_have_their_chip(monkeypatch):
    """A known chip's published rates; those measured for any other device."""

    class Device:
        device_kind = "TPU v5 lite"

        def memory_stats(self):
            return {"bytes_limit": 123}

    monkeypatch.setattr(receipt_plans, "local_devices", lambda: [Device()])
    machine = Machine(100.0, "", 10.0, 0, 0, 1)
    assert str(receipt_plans.slice_here(machine, MeshShape(data=4, tensor=2))) == "v5e:2x2"
    Device.device_kind = "something new"
    chip = receipt_plans.slice_here(machine, MeshShape()).chip
    assert (chip.flops, chip.bandwidth, chip.hbm) == (100.0, 10.0, 123)
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len({*kinds}) and all(chip.kinds for chip in chips.CHIPS.values())


class Stored:
    """A compiled program that is kept as text: LLaDA-8B on one v6e, 8 rows."""

    def __init__(self, cache, text=None):
        config = DecodeConfig(gen_length=256, block_length=32, cache=cache)
        self.case = Case(cache, 8, 512, 256, 32, 1)
        self.program = program_for(
            config,
            PRESETS["llada-8b"],
            length=768,
            dtype="bfloat16",
            eot_token_id=None,
            refresh_group=4,
        )
        self.text = stored.load(f"v6e-data8-{cache}") if text is None else text
        self.step = self

    def as_text(self):
        return self.text


@pytest.mark.parametrize(("cache", "most"), [("dual", "window"), ("none", "full")])
def test_a_tpu_s_program_is_planned_by_its_audit(cache, most):
    where, compiled = chips.parse("v6e:1x1"), Stored(cache)
    found = receipt_plans.plan(compiled, where, MeshShape())
    account = audit.audit(compiled.text, need.passes(MeshShape(), compiled.program, 8))
    moved, needed = account.step
    assert found.moved[most] == (moved, pytest.approx(moved / needed))
    assert found.seconds[most].keys() == {*receipt_plans.KINDS}
    least = roofline.parts(where, MeshShape(), compiled.program, 8)

    def took(name):
        return max(account.passes[name].moved / 1638e9, least[name].compute)

    outside = account.outside.moved / 1638e9
    runs = {need.FULL: 1} if cache == "none" else {need.REFRESH: 2}  # turns of four rows
    want = {"full": sum(n * took(name) for name, n in runs.items())}
    if cache == "dual":
        want["window"] = took(need.WINDOW) + outside / 31  # a call runs 31, the full pass alone
        assert found.moved["full"][0] / 1e9 == pytest.approx(2 * 66, rel=0.05)
    want["full"] += outside / (1 if cache == "dual" else 4)
    for kind, seconds in want.items():
        got = found.seconds[kind]
        assert got["bytes"] == pytest.approx(seconds + took(need.BESIDES))
        assert got["bound"] < got["bytes"] < got["cycles"]


def test_a_text_that_nobody_can_audit_costs_the_bytes_alone():
    where, compiled = chips.parse("v6e:1x1"), Stored("dual", "a text of another compiler")
    found = receipt_plans.plan(compiled, where, MeshShape())
    assert found.error and found.moved == {}
    assert {kind: [*each] for kind, each in found.seconds.items()} == {
        "window": ["bound"],
        "full": ["bound"],
    }


def test_the_bound_of_a_pass_by_hand():
    """Bytes of a window pass and its head, on a chip that multiplies at once."""
    chip = chips.Chip("x", "", 1e15, 1e9, 1e9, 1e9, 1e9, dimensions=2)
    program = program_of(Case("dual", 2, 16, 16, 8), models.TINY_8B, "float32")
    calls = {"window": 7, "full": 1}
    got = receipt_plans.pass_seconds(chips.Slice(chip, "1x1"), MeshShape(), program, 2, calls)
    layer = 4 * 64 * 64 + 3 * 64 * 192 + 2 * 64
    weights, kept = 3 * layer + 1000 * 64, 2 * 3 * 2 * 32 * 64
    residual = 7 * 2 * 8 * 64  # the embedding, and written and read by three layers
    assert got["window"]["bound"] == pytest.approx(4 * (weights + kept + residual) / 1e9)


def test_the_processor_and_the_commit_as_the_system_states_them(tmp_path):
    (tmp_path / "cpuinfo").write_text("vendor_id\t: X\nmodel name\t: An  Example CPU \n")
    assert receipt_facts._processor(tmp_path / "cpuinfo") == "An Example CPU"
    assert receipt_facts._processor(tmp_path / "none") is None
    (tmp_path / ".git").mkdir()  # no repository
    assert receipt_facts._commit(tmp_path) == (None, False)


def test_the_commit_of_an_installation_is_the_one_that_pip_recorded(tmp_path, monkeypatch):
    class Installed:
        recorded: str | None = '{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'

        def read_text(self, _):
            return self.recorded

    monkeypatch.setattr(receipt_facts.importlib.metadata, "distribution", lambda _: Installed())
    assert receipt_facts._commit(tmp_path) == ("abc", False)
    Installed.recorded = None  # from a wheel of an index
    assert receipt_facts._commit(tmp_path) == (None, False)


def test_the_page_names_every_field():
    named = set(re.findall(r"`([\w.]+)`", PAGE.read_text()))
    assert set(receipt_fields.paths()) <= named


def test_stored_receipts_are_the_page_s_table():
    """Of a clean checkout, with the known answers, and not a quick one."""
    assert STORED
    receipts = [receipt_fields.read(str(path)) for path in STORED]
    for receipt in receipts:
        assert receipt["golden"]["equal"] and not receipt["options"]["quick"]
        assert receipt["versions"]["commit"] and not receipt["versions"]["changed"]
        assert not receipt["versions"]["compiler_flags"]
    _, _, section = PAGE.read_text().partition("prints them -->\n")
    table, _, _ = section.partition("<!-- receipts: end -->")
    assert table == receipt_fields.table(receipts)
    assert all(f"]({path.name})" in PAGE.read_text() for path in STORED)
