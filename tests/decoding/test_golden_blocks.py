"""Decodes of block-causal models by the original implementations, with either cache.

See tests/golden/README.md. Cases of one structure share a batch and a compiled program.
"""

import collections
import json

import pytest

import leapjax
from leapjax.decoding import program_for
from leapjax.testing import golden_config
from leapjax.types import Request
from tests.decoding import harness
from tests.decoding.test_golden import GOLDEN, load

NAMES = ("decode-sdar.jsonl", "decode-fast-dllm-v2.jsonl", "decode-llada2.jsonl")
CASES = [json.loads(line) for name in NAMES for line in (GOLDEN / name).read_text().splitlines()]
STATIC = ("policy", "gen_length", "block_length", "sub_block_length", "block_cache")
STATIC = (*STATIC, "max_post_steps")
LENGTH = 256  # columns: a multiple of every block


def groups():
    """Cases by the structure that a compiled program depends on, as a test id."""
    found = collections.defaultdict(list)
    for case in CASES:
        caches = ("block",) if case["options"].get("block_cache") else ("none", "block")
        for cache in caches:
            parts = [case["model"], cache, *(case["options"].get(n) for n in STATIC)]
            found[":".join(str(p) for p in parts if p)].append((case, cache))
    return found


GROUPS = groups()
QUICK = {
    "sdar-a:none:low_confidence_dynamic:32:4",
    "sdar-a:block:low_confidence_dynamic:32:4",
    "sdar-a:block:low_confidence_static:40:8",
    "sdar-a:block:entropy_bounded:32:8",
    "sdar-a:block:sequential:32:8",
    "sdar-a:block:localleap:48:8",
    "sdar-moe-a:block:low_confidence_dynamic:32:4",
    "llada2-a:none:localleap:24:8",
    "llada2-a:block:llada2:32:16",
    "llada2-a:block:llada21:32:16",
    "llada2-a:block:llada21:24:8:16",
    "fast-dllm-v2-a:none:confidence_threshold:64:32:8",
    "fast-dllm-v2-a:block:confidence_threshold:64:32:8",
    "fast-dllm-v2-a:block:confidence_threshold:64:32:8:True",
    "fast-dllm-v2-a:block:localleap:64:32:32",
}


def test_all_cases_are_there():
    cases = {case["id"]: set() for case in CASES}
    for members in GROUPS.values():
        for case, cache in members:
            cases[case["id"]].add(cache)
    assert collections.Counter(len(caches) for caches in cases.values()) == {2: 151 - 8, 1: 8}
    assert QUICK < set(GROUPS)


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=() if g in QUICK else pytest.mark.slow) for g in GROUPS]
)
def test_decodes_are_the_originals(group):
    cases, cache = [case for case, _ in GROUPS[group]], GROUPS[group][0][1]
    model, params, end_of_turn = load(cases[0]["model"])
    configs = [golden_config(model, case["options"] | {"cache": cache}) for case in cases]
    programs = {
        program_for(c, model, length=LENGTH, dtype="float32", eot_token_id=end_of_turn)
        for c in configs
    }
    (program,) = programs  # one structure, one compilation
    requests = [
        Request(case["id"], tuple(case["prompt_ids"]), config)
        for case, config in zip(cases, configs, strict=True)
    ]
    for case, got in zip(cases, harness.decode(params, requests, program), strict=True):
        prompt = len(case["prompt_ids"])
        assert got["tokens"][:prompt] == case["prompt_ids"], case["id"]
        tokens, commit_step = got["tokens"][prompt:], got["commit_step"][prompt:]
        check(case, model, tokens, commit_step, got["steps"], got["edits"])


def check(case, model, tokens, commit_step, steps, edits):
    """An answer of Fast-dLLM v2 ends with its stop token; the canvas goes on with eos.

    LLaDA2's is cut, which no row of the decode is, and its edits with it.
    """
    if edits is not None:
        edits = [edit for edit in edits if edit[1] < len(case["output_ids"])]
    assert edits == case.get("edits"), case["id"]
    if model.canvas == "overhang":
        size = case["options"]["gen_length"]
        tokens, commit_step = tokens[:size], commit_step[:size]
    rest = len(tokens) - len(case["output_ids"])
    assert tokens == case["output_ids"] + [model.eos_token_id] * rest, case["id"]
    assert commit_step == case["commit_step"] + [-1] * rest, case["id"]
    assert steps == case["steps"], case["id"]


SDAR, FAST = "sdar-a:block:low_confidence_dynamic:32:4", "fast-dllm-v2-a:block:localleap:64:32:32"
EDITED = "llada2-a:block:llada21:24:8:16"
MESHES = [(m, g) for m in ("tensor=2", "fsdp=2", "data=2") for g in (SDAR, FAST, EDITED)]
MESHES = [pytest.param(*pair, marks=pytest.mark.slow) for pair in MESHES]


@pytest.mark.parametrize(("mesh", "group"), [("fsdp=2,tensor=2", FAST), *MESHES])
def test_decodes_on_several_devices(mesh, group):
    cases = [case for case, _ in GROUPS[group]]
    lm = leapjax.load(GOLDEN / cases[0]["model"], mesh=mesh)
    requests = [
        lm.request(
            {"id": case["id"], "prompt_ids": case["prompt_ids"]},
            golden_config(lm.config, case["options"]),
        )
        for case in cases
    ]
    for case, got in zip(cases, lm.stream(requests, batch_size=4), strict=True):
        commit_step = list(got.commit_step)
        check(case, lm.config, got.output_ids, commit_step, got.steps, got.edits)
