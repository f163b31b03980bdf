"""`.bin` files: what torch may write is read, what could run code or lies is refused."""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import UserError
from leapjax.converters.torch_file import read_torch
from leapjax.converters.torch_pickle import read_views

VALUES = np.arange(12, dtype=np.float32)


def read(file):
    return {n: t.rows(0, t.shape[0]) if t.shape else t.dtype for n, t in read_torch(file).items()}


def test_offsets_strides_and_shared_storages(tmp_path, torch_format):
    t = torch_format
    pickled = t.dict(
        {
            "whole": t.tensor("0", 12, 0, (3, 4), (4, 1)),
            "tied": t.tensor("0", 12, 0, (3, 4), (4, 1)),
            "part": t.tensor("0", 12, 4, (2, 4), (4, 1)),
            "turned": t.tensor("0", 12, 0, (4, 3), (1, 4)),
            "spread": t.tensor("0", 12, 1, (3, 2), (4, 2)),
            "repeated": t.tensor("0", 12, 5, (3, 2), (0, 1)),
            "empty": t.tensor("0", 12, 0, (0, 4), (4, 1)),
            "parameter": t.call(
                "torch._utils",
                "_rebuild_parameter",
                t.tensor("0", 12, 0, (12,), (1,)),
                b"\x88",
                t.call("collections", "OrderedDict"),
            ),
        }
    )
    got = read(t.save(tmp_path / "m.bin", pickled, {"0": VALUES.tobytes()}))
    grid = VALUES.reshape(3, 4)
    want = {
        "whole": grid,
        "tied": grid,
        "part": grid[1:],
        "turned": grid.T,
        "spread": grid[:, 1::2],
        "repeated": np.broadcast_to(VALUES[5:7], (3, 2)),
        "empty": np.zeros((0, 4), np.float32),
        "parameter": VALUES,
    }
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    tensors = read_torch(tmp_path / "m.bin")
    np.testing.assert_array_equal(tensors["turned"].rows(1, 3), grid.T[1:3])


@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("FloatStorage", np.float32),
        ("DoubleStorage", np.float64),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
    ],
)
@pytest.mark.parametrize("order", ["little", "big", None])
def test_dtypes_and_byte_orders(kind, dtype, order, tmp_path, torch_format):
    t = torch_format
    values = VALUES.astype(dtype)
    stored = values.view(f"u{values.itemsize}")
    stored = stored.byteswap() if order == "big" else stored
    pickled = t.dict({"a": t.tensor("k", 12, 0, (12,), (1,), kind)})
    file = t.save(tmp_path / "m.bin", pickled, {"k": stored.tobytes()}, byteorder=order)
    got = read(file)["a"]
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, values)


@pytest.mark.oracle
def test_reads_what_torch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: no oracle")
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    state = {
        "a": base,
        "tied": base,
        "turned": base.T,
        "slice": base[2:5, 1::3],
        "half": base.half(),
        "bf16": base.bfloat16(),
        "parameter": torch.nn.Parameter(base + 1),
        "scalar": torch.tensor(3.0),
        "long": torch.arange(4),
    }
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    torch.save(state, tmp_path / "m.bin")
    torch.save(model.state_dict(), tmp_path / "module.bin")
    for file, want in (("m.bin", state), ("module.bin", model.state_dict())):
        tensors = read_torch(tmp_path / file)
        assert list(tensors) == list(want)
        for name, value in want.items():
            assert tensors[name].shape == tuple(value.shape)
            if value.ndim:
                got = tensors[name].rows(0, value.shape[0]).astype(np.float64)
                np.testing.assert_array_equal(got, value.detach().double().numpy())


class Payload:
    """Creates a file when unpickled by anything that runs what it reads."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_payload_does_not_run(protocol, tmp_path, torch_format, refused):
    victim = tmp_path / "victim"
    data = pickle.dumps({"a": Payload(victim)}, protocol)
    file = torch_format.save(tmp_path / "pytorch_model.bin", data)
    refused(lambda: read_torch(file), "pytorch_model.bin")
    assert not victim.exists()
    pickle.loads(data)["a"].close()  # the payload is a real one
    assert victim.exists()


@pytest.mark.parametrize(
    "module, attribute",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch", "FloatStorage.__class__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "namedtuple"),
        ("torch.hub", "load"),
        ("leapjax", "load"),
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_any_other_global_is_named_and_refused(
    module, attribute, stacked, tmp_path, torch_format, refused
):
    t = torch_format
    name = t.name(module, attribute)
    if stacked:
        name = t.text(module) + t.text(attribute) + b"\x93"
    file = t.save(tmp_path / "m.bin", b"\x80\x04" + name + t.tuple() + b"R.")
    refused(lambda: read_torch(file), f"{module}.{attribute}", "could run code", "safetensors")


def test_build_cannot_reach_into_objects(tmp_path, torch_format, refused):
    t = torch_format
    state = b"}" + t.text("dtype") + t.int(1) + b"s"
    for target in (t.name("torch", "FloatStorage"), t.tensor("0", 12, 0, (12,), (1,))):
        file = t.save(tmp_path / "m.bin", b"\x80\x02" + target + state + b"b.")
        refused(lambda file=file: read_torch(file), "m.bin")


def bad_tensors(t):
    """Name -> (pickle, storages, words of the message)."""
    good = {"0": VALUES.tobytes()}
    tensor = t.tensor
    return {
        "beyond": (tensor("0", 12, 1, (3, 4), (4, 1)), good, "reaches element 12"),
        "stride": (tensor("0", 12, 0, (2, 2), (12, 1)), good, "reaches element"),
        "negative stride": (tensor("0", 12, 11, (12,), (-1,)), good, "negative"),
        "negative size": (tensor("0", 12, 0, (-1,), (1,)), good, "negative"),
        "negative offset": (tensor("0", 12, -1, (2,), (1,)), good, "damaged"),
        "huge": (tensor("0", 12, 0, (2**62, 2**62), (0, 1)), good, "reaches element"),
        "storage too short": (tensor("0", 12, 0, (12,), (1,)), {"0": b"x"}, "has 1 bytes"),
        "storage lies": (tensor("0", 10**12, 0, (12,), (1,)), good, "48 bytes"),
        "no storage": (tensor("1", 12, 0, (12,), (1,)), good, "storage '1' is missing"),
        "unequal axes": (tensor("0", 12, 0, (3, 4), (1,)), good, "damaged"),
        "quantised": (tensor("0", 12, 0, (12,), (1,), "QInt8Storage"), good, "QInt8Storage"),
        "number": (t.int(3), {}, "no tensor"),
        "string": (t.text("x"), {}, "no tensor"),
    }


@pytest.mark.parametrize("case", list(bad_tensors(__import__("types").SimpleNamespace(
    tensor=lambda *a: b"", int=lambda n: b"", text=lambda s: b""))))  # fmt: skip
def test_lying_tensor(case, tmp_path, torch_format, refused):
    value, storages, words = bad_tensors(torch_format)[case]
    file = torch_format.save(tmp_path / "m.bin", torch_format.dict({"w": value}), storages)
    refused(lambda: read_torch(file), "m.bin", words)


def good_file(path, t, **options):
    pickled = t.dict({"w": t.tensor("0", 12, 0, (12,), (1,))})
    return t.save(path, pickled, {"0": VALUES.tobytes()}, **options)


def test_compressed_entries_are_refused(tmp_path, torch_format, refused):
    file = good_file(tmp_path / "m.bin", torch_format, compression=zipfile.ZIP_DEFLATED)
    refused(lambda: read_torch(file), "compressed")


def test_unknown_byte_order_is_refused(tmp_path, torch_format, refused):
    file = good_file(tmp_path / "m.bin", torch_format, byteorder="middle")
    refused(lambda: read_torch(file), "byte order")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\3\4"]
)
def test_not_a_zip(data, tmp_path, refused):
    (tmp_path / "m.bin").write_bytes(data)
    refused(lambda: read_torch(tmp_path / "m.bin"), "m.bin")


def test_old_format_says_what_to_do(tmp_path, refused):
    (tmp_path / "m.bin").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    refused(lambda: read_torch(tmp_path / "m.bin"), "old-style", "safetensors")


@pytest.mark.parametrize("name", ["/archive/data/0", "archive/../data/0"])
def test_bad_entry_names(name, tmp_path, torch_format, refused):
    file = good_file(tmp_path / "m.bin", torch_format)
    with zipfile.ZipFile(file, "a") as z:
        z.writestr(name, b"x")
    refused(lambda: read_torch(file), "entry name")


def test_overlapping_entries(tmp_path, torch_format, refused):
    file = good_file(tmp_path / "m.bin", torch_format)
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as z:
        first = z.getinfo("archive/data.pkl")
        place = data.rindex(b"archive/data/0")  # in the directory
    struct.pack_into("<L", data, place - 46 + 42, first.header_offset)
    file.write_bytes(data)
    refused(lambda: read_torch(file), "m.bin")


def test_directory_that_claims_gigabytes(tmp_path, torch_format, refused):
    file = good_file(tmp_path / "m.bin", torch_format)
    data = bytearray(file.read_bytes())
    struct.pack_into("<L", data, data.rindex(b"PK\5\6") + 12, 2**32 - 2)
    file.write_bytes(data)
    refused(lambda: read_torch(file), "not plausible")


def test_truncated_anywhere(tmp_path, torch_format, refused):
    whole = good_file(tmp_path / "m.bin", torch_format).read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "m.bin").write_bytes(whole[:size])
        refused(lambda: read_torch(tmp_path / "m.bin"), "m.bin")


def test_a_laughing_pickle_takes_no_time(tmp_path, torch_format, refused):
    # Each tuple holds the previous one ten times: 10^40 elements if anything prints, compares
    # or hashes them.
    t = torch_format
    bomb = b"\x80\x02" + t.text("ha") + b"q\x00"
    for i in range(40):
        bomb += t.tuple(*[b"h" + bytes([i])] * 10) + b"q" + bytes([i + 1])
    for wrapped in (
        bomb + b".",
        bomb + b"}(h\x28X\1\0\0\0au.",
        b"\x80\x02}(X\1\0\0\0a" + bomb[2:] + b"u.",
    ):
        file = t.save(tmp_path / "m.bin", wrapped)
        refused(lambda file=file: read_torch(file), "m.bin")


PIECES = [
    *(bytes([c]) for c in b"(t}])RQsuaebN02\x88\x85\x86\x87\x93\x94."),
    *(b"q\x00", b"h\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f"),
    *(b"K\x05", b"J\xff\xff\xff\xff", b"I1\n", b"\x95\x00\x00\x00\x00"),
    *(b"X\x01\x00\x00\x00a", b"X\x07\x00\x00\x00storage", b"X\xff\xff\xff\xffa"),
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa",
    *(b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"),
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30))
def test_any_pickle_is_read_or_refused(pieces):
    for data in (b"\x80\x02" + b"".join(pieces), b"".join(pieces) + b"."):
        try:
            read_views(data, "m.bin")
        except UserError as e:
            assert "\n" not in str(e)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_refused(data, whole_file, tmp_path_factory):
    content = bytearray(whole_file)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("fuzz") / "m.bin"
    file.write_bytes(content)
    try:
        for tensor in read_torch(file).values():
            if tensor.shape:
                tensor.rows(0, tensor.shape[0])
    except UserError as e:
        assert "\n" not in str(e)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    from pathlib import Path

    folder = Path(__file__).parent.parent / "golden" / "llada-c-tied"
    with zipfile.ZipFile(folder / "pytorch_model.bin") as z:
        pickled = z.read("pytorch_model/data.pkl")
        storages = {i: z.read(f"pytorch_model/data/{i}") for i in range(20)}
    file = tmp_path_factory.mktemp("small") / "m.bin"
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("m/data.pkl", pickled)
        for key, value in storages.items():
            z.writestr(f"m/data/{key}", value[:0] if len(value) > 10_000 else value)
    return file.read_bytes()
