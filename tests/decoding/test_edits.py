"""Editing: committed tokens of the active block may change, and the log of it becomes `edits`."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, UserError, register_policy
from leapjax.cli.main import main
from leapjax.decoding import with_options
from leapjax.policies import POLICIES
from leapjax.policies.parameters import EDITING_THRESHOLD, MAX_POST_STEPS
from leapjax.records import to_record
from leapjax.serve.lowering import lower_run
from leapjax.studies.observations import check
from leapjax.testing import tiny_config, tiny_params
from tests.decoding.harness import params_of, structure

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = {"gen_length": 12, "block_length": 4, "early_stop": False}
EDITING = SHAPE | {"editing_threshold": 0.4, "max_post_steps": 3}


@pytest.fixture(scope="module")
def lms():
    models = {name: tiny_config(name) for name in ("llada", "sdar", "fast_dllm_v2")}
    return {name: leapjax.LM(tiny_params(m), m, None) for name, m in models.items()}


def test_without_editing_the_program_is_as_if_there_were_none(registry):
    """The same code, to the last operation, as of a LocalLeap that can't edit."""
    leap = POLICIES["localleap"]
    without = tuple(p for p in leap.parameters if p not in (EDITING_THRESHOLD, MAX_POST_STEPS))
    register_policy(dataclasses.replace(leap, name="leap", parameters=without, label="leap"))
    for family, cache in (("llada", "dual"), ("sdar", "block")):
        texts = []
        for name, options in (("localleap", {}), ("leap", {}), ("localleap", EDITING)):
            _, program = structure(
                name,
                family,
                cache=cache,
                **options and {"max_post_steps": 2, "editing_threshold": 0.5},
            )
            texts.append(lower_run(params_of(family), program, 2).as_text())
        assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("family", "cache"),
    [
        ("sdar", "block"),
        pytest.param("llada", "none", marks=pytest.mark.slow),
        pytest.param("llada", "dual", marks=pytest.mark.slow),
        pytest.param("fast_dllm_v2", "block", marks=pytest.mark.slow),
    ],
)
def test_rows_are_alone_in_batches_of_any_size(lms, family, cache):
    """Slots are used again, so that logs of earlier rows lie under those of later ones."""
    lm, rng = lms[family], np.random.default_rng(3)
    records = [
        {
            "id": n,
            "prompt_ids": rng.integers(0, 36, n % 2 + 5).tolist(),
            "options": {"editing_threshold": [0.0, 0.3, 0.8][n % 3], "threshold": 0.3 * (n % 4)},
        }
        for n in range(7)
    ]
    config = DecodeConfig(policy="joint_threshold", cache=cache, **EDITING)
    requests = [lm.request(r, config) for r in records]
    assert any(len(c.edits) > 10 for c in lm.stream(requests, batch_size=7))
    for slots in (1, 2, 7):
        for n, together in enumerate(lm.stream(requests, batch_size=slots)):
            if n % 3:
                continue
            (alone,) = lm.stream([requests[n]], batch_size=slots)
            assert alone == together and alone.edits == together.edits, (slots, n)


def test_edits_lead_from_the_commits_to_the_answer(lms):
    """Each changes a committed token into another one; the last one of a position stands."""
    edited_first = False
    for family in ("llada", "sdar"):
        lm, asked = lms[family], [[3, 4, 5], [7, 8, 9, 10, 11, 12, 13]]
        kept = lm.generate(asked, **EDITING | {"editing_threshold": 1.0})
        for c, without in zip(lm.generate(asked, **EDITING), kept, strict=True):
            assert c.edits == sorted(c.edits) and c.edits, family
            last = {i: c.committed_ids[i] for _, i, _ in c.edits}
            assert len(c.committed_ids) == len(c.output_ids)
            for step, position, token in c.edits:
                assert c.commit_step[position] < step < c.steps
                assert last.get(position) != token != lm.config.mask_token_id
                last[position] = token
            # The first pass has nothing to edit, so it commits what it does without editing.
            first = [i for i, step in enumerate(c.commit_step) if step == 0]
            assert [c.committed_ids[i] for i in first] == [without.output_ids[i] for i in first]
            edited_first = edited_first or any(i in last for i in first)
            stays = {i: t for i, t in enumerate(c.committed_ids) if i not in last}
            assert last | stays == dict(enumerate(c.output_ids))
    assert edited_first


def test_blocks_stay_open_for_at_most_max_post_steps(lms):
    """A model that always changes its mind uses all of them in each block."""
    options = EDITING | {"editing_threshold": 0.0, "threshold": 0.0, "relaxed_threshold": 0.0}
    for most in (0, 3):
        (c,) = lms["llada"].generate([[5, 6, 7]], **options | {"max_post_steps": most})
        assert c.steps == 3 * (1 + most)
        assert c.commit_step == [b * (1 + most) for b in range(3) for _ in range(4)]
        assert {e[0] for e in c.edits} == set(range(c.steps)) - set(c.commit_step)
    # Nothing exceeds 1, so that one more pass finds nothing to change.
    (c,) = lms["llada"].generate([[5, 6, 7]], **options | {"editing_threshold": 1.0})
    assert (c.steps, c.edits) == (6, [])


def test_given_tokens_and_those_of_no_policy_never_change(lms):
    for family in ("llada", "fast_dllm_v2"):
        lm = lms[family]
        mask = lm.config.mask_token_id
        ids = [3, mask, 4, mask, mask, 5, 6, mask, 7, mask, mask, mask, 8, mask, 9, 10, mask]
        options = EDITING | {"editing_threshold": 0.0, "block_length": 8, "gen_length": 16}
        (c,) = lm.generate([{"infill_ids": ids}], **options)
        assert [a for a, i in zip(c.output_ids, ids, strict=True) if i != mask] == [
            i for i in ids if i != mask
        ]
        edited = {position for _, position, _ in c.edits}
        assert edited and all(c.commit_step[i] >= 0 for i in edited), family
        assert (-3 in c.commit_step) == (family == "fast_dllm_v2"), c.commit_step


def test_an_eos_may_be_edited_away_and_ends_nothing_before_the_block_does(lms):
    lm = lms["llada"]
    stops = list(range(20))  # many ids, so that one is common
    options = EDITING | {"stop_ids": stops, "early_stop": "block", "editing_threshold": 0.0}
    rng, seen = np.random.default_rng(0), set()
    for c in lm.generate([rng.integers(0, 36, 5).tolist() for _ in range(12)], **options):
        blocks = [c.output_ids[i : i + 4] for i in range(0, 12, 4)]
        ended = [bool(set(b) & set(stops)) for b in blocks]
        decided = [c.commit_step[i] >= 0 for i in range(0, 12, 4)]
        # All blocks up to the first one that holds a stop id when it is finished.
        last = ended.index(True) if True in ended else 2
        assert decided == [n <= last for n in range(3)]
        away = {p // 4 for _, p, new in c.edits} - {n for n in range(3) if ended[n]}
        seen |= {"stopped"} if last < 2 else set()
        seen |= {"changed in a block that goes on"} if away else set()
    assert len(seen) == 2, seen


def test_records_have_edits_where_a_decode_may_edit(lms):
    lm = lms["llada"]
    (plain,) = lm.generate([[3, 4]], **SHAPE)
    (edits,) = lm.generate([[3, 4]], **EDITING)
    (none,) = lm.generate([[3, 4]], **SHAPE | {"editing_threshold": 1.0})
    assert plain.edits is None and "edits" not in to_record(plain, details=True)
    assert to_record(none)["edits"] == [] != to_record(edits)["edits"]
    assert list(to_record(edits))[-2:] == ["commit_step", "edits"]
    assert to_record(edits, fields=["id", "edits"]) == {"id": 1, "edits": edits.edits}


def test_the_threshold_is_traced_and_rows_have_their_own(lms, compilations):
    lm = lms["llada"]
    batch = lm.batch([[3, 4, 5], [6, 7, 8]], **EDITING)
    decode = jax.jit(leapjax.decoding.decode, static_argnames="program")
    decode(*batch.arguments)
    values = np.array([1.0, 0.0], np.float32)
    state = with_options(batch.state, batch.program, editing_threshold=values)
    with compilations.none():
        final = decode(batch.params, state, batch.program)
    first, second = batch.completions(final)
    assert first.edits == [] != second.edits
    plain = lm.batch([[3, 4, 5]], **SHAPE)
    with pytest.raises(UserError, match="editing_threshold: not compiled into this program"):
        with_options(plain.state, plain.program, editing_threshold=0.5)
    mixed = [{"prompt_ids": [3]}, {"prompt_ids": [3], "options": {"editing_threshold": 0.5}}]
    with pytest.raises(UserError, match="record 2: edits is True, the first one's is False"):
        lm.batch(mixed, **SHAPE)
    assert [c.edits is None for c in lm.generate(mixed, **SHAPE)] == [True, False]


@pytest.mark.slow
def test_a_resumed_job_writes_the_same_records(tmp_path, capsys):
    records = [{"id": n, "prompt_ids": [3, n % 9, 5 + n]} for n in range(60)]
    lines = [json.dumps(r) for r in records]
    lines[50] = "{"  # ends the first run in the middle of the job
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    argv = ["decode", "--model", GOLDEN / "llada-a", "--input", tmp_path / "in.jsonl"]
    argv += "--gen-length 8 --block-length 8 --editing-threshold 0.3 --num-samples 2".split()
    argv += "--temperature 0.5 --batch-size 2 --shard-size 9 --details".split()

    def run(name, *more):
        return main([str(x) for x in (*argv, "--output", tmp_path / name, *more)])

    assert run("whole", "--max-errors", 1) == 0
    assert run("parts") == 2 and list((tmp_path / "parts").glob("part-*"))
    assert run("parts", "--resume", "--editing-threshold", 0.4) == 2
    assert "editing_threshold was 0.3, now 0.4" in capsys.readouterr().err
    assert run("parts", "--resume", "--max-errors", 1) == 0
    one, other = (sorted((tmp_path / n).glob("part-*")) for n in ("whole", "parts"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    assert any(json.loads(r)["edits"] for p in one for r in p.read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_post_steps": 4}, "^max_post_steps is 4, but nothing is edited; set editing_"),
        ({"editing_threshold": 1.5}, "^editing_threshold is 1.5; expected a number between 0"),
        (
            {"editing_threshold": 0.5, "max_post_steps": 1025},
            "^max_post_steps is 1025; expected a whole number between 0 and 1024$",
        ),
        ({"editing_threshold": 0.5, "early_stop": "on_eos"}, "^early_stop is on_eos, but with"),
        ({"policy": "joint_threshold", "early_stop": "settled"}, "^early_stop is settled, but"),
        ({"policy": "margin", "editing_threshold": 0.5}, "policy margin does not read it"),
        ({"policy": "joint_threshold", "num_to_transfer": 0}, "^num_to_transfer is 0; expected"),
    ],
)
def test_what_does_not_go_with_editing_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        DecodeConfig(**options)


def test_studies_and_the_cache_of_sub_blocks_refuse_it():
    config = DecodeConfig(editing_threshold=0.5, cache="block", sub_block_cache=True)
    with pytest.raises(UserError, match="sub_block_cache is on, but policy localleap replaces"):
        config.for_model(tiny_config("fast_dllm_v2"))
    with pytest.raises(UserError, match="policy localleap changes tokens that it committed"):
        check(DecodeConfig(editing_threshold=0.5))
