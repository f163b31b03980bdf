"""Family x policy x cache: every row equals the row alone, at batch 1, 2 and 7, and on a mesh.

This also makes `docs/support.md`, from one run of every case: `make support`.
"""

import functools
import itertools
import json
import re
from pathlib import Path

import pytest

import leapjax
from leapjax import DecodeConfig
from leapjax.caches import CACHES
from leapjax.config import pairs
from leapjax.policies import POLICIES

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
MODEL = {
    "llada": "llada-a",
    "dream": "dream-a",
    "a2d": "a2d-a",
    "sdar": "sdar-a",
    "fast_dllm_v2": "fast-dllm-v2-a",
    "llada_moe": "llada-moe-a",
    "llada2": "llada2-a",
    "sdar_moe": "sdar-moe-a",
}
# Canvas and block. The prompts are shorter than a block, exactly one, and longer.
SHAPE = dict.fromkeys(MODEL, {"gen_length": 16, "block_length": 8})
SHAPE["sdar"] = {"gen_length": 14, "block_length": 4}
SHAPE["sdar_moe"] = SHAPE["sdar"]
SHAPE["llada2"] = {"gen_length": 13, "block_length": 8}
SHAPE["fast_dllm_v2"] = {"gen_length": 24, "block_length": 8, "sub_block_length": 4}
LENGTHS = (29, 3, 16, 1, 31, 8, 27)
MESH = "data=2,fsdp=2,tensor=2"
WHOLE = (None, MESH)  # one device, and the mesh
QUICK = {
    ("llada", "localleap", "none", None),
    ("dream", "localleap", "dual", None),
    ("sdar", "localleap", "block", None),
}
CELLS = list(itertools.product(MODEL, POLICIES, CACHES, WHOLE))
# Every cell of the policies that one starts with; of the others every cell when the table is made.
FIRST = ("localleap", "confidence_threshold", "low_confidence", "margin", "entropy", "random")


@functools.cache
def load(family, mesh=None):
    return leapjax.load(GOLDEN / MODEL[family], mesh=mesh)


def refusal(family, policy, cache):
    """The reason for which a pair is refused, or None."""
    rules = [run.attention for run in load(family).config.runs]
    return pairs.refusal(cache, policy) or pairs.refusal(cache, policy, rules)


def _marks(cell):
    family, policy, cache, mesh = cell
    if cell in QUICK:
        return ()
    slow = policy == "localleap" if mesh else policy in FIRST
    return pytest.mark.slow if slow else pytest.mark.exhaustive


CASES = [pytest.param(*cell, marks=_marks(cell)) for cell in CELLS]
OUTCOME: dict[tuple[str | None, ...], str] = {}


@pytest.fixture(scope="module", autouse=True)
def support_page(request):
    """Write the page when asked to."""
    yield
    if request.config.getoption("--write-support"):
        write_page(ROOT / "docs" / "support.md", OUTCOME)


def write_page(path, outcome):
    """The page of one full run; fails, and leaves the old page, if a case did not run or pass."""
    wanting = [key for key in CELLS if not _settled(outcome.get(key))]
    if wanting:
        first = " ".join(str(part) for part in wanting[0] if part)
        pytest.fail(
            f"{path} is not written: {len(wanting)} of {len(CELLS)} cases did not run or did not "
            f"pass ({first}, ...); run all of them: make support"
        )
    path.write_text(page(outcome))


def _settled(outcome):
    return outcome is not None and (outcome == "passed" or outcome.startswith("refused: "))


def page(outcome) -> str:
    """A table a family, one row a policy; the reasons of refusals below."""
    reasons = list(dict.fromkeys(v for v in outcome.values() if v.startswith("refused: ")))
    numbers = {reason: f"refused ({n})" for n, reason in enumerate(reasons, 1)}
    columns = list(itertools.product(CACHES, WHOLE))
    lines = [
        "# What is tested together",
        "",
        "Each cell is a test. It decodes seven prompts of mixed lengths at batch size 1, 2 and",
        "7 (float32, CPU). Every row must have the tokens, steps, passes and commit order that",
        "it has when decoded alone. At batch size 7, with the rows in another order,",
        "confidences must be bit-identical. Under `mesh`, a model sharded as",
        f"`{MESH}` must give the results of one device. A combination marked",
        '"refused" is refused with the error line of that number, listed below. `make support`',
        "writes this page from one run of all cases; if a case fails or is left out, the page",
        "stays as it was.",
    ]
    for family, folder in MODEL.items():
        names = [cache + (" mesh" if mesh else "") for cache, mesh in columns]
        lines += ["", f"## {family}", "", f"`tests/golden/{folder}`.", ""]
        lines += ["| policy | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for policy in POLICIES:
            found = [outcome[family, policy, *column] for column in columns]
            cells = [numbers.get(each, each) for each in found]
            lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    lines += ["", "## Refused", ""]
    lines += [f"{n}. {reason.removeprefix('refused: ')}" for n, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def own_copy(family, mesh=None):
    """A model whose compiled programs go with the test."""
    m = load(family, mesh)
    return leapjax.LM(m.params, m.config, m.codec, m.dtype, replicas=m.replicas)


def requests(lm, family, config):
    lines = [line for f in GOLDEN.glob("decode*.jsonl") for line in f.read_text().splitlines()]
    full = [c["prompt_ids"] for c in map(json.loads, lines) if c["model"] == MODEL[family]]
    found = [(full[i % len(full)] * 32)[-n:] for i, n in enumerate(LENGTHS)]
    return [lm.request({"id": f"r{i}", "prompt_ids": ids}, config) for i, ids in enumerate(found)]


def facts(c):
    return c.output_ids, c.steps, c.full_passes, c.nfe, c.commit_step, c.commit_kind


ALONE: dict[tuple[str, str, str], list] = {}


def alone(lm, asked, *key):
    """What each request gives without mates, computed once a session."""
    if key not in ALONE:
        ALONE[key] = [facts(next(lm.stream([r], batch_size=1))) for r in asked]
    return ALONE[key]


def check_on_one_device(lm, asked, wanted):
    assert len({tuple(a[0]) for a in wanted}) > 1  # the prompts do matter
    assert [facts(c) for c in lm.stream(asked, batch_size=2)] == wanted, "batch 2"
    together = list(lm.stream(asked, batch_size=7))
    assert [facts(c) for c in together] == wanted, "batch 7"
    again = list(lm.stream(asked[::-1], batch_size=7))[::-1]
    assert [c.commit_confidence for c in again] == [c.commit_confidence for c in together]
    assert [facts(c) for c in again] == wanted, "in another order"


@pytest.mark.parametrize(("family", "policy", "cache", "mesh"), CASES)
def test_each_row_is_the_row_alone(family, policy, cache, mesh):
    cell = family, policy, cache, mesh
    options = SHAPE[family] | {"policy": policy, "cache": cache}
    if reason := refusal(family, policy, cache):
        with pytest.raises(leapjax.UserError, match=f"^{re.escape(reason)}$"):
            DecodeConfig(**options).for_model(load(family).config)
        OUTCOME[cell] = f"refused: {reason}"
        return
    config = DecodeConfig(**options).for_model(load(family).config)
    OUTCOME[cell] = "FAILED"
    one = own_copy(family)
    asked = requests(one, family, config)
    wanted = alone(one, asked, family, policy, cache)
    if mesh is None:
        check_on_one_device(one, asked, wanted)
    else:
        assert [facts(c) for c in own_copy(family, mesh).stream(asked, batch_size=4)] == wanted
    OUTCOME[cell] = "passed"


def test_the_page_is_about_these_cells():
    """It is what a run makes in which every case passes or is refused, as the registry says."""
    wanted = {}
    for family, policy, cache, mesh in CELLS:
        reason = refusal(family, policy, cache)
        wanted[family, policy, cache, mesh] = f"refused: {reason}" if reason else "passed"
    assert (ROOT / "docs" / "support.md").read_text() == page(wanted)


@pytest.mark.parametrize("lack", ["FAILED", "not tested", None])
def test_the_page_is_made_from_one_full_run_only(tmp_path, lack):
    """A case that failed, or did not run, leaves the page as it was."""
    path, outcome = tmp_path / "support.md", dict.fromkeys(CELLS, "passed")
    path.write_text("old")
    write_page(path, outcome)
    assert path.read_text() == page(outcome)
    path.write_text("old")
    outcome[CELLS[-1]] = lack
    if lack is None:
        del outcome[CELLS[-1]]
    with pytest.raises(pytest.fail.Exception, match=f"1 of {len(CELLS)} cases did not"):
        write_page(path, outcome)
    assert path.read_text() == "old"
