"""Builders of hub folders, good and bad, without torch."""

import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from leapjax import UserError

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def golden():
    """Folder of the golden checkpoints."""
    return GOLDEN


@pytest.fixture
def hub(tmp_path):
    """hub(name) -> a writable copy of a golden checkpoint."""

    def copy(name):
        target = tmp_path / f"hub-{name}"
        shutil.copytree(GOLDEN / name, target)
        return target

    return copy


@pytest.fixture
def refused():
    """refused(call, *words): `call()` raises a one-line UserError that has all the words."""

    def check(call, *words):
        with pytest.raises(UserError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message and len(message) < 600, message
        for word in words:
            assert word in message, message
        return message

    return check


@pytest.fixture
def safetensors():
    """safetensors(file, header, data=b"", length=None): write a file with any header."""

    def write(file, header, data=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        claimed = len(text) if length is None else length
        file.write_bytes(struct.pack("<Q", claimed) + text + data)
        return file

    return write


class Torch:
    """Writes what torch.save writes, byte for byte of our choosing."""

    def text(self, s):
        return b"X" + struct.pack("<I", len(s.encode())) + s.encode()

    def int(self, n):
        if -(2**31) <= n < 2**31:
            return b"J" + struct.pack("<i", n)
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def name(self, module, attribute):
        return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"

    def tuple(self, *items):
        return b"(" + b"".join(items) + b"t"

    def call(self, module, attribute, *arguments):
        return self.name(module, attribute) + self.tuple(*arguments) + b"R"

    def storage(self, key, count, kind="FloatStorage"):
        parts = self.text("storage"), self.name("torch", kind), self.text(key), self.text("cpu")
        return self.tuple(*parts, self.int(count)) + b"Q"

    def tensor(self, key, count, offset, shape, strides, kind="FloatStorage"):
        return self.call(
            "torch._utils",
            "_rebuild_tensor_v2",
            self.storage(key, count, kind),
            self.int(offset),
            self.tuple(*map(self.int, shape)),
            self.tuple(*map(self.int, strides)),
            b"\x89",
            self.call("collections", "OrderedDict"),
        )

    def dict(self, entries):
        body = b"".join(self.text(k) + v for k, v in entries.items())
        return b"\x80\x02" + self.call("collections", "OrderedDict") + b"(" + body + b"u."

    def save(self, file, pickled, storages=(), byteorder="little", compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(file, "w", compression) as z:
            z.writestr("archive/data.pkl", pickled)
            if byteorder:
                z.writestr("archive/byteorder", byteorder)
            for key, data in dict(storages).items():
                z.writestr(f"archive/data/{key}", data)
            z.writestr("archive/version", "3\n")
        return file


@pytest.fixture
def torch_format():
    """The builder of `.bin` files."""
    return Torch()


def _write_hub(folder, raw, tensors):
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="session")
def write_hub():
    """write_hub(folder, config, {name: array}) -> folder with one safetensors file."""
    return _write_hub


@pytest.fixture(scope="session")
def read_all():
    """read_all(folder) -> {name: (dtype name, shape, bytes)} by the safetensors library."""

    def read(folder):
        from safetensors import safe_open

        out = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(str(file), "np") as f:
                for name in f.keys():
                    value = f.get_tensor(name)
                    assert name not in out
                    out[name] = value.dtype.name, value.shape, value.tobytes()
        return out

    return read
