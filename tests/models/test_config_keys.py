"""`config.json`: every key is read, known to be harmless, or refused by its name in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import leapjax
from leapjax import UserError, checkpoint
from leapjax.models import parse_config

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["llada-a", "llada-b-gqa-bias-bf16", "llada-c-tied", "dream-a", "dream-b-tied-bf16"]
NAMES += ["a2d-a", "a2d-b-qwen2", "sdar-a", "fast-dllm-v2-a", "sdar-moe-a"]
PARTLY = ["llada-moe-a", "llada2-a"]  # RoPE may rotate a part of each head
WHOLE = ["llada-a", "dream-a", "a2d-a", "sdar-a", "fast-dllm-v2-a", "sdar-moe-a"]
FAMILIES = WHOLE + PARTLY


def raw(name):
    return checkpoint.read_config(GOLDEN / name)


def refused(config, *words):
    with pytest.raises(UserError) as caught:
        parse_config(config)
    message = str(caught.value)
    assert message.startswith("config.json: ") and "\n" not in message and len(message) < 300
    for word in words:
        assert word in message, message
    return message


def v5(config, **more):
    """A config as transformers 5 writes it."""
    config = dict(config)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config.pop("rope_scaling", None)
    config["dtype"] = config.pop("torch_dtype", config.get("dtype"))
    return config | {"transformers_version": "5.24.0"} | more


def test_rope_as_transformers_5_writes_it(tmp_path):
    shutil.copytree(GOLDEN / "dream-a", tmp_path / "it")
    (tmp_path / "it" / "config.json").write_text(json.dumps(v5(raw("dream-a"))))
    lm = leapjax.load(tmp_path / "it")
    assert lm.config.rope_theta == 1e6
    with np.load(GOLDEN / "dream-a.logits.npz") as golden:
        want = golden["logits_1"]
        np.testing.assert_allclose(lm.logits(golden["ids_1"]), want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", NAMES)
def test_all_spellings_of_one_base(name):
    want = parse_config(raw(name))
    theta = raw(name)["rope_theta"]
    bare = {k: v for k, v in v5(raw(name)).items() if k != "rope_parameters"}
    plain = {"rope_theta": theta}
    for more in (
        {"rope_parameters": plain},
        {"rope_parameters": {"rope_type": "default"} | plain, "rope_theta": theta},
        {"rope_parameters": {"type": "default"} | plain, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0} | plain},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": theta},
        {"rope_parameters": {"full_attention": plain, "sliding_attention": plain}},
        {"rope_parameters": None, "rope_theta": int(theta)},
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": theta},
        {"rope_scaling": {"rope_type": "default"} | plain},
    ):
        assert parse_config(bare | more) == want, more
    absent = {k: v for k, v in bare.items() if k != "rope_parameters"}
    assert parse_config(absent).rope_theta == 10000.0  # both originals' default


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, ("rope_theta is 6.0", "5.0")),
        (
            {"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"rope_theta": 6}},
            ("5.0", "6.0"),
        ),
        ({"rope_parameters": {"rope_type": "default"}}, ("rope_parameters has no rope_theta",)),
        ({"rope_parameters": {}}, ("rope_parameters has no rope_theta",)),
        ({"rope_parameters": [1e6]}, ("rope_parameters is [1000000.0]",)),
        ({"rope_parameters": {"rope_theta": None}}, ("rope_parameters.rope_theta is null",)),
        ({"rope_parameters": {"rope_theta": "1e6"}}, ('rope_parameters.rope_theta is "1e6"',)),
        ({"rope_parameters": {"rope_theta": True}}, ("rope_parameters.rope_theta is true",)),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "yarn"}}, ("rope_type", "yarn")),
        ({"rope_parameters": {"rope_theta": 5.0, "type": "linear"}}, (".type", "linear")),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": None}}, ("rope_type is null",)),
        ({"rope_parameters": {"rope_theta": 5.0, "factor": 1.0}}, ("rope_parameters.factor",)),
        ({"rope_parameters": {"a": {"rope_theta": 5.0}, "b": {"rope_theta": 6.0}}}, ("kind",)),
        ({"rope_parameters": {"a": {"rope_theta": 5.0}, "b": {}}}, ("kind",)),
        ({"rope_parameters": {"a": {"b": {"rope_theta": 5.0}}}}, ("rope_parameters.a.b",)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 5.0}, ("dynamic",)),
        ({"rope_scaling": {"factor": 2.0}, "rope_theta": 5.0}, ("rope_scaling.factor",)),
        ({"rope_scaling": 2.0, "rope_theta": 5.0}, ("rope_scaling is 2.0",)),
        ({"rope_theta": None}, ("rope_theta is null",)),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5.0}}, ("rope_theta is null",)),
    ],
)
def test_other_rope_is_refused(name, more, words):
    bare = {k: v for k, v in v5(raw(name)).items() if k != "rope_parameters"}
    refused(bare | more, *words)


@pytest.mark.parametrize("name", WHOLE)
def test_rope_of_a_part_of_each_head_is_refused(name):
    bare = {k: v for k, v in v5(raw(name)).items() if k != "rope_parameters"}
    refused(bare | {"partial_rotary_factor": 0.5, "rope_theta": 5.0}, "partial_rotary_factor")
    half = {"rope_theta": 5.0, "partial_rotary_factor": 0.5}
    refused(bare | {"rope_parameters": half}, "rope_parameters.partial_rotary_factor")


BAD = [None, True, "7", "", [7], {"a": 7}, -1, 0, 2.5, 7.0, 1e400, float("nan"), 10**400, -0.0]


def accepted(name, key, value):
    """Whether a key may have a value, by what the originals' code does with it."""
    number = type(value) in (int, float) and 1.2e-38 < value < 3.4e38
    if key in ("rope_theta", "rms_norm_eps", "routed_scaling_factor", "clip_qkv"):
        return number or (value is None and key == "clip_qkv")
    if key.endswith("_token_id"):
        pad_is_eos = name == "llada2-a" and key == "eos_token_id" and value is None
        return pad_is_eos or (type(value) is int and value == 0)
    if type(value) is int and value == 0:
        return key in ZERO.get(name, "").split()
    return value is None and key in NULL[name].split()


NULL = {
    "llada-a": "n_kv_heads embedding_size",
    "dream-a": "num_key_value_heads",
    "a2d-a": "num_key_value_heads",
    "sdar-a": "num_key_value_heads block_size",
    "fast-dllm-v2-a": "num_key_value_heads head_dim",
    "sdar-moe-a": "block_size",
    "llada-moe-a": "num_key_value_heads shared_expert_intermediate_size",
    "llada2-a": "head_dim num_shared_experts",
}
ZERO = {
    "llada-moe-a": "shared_expert_intermediate_size",
    "llada2-a": "num_key_value_heads num_shared_experts first_k_dense_replace",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_wrong_types_and_numbers_name_their_key(name):
    parts = (
        "hidden_size num_attention_heads num_hidden_layers num_key_value_heads "
        "max_position_embeddings vocab_size "
    )
    qwen = f"{parts} intermediate_size "
    sizes = {
        "llada-a": "d_model n_heads n_layers n_kv_heads mlp_hidden_size max_sequence_length "
        "vocab_size embedding_size",
        "dream-a": qwen,
        "a2d-a": f"{qwen} head_dim",
        "sdar-a": f"{qwen} head_dim block_size",
        "fast-dllm-v2-a": f"{qwen} head_dim bd_size",
        "sdar-moe-a": f"{parts} head_dim block_size num_experts num_experts_per_tok "
        "moe_intermediate_size decoder_sparse_step",
        "llada-moe-a": f"{parts} num_experts num_experts_per_tok expert_intermediate_size "
        "shared_expert_intermediate_size moe_layer_freq partial_rotary_factor clip_qkv",
        "llada2-a": f"{qwen} head_dim num_experts num_experts_per_tok moe_intermediate_size "
        "num_shared_experts n_group topk_group first_k_dense_replace partial_rotary_factor "
        "routed_scaling_factor",
    }[name].split()
    for key in (*sizes, "rope_theta", "rms_norm_eps", "mask_token_id", "eos_token_id"):
        for value in BAD:
            config = raw(name) | {key: value}
            if accepted(name, key, value):
                parse_config(config)
            elif not (key == "mlp_hidden_size" and value is None):  # then mlp_ratio says it
                assert "wrong type" not in refused(config, key)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_needed_key_that_is_absent_is_named(name):
    config = raw(name)
    optional = 0
    for key in config:
        less = {k: v for k, v in config.items() if k != key}
        try:
            got = parse_config(less)
        except UserError:
            refused(less, key)
            continue
        optional += 1
        same = dataclasses.asdict(parse_config(config))
        # Only the originals' own defaults stand in: see the families' files.
        assert {k for k, v in dataclasses.asdict(got).items() if same[k] != v} <= {
            "rope_theta", "max_length", "tie_embeddings", "mlp_hidden_size", "n_kv_heads",
            "head_dim", "pad_token_id", "stop_ids", "layer_runs", "norm_eps", "o_bias",
            "qk_norm", "rotary_dim",
        }  # fmt: skip
    assert optional > 10


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qk_norm", True), ("logits_soft_cap", 30.0), ("final_logit_softcapping", None),
        ("attention_multiplier", 1.0), ("num_local_experts", 8), ("expert_capacity", 1.0),
        ("is_causal", True),
        ("quantization_config", {"quant_method": "fp8"}), ("quantization", {"bits": 4}),
        ("vision_config", {}), ("is_decoder", True), ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}), ("", 1), ("a\nb", 1), ("x" * 999, "y" * 999), ("\ud800", 1),
    ],
)  # fmt: skip
def test_unknown_keys_are_refused_by_name(name, key, value):
    refused(raw(name) | {key: value}, json.dumps(key)[1:-1][:40])


@pytest.mark.parametrize("name", ["llada-a", "dream-a", "a2d-a", "sdar-a", "fast-dllm-v2-a"])
def test_experts_are_refused_where_the_family_has_none(name):
    refused(raw(name) | {"num_experts": 8}, "num_experts")


@pytest.mark.parametrize(
    ("name", "key", "bad", "good"),
    [
        ("dream-a", "layer_types", ["full_attention"] * 2, ["full_attention"] * 3),
        ("dream-a", "layer_types", ["full_attention"] * 2 + ["sliding_attention"], None),
        ("dream-a", "head_dim", 32, 16),
        ("dream-a", "use_sliding_window", True, None),
        ("dream-a", "hidden_act", "gelu", "silu"),
        ("a2d-a", "hidden_act", "gelu", "silu"),
        ("a2d-a", "attention_bias", True, None),
        # Every layer sees everything, whatever its window is called.
        ("a2d-a", "layer_types", ["full_attention"] * 2, ["sliding_attention"] * 3),
        ("a2d-b-qwen2", "layer_types", ["linear_attention"] * 3, ["full_attention"] * 3),
        ("a2d-b-qwen2", "num_attention_heads", 5, 6),
        ("sdar-a", "attention_bias", 1, None),
        ("sdar-a", "use_sliding_window", True, None),
        ("sdar-a", "hidden_act", "gelu", "silu"),
        ("sdar-a", "layer_types", ["full_attention"] * 2 + ["sliding_attention"], None),
        ("sdar-a", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}, None),
        ("sdar-a", "stop_ids", [322, "320"], [322, 320]),
        ("fast-dllm-v2-a", "use_sliding_window", True, None),
        ("fast-dllm-v2-a", "layer_types", ["sliding_attention"] * 3, ["full_attention"] * 3),
        ("fast-dllm-v2-a", "rope_scaling", {"type": "linear", "factor": 2.0}, {"type": "default"}),
        ("fast-dllm-v2-a", "num_attention_heads", 5, 6),
        ("fast-dllm-v2-a", "head_dim", 0, 8),
        ("fast-dllm-v2-a", "bd_size", None, 32),
        ("dream-a", "attention_bias", False, True),
        ("dream-a", "tie_word_embeddings", "false", False),
        ("dream-a", "tie_word_embeddings", 0, None),
        ("llada-a", "tie_word_embeddings", True, False),
        ("llada-a", "include_bias", "false", None),
        ("llada-a", "rope", False, True),
        ("llada-a", "alibi", 0, False),
        ("llada-a", "layer_norm_type", "default", "rms"),
        ("llada-a", "block_group_size", 2, 1),
        ("llada-a", "multi_query_attention", True, False),
        ("llada-b-gqa-bias-bf16", "multi_query_attention", False, None),
        ("llada-a", "embedding_size", 320, None),
    ],
)
def test_keys_that_are_harmless_at_some_values_only(name, key, bad, good):
    assert parse_config(raw(name) | {key: good}) == parse_config(raw(name))
    refused(raw(name) | {key: bad}, "n_kv_heads" if key == "multi_query_attention" else key)


HARMLESS = {
    "id2label": {"0": "LABEL_0"}, "_name_or_path": "x", "torch_dtype": "float16", "dtype": None,
    "attention_dropout": 0.1, "bos_token_id": None, "use_cache": True, "temperature": 0.7,
    "_attn_implementation": "flash_attention_2", "quantization_config": None, "is_decoder": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["a2d-a", "a2d-b-qwen2"])
def test_a2d_ignores_windows(name):
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    assert parse_config(raw(name) | windows) == parse_config(raw(name))


def test_a2d_is_qwen3_or_qwen2():
    for name, norms, biases in (("a2d-a", True, False), ("a2d-b-qwen2", False, True)):
        config = parse_config(raw(name))
        assert (config.qk_norm, config.qkv_bias, config.linear_bias) == (norms, biases, False)
    assert parse_config(raw("a2d-b-qwen2") | {"attention_bias": False}).qkv_bias
    assert parse_config(raw("a2d-b-qwen2") | {"head_dim": 16}).head_dim == 16
    less = {k: v for k, v in raw("a2d-a").items() if k != "head_dim"}
    assert parse_config(less).head_dim == 128  # Qwen3's default, not D / H


def test_sdar_is_qwen3_in_blocks():
    config = parse_config(raw("sdar-a"))
    assert (config.qk_norm, config.qkv_bias, config.shift_logits) == (True, False, False)
    assert (config.block_length, config.canvas, config.stop_ids) == (4, "to_border", (322, 320))
    less = {k: v for k, v in raw("sdar-a").items() if k != "head_dim"}
    assert parse_config(less).head_dim == 128  # not D / H
    ours = "debug ep_size fuse_cross_entropy micro_forward skip_checkpoint use_deepep".split()
    assert parse_config(raw("sdar-a") | dict.fromkeys(ours, True)) == config
    biased = parse_config(raw("sdar-a") | {"attention_bias": True})
    assert (biased.qkv_bias, biased.o_bias, biased.linear_bias) == (True, True, False)
    refused(raw("sdar-a") | {"output_router_logits": False}, "output_router_logits")


def test_fast_dllm_v2_is_qwen2_in_blocks():
    config = parse_config(raw("fast-dllm-v2-a"))
    assert (config.qk_norm, config.qkv_bias, config.shift_logits) == (False, True, True)
    assert (config.canvas, config.seeds_blocks, config.stop_ids) == ("whole_blocks", True, ())
    for block, sub_block in ((16, 8), (8, 8), (12, 12), (4, 4), (32, 8)):
        got = parse_config(raw("fast-dllm-v2-a") | {"bd_size": block})
        assert (got.block_length, got.sub_block_length) == (block, sub_block)
    for more in ({"attention_bias": False}, {"conplemenrary_mask": False}):
        assert parse_config(raw("fast-dllm-v2-a") | more) == config
    assert parse_config(raw("fast-dllm-v2-a") | {"head_dim": 16}).head_dim == 16


@pytest.mark.parametrize("name", NAMES)
def test_harmless_keys_change_nothing(name):
    assert parse_config(raw(name) | HARMLESS) == parse_config(raw(name))


def test_transformers_own_keys_are_known():
    """Whatever transformers writes by itself into a config.json is no reason to refuse it."""
    transformers = pytest.importorskip("transformers")
    written = transformers.PretrainedConfig().to_dict() | transformers.Qwen2Config(
        vocab_size=336, hidden_size=64, num_attention_heads=4, num_hidden_layers=3
    ).to_dict()  # fmt: skip
    config = written | {k: v for k, v in v5(raw("dream-a")).items()}
    assert parse_config(config | {"layer_types": ["full_attention"] * 3}) == parse_config(
        raw("dream-a")
    )
