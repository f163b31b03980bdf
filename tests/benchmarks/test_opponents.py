"""PyTorch's decoders give leapjax's tokens and steps, so that their times may be compared."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from leapjax.benchmarks.machine import Machine
from leapjax.cli import benchmark_runs
from leapjax.cli.benchmark import main
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.testing import tiny_config, tiny_params

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
torch = pytest.importorskip("torch", reason="torch is not installed: its decoders are absent")
pytest.importorskip("transformers", reason="transformers is not installed")
sys.path.append(str(benchmark_runs.SCRIPTS))

from against_torch import comparison, llama, tables  # noqa: E402
from against_torch.job import Job, Rule  # noqa: E402
from against_torch.leapjax_side import Leapjax  # noqa: E402
from against_torch.optimised import Fast  # noqa: E402
from against_torch.plain import Plain  # noqa: E402

# Thresholds that fire often, seldom, never, and always.
RULES = ((0.7, 0.4, 2), (0.9, 0.75, 4), (1.0, 1.0, 4), (0.0, 0.0, 1))


@pytest.fixture(scope="module", params=[{}, {"n_kv_heads": 2, "tie_embeddings": True}])
def model(request):
    config = tiny_config("llada", **request.param)
    return tiny_params(config), config


def options(gen_length, block_length, threshold, relaxed_threshold, radius):
    return DecodeConfig(
        gen_length=gen_length,
        block_length=block_length,
        threshold=threshold,
        relaxed_threshold=relaxed_threshold,
        radius=radius,
        early_stop=False,
    )


def job(lengths, rule, seed=0, **more):
    rng = np.random.default_rng(seed)
    prompts = tuple(tuple(rng.integers(0, 38, n).tolist()) for n in lengths)
    return Job(prompts, options(24, 8, *rule), **more)


@pytest.mark.parametrize("lengths", [(9,), (7, 3, 5)])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_all_decode_alike(model, cache, lengths):
    """Rows of mixed lengths are padded; each has its own block, and is done on its own."""
    ours = Leapjax(*model, cache)
    theirs = [
        Plain(*model, cache),
        Fast(*model, cache, compiled=False),
    ]
    for rule in RULES:
        asked = job(lengths, rule)
        want = ours.decode(asked)
        assert not any(38 < t for row in want.tokens for t in row)  # the mask is never left
        for other in theirs:
            assert other.decode(asked) == want, (other.name, rule)
    assert want.steps == [3] * len(lengths)  # a block a step
    assert want.full_passes == [3] * len(lengths)


def test_a_limit_on_steps_leaves_the_same_open(model):
    asked = job((7, 3, 5), (0.7, 0.4, 2), max_steps=5)
    want = Leapjax(*model, "none").decode(asked)
    assert want.steps == [5, 5, 5]
    assert any(t == model[1].mask_token_id for row in want.tokens for t in row)
    assert Plain(*model, "none").decode(asked) == want
    assert Fast(*model, "none", compiled=False).decode(asked) == want


def test_vectorised_rule_is_the_published_one():
    """Coarse confidences: ties, exact hits, rows without masks."""
    rng = np.random.default_rng(0)
    plain, fast = object.__new__(Plain), object.__new__(Fast)
    for _ in range(200):
        confidence = rng.integers(0, 5, (3, 10)).astype(np.float32) / 4
        masked = rng.random((3, 10)) < rng.choice([0.0, 0.5, 1.0], (3, 1))
        low, high = np.sort(rng.choice([0.25, 0.5, 0.75, 1.0], 2))
        asked = Rule(float(high), float(low), int(rng.integers(0, 4)))
        given = torch.tensor(confidence), torch.tensor(masked), asked
        assert torch.equal(fast.choose(*given), plain.choose(*given))


def test_other_families_are_refused():
    config = tiny_config("dream")
    with pytest.raises(UserError, match="LLaDA-shaped"):
        Plain(tiny_params(config), config, "none")


@pytest.mark.slow
def test_compiled_passes_decode_alike(model):
    asked = job((7, 3, 5), (0.7, 0.4, 2))
    for cache in ("none", "dual"):
        fast = Fast(*model, cache)
        assert fast.decode(asked) == Leapjax(*model, cache).decode(asked)
        assert "full pass of" in fast.notes()


class Wrong(Leapjax):
    """Somebody who changes one token."""

    def __init__(self, params, config, cache):
        super().__init__(params, config, cache)
        self.name = "torch, plain"

    def decode(self, job):
        out = super().decode(job)
        out.tokens[0][0] = (out.tokens[0][0] + 1) % 38
        return out


def test_no_ratio_where_tokens_differ(model):
    sides = [Leapjax(*model, "none"), Wrong(*model, "none")]
    case = comparison.Case(1, 8, 16, 8)
    machine = Machine(1e9, "nobody", 1e9, 1, 1, 1)
    rows = comparison.compare(case, model[1], sides, 1, machine, pause=0)
    assert [r["equal"] for r in rows] == [True, False]
    assert rows[1]["leapjax_gain"] is None and rows[0]["gain"] is None
    text = tables.text(case, rows)
    assert "not compared" in text and "no ratio" in text


def test_the_command_writes_its_section(tmp_path, capsys):
    out = tmp_path / "performance.md"
    out.write_text("# Speed\n\nKept.\n")
    argv = ["--against", "torch", "--quick", "--batches", "2", "--write", str(out)]
    assert main(argv) == 0
    text = out.read_text()
    assert text.startswith("# Speed\n\nKept.\n\n<!-- benchmark against torch: begin")
    assert text.count("torch, optimised, dual cache |") == 2  # short and long
    assert "no ratio" not in text
    assert "tiny" in capsys.readouterr().out


def test_weights_are_not_shared_with_jax(model):
    """JAX's arrays are immutable; a decoder that writes must not reach them."""
    params, config = model
    llama.torch_model(params, config).model.embed_tokens.weight.zero_()
    assert float(jnp.abs(params["embed"]).max()) > 0
