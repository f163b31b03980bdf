"""Every golden checkpoint: converts, restores, answers as the original, and goes back."""

import filecmp
import functools
import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from leapjax import checkpoint, converters, model_files
from leapjax.converters import source
from leapjax.models import param_shapes, parse_config, transformer

NAMES = ["llada-a", "llada-b-gqa-bias-bf16", "llada-c-tied", "dream-a", "dream-b-tied-bf16"]
NAMES += ["a2d-a", "a2d-b-qwen2", "sdar-a", "fast-dllm-v2-a"]
NAMES += ["llada-moe-a", "llada2-a", "sdar-moe-a"]
SHARDED = ["llada-a", "dream-a"]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a), b)


@functools.partial(jax.jit, static_argnums=1)
def raw_logits(params, config, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    hidden = transformer.hidden_states(params, config, ids, positions, jnp.ones(ids.shape, bool))
    return transformer.head(params, config, hidden)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_originals(name, golden, tmp_path):
    converters.convert(golden / name, tmp_path / "out")
    config = parse_config(checkpoint.read_config(tmp_path / "out"))
    params = checkpoint.load_params(tmp_path / "out", config)
    with np.load(golden / f"{name}.logits.npz") as wanted:
        for key in [k for k in wanted if k.startswith("ids")]:
            want = wanted[key.replace("ids", "logits")]
            if (block := key.replace("ids", "block")) in wanted:
                config = config.with_block_length(int(wanted[block]))
            got = np.asarray(raw_logits(params, config, wanted[key]))
            for row, ref in zip(got, want, strict=True):
                assert np.abs(row - ref).max() <= 2e-5 * np.abs(ref).max()


@pytest.mark.parametrize("name", NAMES)
def test_stock_orbax_restores_it(name, golden, tmp_path):
    converters.convert(golden / name, tmp_path / "out")
    config = parse_config(checkpoint.read_config(tmp_path / "out"))
    folder = tmp_path / "out" / "params"
    with ocp.StandardCheckpointer() as stock:
        plain = stock.restore(folder)
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
            ),
            plain,
        )
        placed = stock.restore(folder, target)
    assert jax.tree.map(lambda a: a.shape, plain) == param_shapes(config)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
    same(placed, plain)
    same(checkpoint.load_params(tmp_path / "out", config), plain)
    same(converters.load_hub(golden / name, config), plain)
    with ocp.PyTreeCheckpointer() as stock:
        same(stock.restore(folder), plain)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_bit_exact(name, golden, tmp_path, read_all):
    converters.convert(golden / name, tmp_path / "out")
    converters.to_hub(tmp_path / "out", tmp_path / "hub", shard_size=150_000)
    got = read_all(tmp_path / "hub")
    tensors = source.open_source(golden / name).tensors
    want = {k: (t.dtype.name, t.shape, t.rows(0, t.shape[0]).tobytes()) for k, t in tensors.items()}
    assert got == want
    index = tmp_path / "hub" / "model.safetensors.index.json"
    if len(list((tmp_path / "hub").glob("*.safetensors"))) > 1:
        assert json.loads(index.read_text())["weight_map"].keys() == want.keys()
    # And once more: the same weights by their hash, the same side files.
    converters.convert(tmp_path / "hub", tmp_path / "again")
    assert checkpoint.model_hash(tmp_path / "again") == checkpoint.model_hash(tmp_path / "out")
    sides = [n for n in model_files.SIDE_FILES if (golden / name / n).exists()]
    assert "config.json" in sides and len(sides) > 3
    for folder in ("out", "hub", "again"):
        match, differ, errors = filecmp.cmpfiles(golden / name, tmp_path / folder, sides, False)
        assert match == sides and not differ and not errors


@pytest.fixture
def small(golden, tmp_path, write_hub):
    """small(name, **changes): a bfloat16 copy, tied, with one KV head; a change None drops it."""

    def make(name, **changes):
        raw = checkpoint.read_config(golden / name)
        width = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
        tensors = source.open_source(golden / name).tensors
        values = {}
        for key, tensor in tensors.items():
            rows = width if ".k_proj" in key or ".v_proj" in key else tensor.shape[0]
            values[key] = tensor.rows(0, rows).astype(ml_dtypes.bfloat16)
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
        values = {k: v for k, v in (values | changes).items() if v is not None}
        raw |= {"num_key_value_heads": 1, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
        return write_hub(tmp_path / "hub", raw, values)

    return make


@pytest.mark.parametrize("name", ["sdar-a", "fast-dllm-v2-a"])
@pytest.mark.parametrize("head", [True, False], ids=["head stored", "head left out"])
def test_tied_with_one_kv_head_in_bfloat16(name, head, small, read_all, tmp_path):
    folder = small(name, **({} if head else {"lm_head.weight": None}))
    converters.convert(folder, tmp_path / "out")
    converters.to_hub(tmp_path / "out", tmp_path / "back")
    assert read_all(tmp_path / "back") == read_all(folder)
    config = parse_config(checkpoint.read_config(tmp_path / "out"))
    params = checkpoint.load_params(tmp_path / "out", config)
    assert params["layers"]["k"].shape[2] == config.head_dim and params["embed"].dtype == "bfloat16"
    same(converters.load_hub(folder, config), params)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("sdar-a", "self_attn.q_proj.bias"), ("fast-dllm-v2-a", "self_attn.q_norm.weight")],
)
def test_the_other_qwens_tensors_are_refused(name, tensor, small, tmp_path, refused):
    """And one that is missing, or a head that differs from the embedding it is tied to."""
    extra, vector = f"model.layers.1.{tensor}", np.ones(8, ml_dtypes.bfloat16)
    refused(lambda: converters.check(small(name, **{extra: vector})), extra, "unexpected")
    gone = "model.layers.2.mlp.down_proj.weight"
    refused(lambda: converters.check(small(name, **{gone: None})), gone, "missing")
    head = np.ones((336, 48), ml_dtypes.bfloat16)
    other = small(name, **{"lm_head.weight": head})
    refused(lambda: converters.convert(other, tmp_path / "out"), "lm_head.weight", "differs")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", model_files.SIDE_FILES)
def test_every_side_file_goes_along(name, hub, tmp_path):
    """Into a checkpoint, back, and into a model fine-tuned from either."""
    from leapjax.training import setup

    folder = hub("llada-c-tied")
    if not (folder / name).exists():
        (folder / name).write_bytes(b"of this model: 1\n")
    want = (folder / name).read_bytes()
    converters.convert(folder, tmp_path / "out")
    converters.to_hub(tmp_path / "out", tmp_path / "hub")
    for place in (folder, tmp_path / "out", tmp_path / "hub"):
        assert (place / name).read_bytes() == want
        assert name == "config.json" or setup.side_content(place)[name] == want


@pytest.mark.parametrize("name", SHARDED)
def test_manifest_is_reproducible_and_true(name, golden, tmp_path):
    import hashlib

    converters.convert(golden / name, tmp_path / "one")
    os.environ["TZ"], before = "Asia/Tokyo", os.environ.get("TZ")
    try:
        converters.convert(golden / name, tmp_path / "elsewhere" / "two")
    finally:
        os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    one = (tmp_path / "one" / "manifest.json").read_bytes()
    assert one == (tmp_path / "elsewhere" / "two" / "manifest.json").read_bytes()
    manifest = json.loads(one)
    for file, entry in manifest["source"]["files"].items():
        data = (golden / name / file).read_bytes()
        want = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert entry == want
    assert manifest["versions"]["jax"] == jax.__version__
    config = parse_config(checkpoint.read_config(golden / name))
    sizes = jax.tree.leaves(
        jax.tree.map(np.prod, param_shapes(config), is_leaf=lambda x: isinstance(x, tuple))
    )
    assert manifest["param_count"] == sum(sizes)


def test_code_files_stay_behind(hub, tmp_path):
    folder = hub("llada-a")
    (folder / "modeling_llada.py").write_text("raise SystemExit")
    (folder / "notes.txt").write_text("hello")
    converters.convert(folder, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "tokenizer.json" in names and not names & {"modeling_llada.py", "notes.txt"}


@pytest.mark.parametrize("name", ["llada-a", "llada-c-tied", "dream-b-tied-bf16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_casts_each_weight(name, dtype, golden, tmp_path):
    report = converters.convert(golden / name, tmp_path / "out", dtype=dtype)
    assert report.dtype == dtype
    config = parse_config(checkpoint.read_config(tmp_path / "out"))
    got = checkpoint.load_params(tmp_path / "out", config)
    kept = converters.load_hub(golden / name, config)
    kind = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[dtype]
    same(got, jax.tree.map(lambda a: np.asarray(a).astype(kind), kept))
    same(converters.load_hub(golden / name, config, dtype=dtype), jax.tree.map(np.asarray, got))


@pytest.mark.parametrize(
    ("name", "key"), [("llada-a", "torch_dtype"), ("a2d-a", "dtype"), ("sdar-a", "torch_dtype")]
)
def test_export_after_a_cast_says_so_in_the_config(name, key, golden, tmp_path):
    converters.convert(golden / name, tmp_path / "out", dtype="bfloat16")
    converters.to_hub(tmp_path / "out", tmp_path / "hub")
    said = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert said.pop(key) == "bfloat16"
    want = json.loads((golden / name / "config.json").read_text())
    assert want.pop(key) == "float32" and said == want


@pytest.mark.parametrize("name", ["llada-b-gqa-bias-bf16", "dream-a"])
def test_sharded_loading_reads_each_part_once(name, golden, tmp_path, monkeypatch):
    devices = jax.devices()
    if len(devices) < 4:
        pytest.skip(f"needs 4 devices, has {len(devices)}")
    mesh = jax.sharding.Mesh(np.array(devices[:4]).reshape(2, 2), ("data", "tensor"))
    spec = jax.sharding.PartitionSpec
    config = parse_config(checkpoint.read_config(golden / name))

    def place(path, shape):
        key = path[-1].key
        axes = [None] * len(shape)
        if key in ("q", "gate"):
            axes[-1] = "tensor"
        if key in ("down", "embed", "o"):
            axes[-2] = "tensor"
        return jax.sharding.NamedSharding(mesh, spec(*axes))

    shardings = jax.tree_util.tree_map_with_path(
        place, param_shapes(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    converters.convert(golden / name, tmp_path / "out")
    reads = []
    read = checkpoint.Reader.read

    def counted(self, leaf, index=...):
        reads.append((leaf, str(index)))
        return read(self, leaf, index)

    monkeypatch.setattr(checkpoint.Reader, "read", counted)
    plain = jax.tree.map(np.asarray, converters.load_hub(golden / name, config))
    for got in (
        checkpoint.load_params(tmp_path / "out", config, shardings=shardings),
        converters.load_hub(golden / name, config, shardings=shardings),
    ):
        same(got, plain)
        assert got["layers"]["q"].sharding == shardings["layers"]["q"]
        shard = got["layers"]["q"].addressable_shards[0].data
        assert shard.shape[-1] * 2 == got["layers"]["q"].shape[-1]
    assert len(reads) == len(set(reads))  # the replicas on `data` share a read
    assert len([leaf for leaf, _ in reads if leaf == "layers.q"]) == 2
