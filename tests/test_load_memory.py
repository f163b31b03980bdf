"""A checkpoint goes to its shards without a copy of the model on the way."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from leapjax import checkpoint
from leapjax.benchmarks.models import MODEL_60M, size
from leapjax.models import param_shapes, parse_config

RAW = {
    "model_type": "llada",
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rope": True,
    "vocab_size": MODEL_60M.vocab_size,
    "embedding_size": MODEL_60M.vocab_size,
    "d_model": MODEL_60M.d_model,
    "n_layers": MODEL_60M.n_layers,
    "n_heads": MODEL_60M.n_heads,
    "n_kv_heads": MODEL_60M.n_kv_heads,
    "mlp_hidden_size": MODEL_60M.mlp_hidden_size,
    "rope_theta": MODEL_60M.rope_theta,
    "rms_norm_eps": MODEL_60M.norm_eps,
    "max_sequence_length": MODEL_60M.max_length,
    "mask_token_id": MODEL_60M.mask_token_id,
    "eos_token_id": MODEL_60M.eos_token_id,
    "pad_token_id": MODEL_60M.pad_token_id,
    "weight_tying": False,
}
COPY = 4 * size(MODEL_60M)

# On a CPU the shards are host memory too: one copy has to be there, a second one must not. The
# backend and a compiled program come first, so that the rest of the peak is the loading's.
CHILD = """
import json, sys
import jax, jax.numpy as jnp
import leapjax, leapjax.converters

def status(name):
    (line,) = (x for x in open("/proc/self/status") if x.startswith(name + ":"))
    return int(line.split()[1]) * 1024

assert len(jax.devices()) == 8
jax.jit(jnp.sin)(jnp.ones(8)).block_until_ready()
jax.block_until_ready([jax.device_put(jnp.ones(8), d) for d in jax.devices()])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS")
lm = leapjax.load(sys.argv[1], mesh=sys.argv[2] or None)
# What loading leaves there; on one device `replicas` are the packed matrices for decoding, too.
loaded = [r.params for r in lm.replicas] if lm.mesh else lm.params
leaves = jax.block_until_ready(jax.tree.leaves(loaded))
out = {"before": before, "after": status("VmRSS"), "peak": status("VmHWM")}
out["largest_shard"] = max(s.data.nbytes for x in leaves for s in x.addressable_shards)
out["dtypes"] = sorted({x.dtype.name for x in leaves})
out["held"] = sum(s.data.nbytes for x in leaves for s in x.addressable_shards)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The 60 M random model in float32, as a checkpoint and as a hub folder of shards."""
    from leapjax import converters

    root = tmp_path_factory.mktemp("large")
    assert parse_config(RAW) == MODEL_60M
    rng = np.random.default_rng(0)
    params = {
        name: rng.standard_normal(shape, np.float32) / 32
        for name, shape in checkpoint.flatten(param_shapes(MODEL_60M)).items()
    }
    checkpoint.save(root / "orbax", checkpoint.unflatten(params), RAW, {})
    converters.to_hub(root / "orbax", root / "hub", shard_size=64 << 20)
    assert len(list((root / "hub").glob("*.safetensors"))) > 1
    return root


def loaded(folder, mesh):
    """What a process of its own says about loading a folder."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("peak memory can't be reset here (/proc/self/clear_refs)")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), mesh],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["dtypes"] == ["float32"]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tensor=4,fsdp=2", "tensor=8", ""])
@pytest.mark.parametrize("kind", ["orbax", "hub"])
def test_loading_onto_8_devices_holds_about_one_copy(folders, kind, mesh):
    got = loaded(folders / kind, mesh)
    copies = (got["peak"] - got["before"]) / COPY
    print(f"{kind} {mesh or 'one device'}: peak {copies:.2f} copies of {COPY / 1e6:.0f} MB")
    # The weights are there at all, and in parts.
    assert (got["after"] - got["before"]) / COPY > 0.9
    assert COPY <= got["held"] < 1.02 * COPY  # only norms are replicated
    if mesh:
        assert got["largest_shard"] <= COPY / 8
    assert copies < 1.35


@pytest.mark.slow
def test_replicas_do_not_add_to_the_peak_of_loading(folders):
    got = loaded(folders / "orbax", "data=2,tensor=4")
    assert got["held"] >= 2 * COPY  # each replica has its weights
    assert (got["peak"] - got["before"]) / COPY < 2.35
