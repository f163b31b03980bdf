"""Bytes of single instructions and trip counts of loops, in programs written by hand."""

import jax
import jax.numpy as jnp
import pytest

from leapjax.planning import audit, hlo, pallas
from leapjax.planning.loops import argument, trips, walk
from leapjax.planning.traffic import moves_only, traffic
from tests.planning import kernels, stored

F = "f32[1024]{0}"  # 4,096 bytes
CHIP = "f32[1024]{0:T(1024)S(1)}"  # the same, on the chip
TABLE = "f32[8,1024]{1,0}"
ROW = "f32[1,1024]{1,0}"


def program(*body, parameters="", more=""):
    """A module whose entry has these lines, the last of them its result."""
    lines = [f"  %{line}" for line in body]
    lines[-1] = lines[-1].replace("  %", "  ROOT %", 1)
    return "\n".join(
        ["HloModule m", "", more, f"ENTRY %main ({parameters}) -> f32[] {{", *lines, "}", ""]
    )


def moved(text, name):
    """(read, written) of an instruction of the entry."""
    module = hlo.parse(text)
    entry = module.computations[module.entry]
    found = traffic(module, entry, entry.instructions[name])
    return found.read, found.written


A, B = f"a = {F} parameter(0)", f"b = {F} parameter(1)"
T, I = f"t = {TABLE} parameter(0)", "i = s32[]{:S(6)} parameter(1)"  # noqa: E741


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ((A, B, f"x = {F} add(%a, %b)"), (8192, 4096)),
        ((A, f"x = {F} multiply(%a, %a)"), (4096, 4096)),  # read once
        ((A, f"x = {CHIP} add(%a, %a)"), (4096, 0)),
        ((f"a = {CHIP} parameter(0)", f"x = {F} negate(%a)"), (0, 4096)),
        ((A, "x = f32[8,128]{1,0} bitcast(%a)"), (0, 0)),
        ((A, f"x = {F} copy(%a)"), (4096, 4096)),
        ((T, I, f"x = {ROW} dynamic-slice(%t, %i, %i)"), (4096, 4096)),
        ((T, f"x = {ROW} slice(%t), slice={{[2:3], [0:1024]}}"), (4096, 4096)),
        (
            (T, I, f"u = {ROW} parameter(2)", f"x = {TABLE} dynamic-update-slice(%t, %u, %i, %i)"),
            (4096, 4096),
        ),
        (
            (
                T,
                "i = s32[3]{0} parameter(1)",
                "u = f32[3,1024]{1,0} parameter(2)",
                f"x = {TABLE} scatter(%t, %i, %u), to_apply=%add",
            ),
            (3 * 4096 + 12, 3 * 4096),
        ),
        (
            (T, "i = s32[3]{0} parameter(1)", "x = f32[3,1024]{1,0} gather(%t, %i)"),
            (3 * 4096 + 12, 3 * 4096),
        ),
        ((A, f'x = {F} custom-call(%a), custom_call_target="AllocateBuffer"'), (0, 0)),
        ((A, f'x = {F} custom-call(%a), custom_call_target="TopK"'), (4096, 4096)),
        ((A, f"x = {F} all-reduce(%a), channel_id=1, replica_groups={{}}"), (4096, 4096)),
        # A row of 7 numbers lies in a tile of 8 x 128.
        (("a = f32[1,7]{1,0:T(8,128)} parameter(0)", f"x = {CHIP} broadcast(%a)"), (4096, 0)),
    ],
)
def test_one_instruction(body, expected):
    assert moved(program(*body), "x") == expected


@pytest.mark.parametrize(
    ("body", "name", "expected"),
    [
        # Asynchronous: counted where it starts.
        (
            (
                A,
                f"x = ({CHIP}, {F}, u32[]{{:S(2)}}) copy-start(%a)",
                f"y = {CHIP} copy-done(%x)",
            ),
            "x",
            (4096, 0),
        ),
        (
            (
                T,
                f"x = (({TABLE}), f32[2,1024]{{1,0:S(1)}}, s32[]{{:S(2)}}) slice-start(%t)",
                "y = f32[2,1024]{1,0:S(1)} slice-done(%x)",
            ),
            "x",
            (8192, 0),
        ),
        (
            (
                A,
                f"x = ({F}, f32[8192]{{0}}) all-gather-start(%a), channel_id=1",
                "y = f32[8192]{0} all-gather-done(%x)",
            ),
            "x",
            (4096, 32768),
        ),
    ],
)
def test_two_parts(body, name, expected):
    text = program(*body)
    assert moved(text, name) == expected
    assert moved(text, "y") == (0, 0)
    for one in audit.audit(text).passes["besides"].exchanges:
        assert (one.what.asynchronous, one.what.bytes) == (True, 32768)


SLICING = f"""\
%slicing (p: f32[8,1024], q: s32[]) -> f32[1024] {{
  %p = {TABLE} parameter(0)
  %c = {TABLE} convert(%p)
  %q = s32[] parameter(1)
  %s = {ROW} dynamic-slice(%c, %q, %q)
  ROOT %r = {F} bitcast(%s)
}}
"""
COPIED = f"""\
%copied (p: f32[8,1024]) -> f32[8,1024] {{
  %p = {TABLE} parameter(0)
  ROOT %c = {TABLE} copy(%p)
}}
""" + SLICING.replace("convert(%p)", "fusion(%p), kind=kLoop, calls=%copied")
MULTIPLIED = COPIED.replace("copy(%p)", "dot(%p, %p)")
UPDATING = f"""\
%updating (p: f32[8,1024], q: s32[], u: f32[1,1024]) -> f32[8,1024] {{
  %p = {TABLE} parameter(0)
  %q = s32[] parameter(1)
  %u = {ROW} parameter(2)
  %n = {ROW} negate(%u)
  %b = {TABLE} bitcast(%p)
  ROOT %d = {TABLE} dynamic-update-slice(%b, %n, %q, %q)
}}
"""
FILLING = UPDATING.replace("updating", "filling").replace("bitcast(%p)", "negate(%p)")
NESTED = f"""\
{UPDATING}
%nested (p: f32[8,1024], q: s32[], u: f32[1,1024]) -> (f32[8,1024], f32[1,1024]) {{
  %p = {TABLE} parameter(0)
  %q = s32[] parameter(1)
  %u = {ROW} parameter(2)
  %f = {TABLE} fusion(%p, %q, %u), kind=kLoop, calls=%updating
  %n = {ROW} negate(%u)
  ROOT %t = ({TABLE}, {ROW}) tuple(%f, %n)
}}
"""
TWICE = f"""\
%twice (p: f32[8,1024], q: s32[], u: f32[1,1024]) -> f32[8,1024] {{
  %p = {TABLE} parameter(0)
  %q = s32[] parameter(1)
  %s = {ROW} dynamic-slice(%p, %q, %q)
  %u = {ROW} parameter(2)
  %a = {ROW} add(%s, %u)
  ROOT %d = {TABLE} dynamic-update-slice(%p, %a, %q, %q)
}}
"""
U = f"u = {ROW} parameter(2)"


@pytest.mark.parametrize(
    ("more", "call", "expected"),
    [
        (SLICING, f"x = {F} fusion(%t, %i), calls=%slicing", (4096, 4096)),
        # A row of what another fusion inside copies, as libtpu reads int8 weights.
        (COPIED, f"x = {F} fusion(%t, %i), calls=%slicing", (4096, 4096)),
        (MULTIPLIED, f"x = {F} fusion(%t, %i), calls=%slicing", (32768, 4096)),
        (UPDATING, f"x = {TABLE} fusion(%t, %i, %u), calls=%updating", (4096, 4096)),
        # What is updated is not an operand: the whole result is new.
        (FILLING, f"x = {TABLE} fusion(%t, %i, %u), calls=%filling", (4096 + 32768, 32768)),
        (NESTED, f"x = ({TABLE}, {CHIP}) fusion(%t, %i, %u), calls=%nested", (4096, 4096)),
        (NESTED, f"x = ({TABLE}, {ROW}) fusion(%t, %i, %u), calls=%nested", (4096, 8192)),
        # It reads the row that it updates, and no other.
        (TWICE, f"x = {TABLE} fusion(%t, %i, %u), calls=%twice", (8192, 4096)),
    ],
)
def test_fusions_read_and_write_parts(more, call, expected):
    assert moved(program(T, I, U, call, more=more), "x") == expected


def test_what_only_moves():
    text = program(T, I, U, f"x = {F} fusion(%t, %i), calls=%slicing", more=SLICING)
    module = hlo.parse(text)
    found = module.computations["main"].instructions["x"]
    assert not moves_only(module, found)  # it converts
    plain = hlo.parse(text.replace("convert", "copy"))
    assert moves_only(plain, plain.computations["main"].instructions["x"])


def loop(condition, step="%one", end="constant(5)", start="constant(0)"):
    """A program with a loop over a counter."""
    values = f"(s32[], {TABLE})"
    return f"""\
HloModule m

%cond (p: {values}) -> pred[] {{
  %p = {values} parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] {end}
  ROOT %c = pred[] compare(%i, %end), direction={condition}
}}
%body (p: {values}) -> {values} {{
  %p = {values} parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = {TABLE} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %two = s32[] constant(2)
  %next = s32[] add(%i, {step})
  %row = {ROW} dynamic-slice(%w, %i, %i), metadata={{op_name="jit(run)/window pass/slice"}}
  ROOT %t = {values} tuple(%next, %w)
}}
ENTRY %main (w: {TABLE}) -> {TABLE} {{
  %w = {TABLE} parameter(0), metadata={{op_name="params['w']"}}
  %zero = s32[] {start}
  %given = {values} tuple(%zero, %w)
  %loop = {values} while(%given), condition=%cond, body=%body
  ROOT %out = {TABLE} get-tuple-element(%loop), index=1
}}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (loop("LT"), 5),
        (loop("LT", step="%two"), 3),
        (loop("LT", start="constant(2)"), 3),
        (loop("LT", end="parameter(1)"), None),
        (loop("NE"), None),
        (
            loop("NE").replace(
                "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
            ),
            7,
        ),
    ],
)
def test_trip_counts(text, expected):
    module = hlo.parse(text)
    entry = module.computations["main"]
    assert trips(module, entry.instructions["loop"]) == expected
    sites = {s.instruction.name: s for s in walk(module, entry, lambda site: 0.0)}
    row = sites["row"]
    assert (row.times, row.certain) == (expected or 1, expected is not None)
    assert row.inside == ("loop",)
    # What the loop reads is the program's argument.
    assert argument(module, row.computation, "w").name == "w"
    assert argument(module, row.computation, "i") is None


def test_a_program_without_a_decode_loop_is_a_pass():
    found = audit.audit(loop("LT"))
    assert list(found.passes) == ["window pass", "besides"]
    one = found.passes["window pass"]
    assert (one.read, one.written, one.turns, one.need) == (5 * 4096, 5 * 4096, 1, None)
    (row,) = [o for o in one.operations if o.name == "row"]
    assert row.of == ("params['w']",)
    assert (row.read, row.wasted) == (5 * 4096, 5 * 4096)  # it reads once what it has to
    assert found.step == (one.moved + found.passes["besides"].moved, None)


def test_of_a_conditionals_branches_the_larger_counts():
    text = program(
        A,
        "p = pred[] parameter(1)",
        f"b = {F} parameter(2)",
        f"x = {F} conditional(%p, %a, %b), branch_computations={{%one, %two}}",
        more=f"""\
%one (p: f32[1024]) -> f32[1024] {{
  ROOT %p = {F} parameter(0)
}}
%two (p: f32[1024]) -> f32[1024] {{
  %p = {F} parameter(0)
  ROOT %n = {F} negate(%p)
}}
""",
    )
    found = audit.audit(text).passes["besides"]
    assert [(o.name, o.of, o.inside) for o in found.operations] == [("n", ("b",), ("x",))]
    assert (found.moved, found.operations[0].wasted) == (8192, 4096)


STAGES = f"""\
%first (p: f32[1024]) -> (f32[1024], f32[8192]) {{
  %p = {F} parameter(0)
  %g = f32[8192]{{0}} all-gather(%p), channel_id=1, replica_groups={{}}
  ROOT %c = ({F}, f32[8192]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%next (p: f32[1024], q: f32[8192], w: f32[1024]) -> (f32[1024], f32[8192], f32[1024]) {{
  %p = {F} parameter(0)
  %q = f32[8192]{{0}} parameter(1)
  %w = {F} parameter(2)
  %g = f32[8192]{{0}} all-gather(%p), channel_id=1, replica_groups={{}}
  %n = {F} negate(%w)
  ROOT %t = ({F}, f32[8192]{{0}}, f32[8192]{{0}}, {F}) tuple(%p, %q, %g, %n)
}}
%last (p: f32[1024], q: f32[8192]) -> f32[8192] {{
  %p = {F} parameter(0)
  %q = f32[8192]{{0}} parameter(1)
  %g = f32[8192]{{0}} all-gather(%p), channel_id=1, replica_groups={{}}
  ROOT %c = f32[8192]{{0}} custom-call(%p, %q, %g), custom_call_target="AsyncCollectiveDone"
}}
"""


def test_an_exchange_in_stages_counts_once():
    text = program(
        A,
        f"w = {F} parameter(1)",
        f"x = ({F}, f32[8192]{{0}}) fusion(%a), kind=kCustom, calls=%first",
        f"x0 = {F} get-tuple-element(%x), index=0",
        "x1 = f32[8192]{0} get-tuple-element(%x), index=1",
        f"y = ({F}, f32[8192]{{0}}, f32[8192]{{0}}, {F}) fusion(%x0, %x1, %w), calls=%next",
        f"y0 = {F} get-tuple-element(%y), index=0",
        "y1 = f32[8192]{0} get-tuple-element(%y), index=1",
        "z = f32[8192]{0} fusion(%y0, %y1), kind=kCustom, calls=%last",
        more=STAGES,
    )
    assert [moved(text, n) for n in "xyz"] == [(4096, 32768), (4096, 4096), (0, 0)]
    (one,) = audit.audit(text).passes["besides"].exchanges
    assert (one.what.kind, one.what.asynchronous, one.times) == ("all-gather", True, 1)


def test_a_program_of_this_machines_compiler():
    """Products in a loop over layers: each matrix is read once, and the rest is small."""
    layers, width, rows = 4, 64, 8

    def run(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((layers, width, width), (rows, width))]
    text = jax.jit(run).lower(*shapes).compile().as_text()
    found = audit.audit(text).passes["besides"]
    matrices = 4 * layers * width * width
    read = [o for o in found.operations if "params" in o.of]
    assert sum(o.read for o in read) == matrices
    assert all(o.times == layers for o in read)
    # A product may read a copy of its matrix, on a CPU.
    assert matrices < found.moved < 5 * matrices


def check_kernels(text):
    """Bytes of the calls of `kernels.calls` in a compiled program."""
    module = hlo.parse(text)
    entry = module.computations[module.entry]
    found = {}
    for name, instruction in entry.instructions.items():
        if instruction.target == pallas.TARGET:
            one = traffic(module, entry, instruction)
            found[name.partition(".")[0]] = (one.read, one.written, one.exact)
    assert found == kernels.MOVED


def test_pallas_calls_by_their_blocks():
    check_kernels(stored.load("pallas"))


def test_a_pallas_call_that_is_not_understood_counts_its_operands():
    call = f'x = {F} custom-call(%a), custom_call_target="{pallas.TARGET}", backend_config='
    for config in ("{}", '{"custom_call_config":{"body":"TUzvUgFNTElS"}}'):
        text = program(A, call + config)
        assert moved(text, "x") == (4096, 4096)
        (one,) = audit.audit(text).passes["besides"].operations
        assert not one.exact
