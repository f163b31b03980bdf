"""`LM.batch`, `with_options`, and the page that shows them."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import leapjax
from leapjax import DecodeConfig, UserError
from leapjax.decoding import decode, with_options
from leapjax.testing import tiny_config, tiny_params
from leapjax.types import EARLY_STOPS

PAGE = Path(__file__).parents[2] / "docs" / "research.md"
OPTIONS = {"gen_length": 16, "block_length": 8}
RELAXED = {"threshold": 0.8, "relaxed_threshold": 0.4, "radius": 2}


@pytest.fixture(scope="module")
def lm():
    config = tiny_config("dream")
    return leapjax.LM(tiny_params(config), config, codec=None)


def test_the_page_runs(capsys, registry):
    if not leapjax.embedded_path().joinpath("manifest.json").is_file():
        pytest.skip("no embedded model")
    space = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(compile(code, str(PAGE), "exec"), space)  # noqa: S102
    want = space["lm"].generate(space["prompts"], threshold=0.9)
    got = space["batch"].completions(space["final"])
    assert [(c.text, c.steps) for c in got] == [(c.text, c.steps) for c in want]
    assert got[0].text.endswith("#### 7") and got[1].text.endswith("#### 2")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "cache"),
    [("dream", "none"), ("dream", "dual"), ("sdar", "block"), ("fast_dllm_v2", "block")],
)
def test_a_batch_decodes_as_generate_does(family, cache):
    config = tiny_config(family).with_block_length(8) if cache == "block" else tiny_config(family)
    lm = leapjax.LM(tiny_params(config), config, codec=None)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3, 4]]
    options = OPTIONS | RELAXED | {"cache": cache}
    batch = lm.batch(prompts, **options)
    final = jax.jit(decode, static_argnames="program")(*batch.arguments)
    assert batch.completions(final) == lm.generate(prompts, **options)


def test_rows_may_differ_in_what_is_theirs(lm):
    records = [
        {"prompt_ids": [1, 2], "options": {"temperature": 0.7, "top_k": 3}},
        {"prompt_ids": [1, 2]},
    ]
    batch = lm.batch(records, **OPTIONS)
    assert batch.program.sampling and batch.program.filtering
    got = batch.completions(decode(*batch.arguments))
    assert [c.output_ids for c in got] == [c.output_ids for c in lm.generate(records, **OPTIONS)]
    asked = [lm.request([1], gen_length=16, block_length=b) for b in (8, 16)]
    with pytest.raises(UserError, match="record 2: block_length is 16, the first one's is 8"):
        lm.batch(asked)


def test_numbers_set_anew_are_those_of_a_new_batch(lm):
    batch = lm.batch([[1, 2, 3], [9]], **OPTIONS)
    state = with_options(batch.state, batch.program, **RELAXED)
    want = lm.batch([[1, 2, 3], [9]], **OPTIONS, **RELAXED).state
    # The radius counts on both sides.
    assert jax.tree.all(jax.tree.map(np.array_equal, state.options, want.options))
    settled = with_options(batch.state, batch.program, early_stop="settled").options.early_stop
    assert settled.tolist() == [EARLY_STOPS.index("settled")] * 2
    each = with_options(batch.state, batch.program, threshold=np.array([0.8, 0.9]))
    np.testing.assert_array_equal(each.options.parameters["threshold"], np.float32([0.8, 0.9]))

    @jax.jit
    def steps(threshold):
        state = with_options(batch.state, batch.program, threshold=threshold)
        return decode(batch.params, state, batch.program).steps

    for threshold in (0.75, 0.99):
        config = DecodeConfig(threshold=threshold, **OPTIONS)
        want = [c.steps for c in lm.generate([[1, 2, 3], [9]], config)]
        assert steps(threshold).tolist() == want
    assert steps._cache_size() == 1


def test_numbers_that_nobody_would_read(lm):
    batch = lm.batch([[1]], **OPTIONS)
    for options, message in (
        ({"steps": 4}, "steps: policy localleap does not read it"),
        ({"temperature": 1.0}, "temperature: not compiled into this program"),
        ({"top_p": 0.5}, "top_p: not compiled"),
        ({"cfg_scale": 1.0}, "cfg_scale: not compiled"),
        ({"treshold": 1.0}, "did you mean 'threshold'"),
        ({"cache": "dual"}, "unknown option 'cache'"),
    ):
        with pytest.raises(UserError, match=message):
            with_options(batch.state, batch.program, **options)
    with pytest.raises(UserError, match="threshold is traced by jax; set it with with_options"):
        jax.jit(lambda t: lm.batch([[1]], threshold=t).state.steps)(0.8)
