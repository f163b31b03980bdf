"""Headers that lie, in every way the format allows, and random damage."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leapjax import UserError
from leapjax.converters.safetensors_file import read_header, write_file


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


CASES = {
    "shape needs more": {"a": entry(shape=(3,))},
    "shape needs less": {"a": entry(shape=(1,))},
    "beyond the end": {"a": entry(shape=(4,), offsets=(0, 16))},
    "hole": {"a": entry(shape=(1,), offsets=(4, 8))},
    "overlap": {"a": entry(), "b": entry(shape=(1,), offsets=(4, 8))},
    "tail": {"a": entry(shape=(1,), offsets=(0, 4))},
    "reversed": {"a": entry(offsets=(8, 0))},
    "negative": {"a": entry(offsets=(-8, 0))},
    "negative size": {"a": entry(shape=(-2,))},
    "fraction": {"a": entry(shape=(2.0,))},
    "true": {"a": entry(shape=(True,), offsets=(0, 4))},
    "enormous": {"a": entry(shape=(2**62, 2**62), offsets=(0, 8))},
    "many axes": {"a": entry(shape=(1,) * 100)},
    "nobody's dtype": {"a": entry(dtype="X8")},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "not an entry": {"a": 3},
    "metadata": {"__metadata__": {"a": 3}},
    "list": [1],
    "twice": b'{"a": 1, "a": 2}',
    "not JSON": b"{nope",
    "not text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "newline in a name": {"a\nb\x1b[31m": entry(shape=(3,))},
    "newline in a dtype": {"a": entry(dtype="a\nb\x1b[31m")},
}


@pytest.mark.parametrize("case", CASES)
def test_lying_header(case, tmp_path, safetensors, refused):
    file = safetensors(tmp_path / "model.safetensors", CASES[case], bytes(8))
    message = refused(lambda: read_header(file), "model.safetensors", "fetch the file again")
    assert "\x1b" not in message


def test_a_dtype_that_no_weight_has(tmp_path, safetensors, refused):
    header = {"a": entry(dtype="F8_E4M3", shape=(8,))}
    file = safetensors(tmp_path / "model.safetensors", header, bytes(8))
    refused(lambda: read_header(file), "tensor 'a'", "F8_E4M3", "unquantised")


@pytest.mark.parametrize("length", [0, 9, 2**32, 2**63, 2**64 - 1])
def test_lying_header_length(length, tmp_path, safetensors, refused):
    file = safetensors(tmp_path / "m.safetensors", {"a": entry()}, bytes(8), length=length)
    refused(lambda: read_header(file), "m.safetensors")


@pytest.mark.parametrize("size", range(0, 77, 7))
def test_truncated_anywhere(size, tmp_path, safetensors, refused):
    file = safetensors(tmp_path / "m.safetensors", {"a": entry()}, bytes(8))
    data = file.read_bytes()
    assert size < len(data)
    file.write_bytes(data[:size])
    refused(lambda: read_header(file), "m.safetensors")


def test_truncated_after_the_header_was_read(tmp_path, safetensors, refused):
    file = safetensors(tmp_path / "m.safetensors", {"a": entry()}, bytes(8))
    tensor = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[:-3])
    refused(lambda: tensor.rows(0, 2), "tensor 'a'", "3 bytes before")


def test_reads_what_the_library_writes_and_back(tmp_path):
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(0)
    values = {
        "f32": rng.standard_normal((3, 4)).astype(np.float32),
        "bf16": rng.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
        "f16": rng.standard_normal(5).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "i64": np.arange(3),
        "bool": np.array([True, False]),
    }
    save_file(values, tmp_path / "a.safetensors", {"format": "pt"})
    tensors = read_header(tmp_path / "a.safetensors")
    got = {name: t.rows(0, t.shape[0]) for name, t in tensors.items()}
    entries = {name: (v.dtype, v.shape) for name, v in values.items()}
    assert sum(write_file(tmp_path / "b.safetensors", entries, lambda n: [values[n]])) == sum(
        v.nbytes for v in values.values()
    )
    again = load_file(tmp_path / "b.safetensors")
    for name, value in values.items():
        for copy in (got[name], again[name]):
            assert copy.dtype == value.dtype
            np.testing.assert_array_equal(copy, value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
near_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F4"]) | json_like,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_like,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | json_like,
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    header=st.dictionaries(st.text(max_size=4), near_entry | json_like, max_size=3),
    data=st.binary(max_size=40),
)
def test_any_header_is_read_or_refused(header, data, tmp_path_factory):
    text = json.dumps(header).encode()
    file = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    try:
        tensors = read_header(file)
    except UserError as e:
        assert "\n" not in str(e)
        return
    assert sum(t.nbytes for t in tensors.values()) == len(data)
    for tensor in tensors.values():
        if tensor.shape:
            assert tensor.rows(0, tensor.shape[0]).shape == tensor.shape


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_refused(data, golden_bytes, tmp_path_factory):
    content = bytearray(golden_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, 1200))
        content[where] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, 5, 500, len(content) - 1]))
    file = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    file.write_bytes(content[:cut])
    try:
        read_header(file)
    except UserError as e:
        assert "\n" not in str(e)


@pytest.fixture(scope="module")
def golden_bytes():
    from pathlib import Path

    folder = Path(__file__).parent.parent / "golden" / "dream-b-tied-bf16"
    return (folder / "model.safetensors").read_bytes()
