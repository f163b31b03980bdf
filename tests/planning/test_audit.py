"""What an audit counts in the stored TPU programs of LLaDA-8B, and how it knows their passes."""

import json
import re

import pytest

from leapjax.cli import plan as command
from leapjax.config import DecodeConfig
from leapjax.decoding import program_for
from leapjax.planning import audit, audit_report, chips, compiled, exchange, isolated, models, need
from leapjax.sharding import MeshShape
from tests.planning import stored

MESHES = {
    "v6e-data8-dual": MeshShape(data=8),
    "v6e-data8-none": MeshShape(data=8),
    "v6e-tensor8-dual": MeshShape(tensor=8),
    "v5e-tensor8-dual": MeshShape(tensor=8),
    "v5e-data4-tensor2-dual": MeshShape(data=4, tensor=2),
}


def expected(name):
    mesh, cache = MESHES[name], name.split("-")[-1]
    slots = 64 // mesh.data
    program = program_for(
        DecodeConfig(gen_length=256, block_length=32, cache=cache),
        models.find("llada-8b"),
        length=768,
        dtype="bfloat16",
        eot_token_id=None,
        refresh_group=max(4, slots // 8),
    )
    return need.passes(mesh, program, slots)


@pytest.fixture(scope="module")
def audited():
    return {name: audit.audit(stored.load(name), expected(name)) for name in MESHES}


# GB of an iteration without a refresh, of a refresh, of what is outside the loop. They were counted
# by another program before this one, which left out asynchronous slices (0 to 1.7 GB of a refresh)
# and took an all-reduce's operand for read from HBM where it lies on the chip: 3.1 GB of
# v5e-tensor8, where it had 14.3.
@pytest.mark.parametrize(
    ("name", "step", "refresh", "outside"),
    [
        ("v6e-data8-dual", 24.2, 66, 6.4),
        ("v6e-data8-none", 121.2, None, 6.4),
        ("v6e-tensor8-dual", 25.2, 23, 13.7),
        ("v5e-tensor8-dual", 18.9, 14.3 - 3.1 + 1.6, 13.7),
        ("v5e-data4-tensor2-dual", 11.4, 26, 3.2),
    ],
)
def test_bytes_of_known_programs(audited, name, step, refresh, outside):
    found = audited[name]
    assert found.step[0] / 1e9 == pytest.approx(step, rel=0.05)
    assert found.outside.moved / 1e9 == pytest.approx(outside, rel=0.05)
    passes = [need.FULL] if refresh is None else [need.WINDOW, need.REFRESH]
    assert list(found.passes) == [*passes, need.BESIDES]
    if refresh is not None:
        assert found.passes[need.REFRESH].moved / 1e9 == pytest.approx(refresh, rel=0.05)


@pytest.mark.parametrize(
    ("name", "step", "refresh"),
    [
        # Weights of the layers 13.96 GB, of the head 1.04; keys and values of 8 rows 3.22.
        ("v6e-data8-dual", 13.96 + 1.04 + 3.22 + 0.14, 13.96 + 3.22 / 2 + 1.61 + 0.03),
        ("v6e-data8-none", 18.3, None),
        ("v5e-tensor8-dual", 15.0 / 8 + 3.22 + 0.14, 13.96 / 8 + 0.40 + 0.41),
    ],
)
def test_need(audited, name, step, refresh):
    found = audited[name]
    assert found.step[1] / 1e9 == pytest.approx(step, rel=0.005)
    if refresh:
        assert found.passes[need.REFRESH].need.total / 1e9 == pytest.approx(refresh, rel=0.005)


def test_what_is_wasteful_is_named(audited):
    """The copies that the layout of the cache costs, and the scores in float32."""
    found = audited["v5e-tensor8-dual"].passes[need.BESIDES]
    assert {o.of for o in found.copies[:4]} == {("state.cache[0]",), ("state.cache[1]",)}
    assert sum(o.read + o.written for o in found.copies[:4]) / 1e9 == pytest.approx(12.9, rel=0.01)
    worst = audited["v6e-data8-dual"].passes[need.REFRESH].operations[:3]
    assert all(o.scope.startswith("attention/") and o.times == 31 for o in worst)
    assert worst[0].result == "f32[4,32,768], f32[4,32,768,768]"
    # Weights that a product reads for the first time are no waste.
    window = audited["v6e-data8-dual"].passes[need.WINDOW]
    mlp = [o for o in window.operations if o.scope == "mlp/dot_general"]
    assert sum(o.read for o in mlp) > 9e9 > 1e9 > sum(o.wasted for o in mlp)


@pytest.mark.parametrize("name", ["v6e-data8-dual", "v5e-tensor8-dual"])
def test_what_a_pass_has_to_read_is_no_waste(audited, name):
    """Weights and embeddings count once, cache where it is read (window) or written (refresh)."""
    for part in (need.WINDOW, need.REFRESH, need.BESIDES):
        found = audited[name].passes[part]
        least = found.need.weights + found.need.embedding + found.need.cache
        wasted = sum(o.wasted for o in found.operations)
        # Small arguments are read, too, and embeddings by every device or besides.
        assert wasted == pytest.approx(found.moved - least, abs=5e7)
    outside = audited[name].outside
    assert sum(o.wasted for o in outside.operations) == outside.moved


def test_copies_at_entry(audited):
    copies = audited["v6e-data8-dual"].outside.copies
    large = {o.of: o.written for o in copies if o.written > 1e6}
    assert large == {(f"params['layers']['{n}']",): 2 * 32 * 4096**2 for n in "qkv"}


def test_collectives_of_a_pass(audited):
    found = audited["v5e-tensor8-dual"].passes[need.REFRESH]
    layers = [e for e in found.exchanges if e.times == 31]
    assert [(e.what.kind, e.what.bytes) for e in layers] == [("all-reduce", 2 * 8 * 768 * 4096)] * 2
    assert not any(e.what.asynchronous for e in found.exchanges)
    assert not any(p.exchanges for p in audited["v6e-data8-dual"].passes.values())


def test_turns_of_an_unknown_number_count_once(audited):
    """Both passes of a cache are loops of no or one turn; those over layers have known lengths."""
    dual, none = audited["v6e-data8-dual"], audited["v6e-data8-none"]
    assert [p.turns for p in dual.passes.values()] == [None, None, 1]
    assert none.passes[need.FULL].turns == 1


def test_estimates_are_the_compilers(audited):
    found = audited["v6e-data8-dual"]
    cycles = found.passes[need.WINDOW].cycles + found.passes[need.BESIDES].cycles
    clock = chips.CHIPS["v6e"].clock
    assert 1000 * cycles / clock == pytest.approx(39.7, rel=0.05)
    assert 1000 * found.outside.cycles / clock == pytest.approx(18.5, rel=0.05)


def test_passes_are_known_by_our_scopes():
    """Without a hint of shapes, and where shapes would say the opposite."""
    text = stored.load("v6e-data8-dual")
    assert list(audit.audit(text).passes) == [need.BESIDES]
    # The window's layers sit in the first inner loop of the decode loop, a refresh's in the second.
    swapped = re.sub(
        r"jit\(run\)/while/body/while/body/while/body/closed_call/mlp",
        lambda m: m.group().replace(
            "/while/body/while/body/while", "/while/body/refresh pass/while"
        ),
        text,
    )
    found = audit.audit(swapped, expected("v6e-data8-dual"))
    assert list(found.passes) == [need.REFRESH, need.BESIDES]
    # A pass that the options do not ask for has no need.
    found = audit.audit(swapped, expected("v6e-data8-none"))
    assert found.passes[need.REFRESH].need is None and found.step[1] is not None


def report(found, name):
    """What `search.plan` says of a program, as far as the report reads it."""
    parts = [*found.passes.values(), found.outside]
    return {
        "topology": "v6e:2x4",
        "mesh": str(MESHES[name]),
        "rows_a_replica": 8,
        "quantize": "int8",
        "audit": audit_report.record(found, chips.CHIPS[name[:3]]),
        "counted": {"temporaries": 3.6e9, "collectives": exchange.listed(parts, MESHES[name])},
    }


def test_the_report_fits_a_terminal(audited):
    for name, found in audited.items():
        plan = report(found, name)
        text = audit_report.lines(plan)
        assert max(map(len, text)) <= 80
        table = [line.split() for line in text if line.startswith(("besides  ", "outside  "))]
        assert len(table) == 2 and all(len(row) == 8 for row in table)
        assert sum(": all-reduce " in line for line in text) == len(plan["counted"]["collectives"])
        assert json.loads(json.dumps(plan["audit"])) == plan["audit"]


def test_the_command(audited, monkeypatch, tmp_path, capsys):
    """A compilation's audit is kept with the rest of its results, and shown when asked for."""
    name = "v6e-data8-dual"
    made = compiled.Compiled(
        *(1.0, 1.0, 10**9, 10**9, 10**9, 10**9, (), 1, ()), text=stored.load(name)
    )
    monkeypatch.setattr(isolated, "call", lambda function, *how, timeout_s: function(*how))
    monkeypatch.setattr(compiled, "compile_for", lambda *how: made)
    store, out = tmp_path / "plans.jsonl", tmp_path / "plan.json"
    argv = ["--topology", "v6e:2x4", "--mesh", "data=8", "--batch", "64", "--quantize", "none"]
    argv += ["--refresh-group", "4", "--reuse", str(store), "--json", str(out)]
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    assert "copied" not in text and "8.02 billion parameters, 8.02 billion active" in text
    assert "audit" not in json.loads(out.read_text())["plans"][0]
    monkeypatch.setattr(compiled, "compile_for", lambda *how: pytest.fail("compiled again"))
    assert command.main([*argv, "--audit"]) == 0
    text = capsys.readouterr().out
    assert "v6e:2x4, data=8,fsdp=1,tensor=1, 8 rows a replica" in text
    assert "window pass + besides" in text
    kept = json.loads(out.read_text())["plans"][0]["audit"]
    assert kept == report(audited[name], name)["audit"]
