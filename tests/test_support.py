"""Policy x cache x family: every row equals the row alone, at batch 1, 2 and 7, and on a mesh.

This also makes `docs/support.md`, from one run of every case: `make support`.
"""

import itertools
import json
from pathlib import Path

import pytest

import leapjax
from leapjax import DecodeConfig
from leapjax.caches import CACHES
from leapjax.policies import POLICIES

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
MODEL = {"llada": "llada-a", "dream": "dream-a"}
QUICK = {
    ("localleap", "none", "llada"),
    ("localleap", "dual", "dream"),
}
ALL = list(itertools.product(POLICIES, CACHES, MODEL))
# Every cell of the policies that one starts with; of the others every cell when the table is made.
FIRST = ("localleap", "confidence_threshold", "low_confidence", "margin", "entropy", "random")


def _marks(case):
    if case in QUICK:
        return ()
    return pytest.mark.slow if case[0] in FIRST else pytest.mark.exhaustive


CASES = [pytest.param(*c, marks=_marks(c)) for c in ALL]
MESH = "tensor=2"  # replicas along `data` are this, several times
MESH_CACHES = ("none", "dual")
MESH_ALL = list(itertools.product(POLICIES, MESH_CACHES, MODEL))
MESH_CASES = [
    pytest.param(*c, marks=pytest.mark.slow if c[0] == "localleap" else pytest.mark.exhaustive)
    for c in MESH_ALL
]
OUTCOME: dict[tuple[str, ...], str] = {}


@pytest.fixture(scope="module")
def models():
    return {family: leapjax.load(GOLDEN / name) for family, name in MODEL.items()}


@pytest.fixture(scope="module", autouse=True)
def support_page(request):
    """Write the page when asked to."""
    yield
    if request.config.getoption("--write-support"):
        write_page(ROOT / "docs" / "support.md", OUTCOME)


CELLS = [*ALL, *((policy, "mesh", *rest) for policy, *rest in MESH_ALL)]


def write_page(path, outcome):
    """The page of one full run; fails, and leaves the old page, if a case did not run or pass."""
    wanting = [key for key in CELLS if outcome.get(key) not in ("passed", "refused")]
    if wanting:
        pytest.fail(
            f"{path} is not written: {len(wanting)} of {len(CELLS)} cases did not run or did not "
            f"pass ({' '.join(wanting[0])}, ...); run all of them: make support"
        )
    path.write_text(page(outcome))


def page(outcome) -> str:
    """The table, one row a policy."""
    keys = list(itertools.product(CACHES, MODEL))
    keys += [("mesh", *rest) for rest in itertools.product(MESH_CACHES, MODEL)]
    head = [" ".join(key) for key in keys]
    lines = [
        "# What is tested together",
        "",
        "Each cell: seven prompts of mixed lengths, decoded at batch 1, 2 and 7, give every row",
        "the tokens, steps, passes and commit order that it has alone (float32, CPU); `refused`:",
        "the policy needs the whole sequence in every pass, and says so. Under `mesh` the same",
        f"prompts give on a model spread as `{MESH}` what they give on one device. Made by",
        "`make support` from one run of every case; a run that leaves a case out, or in which one",
        "fails, leaves this page as it was.",
        "",
        "| policy | " + " | ".join(head) + " |",
        "|---" * (len(head) + 1) + "|",
    ]
    for policy in POLICIES:
        cells = [outcome[policy, *key] for key in keys]
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def requests(lm, config, name):
    lines = [line for f in GOLDEN.glob("decode*.jsonl") for line in f.read_text().splitlines()]
    full = [c["prompt_ids"] for c in map(json.loads, lines) if c["model"] == name]
    lengths = (45, 3, 20, 1, 33, 12, 27)
    return [
        lm.request({"id": f"r{i}", "prompt_ids": full[i % len(full)][-n:]}, config)
        for i, n in enumerate(lengths)
    ]


def facts(c):
    return c.output_ids, c.steps, c.full_passes, c.nfe, c.commit_step, c.commit_kind


@pytest.mark.parametrize(("policy", "cache", "family"), CASES)
def test_each_row_is_the_row_alone(models, policy, cache, family):
    # A model of this test's own, so that its compiled programs go with it.
    shared = models[family]
    lm = leapjax.LM(shared.params, shared.config, shared.codec, shared.dtype)
    if cache != "none" and "recheck" in POLICIES[policy].needs:
        with pytest.raises(leapjax.UserError, match="reads the whole sequence in every pass"):
            DecodeConfig(policy=policy, cache=cache)
        OUTCOME[policy, cache, family] = "refused"
        return
    config = DecodeConfig(policy=policy, cache=cache, gen_length=16, block_length=8)
    asked = requests(lm, config, MODEL[family])
    OUTCOME[policy, cache, family] = "FAILED"
    alone = [facts(next(lm.stream([r], batch_size=1))) for r in asked]
    for slots in (2, 7):
        together = [facts(c) for c in lm.stream(asked, batch_size=slots)]
        assert together == alone, f"batch {slots}"
    assert len({tuple(a[0]) for a in alone}) > 1  # the prompts do matter
    OUTCOME[policy, cache, family] = "passed"


@pytest.fixture(scope="module")
def spread():
    return {family: leapjax.load(GOLDEN / name, mesh=MESH) for family, name in MODEL.items()}


@pytest.mark.parametrize(("policy", "cache", "family"), MESH_CASES)
def test_a_mesh_gives_what_one_device_gives(models, spread, policy, cache, family):
    if cache != "none" and "recheck" in POLICIES[policy].needs:
        OUTCOME[policy, "mesh", cache, family] = "refused"  # see above: before any model
        return
    config = DecodeConfig(policy=policy, cache=cache, gen_length=16, block_length=8)
    one, many = (
        leapjax.LM(m.params, m.config, m.codec, m.dtype, replicas=m.replicas)
        for m in (models[family], spread[family])
    )
    asked = requests(one, config, MODEL[family])
    OUTCOME[policy, "mesh", cache, family] = "FAILED"
    wanted = [facts(c) for c in one.stream(asked, batch_size=4)]
    assert [facts(c) for c in many.stream(asked, batch_size=4)] == wanted
    OUTCOME[policy, "mesh", cache, family] = "passed"


def test_the_page_is_about_these_policies():
    """It is what a run makes in which every case passes or is refused, as its cells say."""
    text = (ROOT / "docs" / "support.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    columns = [tuple(name.split()) for name in rows[0][1:]]
    shown = {
        (row[0].strip(" `"), *column): cell.strip()
        for row in rows[2:]
        for column, cell in zip(columns, row[1:], strict=True)
    }
    assert set(shown) == set(CELLS) and set(shown.values()) == {"passed", "refused"}
    assert text == page(shown)


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
