"""Folders that are damaged, incomplete, or point where they shouldn't: one line each."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import leapjax
from leapjax import converters
from leapjax.converters import source

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def edit_index(folder, change):
    file = folder / INDEX
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_tensors(folder, change):
    """Change the tensors of a single-file checkpoint."""
    values = load_file(folder / "model.safetensors")
    change(values)
    save_file(values, folder / "model.safetensors")


def refused_everywhere(refused, folder, tmp_path, *words):
    """The header check and the conversion say the same, and nothing is left behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    message = refused(lambda: converters.check(folder), *words)
    assert refused(lambda: converters.convert(folder, tmp_path / "new" / "out")) == message
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "place", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "nul\0.safetensors", "x.bin"]
)
def test_index_that_points_elsewhere(place, hub, tmp_path, refused):
    folder = hub("llada-a")
    (tmp_path / "x").write_text("secret")
    edit_index(folder, lambda c: c["weight_map"].update({"model.transformer.ln_f.weight": place}))
    refused_everywhere(refused, folder, tmp_path, INDEX)


@pytest.mark.parametrize("place", ["../{}", "inner/{}", "{folder}/{}"])
def test_index_that_points_elsewhere_at_good_weights(place, hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / "inner").mkdir()
    for target in (tmp_path, folder / "inner"):
        shutil.copy(folder / SECOND, target)
    place = place.format(SECOND, folder=folder)
    edit_index(
        folder,
        lambda c: c.update(
            weight_map={k: place if v == SECOND else v for k, v in c["weight_map"].items()}
        ),
    )
    refused_everywhere(refused, folder, tmp_path, INDEX, "may not point anywhere else")


def test_links_may_not_leave_the_folder(hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / SECOND).rename(tmp_path / "elsewhere")
    (folder / SECOND).symlink_to(tmp_path / "elsewhere")
    refused_everywhere(refused, folder, tmp_path, SECOND, "outside the folder")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", INDEX])
def test_side_files_may_not_be_links_either(name, hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused_everywhere(refused, folder, tmp_path, name, "outside the folder")


def test_the_hub_caches_own_links_are_fine(golden, tmp_path):
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, file in enumerate(sorted((golden / "llada-a").iterdir())):
        shutil.copy(file, repo / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert (
        converters.check(snapshot).param_count == converters.check(golden / "llada-a").param_count
    )
    converters.convert(snapshot, tmp_path / "out")
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


def test_a_pipe_is_no_file(hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)
    refused_everywhere(refused, folder, tmp_path, SECOND, "not a regular file")


def test_missing_shard(hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / SECOND).unlink()
    refused_everywhere(refused, folder, tmp_path, SECOND, "is missing", "tensor 'model.trans")


def test_broken_link(hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("nowhere")
    refused_everywhere(refused, folder, tmp_path, SECOND, "broken link")


@pytest.mark.parametrize("keep", [0, 4, 1000, 378_647])
def test_truncated_shard(keep, hub, tmp_path, refused):
    folder = hub("llada-a")
    data = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(data[:keep])
    refused_everywhere(refused, folder, tmp_path, SECOND)


@pytest.mark.parametrize("keep", [0, 100, 150_000, 290_882])
def test_truncated_bin(keep, hub, tmp_path, refused):
    folder = hub("llada-c-tied")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[:keep])
    refused_everywhere(refused, folder, tmp_path, "pytorch_model.bin")


def test_index_and_shards_disagree(hub, tmp_path, refused):
    name = "model.transformer.ln_f.weight"
    folder = hub("llada-a")
    edit_index(folder, lambda c: c["weight_map"].update({name: SECOND}))
    refused_everywhere(refused, folder, tmp_path, FIRST, name, SECOND)
    edit_index(folder, lambda c: c["weight_map"].pop(name))
    refused_everywhere(refused, folder, tmp_path, FIRST, name, "nowhere")
    edit_index(folder, lambda c: c["weight_map"].update({name: FIRST, "extra": FIRST}))
    refused_everywhere(refused, folder, tmp_path, FIRST, "'extra'", "missing")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000],
)
def test_damaged_index(text, hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / INDEX).write_text(text)
    refused_everywhere(refused, folder, tmp_path, INDEX)


def test_shards_without_index(hub, tmp_path, refused):
    folder = hub("llada-a")
    (folder / INDEX).unlink()
    refused_everywhere(refused, folder, tmp_path, FIRST, INDEX)


def test_no_weights(hub, tmp_path, refused):
    folder = hub("llada-c-tied")
    (folder / "pytorch_model.bin").unlink()
    refused_everywhere(refused, folder, tmp_path, "no weights")


@pytest.mark.parametrize("text", [None, "", "[1]", "{", "\xff", "[" * 100_000])
def test_damaged_config(text, hub, tmp_path, refused):
    folder = hub("llada-c-tied")
    if text is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(text, encoding="latin-1")
    refused_everywhere(refused, folder, tmp_path, "config.json")


def test_unknown_family(hub, tmp_path, refused):
    folder = hub("llada-a")
    edit_config(folder, model_type="gpt2")
    refused_everywhere(refused, folder, tmp_path, "gpt2", "llada", "Dream".lower())


def test_missing_tensor(hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    name = "model.transformer.blocks.1.q_proj.bias"
    edit_tensors(folder, lambda v: v.pop(name))
    refused_everywhere(refused, folder, tmp_path, "model.safetensors", name, "missing")


def test_renamed_tensor_is_pointed_at(hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    name = "model.transformer.blocks.1.q_proj.bias"
    edit_tensors(folder, lambda v: v.update({"q_bias": v.pop(name)}))
    refused_everywhere(refused, folder, tmp_path, name, "'q_bias'")


def test_unexpected_tensor(hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    edit_tensors(folder, lambda v: v.update({"a": np.zeros(3), "b": np.zeros(3)}))
    refused_everywhere(refused, folder, tmp_path, "tensor 'a'", "unexpected", "1 more")


@pytest.mark.parametrize("layers, word", [(1, "unexpected"), (3, "missing"), (10**15, "missing")])
def test_config_of_another_depth(layers, word, hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    edit_config(folder, n_layers=layers)
    refused_everywhere(refused, folder, tmp_path, "model.safetensors", word)


@pytest.mark.parametrize(
    "change", [lambda x: x.T, lambda x: x[:-1], lambda x: x[..., None], lambda x: x.reshape(-1)]
)
def test_misshapen_tensor(change, hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    name = "model.transformer.blocks.0.ff_proj.weight"
    edit_tensors(folder, lambda v: v.update({name: np.ascontiguousarray(change(v[name]))}))
    refused_everywhere(refused, folder, tmp_path, "model.safetensors", name, "shape", "(96, 64)")


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_integer_weights(dtype, hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    name = "model.transformer.blocks.0.ff_proj.weight"
    edit_tensors(folder, lambda v: v.update({name: v[name].astype(np.float32).astype(dtype)}))
    refused_everywhere(refused, folder, tmp_path, name, np.dtype(dtype).name)


def test_mixed_dtypes_need_a_choice(hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    name = "model.transformer.blocks.1.ff_proj.weight"
    edit_tensors(folder, lambda v: v.update({name: v[name].astype(np.float32)}))
    refused_everywhere(refused, folder, tmp_path, name, "float32", "bfloat16", "--dtype")
    # Loading says the same, and the advice works.
    refused(lambda: leapjax.load(folder, dtype="float32"), "convert --dtype float32 SRC DST")
    assert converters.convert(folder, tmp_path / "out", dtype="float32").dtype == "float32"
    assert leapjax.load(tmp_path / "out").config == converters.check(folder, dtype="float32").config


def test_float64_needs_a_choice(hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    edit_tensors(folder, lambda v: v.update({k: x.astype(np.float64) for k, x in v.items()}))
    refused_everywhere(refused, folder, tmp_path, "float64", "--dtype")
    converters.convert(folder, tmp_path / "out", dtype="float32")
    edit_tensors(folder, lambda v: v["model.transformer.ln_f.weight"].fill(1e300))
    refused(
        lambda: converters.convert(folder, tmp_path / "out2", dtype="float32"),
        "ln_f.weight",
        "does not fit float32",
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["wte.weight", "ln_f.weight", "blocks.1.ff_out.weight", "blocks.0.k_proj.bias"]
)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_non_finite_weights_are_named(value, name, dtype, hub, tmp_path, refused):
    folder = hub("llada-b-gqa-bias-bf16")
    name = f"model.transformer.{name}"

    def spoil(values):
        values.update({k: x.astype(dtype) for k, x in values.items()})
        values[name].flat[-3] = value

    edit_tensors(folder, spoil)
    before = sorted(tmp_path.iterdir())
    refused(
        lambda: converters.convert(folder, tmp_path / "out", dtype="float32"),
        "model.safetensors",
        f"tensor '{name}'",
        "non-finite",
    )
    assert sorted(tmp_path.iterdir()) == before
    config = converters.check(folder, dtype="float32").config
    refused(lambda: converters.load_hub(folder, config, dtype="float32"), name, "non-finite")


def test_tied_checkpoint_with_the_same_head(hub, tmp_path, read_all):
    folder = hub("dream-b-tied-bf16")
    plain = converters.convert(folder, tmp_path / "plain")
    edit_tensors(folder, lambda v: v.update({"lm_head.weight": v["model.embed_tokens.weight"]}))
    report = converters.convert(folder, tmp_path / "out")
    assert report.weights_sha256 == plain.weights_sha256
    assert any("lm_head.weight" in note for note in report.notes)
    converters.to_hub(tmp_path / "out", tmp_path / "hub")
    assert read_all(tmp_path / "hub") == read_all(folder)


@pytest.mark.parametrize(
    "change", [lambda x: x + 1, lambda x: x[:-1], lambda x: x.astype(np.float16)]
)
def test_tied_checkpoint_with_another_head(change, hub, tmp_path, refused):
    folder = hub("dream-b-tied-bf16")
    edit_tensors(
        folder, lambda v: v.update({"lm_head.weight": change(v["model.embed_tokens.weight"])})
    )
    refused(lambda: converters.convert(folder, tmp_path / "out"), "lm_head.weight", "ties")
    folder = hub("a2d-a")  # which has an equal copy of it
    edit_tensors(folder, lambda v: v.update({"lm_head.weight": change(v["lm_head.weight"])}))
    refused(lambda: converters.convert(folder, tmp_path / "out"), "lm_head.weight", "ties")
    edit_tensors(folder, lambda v: v.pop("lm_head.weight"))
    converters.convert(folder, tmp_path / "out")
    config = converters.check(hub("dream-a")).config
    assert not config.tie_embeddings


def test_rotary_buffers_are_ignored(hub, tmp_path):
    folder = hub("dream-b-tied-bf16")
    before = converters.convert(folder, tmp_path / "a").weights_sha256
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(6) for i in range(2)}
    edit_tensors(folder, lambda v: v.update(extra))
    report = converters.convert(folder, tmp_path / "b")
    assert report.weights_sha256 == before and "2 buffers" in " ".join(report.notes)


def test_wrong_total_size_is_only_noted(hub):
    folder = hub("llada-a")
    edit_index(folder, lambda c: c["metadata"].update(total_size=1))
    assert "total_size of 1" in " ".join(converters.check(folder).notes)


def test_bin_shards(hub, tmp_path, torch_format):
    t = torch_format
    folder = hub("dream-b-tied-bf16")
    values = load_file(folder / "model.safetensors")
    want = converters.convert(folder, tmp_path / "want").weights_sha256
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(2):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        mine = dict(list(values.items())[i::2])
        entries = {}
        for j, (name, v) in enumerate(mine.items()):
            steps = [s // v.itemsize for s in v.strides]
            entries[name] = t.tensor(str(j), v.size, 0, v.shape, steps, "BFloat16Storage")
            weight_map[name] = file
        storages = {str(j): v.tobytes() for j, v in enumerate(mine.values())}
        t.save(folder / file, t.dict(entries), storages)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert converters.convert(folder, tmp_path / "out").weights_sha256 == want
    assert len(source.open_source(folder).files) == 2


def test_destination_must_be_free(hub, tmp_path, refused):
    folder = hub("llada-c-tied")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    refused(lambda: converters.convert(folder, tmp_path / "out"), "exists already", "--overwrite")
    refused(
        lambda: converters.convert(folder, tmp_path / "out", overwrite=True),
        "not a model's folder",
    )
    assert (tmp_path / "out" / "thesis.tex").exists()
    converters.convert(folder, tmp_path / "ok")
    refused(lambda: converters.convert(folder, tmp_path / "ok"), "exists already")
    converters.convert(hub("dream-a"), tmp_path / "ok", overwrite=True)
    assert converters.check(tmp_path / "hub-dream-a").family == "dream"
    assert json.loads((tmp_path / "ok" / "manifest.json").read_text())["family"] == "dream"
    assert not list(tmp_path.glob(".*"))


def test_destination_apart_from_source(hub, refused):
    folder = hub("llada-c-tied")
    before = sorted(folder.iterdir())
    for dst in (folder, folder / "out", folder.parent):
        refused(lambda dst=dst: converters.convert(folder, dst, overwrite=True))
    assert sorted(folder.iterdir()) == before


def test_no_room(hub, tmp_path, refused, monkeypatch):
    folder = hub("llada-c-tied")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=1000))
    for call in (converters.check, converters.convert):
        refused(lambda call=call: call(folder, tmp_path / "out"), "GB free")


def test_disk_fills_up_midway(hub, tmp_path, refused, monkeypatch):
    folder = hub("llada-c-tied")

    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(converters.conversion.Writer, "add_file", full)
    refused(lambda: converters.convert(folder, tmp_path / "out"), "out", "No space left")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupted_anywhere_leaves_nothing(error, hub, tmp_path):
    folder = hub("llada-a")
    converters.convert(folder, tmp_path / "there")
    good = (tmp_path / "there" / "manifest.json").read_bytes()
    before = sorted(tmp_path.iterdir())

    for dst, overwrite in (("new/out", False), ("there", True)):

        def stop(done, total):
            if done > total / 2:
                assert list(tmp_path.rglob(".*.tmp-*"))
                raise error

        with pytest.raises(error):
            converters.convert(folder, tmp_path / dst, overwrite=overwrite, progress=stop)
        assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there" / "manifest.json").read_bytes() == good

    with pytest.raises(error):
        converters.to_hub(tmp_path / "there", tmp_path / "hub", progress=stop)
    assert sorted(tmp_path.iterdir()) == before


def test_progress_reaches_the_end(hub, tmp_path):
    seen = []
    converters.convert(hub("llada-a"), tmp_path / "out", progress=lambda *a: seen.append(a))
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
    assert len({t for _, t in seen}) == 1 and seen[-1][0] == seen[-1][1] == 775936
