"""What full passes move and hold, by the real TPU compiler, for slices that are not attached."""

import importlib.util
import re

import pytest

from leapjax.planning import audit, chips, compiled, need
from leapjax.sharding import parse
from tests.planning.shapes import program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


def in_hbm(text, columns):
    """Arrays of (…, T, T) that the program writes to HBM; S(1) is on the chip."""
    arrays = re.findall(rf"\[(?:\d+,)*{columns},{columns}\]\{{([^}}]*)\}}", text)
    return [layout for layout in arrays if "S(1)" not in layout]


def test_full_pass_of_8_rows():
    """LLaDA-8B without a cache on each chip of v6e data=8: no scores in HBM, few bytes."""
    full, mesh = program(cache="none", refresh_group=0), parse("data=1")
    made = compiled.compile_for(chips.parse("v6e:1x1"), mesh, full, 8)
    moved, needed = audit.audit(made.text, need.passes(mesh, full, 8)).step
    assert needed is not None and 1 < moved / needed < 3.3
    assert made.temporaries < 0.5e9
    found = in_hbm(entry_and_loops(made.text), 768)
    assert not found, found


@pytest.mark.parametrize(
    ("where", "mesh", "quantize"), [("v6e:1x1", "data=1", "int8"), ("v6e:2x2", "tensor=4", None)]
)
def test_a_prompt_of_8192(where, mesh, quantize):
    """Memory is linear in length; no array is as large as the square of it."""
    held = []
    for columns in (4352, 8448):
        long = program(cache="none", length=columns, refresh_group=0)
        made = compiled.compile_for(chips.parse(where), parse(mesh), long, 1, quantize)
        assert made.total < chips.parse(where).chip.hbm
        assert not in_hbm(entry_and_loops(made.text), columns)
        held.append(made.temporaries)
    assert held[1] - held[0] < (8448 - 4352) * 2**16 and held[1] < 0.9e9


def entry_and_loops(text):
    """The program without the insides of fusions, whose values are not stored."""
    parts = re.split(r"\n(?=\S)", text)
    return "\n".join(part for part in parts if not part.startswith("%fused_computation"))
