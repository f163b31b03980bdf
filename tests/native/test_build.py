"""How the kernels come to be compiled, and what happens where they can't be."""

import logging
import os
import platform
import subprocess
import sys

import pytest

from leapjax import native
from leapjax.native import build


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not looked for kernels yet, with an empty folder to keep them."""
    monkeypatch.setenv("LEAPJAX_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LEAPJAX_NATIVE", raising=False)
    return build.panel.__wrapped__


def test_off_compiles_nothing(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("LEAPJAX_NATIVE", "off")
    assert fresh() == 0 and not list(tmp_path.iterdir())


def test_no_compiler(fresh, monkeypatch, caplog):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.INFO):
        assert fresh() == 0
    assert "No C++ compiler" in caplog.text


def test_a_compiler_that_fails_is_one_warning(fresh, monkeypatch, caplog, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
        'echo "so what" >&2\necho "error: no such luck" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert fresh() == 0
    (record,) = caplog.records
    assert "no such luck" in record.message and "LEAPJAX_NATIVE=off" in record.message
    assert not list((tmp_path / "native").iterdir())  # nothing half-written


def test_a_compiler_that_takes_too_long_is_one_warning(fresh, monkeypatch, caplog):
    def slow(*args):
        raise subprocess.TimeoutExpired("c++", 300, stderr=b"still at it")  # bytes, as Python does

    monkeypatch.setattr(build, "_compiler", lambda: "c++")
    monkeypatch.setattr(build, "_built", slow)
    assert fresh() == 0
    assert "still at it" in caplog.text


@pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native")
def test_compiled_once(fresh, monkeypatch, tmp_path):
    compiler = build._compiler()
    monkeypatch.setattr(build, "_FLAGS", ("-O0", *build._FLAGS[1:]))  # compiles sooner
    first = build._built(compiler)
    assert [first] == list((tmp_path / "native").iterdir())
    monkeypatch.setattr(build, "_compile", lambda *args: pytest.fail("compiled again"))
    assert build._built(compiler) == first


NARROW = """
import sys
import numpy as np
import jax
import jax.numpy as jnp
from leapjax import native
from leapjax.ops.attention import attend
from leapjax.native import build

build._FLAGS, build._FOR_THIS_CPU = (*build._FLAGS, *sys.argv[1:]), ("-O3",)
x, w = np.ones((33, 50), np.float32), np.arange(3500, dtype=np.float32).reshape(50, 70)


def once(weights, **more):
    return np.asarray(native.product(jnp.asarray(x), weights, **more)[0])


assert np.array_equal(once(native.pack(w)), x @ w)
y = x * np.linspace(0.5, 2, 50, dtype=np.float32)
root = np.sqrt((y * y).mean(-1, keepdims=True) + 0.1)
normed = once(native.pack(w), norm=jnp.full(50, 3.0), eps=0.1, bias=jnp.ones(70), add=x @ w)
np.testing.assert_allclose(normed, 3 * x / np.sqrt(1.1) @ w + 1 + x @ w, rtol=1e-5)
normed = np.asarray(native.product(jnp.asarray(y), native.pack(w), norm=jnp.ones(50), eps=0.1)[0])
np.testing.assert_allclose(normed, y / root @ w, rtol=1e-5)
gated = once(native.pack(w / 3500, w, gated=True))
np.testing.assert_allclose(gated, jax.nn.silu(x @ w / 3500) * (x @ w), rtol=1e-5)
c = native.panel()
# Numbers at random: what stands in the wrong place shows.
rng = np.random.default_rng(1)
x, w = (rng.standard_normal(s, np.float32) for s in ((33, 50), (50, 2 * c)))
bias = rng.standard_normal(2 * c, np.float32)
cos, sin = (rng.standard_normal((33, 1, c), np.float32) for _ in range(2))
turn = (jnp.asarray(cos), jnp.asarray(sin))
turned = once(native.pack(w, heads=(2 * c,)), rope=turn, bias=jnp.asarray(bias))
a, b = np.split((x @ w + bias)[:, None], 2, axis=-1)
wanted = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)[:, 0]
np.testing.assert_allclose(turned, wanted, atol=1e-4)
gate, up, shift = w[:, : c - 3], w[:, c + 3 :], bias[: 2 * c - 6]
gated = once(native.pack(gate, up, gated=True), bias=jnp.asarray(shift))
wanted = jax.nn.silu(x @ gate + shift[: c - 3]) * (x @ up + shift[c - 3 :])
np.testing.assert_allclose(gated, wanted, atol=1e-3)
x, w = np.ones((33, 50), np.float32), np.arange(3500, dtype=np.float32).reshape(50, 70)
q = jnp.asarray(np.random.default_rng(0).standard_normal((1, 20, 2, 24), np.float32))
valid = jnp.ones((1, 20), bool)
wanted, _ = attend(q, q, q, valid)
np.testing.assert_allclose(native.attention(q, q, q, valid), wanted, atol=1e-5)
top, place, total, _ = native.summary(jnp.asarray(x), native.pack(w), jnp.zeros(70), 1e-4)
y = 1e-4 * (x @ w)
assert (np.asarray(place) == 69).all()
np.testing.assert_allclose(total, np.exp(y - y.max(-1, keepdims=True)).sum(-1), rtol=1e-4)
print(native.panel())
"""


@pytest.mark.skipif(not native.available(), reason="no C++ compiler for leapjax.native")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize(
    ("flags", "columns"),
    [(["-mavx2", "-mfma"], 16), pytest.param(["-mavx"], 16, marks=pytest.mark.slow), ([], 8)],
)
def test_narrower_vectors_than_this_processors(tmp_path, flags, columns):
    env = {**os.environ, "LEAPJAX_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", NARROW, *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == columns
