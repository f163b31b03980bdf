"""What config.json says of the families with experts: LLaDA-MoE, LLaDA2, SDAR-MoE."""

import pytest

from leapjax import UserError
from leapjax.models import parse_config
from tests.models.test_config_keys import raw, refused, v5

MOE, LLADA2, SDAR = "llada-moe-a", "llada2-a", "sdar-moe-a"


def kinds(config):
    """Whether each layer has experts, run by run."""
    return [(run.n_layers, run.experts is not None) for run in config.runs]


def experts(config):
    (found,) = {run.experts for run in config.runs} - {None}
    return found


def without(name, *keys):
    return {k: v for k, v in raw(name).items() if k not in keys}


def test_llada_with_experts_is_told_by_its_class_or_by_their_number():
    want = parse_config(raw(MOE))
    assert want.family == "llada_moe"
    for more in ({"model_type": "lladamoe"}, {"architectures": ["X"]}, {"architectures": None}):
        assert parse_config(raw(MOE) | more) == want
    assert parse_config(without(MOE, "architectures") | {"model_type": "LLaDAMoE"}) == want
    dense = raw("llada-a")
    assert parse_config(dense).family == "llada"
    refused(dense | {"architectures": ["LLaDAMoEModelLM"]}, "num_hidden_layers")
    refused(without(MOE, "architectures", "num_experts"), "LLaDA", "activation_type")


def test_each_family_routes_by_its_own_rule():
    assert [(e.score, e.normalize, e.scale, e.bias) for e in
            (experts(parse_config(raw(name))) for name in (MOE, LLADA2, SDAR))] == [
        ("softmax", False, 1.0, ""), ("sigmoid", True, 2.5, "selects"), ("softmax", True, 1.0, "")
    ]  # fmt: skip
    assert experts(parse_config(raw(LLADA2) | {"num_experts_per_tok": 1})).normalize is False
    assert experts(parse_config(without(SDAR, "norm_topk_prob"))).normalize is False
    bias = parse_config(raw(MOE) | {"moe_router_enable_expert_bias": True})
    assert experts(bias).bias == "weighs"


@pytest.mark.parametrize(
    ("name", "more", "want"),
    [
        (MOE, {}, [(3, True)]),
        (MOE, {"moe_layer_freq": [0, 1, 1]}, [(1, False), (2, True)]),
        (MOE, {"moe_layer_freq": [2, 0, -1, 0]}, [(1, True), (1, False), (1, True)]),
        (MOE, {"moe_layer_freq": [0, 0, 0]}, [(3, False)]),
        (LLADA2, {}, [(1, False), (2, True)]),
        (LLADA2, {"first_k_dense_replace": 0}, [(3, True)]),
        (LLADA2, {"first_k_dense_replace": 2}, [(2, False), (1, True)]),
        (LLADA2, {"first_k_dense_replace": 5}, [(3, False)]),
        (SDAR, {}, [(3, True)]),
        (SDAR, {"decoder_sparse_step": 2}, [(1, False), (1, True), (1, False)]),
        (SDAR, {"mlp_only_layers": [2, 7]}, [(2, True), (1, False)]),
        (SDAR, {"decoder_sparse_step": 3, "mlp_only_layers": [2]}, [(3, False)]),
        (SDAR, {"mlp_only_layers": None}, [(3, True)]),
    ],
)
def test_dense_layers_anywhere(name, more, want):
    config = parse_config(raw(name) | more)
    assert kinds(config) == want
    assert [run.name for run in config.runs] == (
        ["layers"] if len(want) == 1 else [f"layers_{i}" for i in range(len(want))]
    )
    if any(not mixture for _, mixture in want):
        assert config.mlp_hidden_size == 64


@pytest.mark.parametrize(
    ("name", "key"),
    [(MOE, "dense_intermediate_size"), (LLADA2, "intermediate_size"), (SDAR, "intermediate_size")],
)
def test_the_width_of_mlps_counts_where_a_layer_has_one(name, key):
    dense = {MOE: {"moe_layer_freq": [1, 0, 1]}, LLADA2: {}, SDAR: {"mlp_only_layers": [0]}}[name]
    mixture = {"first_k_dense_replace": 0} if name == LLADA2 else {}
    whole = parse_config(raw(name) | mixture)
    for value in (None, -1, "x"):
        assert parse_config(raw(name) | mixture | {key: value}) == whole
        refused(raw(name) | dense | {key: value}, key)
    assert parse_config(without(name, key) | mixture) == whole
    refused(without(name, key) | dense, key)


def test_shared_experts():
    for value, want in ((None, 0), (0, 0), (24, 24)):
        config = parse_config(raw(MOE) | {"shared_expert_intermediate_size": value})
        assert experts(config).shared_size == want
    for value, want in ((None, 0), (0, 0), (1, 16), (3, 48)):
        config = parse_config(raw(LLADA2) | {"num_shared_experts": value})
        assert experts(config).shared_size == want


def test_defaults_of_the_classes():
    """Absent keys mean what the original's class says, which the releases do not always."""
    less = parse_config(without(LLADA2, "use_bias", "num_key_value_heads", "head_dim"))
    assert (less.o_bias, less.qkv_bias, less.n_kv_heads, less.head_dim) == (True, False, 4, 8)
    assert parse_config(raw(LLADA2) | {"num_key_value_heads": 0}).n_kv_heads == 4
    less = without(LLADA2, "rms_norm_eps", "max_position_embeddings", "rope_theta", "topk_group")
    config = parse_config(less)
    assert (config.norm_eps, config.max_length, config.rope_theta) == (1e-5, 16384, 1e4)
    assert experts(config).top_groups == 4
    none = "num_shared_experts num_experts_per_tok n_group first_k_dense_replace num_experts"
    config = parse_config(without(LLADA2, "routed_scaling_factor", *none.split()))
    found = experts(config)
    assert kinds(config) == [(3, True)] and config.qk_norm
    assert (found.count, found.chosen, found.groups, found.top_groups) == (16, 2, 8, 2)
    assert (found.shared_size, found.scale) == (0, 2.5)
    config = parse_config(without(MOE, "rms_norm_eps", "max_position_embeddings"))
    assert (config.norm_eps, config.max_length) == (1e-5, 4096)
    assert not parse_config(without(MOE, "qk_layernorm")).qk_norm
    config = parse_config(without(SDAR, "moe_intermediate_size", "decoder_sparse_step"))
    assert experts(config).hidden_size == 768


@pytest.mark.parametrize(
    "key",
    "rope_theta partial_rotary_factor moe_layer_freq shared_expert_intermediate_size "
    "num_experts_per_tok expert_intermediate_size".split(),
)
def test_llada_moe_names_keys_whose_defaults_are_no_values(key):
    refused(without(MOE, key), repr(key), "missing")


@pytest.mark.parametrize("key", ["head_dim", "num_key_value_heads"])
def test_sdar_moe_names_keys_whose_defaults_are_not_sdars(key):
    refused(without(SDAR, key), repr(key), "missing")


IGNORED = {
    MOE: "moe_router_score_function norm_topk_prob routed_scaling_factor router_num_group "
    "router_topk_group output_router_logits router_aux_loss_coef",
    LLADA2: "norm_topk_prob score_function router_dtype rotary_dim norm_head norm_softmax "
    "use_rmsnorm using_split_qkv_in_self_attention moe_router_enable_expert_bias sliding_window "
    "embedding_dropout output_dropout max_window_layers use_sliding_window output_router_logits",
    SDAR: "debug ep_size fuse_cross_entropy micro_forward skip_checkpoint use_deepep "
    "output_router_logits router_aux_loss_coef attn_implementation",
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_the_originals_ignore(name):
    want = parse_config(raw(name))
    for key in IGNORED[name].split():
        for value in (None, True, False, 0, 7, "softmax"):
            assert parse_config(raw(name) | {key: value}) == want, key


def test_biases_norms_and_clipping():
    config = parse_config(raw(MOE) | {"attention_bias": True, "clip_qkv": 8, "qk_layernorm": None})
    assert (config.qkv_bias, config.o_bias, config.linear_bias) == (True, True, False)
    assert (config.clip_qkv, config.qk_norm) == (8.0, False)
    for key, want in (("use_qkv_bias", (True, False)), ("use_bias", (False, True))):
        config = parse_config(raw(LLADA2) | {key: True})
        assert (config.qkv_bias, config.o_bias, config.linear_bias) == (*want, False)
    assert not parse_config(raw(LLADA2) | {"use_qk_norm": False}).qk_norm
    assert parse_config(raw(SDAR) | {"attention_bias": True}).qkv_bias


@pytest.mark.parametrize("name", [MOE, LLADA2])
def test_a_share_of_each_head_is_rotated(name):
    head = parse_config(raw(name)).head_dim
    for share in (1, 0.75, 0.5, 0.3, 0.25):
        config = parse_config(raw(name) | {"partial_rotary_factor": share, "rope_theta": 1e4})
        assert config.rotary_dim == (None if share == 1 else int(head * share))
        nested = {"rope_theta": 1e4, "partial_rotary_factor": share}
        less = {k: v for k, v in v5(raw(name)).items() if k not in ("partial_rotary_factor",)}
        for inner in (nested, {"rope_type": "default"} | nested, {"a": nested, "b": nested}):
            assert parse_config(less | {"rope_parameters": inner}) == config
        both = less | {"rope_parameters": nested, "partial_rotary_factor": share}
        assert parse_config(both) == config
    for share in (0, -0.5, 1.5, "0.5", None, True):
        refused(raw(name) | {"partial_rotary_factor": share}, "partial_rotary_factor")
    other = {"rope_theta": 1e4, "partial_rotary_factor": 0.125}
    refused(raw(name) | {"rope_theta": 1e4, "rope_parameters": other}, "partial_rotary_factor")


def test_llada2_is_block_causal_with_an_overhang():
    config = parse_config(raw(LLADA2))
    assert (config.block_length, config.canvas, config.stop_ids) == (32, "overhang", ())
    assert all(run.attention.length == 32 for run in config.runs)
    assert config.with_block_length(8).runs[1].attention.length == 8
    assert parse_config(raw(LLADA2) | {"model_type": "llada2_moe_veomni"}) == config


def test_llada22_is_refused_by_name():
    refused(raw(LLADA2) | {"expert_capacity": 64}, "expert_capacity is 64", "LLaDA2.2")
    refused(raw(LLADA2) | {"expert_capacity": 64, "block_size": 32}, "expert_capacity")
    assert parse_config(raw(LLADA2) | {"expert_capacity": None}) == parse_config(raw(LLADA2))


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        (LLADA2, {"n_group": 5}, "n_group is 5, expected equal groups"),
        (LLADA2, {"n_group": 12}, "n_group is 12"),
        (LLADA2, {"topk_group": 5}, "topk_group is 5, expected at most n_group, 4"),
        (LLADA2, {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, expected at most 6"),
        (MOE, {"num_experts_per_tok": 13}, "num_experts_per_tok is 13, expected at most 12"),
        (SDAR, {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected at most 8"),
        (MOE, {"moe_layer_freq": [1, 1]}, "moe_layer_freq is [1, 1], expected a number for each"),
        (MOE, {"moe_layer_freq": [1, 1, True]}, "moe_layer_freq is [1, 1, true]"),
        (MOE, {"moe_layer_freq": 1}, "moe_layer_freq is 1"),
        (MOE, {"head_dim": 16}, "head_dim is 16"),
        (SDAR, {"mlp_only_layers": ["0"]}, "mlp_only_layers"),
        (SDAR, {"mlp_only_layers": ""}, "mlp_only_layers"),
        (SDAR, {"mlp_only_layers": 0}, "mlp_only_layers"),
        (LLADA2, {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        (LLADA2, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.type"),
        (SDAR, {"use_sliding_window": True}, "use_sliding_window"),
        (LLADA2, {"image_token_offset": 157184}, "image_token_offset"),
    ],
)  # fmt: skip
def test_what_cannot_be(name, more, words):
    refused(raw(name) | more, words)


def test_ids_of_llada2():
    """config.json's, the tokenizer's, then pad for eos and the released models' mask."""
    bare = without(LLADA2, "eos_token_id", "mask_token_id")
    with pytest.raises(UserError, match="'mask_token_id' is missing"):
        parse_config(bare)
    config = parse_config(bare | {"vocab_size": 157184})
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (156895, 321, 321)
    config = parse_config(raw(LLADA2) | {"eos_token_id": None, "pad_token_id": 7})
    assert (config.eos_token_id, config.pad_token_id) == (7, 7)
    less = {k: v for k, v in bare.items() if k != "pad_token_id"} | {"mask_token_id": 1}
    refused(less, "'eos_token_id' is missing")
