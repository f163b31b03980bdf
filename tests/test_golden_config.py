"""What the names of golden data mean in leapjax's options."""

import json
from pathlib import Path

import pytest

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.loader import model_config
from leapjax.testing import golden_config, tiny_config

GOLDEN = Path(__file__).parent / "golden"
CASES = [
    json.loads(line)
    for name in sorted(GOLDEN.glob("decode*.jsonl"))
    for line in name.read_text().splitlines()
]


@pytest.fixture(scope="module")
def shapes():
    names = {case["model"] for case in CASES}
    return {name: model_config(GOLDEN / name) for name in names}


def test_every_case_has_options(shapes):
    """Each golden's options are those of its model, and what they say is kept."""
    renamed = {"denoising_steps", "block_cache", "policy", "early_stop", "eos_early_stop"}
    for case in CASES:
        options = dict(case["options"])
        config = golden_config(shapes[case["model"]], options)
        assert config.model == shapes[case["model"]]
        for name in options.keys() - renamed:
            kept = config.value(name)
            assert (list(kept) if name == "stop_ids" else kept) == options[name], (case["id"], name)
        if "denoising_steps" in options:
            assert config.value("steps_per_block") == options["denoising_steps"]
        if options.get("eos_early_stop"):
            assert config.early_stop == "on_eos"
        else:
            assert (config.early_stop != "off") == options["early_stop"]


SDAR, FAST, LLADA = (tiny_config(name) for name in ("sdar", "fast_dllm_v2", "llada"))


@pytest.mark.parametrize(
    "model, options, want",
    [
        (
            SDAR,
            {"policy": "low_confidence_static", "denoising_steps": 2},
            {"policy": "low_confidence_dynamic", "steps_per_block": 2, "threshold": 1.0},
        ),
        (
            SDAR,
            {"policy": "low_confidence_dynamic", "denoising_steps": 4, "threshold": 0.85},
            {"policy": "low_confidence_dynamic", "steps_per_block": 4, "threshold": 0.85},
        ),
        (
            SDAR,
            {"policy": "llada21", "editing_threshold": 0.0, "eos_early_stop": True},
            {"policy": "joint_threshold", "editing_threshold": 0.0, "early_stop": "block"},
        ),
        (
            LLADA,
            {"policy": "llada21", "num_to_transfer": 3, "max_post_steps": 0},
            {"policy": "joint_threshold", "num_to_transfer": 3, "max_post_steps": 0},
        ),
        (
            SDAR,
            {"policy": "sequential", "denoising_steps": 2, "early_stop": True, "stop_ids": [3, 1]},
            {"policy": "sequential", "steps_per_block": 2, "stop_ids": (3, 1)},
        ),
        (
            SDAR,
            {"policy": "entropy_bounded", "eb_threshold": 0.35, "denoising_steps": 2},
            {"policy": "entropy_bounded", "eb_threshold": 0.35},
        ),
        (
            SDAR,
            {"policy": "llada2", "threshold": 0.9, "steps_per_block": 3, "eos_early_stop": True},
            {
                **{"policy": "low_confidence_dynamic", "threshold": 0.9, "steps_per_block": 3},
                **{"early_stop": "on_eos"},
            },
        ),
        (
            SDAR,
            {"policy": "llada2", "early_stop": False, "eos_early_stop": False},
            {"policy": "low_confidence_dynamic", "early_stop": "off"},
        ),
        (SDAR, {"policy": "confidence_threshold", "early_stop": True}, {"policy": "threshold"}),
        (
            FAST,
            {"policy": "confidence_threshold", "threshold": 1, "early_stop": True},
            {"policy": "confidence_threshold", "threshold": 1, "early_stop": "settled"},
        ),
        (
            FAST,
            {"policy": "localleap", "early_stop": True, "block_cache": False},
            {"early_stop": "block"},
        ),
        (
            FAST,
            {"policy": "confidence_threshold", "early_stop": False},
            {"policy": "confidence_threshold", "early_stop": "off"},
        ),
        (
            FAST,
            {"block_cache": True, "sub_block_length": 2},
            {"cache": "block", "sub_block_cache": True, "sub_block_length": 2},
        ),
        (LLADA, {"policy": "threshold", "steps": 8}, {"policy": "confidence_threshold"}),
        (LLADA, {"policy": "margin", "steps": 8}, {"policy": "margin", "steps": 8}),
    ],
)
def test_names_of_golden_data(model, options, want):
    assert golden_config(model, options) == DecodeConfig(**want).for_model(model)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"treshold": 0.9}, "options: unknown option 'treshold'; did you mean 'threshold'"),
        ({"policy": "llada22"}, "policy is 'llada22'"),
        ({"attention": "block_causal"}, "unknown option 'attention'"),
        ({"denoising_steps": 2, "steps_per_block": 2}, "are the same; remove one"),
        ({"policy": "sequential", "denoising_steps": 0}, "steps_per_block is 0; expected at least"),
    ],
)
def test_what_is_no_option(options, message):
    with pytest.raises(UserError, match=message):
        golden_config(SDAR, options)
