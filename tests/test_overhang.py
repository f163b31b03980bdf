"""LLaDA2 decodes its last block whole and answers `gen_length` positions of it."""

import json
from pathlib import Path

import pytest

import leapjax
from leapjax import DecodeConfig, UserError
from leapjax.records import to_record
from leapjax.testing import golden_config

GOLDEN = Path(__file__).parent / "golden"
CASES = [json.loads(line) for line in (GOLDEN / "decode-llada2.jsonl").read_text().splitlines()]
CASES = [c for c in CASES if c["options"]["policy"] == "llada2" and
         (c["options"]["gen_length"], c["options"]["block_length"]) == (32, 16)]  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    return leapjax.load(GOLDEN / "llada2-a")


def test_records_show_nothing_that_hangs_over(lm):
    """Every key of a record, against the original's answer."""
    hangs = {case["id"]: -(len(case["prompt_ids"]) + 32) % 16 for case in CASES}
    assert sorted(hangs.values()) == [0, 13, 13, 13]
    requests = [
        lm.request(
            {"id": case["id"], "prompt_ids": case["prompt_ids"]},
            golden_config(lm.config, case["options"] | {"cache": "none"}),
        )
        for case in CASES
    ]
    for case, got in zip(CASES, lm.stream(requests, batch_size=3), strict=True):
        record = to_record(got, details=True)
        assert {k: record[k] for k in ("output_ids", "steps", "commit_step")} == {
            k: case[k] for k in ("output_ids", "steps", "commit_step")
        }
        for key in ("output_ids", "commit_step", "commit_kind", "commit_confidence"):
            assert len(record[key]) == 32, key
        assert record["text"] == lm.finish(requests[0], case["output_ids"])[0]
        eos = lm.config.eos_token_id in case["output_ids"]
        assert record["finish_reason"] == ("stop" if eos else "length")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:block_length is 4")
def test_an_infilled_sequence_is_whole(lm):
    mask = lm.config.mask_token_id
    (got,) = lm.infill([[65, mask, 66, mask, 67]], DecodeConfig(gen_length=2, block_length=4))
    assert len(got.output_ids) == len(got.commit_step) == 5


def test_the_last_block_must_fit(lm):
    """Of 512 positions at most, with blocks of 32, all the last one's."""
    config = DecodeConfig(gen_length=24)
    assert lm.request({"prompt_ids": [65] * 488}, config)
    with pytest.raises(UserError, match="that is 544; the model takes 512: .* to at most 23"):
        lm.request({"prompt_ids": [65] * 489}, config)
