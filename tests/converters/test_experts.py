"""Experts: stacked from a tensor each or one a layer, there and back, and what is refused.

Names and shapes of LLaDA2 are spelled out here, from its modelling code, not from our table.
"""

import itertools
import json
import tempfile
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leapjax import checkpoint, converters
from leapjax.converters import fake, source
from leapjax.converters.tensor import Tensor
from leapjax.models import parse_config

MATRICES = ("gate", "up", "down")


@st.composite
def configs(draw):
    """A small LLaDA2's config.json; no two widths are equal."""
    groups, dense = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    return fake.scaled("llada2-mini", layers=draw(st.integers(1, 3)), scale=64) | {
        "first_k_dense_replace": dense,
        "head_dim": 12,
        "hidden_size": 10,
        "intermediate_size": 7,
        "moe_intermediate_size": 3,
        "n_group": groups,
        "num_attention_heads": heads[0],
        "num_experts": groups * draw(st.integers(2, 6)),
        "num_experts_per_tok": draw(st.integers(1, 2)),
        "num_key_value_heads": heads[1],
        "num_shared_experts": draw(st.integers(0, 2)),
        "rotary_dim": 6,
        "topk_group": groups,
        "use_bias": draw(st.booleans()),
        "use_qkv_bias": draw(st.booleans()),
    }


def llada2(raw, rng, merged):
    """A checkpoint's tensors, by name, and the parameters that they are: {leaf: [layers]}."""
    d, e, x = raw["hidden_size"], raw["head_dim"], raw["num_experts"]
    h, kv = raw["num_attention_heads"] * e, raw["num_key_value_heads"] * e
    tensors, leaves = {}, {}

    def add(name, shape, leaf=None, dtype=ml_dtypes.bfloat16):
        values = tensors[name] = rng.standard_normal(shape).astype(dtype)
        if leaf:
            leaves.setdefault(leaf, []).append(values.T)
        return values

    for name in ("model.word_embeddings", "lm_head"):
        add(f"{name}.weight", (raw["vocab_size"], d))
    add("model.norm.weight", (d,), "final_norm")
    dense, layers = raw["first_k_dense_replace"], raw["num_hidden_layers"]
    for n in range(layers):
        run = f"layers_{int(n >= dense)}." if 0 < dense < layers else "layers."
        at = f"model.layers.{n}"
        add(f"{at}.input_layernorm.weight", (d,), f"{run}attn_norm")
        add(f"{at}.post_attention_layernorm.weight", (d,), f"{run}mlp_norm")
        for kind, shape in (("weight", (d,)), ("bias", ()))[: 1 + raw["use_qkv_bias"]]:
            whole = add(f"{at}.attention.query_key_value.{kind}", (h + 2 * kv, *shape))
            for leaf, part in zip("qkv", np.split(whole, [h, h + kv]), strict=True):
                leaf = f"{run}{leaf}" + "_bias" * (kind == "bias")
                leaves.setdefault(leaf, []).append(part.T)
        for norm in ("query", "key"):
            add(f"{at}.attention.{norm}_layernorm.weight", (e,), f"{run}{norm[0]}_norm")
        add(f"{at}.attention.dense.weight", (d, h), f"{run}o")
        if raw["use_bias"]:
            add(f"{at}.attention.dense.bias", (d,), f"{run}o_bias")
        if n < dense:
            mlp(add, f"{at}.mlp", raw["intermediate_size"], d, run)
            continue
        add(f"{at}.mlp.gate.weight", (x, d), f"{run}router")
        add(f"{at}.mlp.gate.expert_bias", (x,), f"{run}router_bias", np.float32)
        if shared := raw["num_shared_experts"]:
            width = shared * raw["moe_intermediate_size"]
            mlp(add, f"{at}.mlp.shared_experts", width, d, f"{run}shared_")
        for matrix in MATRICES:
            shape = (raw["moe_intermediate_size"], d)
            shape = shape[::-1] if matrix == "down" else shape
            each = rng.standard_normal((x, *shape)).astype(ml_dtypes.bfloat16)
            if merged:
                tensors[f"{at}.mlp.experts.{matrix}_proj"] = each
            else:
                own = {f"{at}.mlp.experts.{i}.{matrix}_proj.weight": m for i, m in enumerate(each)}
                tensors.update(own)
            leaves.setdefault(f"{run}experts_{matrix}", []).append(np.swapaxes(each, 1, 2))
    return tensors, leaves


def mlp(add, where, width, d, leaf):
    """The three matrices of a gated MLP."""
    for matrix in MATRICES:
        shape = (d, width) if matrix == "down" else (width, d)
        add(f"{where}.{matrix}_proj.weight", shape, f"{leaf}{matrix}")


@given(configs(), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_any_shape_in_both_layouts(write_hub, read_all, raw, merged, seed):
    tensors, leaves = llada2(raw, np.random.default_rng(seed), merged)
    with tempfile.TemporaryDirectory() as folder:
        hub, out, back = (Path(folder) / name for name in ("hub", "out", "back"))
        write_hub(hub, raw, tensors)
        report = converters.convert(hub, out)
        assert report.param_count == sum(v.size for v in tensors.values())
        converters.to_hub(out, back)
        assert read_all(back) == read_all(hub)
        config = parse_config(raw)
        got = checkpoint.flatten(checkpoint.load_params(out, config))
        direct = checkpoint.flatten(converters.load_hub(hub, config))
        assert checkpoint.verify(out).manifest["source"]["merged_experts"] is (
            merged and any("experts" in name for name in leaves)
        )
    assert {*got} == {*leaves, "embed", "head"}
    for name, layers in leaves.items():
        want = layers[0] if name == "final_norm" else np.stack(layers)
        for params in (got, direct):
            assert params[name].dtype == want.dtype, name
            np.testing.assert_array_equal(np.asarray(params[name]), want, err_msg=name)


@pytest.fixture
def changed(golden, write_hub, tmp_path):
    """changed(edit): llada2-a as one file, after `edit(tensors)`."""

    def make(edit, merged=()):
        raw = json.loads((golden / "llada2-a" / "config.json").read_text())
        raw["mask_token_id"] = raw["vocab_size"] - 2
        found = source.open_source(golden / "llada2-a").tensors
        values = {name: t.rows(0, t.shape[0]) for name, t in found.items()}
        for layer in merged:
            merge(values, f"model.layers.{layer}.mlp.experts", raw["num_experts"])
        edit(values)
        return write_hub(tmp_path / "changed", raw, values)

    return make


def merge(values, where, count):
    """Replace the tensors of a layer's experts by one a matrix."""
    for matrix in MATRICES:
        own = [values.pop(f"{where}.{i}.{matrix}_proj.weight") for i in range(count)]
        values[f"{where}.{matrix}_proj"] = np.stack(own)


E0 = "model.layers.1.mlp.experts.0.up_proj.weight"
LAST = "model.layers.2.mlp.experts.11.down_proj.weight"
MORE = "model.layers.2.mlp.experts.12.down_proj.weight"
QKV = "model.layers.0.attention.query_key_value.weight"
ALL = "model.layers.2.mlp.experts.gate_proj"
BAD = {
    "missing": (lambda t: t.pop(LAST), (), LAST, "missing"),
    "one too many": (lambda t: t.update({MORE: t[LAST]}), (), MORE, "unexpected"),
    "transposed": (lambda t: t.update({E0: t[E0].T}), (), E0, "shape"),
    "in a dense layer": (
        lambda t: t.update({E0.replace(".1.", ".0.", 1): t[E0]}),
        (),
        "layers.0.mlp.experts.0",
        "unexpected",
    ),
    "another dtype": (
        lambda t: t.update({LAST: t[LAST].astype(np.float16)}),
        (),
        LAST,
        "float16",
        "--dtype",
    ),
    "integers": (lambda t: t.update({E0: t[E0].astype(np.int8)}), (), E0, "int8"),
    "rows of q, k, v": (lambda t: t.update({QKV: t[QKV][:-1]}), (), QKV, "(127, 32)", "(128, 32)"),
    "one merged": (lambda t: None, (2,), ALL, "some layers only", "merge all or none"),
    "one not merged": (
        lambda t: t.update({E0: t.pop("model.layers.1.mlp.experts.up_proj")[0]}),
        (1, 2),
        "model.layers.1.mlp.experts.up_proj",
        "some layers only",
    ),
    "merged, one too few": (lambda t: t.update({ALL: t[ALL][:-1]}), (1, 2), ALL, "(11, 16, 32)"),
    "merged and missing": (lambda t: t.pop(ALL), (1, 2), ALL, "missing"),
    "in both layouts": (
        lambda t: t.update({E0: t["model.layers.1.mlp.experts.up_proj"][0]}),
        (1, 2),
        E0,
        "unexpected",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_other_experts_are_refused(case, changed, refused):
    edit, merged, *words = BAD[case]
    refused(lambda: converters.check(changed(edit, merged)), *words)


def test_empty_tensors_are_left_out(write_hub, read_all, tmp_path):
    """The original has them where `num_shared_experts` is 0."""
    raw = fake.scaled("llada2-mini", layers=2, scale=64) | {"num_shared_experts": 0}
    tensors = llada2(raw, np.random.default_rng(0), merged=False)[0]
    write_hub(tmp_path / "plain", raw, tensors)
    at, d = "model.layers.1.mlp.shared_experts.{}_proj.weight", raw["hidden_size"]
    none = {at.format(m): np.zeros((d, 0) if m == "down" else (0, d)) for m in MATRICES}
    write_hub(tmp_path / "hub", raw, tensors | none)
    report = converters.convert(tmp_path / "hub", tmp_path / "out")
    assert report.notes == ("3 buffers or empty tensors that the config determines are left out",)
    converters.to_hub(tmp_path / "out", tmp_path / "back")
    assert read_all(tmp_path / "back") == read_all(tmp_path / "plain")


def test_a_layout_changes_no_weight(changed, golden, tmp_path, read_all):
    converters.convert(golden / "llada2-a", tmp_path / "apart")
    folder = changed(lambda t: None, (1, 2))
    converters.convert(folder, tmp_path / "merged")
    hashes = [checkpoint.model_hash(tmp_path / name) for name in ("apart", "merged")]
    assert hashes[0] == hashes[1]
    converters.to_hub(tmp_path / "merged", tmp_path / "back")
    assert read_all(tmp_path / "back") == read_all(folder)


@pytest.mark.parametrize("merged", [(), (1, 2)], ids=["apart", "merged"])
def test_each_device_reads_its_experts(merged, changed, tmp_path):
    folder = changed(lambda t: None, merged)
    config = parse_config(checkpoint.read_config(folder))
    plain = converters.load_hub(folder, config)
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("expert", "tensor"))
    axes = {4: (None, "expert", None, "tensor")}
    shardings = jax.tree.map(
        lambda x: jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(*axes.get(x.ndim, (None,) * x.ndim))
        ),
        plain,
    )
    converters.convert(folder, tmp_path / "out")
    for load, where in ((converters.load_hub, folder), (checkpoint.load_params, tmp_path / "out")):
        got = load(where, config, shardings=shardings)
        jax.tree.map(np.testing.assert_array_equal, got, plain)
        part = got["layers_1"]["experts_down"].addressable_shards[0].data
        assert part.shape == (2, 6, 16, 16)


def test_a_tensor_of_two_dtypes_is_not_exported(golden, tmp_path, refused):
    """q, k and v are one tensor on the hub."""
    config = parse_config(checkpoint.read_config(golden / "llada2-a"))
    params = jax.tree.map(np.asarray, converters.load_hub(golden / "llada2-a", config))
    params["layers_0"]["k"] = params["layers_0"]["k"].astype(np.float16)
    raw = checkpoint.read_config(golden / "llada2-a")
    checkpoint.save(tmp_path / "out", params, raw, {})
    refused(lambda: converters.to_hub(tmp_path / "out", tmp_path / "hub"), QKV, "layers_0.k")
    assert not (tmp_path / "hub").exists()


def test_parts_and_items_of_a_strided_tensor(tmp_path):
    """As a pickle may hold it: a transposed view, past others in its storage."""
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    (tmp_path / "data").write_bytes(b"12345678" + values.tobytes())
    tensor = Tensor("t", tmp_path / "data", values.dtype, (4, 3, 2), 8, (1, 4, 12))
    np.testing.assert_array_equal(tensor.part(1, 2).rows(0, 2), values.T[1:3])
    for i in range(4):
        np.testing.assert_array_equal(tensor.item(i).rows(1, 3), values.T[i, 1:])
    np.testing.assert_array_equal(tensor.part(2, 2).item(1).part(2, 1).rows(0, 1), [[11, 23]])


# Parameters, tensors (of SDAR as on the hub), files, bytes; the router's bias is float32.
RELEASED = {
    "llada-moe-7b-a1b": (7_356_880_896, 3_219, 3, 14_713_761_792),
    "llada2-mini": (16_255_643_392, 14_813, 7, 32_511_296_512),
    "llada2-flash": (102_889_705_216, 24_161, 42, 205_779_426_304),
    "sdar-30b-a3b": (30_532_122_624, 18_867, 49, 61_064_245_248),
}


@pytest.mark.parametrize("model", RELEASED)
def test_check_of_the_true_size(model, tmp_path):
    """From headers over holes: nothing of 206 GB is on disk."""
    hub = tmp_path / "hub"
    steps = fake.write_fake(hub, fake.scaled(model), fake.MODELS[model][1], sparse=True)
    size = sum(itertools.islice(steps, 50))  # one a file; noise would never end
    report = converters.check(hub)
    facts = (report.param_count, report.tensors, len(report.files), report.source_bytes)
    assert facts == RELEASED[model] and size == report.target_bytes == facts[3]
    if model == "sdar-30b-a3b":
        names = [f"layer-{i}-ep-0-of-1.safetensors" for i in range(48)] + ["others.safetensors"]
        assert sorted(report.files) == sorted(names)
    files = [f for f in hub.iterdir() if f.suffix == ".safetensors"]
    assert sum(f.stat().st_size for f in files) > size
    assert sum(f.stat().st_blocks for f in files) * 512 < 10e6


@pytest.mark.parametrize("model", RELEASED)
def test_layout_at_small_width(model, tmp_path, read_all):
    raw = fake.scaled(model, scale=64, layers=2)
    assert raw.keys() == fake.scaled(model).keys()
    size = sum(fake.write_fake(tmp_path / "hub", raw, fake.MODELS[model][1]))
    report = converters.convert(tmp_path / "hub", tmp_path / "out")
    assert report.source_bytes == size and not report.notes
    converters.to_hub(tmp_path / "out", tmp_path / "back")
    assert read_all(tmp_path / "back") == read_all(tmp_path / "hub")


def test_sparse_weights_are_zeros(tmp_path, read_all):
    raw = fake.scaled("llada2-mini", layers=2, scale=64)
    for name, sparse in (("noise", False), ("holes", True)):
        for _ in fake.write_fake(tmp_path / name, raw, 2, sparse=sparse):
            pass
    noise, holes = read_all(tmp_path / "noise"), read_all(tmp_path / "holes")
    assert {k: v[:2] for k, v in noise.items()} == {k: v[:2] for k, v in holes.items()}
    assert not any(any(v[2]) for v in holes.values())
    assert all(any(v[2]) for v in noise.values())


def test_an_expert_of_a_merged_tensor_at_a_time(write_hub, tmp_path):
    raw = fake.scaled("llada2-mini", layers=2, scale=64) | {"n_group": 1, "topk_group": 1}
    raw |= {"num_experts": 64, "hidden_size": 256, "moe_intermediate_size": 256, "vocab_size": 400}
    raw |= {"pad_token_id": 1, "mask_token_id": 2}
    write_hub(tmp_path / "hub", raw, llada2(raw, np.random.default_rng(0), merged=True)[0])
    peaks = []
    for call in (
        lambda: converters.convert(tmp_path / "hub", tmp_path / "out"),
        lambda: converters.to_hub(tmp_path / "out", tmp_path / "back"),
    ):
        tracemalloc.start()
        call()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 64 * 256 * 256 * 2 / 2  # one merged tensor has 8.4 MB
