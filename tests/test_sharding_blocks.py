"""SDAR and Fast-dLLM v2 over 2 virtual devices: the originals' decodes, with either cache."""

import pytest

import leapjax
from leapjax import Request
from leapjax.testing import golden_config
from tests.decoding.test_golden_blocks import GOLDEN, GROUPS

MESHES = ("tensor=2", "data=2", "fsdp=2")
QUICK = {
    ("tensor=2", "sdar-a:block:localleap:48:8"),
    ("fsdp=2", "fast-dllm-v2-a:block:confidence_threshold:64:32:8"),
}


def test_the_quick_groups_are_there():
    assert {group for _, group in QUICK} < set(GROUPS)


@pytest.mark.parametrize(
    ("mesh", "group"),
    [
        pytest.param(m, g, marks=() if (m, g) in QUICK else pytest.mark.slow)
        for g in GROUPS
        for m in MESHES
    ],
)
def test_goldens(mesh, group):
    cases = GROUPS[group]
    lm = leapjax.load(GOLDEN / cases[0][0]["model"], mesh=mesh)
    requests = [
        Request(
            case["id"],
            tuple(case["prompt_ids"]),
            golden_config(lm.config, case["options"] | {"cache": cache}),
        )
        for case, cache in cases
    ]
    for (case, _), got in zip(cases, lm.stream(requests, batch_size=4), strict=True):
        given, rest = case["output_ids"], len(got.output_ids) - len(case["output_ids"])
        assert got.output_ids == given + [lm.config.eos_token_id] * rest, case["id"]
        assert got.commit_step == case["commit_step"] + [-1] * rest, case["id"]
        assert got.steps == case["steps"], case["id"]
