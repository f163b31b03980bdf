"""The checkpoint folder: written piece by piece, read in parts, refused when damaged."""

import json
import math
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import UserError, checkpoint, checkpoint_writer
from leapjax.checkpoint_writer import Layout, Writer
from leapjax.models import param_shapes, parse_config

RAW = {
    "model_type": "Dream",
    "vocab_size": 37,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mask_token_id": 36,
    "eos_token_id": 35,
}
CONFIG = parse_config(RAW)


def random_params(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(dtype),
        param_shapes(CONFIG),
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint, and its params as numpy arrays."""
    params = random_params(np.float32)
    checkpoint.save(tmp_path / "it", params, RAW, {"tokenizer.json": b"{}"})
    return tmp_path / "it", params


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a), b)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_saved_params_come_back(dtype, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "CHUNK_BYTES", chunk)
    params = random_params(dtype)
    digest = checkpoint.save(tmp_path / "it", jax.tree.map(jax.numpy.asarray, params), RAW, {})
    monkeypatch.undo()  # a reader takes the chunks as they are
    got = checkpoint.load_params(tmp_path / "it", CONFIG)
    same(got, params)
    assert got["embed"].dtype == dtype and checkpoint.model_hash(tmp_path / "it") == digest
    assert checkpoint.is_checkpoint(tmp_path / "it") and not checkpoint.is_checkpoint(tmp_path)
    assert checkpoint.read_config(tmp_path / "it") == RAW
    with ocp.StandardCheckpointer() as stock:
        same(stock.restore(tmp_path / "it" / "params"), params)


def test_hash_is_of_the_weights_alone(tmp_path, monkeypatch):
    params = random_params(np.float32)
    one = checkpoint.save(
        tmp_path / "one", params, RAW, {"a.txt": b"a"}, manifest_extra={"note": 1}
    )
    monkeypatch.setattr(checkpoint_writer, "CHUNK_BYTES", 64)
    two = checkpoint.save(tmp_path / "two", params, RAW, {})
    params["layers"]["q"][1, 2, 3] += 1
    three = checkpoint.save(tmp_path / "three", params, RAW, {})
    half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    four = checkpoint.save(tmp_path / "four", half, RAW, {})
    assert one == two and len({one, three, four}) == 3


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    stacked=st.booleans(),
    chunk=st.integers(1, 400),
    data=st.data(),
)
def test_any_cut_reads_like_numpy(shape, stacked, chunk, data, tmp_path_factory):
    stacked = stacked and len(shape) > 1
    name = "layers.x" if stacked else "x"
    values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    folder = tmp_path_factory.mktemp("cut")
    before = checkpoint_writer.CHUNK_BYTES
    checkpoint_writer.CHUNK_BYTES = chunk
    try:
        with Writer(folder / "it", {name: (values.shape, values.dtype)}) as writer:
            slices = list(enumerate(values)) if stacked else [(0, values)]
            for layer, part in data.draw(st.permutations(slices)):  # in any order
                at = 0
                while at < len(part):
                    step = data.draw(st.integers(1, len(part)))
                    writer.write(name, layer, at, part[at : at + step])
                    at += step
            writer.commit({})
    finally:
        checkpoint_writer.CHUNK_BYTES = before
    reader = checkpoint.Reader(folder / "it")
    index = tuple(
        data.draw(st.integers(0, n - 1) | st.slices(n).filter(lambda s: s.step in (None, 1)))
        for n in shape[: data.draw(st.integers(0, len(shape)))]
    )
    np.testing.assert_array_equal(reader.read(name, index), values[index])
    with ocp.StandardCheckpointer() as stock:
        same(stock.restore(folder / "it" / "params"), checkpoint.unflatten({name: values}))


def test_large_leaves_are_cut_evenly():
    embed = Layout("embed", (126464, 4096), np.dtype(ml_dtypes.bfloat16))
    assert embed.chunk_bytes <= checkpoint_writer.CHUNK_BYTES
    assert 126464 % embed.chunk_rows == 0 and len(list(embed.files())) < 40
    gate = Layout("layers.gate", (32, 4096, 12288), np.dtype(ml_dtypes.bfloat16))
    assert gate.chunk == (1, 2048, 12288)


def test_writer_refuses_what_does_not_fit(tmp_path):
    leaves = {"layers.x": ((2, 3, 4), np.dtype(np.float32))}
    good = np.zeros((3, 4), np.float32)
    for layer, start, values in [
        (0, 1, good[:2]),  # not the next row
        (0, 0, np.zeros((4, 4), np.float32)),  # too many rows
        (0, 0, np.zeros((3, 5), np.float32)),
        (0, 0, good.astype(np.float64)),
    ]:
        with pytest.raises(ValueError, match="don't fit"), Writer(tmp_path / "it", leaves) as w:
            w.write("layers.x", layer, start, values)
    with pytest.raises(ValueError, match=r"layers.x\[1\]: only 0"):
        with Writer(tmp_path / "it", leaves) as writer:
            writer.write("layers.x", 0, 0, good)
            writer.commit({})
    with pytest.raises(RuntimeError, match="without commit"), Writer(tmp_path / "it", leaves):
        pass
    for name in ("../x", "a/b", "manifest.json", "params", ".."):
        with pytest.raises(ValueError, match="bad file name"), Writer(tmp_path / "it", leaves) as w:
            w.add_file(name, b"")
    assert not list(tmp_path.iterdir())


def test_save_refuses_what_does_not_fit(tmp_path):
    params = random_params(np.float32)
    wide = random_params(np.float64)
    refused(lambda: checkpoint.save(tmp_path / "it", wide, RAW, {}), "float64")
    del params["head"]
    refused(lambda: checkpoint.save(tmp_path / "it", params, RAW, {}), "'head'")
    assert not list(tmp_path.iterdir())


def damage(folder):
    """Name -> (what to do to the checkpoint, words of the message)."""
    q = folder / "params" / "layers.q"
    manifest = folder / "manifest.json"

    def edit(**values):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))

    return {
        "no params": (lambda: shutil.rmtree(folder / "params"), ("params folder",)),
        "no leaf": (lambda: shutil.rmtree(q), ("layers.q",)),
        "no chunk": (lambda: (q / "1.0.0").unlink(), ("layers.q/1.0.0 is missing",)),
        "short": (lambda: (q / "1.0.0").write_bytes(b"x"), ("layers.q/1.0.0 has 1 bytes",)),
        "long": (lambda: (q / "1.0.0").write_bytes(bytes(999)), ("layers.q/1.0.0 has 999",)),
        "zarray": (lambda: (q / ".zarray").write_text("{"), ("layers.q/.zarray",)),
        "zarray list": (lambda: (q / ".zarray").write_text("[]"), ("layers.q/.zarray",)),
        "no manifest": (manifest.unlink, ("manifest.json is missing",)),
        "manifest text": (lambda: manifest.write_text("{"), ("manifest.json", "not valid JSON")),
        "manifest list": (lambda: manifest.write_text("[]"), ("manifest.json", "JSON object")),
        "manifest bytes": (lambda: manifest.write_bytes(b"\xff"), ("manifest.json",)),
        "other manifest": (lambda: manifest.write_text("{}"), ("not a leapjax manifest",)),
        "newer": (lambda: edit(format_version=99), ("version 99", "newer leapjax")),
        "edited": (lambda: edit(leaves={}), ("damaged",)),
        "no leaves": (lambda: edit(leaves=None), ("damaged",)),
    }


@pytest.mark.parametrize("case", list(damage(__import__("pathlib").Path())))
def test_damage_is_one_line(case, saved):
    folder, _ = saved
    act, words = damage(folder)[case]
    act()
    refused(lambda: checkpoint.load_params(folder, CONFIG), str(folder), *words)


def test_weights_of_another_shape(saved):
    folder, _ = saved
    other = parse_config(RAW | {"num_hidden_layers": 4})
    refused(lambda: checkpoint.load_params(folder, other), "layers.attn_norm", "(3, 8)", "(4, 8)")
    tied = parse_config(RAW | {"tie_word_embeddings": True})
    refused(lambda: checkpoint.load_params(folder, tied), "'head'", "config.json doesn't")


def test_changed_dtype_in_zarray(saved):
    folder, _ = saved
    file = folder / "params" / "embed" / ".zarray"
    file.write_text(file.read_text().replace("<f4", "<i4"))
    refused(lambda: checkpoint.load_params(folder, CONFIG), "params/embed")


def test_config_that_is_not_there(tmp_path):
    refused(lambda: checkpoint.read_config(tmp_path), "config.json is missing")
    refused(lambda: checkpoint.read_config(tmp_path / "no"), "config.json is missing")


def test_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with checkpoint.new_folder(tmp_path / "a" / "b" / "it") as folder:
            (folder / "x").write_text("x")
            assert not (tmp_path / "a" / "b" / "it").exists()
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with checkpoint.new_folder(tmp_path / "a" / "it") as folder:
        (folder / "config.json").write_text("1")
    assert (tmp_path / "a" / "it" / "config.json").read_text() == "1"
    refused(lambda: checkpoint.new_folder(tmp_path / "a" / "it").__enter__(), "exists already")
    with checkpoint.new_folder(tmp_path / "a" / "it", overwrite=True) as folder:
        (folder / "config.json").write_text("2")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["it"]
    assert (tmp_path / "a" / "it" / "config.json").read_text() == "2"
    (tmp_path / "file").write_text("")
    refused(lambda: checkpoint.new_folder(tmp_path / "file" / "it").__enter__(), "can't be written")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "it")
    refused(lambda: checkpoint.new_folder(tmp_path / "link", True).__enter__(), "won't remove")


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 100, 33), (0, 4)])
def test_jax_takes_read_memory_as_it_is(shape):
    """A copy beside the original would cost an 8B model gigabytes."""
    values = checkpoint.aligned_empty(shape, np.dtype(ml_dtypes.bfloat16))
    assert values.shape == shape and values.flags.c_contiguous
    values.fill(1)
    placed = jax.device_put(values, jax.devices("cpu")[0])
    if values.size:
        assert placed.unsafe_buffer_pointer() == values.ctypes.data
