"""Mixtures of experts over 2 and 4 virtual devices: the originals' decodes.

Experts are split over `expert` and `fsdp`, their inner width over `tensor`, replicas over `data`.
"""

import json
from pathlib import Path

import pytest

import leapjax
from leapjax import Request
from leapjax.testing import golden_config

GOLDEN = Path(__file__).parent / "golden"
MESHES = ("expert=2", "tensor=2", "expert=2,tensor=2", "data=2,expert=2", "fsdp=2")
LINES = [line for file in GOLDEN.glob("decode*.jsonl") for line in file.read_text().splitlines()]
CASES = [json.loads(line) for line in LINES]
CACHES = {"llada-moe-a": ("none",), "llada2-a": ("none", "block"), "sdar-moe-a": ("none", "block")}


def check(mesh, model, cache, **only):
    """Decode a model's cases, those with these options, as one stream of mixed programs."""
    cases = [c for c in CASES if c["model"] == model and only.items() <= c["options"].items()]
    assert len(cases) > 1
    lm = leapjax.load(GOLDEN / model, mesh=mesh)
    requests = [
        Request(
            case["id"],
            tuple(case["prompt_ids"]),
            golden_config(lm.config, case["options"] | {"cache": cache}),
        )
        for case in cases
    ]
    for case, got in zip(cases, lm.stream(requests, batch_size=4), strict=True):
        assert got.output_ids == case["output_ids"], case["id"]
        assert got.commit_step == case["commit_step"], case["id"]
        assert got.steps == case["steps"], case["id"]
        if "edits" in case:
            assert [list(edit) for edit in got.edits] == case["edits"], case["id"]


@pytest.mark.parametrize(
    ("mesh", "model", "cache", "block_length", "gen_length"),
    [
        ("expert=2,tensor=2", "llada2-a", "block", 16, 48),
        ("fsdp=2", "llada-moe-a", "none", 8, 32),
    ],
)
def test_some_goldens(mesh, model, cache, block_length, gen_length):
    check(mesh, model, cache, policy="localleap", block_length=block_length, gen_length=gen_length)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("model", "cache"), [(m, c) for m in CACHES for c in CACHES[m]])
def test_goldens(mesh, model, cache):
    check(mesh, model, cache)


def test_experts_are_split():
    """Each device holds a part of every layer's experts."""
    lm = leapjax.load(GOLDEN / "llada2-a", mesh="expert=2,tensor=2")
    split = 0
    for run in lm.config.runs:
        for name, leaf in lm.params[run.name].items():
            if name.startswith("experts_"):
                assert leaf.addressable_shards[0].data.size * 4 == leaf.size, name
                split += 1
    assert split == 3 * sum(run.experts is not None for run in lm.config.runs)
