"""Short ways to run rows through the compiled decode, for the tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np

from leapjax import DecodeConfig, Request
from leapjax.decoding import initial_state, program_for, run_jit, summary
from leapjax.decoding.edits import listed
from leapjax.decoding.proposal import propose
from leapjax.decoding.state import with_cache
from leapjax.models import transformer
from leapjax.testing import tiny_config, tiny_params
from leapjax.types import COMMIT_KINDS

FAMILIES = ("llada", "dream", "sdar", "fast_dllm_v2", "llada_moe", "llada2", "sdar_moe", "chain")
MODELS = {name: tiny_config(name) for name in FAMILIES}
BIDIRECTIONAL = ("llada", "dream")
EOT = 5  # an ordinary token of the tiny models that plays end-of-turn
BUCKET = 10  # columns for prompts


def structure(policy="localleap", family="llada", gen=12, block=4, infill=None, **options):
    """(DecodeConfig, Program); `infill` is the length of the sequence's columns."""
    options = {"policy": policy, "gen_length": gen, "block_length": block} | options
    config = DecodeConfig(**options)
    program = program_for(
        config,
        MODELS[family],
        length=infill or BUCKET + gen,
        dtype="float32",
        eot_token_id=EOT,
        infill=infill is not None,
    )
    return config, program


def request(ids, config, id=0, **more):
    return Request(id=id, ids=tuple(int(i) for i in ids), config=config, **more)


def start(requests, program, slots=None):
    """The initial state on the device, with its cache if it has one."""
    state = jax.tree.map(jnp.asarray, initial_state(requests, program, slots))
    return with_cache(state, program)


def run(params, state, program, passes=10_000):
    """Decode to the end (or so many passes); the state is donated."""
    rows = jnp.int32(state.done.shape[0])
    return run_jit(params, state, jnp.int32(passes), rows, program=program)


def row(state, b, full=False):
    """One row's results from its first token to its end; `full` keeps the pads too."""
    at = slice(None) if full else slice(int(state.first[b]), int(state.end[b]))
    return {
        "tokens": np.asarray(state.tokens[b])[at].tolist(),
        "steps": int(state.steps[b]),
        "commit_step": np.asarray(state.commit_step[b])[at].tolist(),
        "commit_kind": [COMMIT_KINDS[k] for k in np.asarray(state.commit_kind[b])[at]],
        "commit_confidence": np.asarray(state.commit_confidence[b])[at].tolist(),
        "edits": edits_of(state, b),
        "done": bool(state.done[b]),
    }


def edits_of(state, b):
    """One row's edits; None in a program without them."""
    if state.edits is None:
        return None
    log = jax.tree.map(lambda x: np.asarray(x[b]), state.edits)
    origin, end = int(state.origin[b]), int(state.end[b])
    commit_step = np.asarray(state.commit_step[b])[origin:end]
    return listed(log, int(state.steps[b]), commit_step, origin)


def decode(params, requests, program, slots=None):
    """Requests -> their rows' results."""
    state = jax.device_get(run(params, start(requests, program, slots), program))
    return [row(state, b) for b in range(len(requests))]


def prompts(rng, count, longest=BUCKET, vocab=38):
    """Random prompts of mixed lengths, the empty one and the longest among them."""
    lengths = [longest, 0, *rng.integers(1, longest, max(count - 2, 0))][:count]
    return [rng.integers(0, vocab, n).tolist() for n in lengths]


def params_of(family, seed=0, **how):
    return tiny_params(MODELS[family], seed, **how)


def assert_same_proposal(params, config, program, hidden, tied):
    """The summary's proposal is that of whole logits, for every mixture of the eos options."""
    b = hidden.shape[0]
    options = initial_state([], program, b).options.replace(
        logits_eos_inf=jnp.arange(b) % 2 == 0, confidence_eos_eot_inf=jnp.arange(b) % 3 == 0
    )
    # Rows whose best token is one of the special ids, too.
    for loud in (None, config.eos_token_id, config.mask_token_id, program.eot_token_id):
        if loud is not None and not tied:
            bias = np.zeros(config.vocab_size, np.float32)
            bias[loud] = 40.0
            params = params.replace(head=params.head.replace(bias=jnp.asarray(bias)))
        logits = transformer.head(params, config, hidden)
        whole = propose(logits, options, None, jnp.zeros(b, bool), program)
        got = summary.propose(params, hidden, options, program)
        assert np.array_equal(whole.token, got.token)
        np.testing.assert_allclose(got.confidence, whole.confidence, rtol=2e-5, atol=1e-7)
