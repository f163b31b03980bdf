"""Sampling: draws follow the softmax, the filters cut where they should, noise has one cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leapjax import DecodeConfig, Request
from leapjax.decoding import program_for
from leapjax.decoding.proposal import _filtered, _scores, propose
from leapjax.decoding.state import key_material, row_arrays, row_keys, stack_rows
from leapjax.idset import digest
from leapjax.testing import tiny_config
from tests.decoding.harness import decode, params_of, prompts, request, structure

V = 128_000
MASK = V - 1
WORDS = ("plumless", "buckeroo")


def numbers(config, program, rows=1):
    arrays = [row_arrays(Request(0, (), config), program)] * rows
    return stack_rows(arrays)["options"]


def drawer(vocab, **o):
    """A jitted (row of logits, n keys) -> n tokens."""
    config = DecodeConfig(gen_length=8, block_length=8, **o)
    model = tiny_config(vocab_size=vocab)
    program = program_for(config, model, length=8, dtype="float32", eot_token_id=None)
    options = numbers(config, program)

    @jax.jit
    def draw(logits, keys):
        rows = jnp.broadcast_to(logits, (1, len(keys), len(logits)))
        return propose(rows, options, keys[None], jnp.zeros(1, bool), program).token[0]

    return draw


def draws(draw, logits, count, chunk=64, seed=0):
    keys = jax.random.split(jax.random.key(seed), count).reshape(-1, chunk)
    return np.concatenate([np.asarray(draw(logits, k)) for k in keys])


@pytest.mark.parametrize(
    ("temperature", "count"),
    [
        pytest.param(1.0, 384),
        pytest.param(0.7, 16_384, marks=pytest.mark.slow),
        pytest.param(1.0, 16_384, marks=pytest.mark.slow),
    ],
)
def test_frequencies_at_a_large_vocabulary(temperature, count):
    """Few frequent tokens, and a tail of tokens each rarer than float32 uniforms can tell."""
    p = np.empty(V)
    p[:8] = np.array([0.3, 0.2, 0.15, 0.1, 0.05, 0.05, 0.03, 0.02])
    tail = slice(8, V - 1)  # 10 % in all, 8e-7 each
    p[tail] = 0.1 / (V - 9)
    p[MASK] = 0.5  # never drawn, whatever its probability
    logits = jnp.asarray(np.log(p) * temperature, jnp.float32)
    token = draws(drawer(V, temperature=temperature), logits, count)
    assert MASK not in token
    # Groups: each frequent token, then the tail in four quarters.
    edges = [0, *range(1, 9), *np.linspace(8, V - 1, 5).astype(int)[1:]]
    want = np.array([p[a:b].sum() for a, b in zip(edges, edges[1:], strict=False)])
    want /= want.sum()
    got = np.histogram(token, edges)[0]
    assert got.sum() == count
    chi2 = ((got - count * want) ** 2 / (count * want)).sum()
    assert chi2 < 31.3, (got, count * want)  # 11 degrees of freedom: 1 in 1000; seeds are fixed
    rare = token[token >= 8]
    assert len(np.unique(rare)) >= len(rare) - 1 - len(rare) ** 2 // V


def test_noise_has_its_whole_tail():
    """What rare tokens win by: values that noise from float32 uniforms never takes.

    Uniforms in steps of 2**-23 give Gumbel noise up to 15.94 and no more, so a token less
    likely than about 1e-7 would hardly ever be drawn (arXiv 2409.02908).
    """
    config = DecodeConfig(gen_length=8, block_length=8, temperature=1.0)
    model = tiny_config(vocab_size=V)
    program = program_for(config, model, length=8, dtype="float32", eot_token_id=None)
    options = numbers(config, program)
    edges = np.array([-np.inf, 0.0, 12.0, 14.0, 15.95, np.inf], np.float32)

    @jax.jit
    def noise(keys):
        return _scores(jnp.zeros((1, len(keys), V)), options, keys[None], program)

    above = np.zeros(len(edges), int)
    for keys in jax.random.split(jax.random.key(0), (16, 32)):
        drawn = np.asarray(noise(keys))
        above += [np.count_nonzero(drawn > edge) for edge in edges]
    got = -np.diff(above)
    want = np.diff(np.exp(-np.exp(-edges.astype(np.float64)))) * 16 * 32 * V
    assert want[-1] > 5  # 7 or so beyond what coarse noise can take
    spread = np.sqrt(want)
    assert (np.abs(got - want) < 4 * spread).all(), (got, want)
    assert got[-1] > 0


def test_frequencies_at_a_small_vocabulary():
    logits = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    token = draws(drawer(12, temperature=1.5), jnp.asarray(logits), 8192, chunk=2048)
    p = np.exp(logits[:-1] / 1.5)  # the last id is the mask
    p /= p.sum()
    got = np.bincount(token, minlength=12)
    assert got[-1] == 0
    chi2 = ((got[:-1] - 8192 * p) ** 2 / (8192 * p)).sum()
    assert chi2 < 29.6, (got, 8192 * p)  # 10 degrees of freedom: 1 in 1000


def kept_by_hand(logits, temperature, top_p, top_k):
    """Token ids that may be drawn; float64, so cut points must not be ties."""
    order = sorted(range(len(logits)), key=lambda v: -logits[v])
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    kept, mass = set(), 0.0
    for rank, v in enumerate(order):
        if mass >= top_p or (top_k and rank >= top_k):
            break
        kept.add(v)
        mass += p[v]
    return kept


def test_top_p_and_top_k():
    config = DecodeConfig(gen_length=8, block_length=8, temperature=1.0, top_p=0.9)
    model = tiny_config(vocab_size=25)
    program = program_for(config, model, length=8, dtype="float32", eot_token_id=None)
    filtered = jax.jit(lambda x, t, o: _filtered(x, t, o))
    rng = np.random.default_rng(0)
    cases = [
        (t, p, k)
        for t in (0.3, 1.0, 2.0)
        for p in (1e-6, 0.2, 0.5, 0.9, 0.999, 1.0)
        for k in (None, 1, 3, 24, 100)
    ]
    logits = rng.standard_normal((len(cases), 1, 25)).astype(np.float32) * 2
    configs = [config.replace(temperature=t, top_p=p, top_k=k) for t, p, k in cases]
    options = stack_rows([row_arrays(Request(0, (), c), program) for c in configs])["options"]
    out = np.asarray(filtered(logits, options.temperature[:, None, None], options))
    for b, (t, p, k) in enumerate(cases):
        want = kept_by_hand(logits[b, 0].astype(np.float64), t, p, k)
        assert set(np.flatnonzero(np.isfinite(out[b, 0])).tolist()) == want, (t, p, k)
    kept = np.isfinite(out)
    np.testing.assert_array_equal(out[kept], logits[kept])


def test_only_kept_tokens_are_drawn():
    logits = np.array([3.0, 2.0, 1.0, 0.0, -1.0, 9.0], np.float32)  # the last is the mask
    two = draws(drawer(6, temperature=2.0, top_k=2), jnp.asarray(logits), 512, chunk=512)
    assert set(two.tolist()) == {0, 1}
    share = np.mean(two == 0)
    assert abs(share - 1 / (1 + np.exp(-0.5))) < 0.07


def test_confidence_is_before_temperature_and_filters():
    logits = np.array([[[2.0, 1.0, 0.0, 1.5]]], np.float32)  # the last is the mask, it weighs
    config = DecodeConfig(gen_length=1, block_length=1, temperature=3.0, top_k=1)
    model = tiny_config(vocab_size=4)
    program = program_for(config, model, length=1, dtype="float32", eot_token_id=None)
    keys = jax.random.split(jax.random.key(0), 1)[None]
    go = jax.jit(lambda x, k: propose(x, numbers(config, program), k, jnp.zeros(1, bool), program))
    out = go(logits, keys)
    assert out.token[0, 0] == 0
    e = np.exp(logits[0, 0])
    np.testing.assert_allclose(out.confidence[0, 0], e[0] / e.sum(), rtol=1e-5)


def test_noise_does_not_know_slot_batch_or_bucket():
    params = params_of("llada")
    config, small = structure("random", temperature=1.0)
    rows = [
        request(p, config, id=f"r{n}")
        for n, p in enumerate(prompts(np.random.default_rng(0), 3, longest=8))
    ]
    together = decode(params, rows, small)
    assert decode(params, rows[::-1], small)[::-1] == together  # slots
    wide = type(small)(**{**vars(small), "length": small.length + 7})
    for one, got in zip(rows, together, strict=True):
        (other,) = decode(params, [one], wide)  # bucket, and batch
        for fact in ("tokens", "steps", "commit_step", "commit_kind"):
            assert other[fact] == got[fact]


def test_seed_id_and_sample_make_the_noise():
    params = params_of("llada")
    config, program = structure("random", temperature=1.0)
    prompt = [1, 2, 3]
    rows = [
        request(prompt, config, id="a"),
        request(prompt, config, id="a"),
        request(prompt, config, id="b"),
        request(prompt, config.replace(seed=1), id="a"),
        request(prompt, config, id="a", seed=5),
        request(prompt, config.replace(seed=1), id="c", seed=5),
        request(prompt, config, id="a", sample=0),
        request(prompt, config, id="a", sample=1),
    ]
    a, again, b, seeded, own, own_too, first, second = decode(params, rows, program)
    assert a == again == first  # the first sample is the decode without samples
    assert own == own_too  # a record's own seed leaves job seed and id out
    different = [str(x["tokens"]) + str(x["commit_step"]) for x in (a, b, seeded, own, second)]
    assert len(set(different)) == 5


def test_a_million_ids_have_keys_of_their_own():
    # CRC-32, which 0.1 took, gives these two words one number.
    pair = [key_material(Request(id=i, ids=(), config=DecodeConfig())) for i in WORDS]
    assert pair[0].tolist() != pair[1].tolist()
    keys = jax.random.key_data(row_keys(np.stack(pair)))
    assert keys[0].tolist() != keys[1].tolist()
    assert len({digest(n) for n in range(10**6)}) == 10**6


def test_a_greedy_row_among_sampling_ones():
    params = params_of("llada")
    plain, greedy = structure("localleap")
    hot, sampling = structure("localleap", temperature=50.0, top_k=30)
    prompt = [1, 2, 3]
    (want,) = decode(params, [request(prompt, plain)], greedy)
    rows = [request(prompt, hot, id=1), request(prompt, hot.replace(temperature=0.0))]
    other, got = decode(params, rows, sampling)
    for fact in ("tokens", "steps", "commit_step", "commit_kind"):
        assert got[fact] == want[fact]
    assert other["tokens"] != got["tokens"]
