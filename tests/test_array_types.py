"""The shapes and dtypes in signatures hold: checked while decodes, a loss and logits are traced.

jaxtyping and beartype check every call of an annotated function. Tracing makes every call, so
most programs need not be compiled.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import types
import typing

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import leapjax
from leapjax import decoding, likelihood, native
from leapjax.decoding import prefill, schedule
from leapjax.models import attention, chain, transformer
from leapjax.ops import arrangement, primitives
from leapjax.policies import POLICIES, base
from leapjax.testing import tiny_config, tiny_params
from leapjax.training import block_diffusion, objective
from tests.decoding import harness

NAMES = """
    models.attention models.attention_states models.chain models.shadow models.transformer
    ops.arrangement ops.attention_map ops.cache ops.cpu ops.primitives ops.runs ops.split ops.xla
    models.block_passes decoding.advance decoding.prefill decoding.forward decoding.loop
    decoding.proposal decoding.schedule decoding.step decoding.summary decoding.whole_rows
    likelihood training.objective training.block_diffusion policies.base policies.independent
""".split()
POLICY_MODULES = {name: importlib.import_module(f"leapjax.policies.{name}") for name in POLICIES}
MODULES = [importlib.import_module(f"leapjax.{name}") for name in NAMES]
MODULES += POLICY_MODULES.values()


def public(module):
    """(owner, name, function) of a module's public functions and its public classes' methods."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        if own and isinstance(value, types.FunctionType):
            yield module, name, value
        elif own and isinstance(value, type):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    if function.__module__ == module.__name__:
                        yield value, method, function


FUNCTIONS = [(module, *found) for module in MODULES for found in public(module)]


def label(function):
    return f"{function.__module__.removeprefix('leapjax.')}.{function.__qualname__}"


def takes_arrays(function):
    return any(re.search(r"Array,|ndarray,", str(a)) for a in function.__annotations__.values())


@functools.cache
def namespace(module):
    """A module's names as type checkers see them: with those that only they import."""
    known = dict(vars(module))
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), str(module.__file__), "exec"), known)
    return known


def checked(function, module):
    """The function, its annotations checked at every call."""
    code = function.__code__, function.__globals__, function.__name__
    copy = types.FunctionType(*code, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__annotations__ = typing.get_type_hints(function, namespace(module))
    return jaxtyping.jaxtyped(typechecker=beartype.beartype)(copy)


def counting(function, module, called):
    """The checked function, which notes that it was called."""
    check, name = checked(function, module), label(function)

    @functools.wraps(function)
    def counted(*args, **kwargs):
        called.add(name)
        return check(*args, **kwargs)

    return counted


@pytest.fixture
def called(monkeypatch):
    """Names of the functions called so far, all of them checked wherever they are used."""
    called = set()
    jax.clear_caches()  # nothing that was traced unchecked
    ours = [vars(m) for n, m in sys.modules.items() if n.split(".")[0] == "leapjax"]
    for module, owner, name, function in FUNCTIONS:
        counted = counting(function, module, called)
        monkeypatch.setattr(owner, name, counted)
        for user in ours if owner is module else ():
            for alias in [n for n, x in user.items() if x is function]:
                monkeypatch.setitem(user, alias, counted)
    for name, module in POLICY_MODULES.items():
        own = {n: getattr(module, n) for n in ("commit", "adjust", "memory") if hasattr(module, n)}
        if hasattr(module, "score"):
            own["commit"] = base.best_first(module.score)
        monkeypatch.setitem(POLICIES, name, dataclasses.replace(POLICIES[name], **own))
    yield called
    jax.clear_caches()


def decode(family="llada", arrange=False, change=lambda state: state, group=1, **options):
    """Trace a whole decode of two rows."""
    config, program = harness.structure(family=family, **options)
    program = dataclasses.replace(program, refresh_group=group)
    params = harness.params_of(family)
    params = arrangement.arrange(params, program.model) if arrange else params
    requests = [harness.request(ids, config, id=i) for i, ids in enumerate([[1, 2, 3], [4]])]
    state = change(harness.start(requests, program))
    jax.eval_shape(lambda p, s: decoding.decode(p, s, program), params, state)


DECODES = [
    {"cache": cache, "family": family}
    for cache in ("none", "prefix", "dual")
    for family in ("llada", "dream")
]
DECODES += [
    {"cache": cache, "family": family, "arrange": arranged}
    for cache in ("none", "block")
    for family in ("sdar", "fast_dllm_v2")
    for arranged in (False, True)
]
DECODES += [{"policy": "low_confidence", "cache": "block", "family": "sdar", "cfg_scale": 1.0}]
DECODES += [{"cache": "block", "family": "sdar", "group": 0}]  # stores in turns
DECODES += [{"policy": name, "gen": 4} for name in POLICIES]
DECODES += [
    {"arrange": True, "policy": "confidence_threshold"},
    {"arrange": True, "family": "llada_moe"},
    {"arrange": True, "family": "chain", "policy": "wino", "gen": 4},
    {"family": "chain", "cfg_scale": 1.0},
    {"arrange": True, "policy": "wino", "gen": 4},
    {"arrange": True, "cache": "dual", "family": "dream"},
    {"cache": "dual", "cfg_scale": 1.0},
    {"policy": "hierarchy", "temperature": 0.5, "top_p": 0.9},
    {"policy": "low_confidence", "schedule": "dream", "family": "dream", "gen": 4},
]


def copy_a_piece():
    """Trace the copy of a prefix from one row to another."""
    config, program = harness.structure(family="sdar", cache="block")
    state = harness.start([harness.request([1, 2, 3], config, id=i) for i in range(2)], program)
    one, zero = jnp.int32(1), jnp.int32(0)

    def copied(state):
        piece = prefill.read_piece(state.cache, one, zero, program)
        return prefill.write_piece(state, piece, zero, zero, program)

    jax.eval_shape(copied, state)


def trace_dependence():
    """Of a chain's positions on each other."""
    config, valid = tiny_config("chain"), jnp.ones((2, 5), bool)
    params, ids = tiny_params(config), jnp.ones((2, 5), jnp.int32)
    found = chain.messages(params, config, ids, valid)
    jax.eval_shape(lambda: chain.dependence(params, config, ids, valid, found, valid))


def trace_a_loss(params, config):
    key, ids = jax.random.key(0), jnp.ones((2, 6), jnp.int32)
    batch = {name: ids > 0 for name in ("valid", "trainable", "unseen")}
    batch |= {"ids": ids, "floor": jnp.float32(0.5)}
    jax.eval_shape(lambda p: objective.loss(p, config, batch, key, 4), params)
    config = tiny_config("sdar")
    params = tiny_params(config)
    jax.eval_shape(lambda p: block_diffusion.loss(p, config, batch, key, 4), params)


def test_what_is_computed_keeps_to_the_types(called):
    """Of decodes, a loss, logits and a likelihood; every function with arrays is called."""
    for options in DECODES:
        decode(**options)
    with pytest.MonkeyPatch.context() as patch:  # as where there is no C++ compiler
        patch.setattr(native, "available", lambda: False)
        decode(arrange=True, policy="confidence_threshold")
    config = tiny_config()
    params = tiny_params(config)
    lm = leapjax.LM(params, config, codec=None).with_token_counts(np.ones(config.vocab_size))
    lm.logits([[1, 2, 3]])
    likelihood.likelihoods(lm, [([1], [2, 3])], samples=2)
    trace_a_loss(params, config)
    copy_a_piece()
    trace_dependence()
    jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    valid = jnp.ones((2, 5), bool)
    places = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
    for rule in (attention.BlockCausal(4), attention.Causal(), attention.Windowed(2)):
        attention.attention_mask(rule, places[:, :3], places, valid)
    attention.Bidirectional().mask(places, places)
    attention.Absent().mask(places, places)
    expected = {label(f) for *_, f in FUNCTIONS if takes_arrays(f)}
    if not native.available():
        expected = {name for name in expected if not name.startswith("ops.cpu.")}
    assert sorted(expected - called) == []


ROWS, SCORES = jnp.zeros(2, jnp.int32), jnp.zeros((2, 3), jnp.float32)


WRONG = {
    "length": lambda: schedule.even(ROWS, ROWS, jnp.zeros(3, jnp.int32)),
    "dtype": lambda: schedule.even(ROWS, ROWS, jnp.zeros(2, jnp.float32)),
    "ids": lambda: primitives.take(SCORES, SCORES),
    "half": lambda: primitives.rotate(*(jnp.zeros((2, 3, 1, n)) for n in (4, 2, 1))),
    "rank": lambda: decode(change=lambda s: s.replace(block=s.block[:, None])),
    "narrow": lambda: decode(change=lambda s: s.replace(tokens=s.tokens.astype(jnp.int16))),
    "cache": lambda: decode(
        cache="dual", change=lambda s: s.replace(cache=(s.cache[0], s.cache[1][:1]))
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_or_dtype_is_caught(called, name):
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[name]()


def test_a_policy_that_breaks_the_types_is_caught(called, monkeypatch):
    def commit(proposal, masked, info):
        return base.commits(base.surest(proposal.confidence[:, :1], masked), base.SCHEDULE)

    broken = dataclasses.replace(POLICIES["localleap"], commit=commit)
    monkeypatch.setitem(POLICIES, "localleap", broken)
    with pytest.raises(jaxtyping.TypeCheckError, match="masked"):
        decode()


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_public_functions_say_what_they_take_and_give(module):
    for function in (f for m, *_, f in FUNCTIONS if m is module):
        names = {n for n in inspect.signature(function).parameters if n != "self"}
        assert names | {"return"} <= function.__annotations__.keys(), label(function)


DTYPES = {"bool": "Bool", "int32": "Int32", "float32": "Float32", "PRNG": "Key"}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_docstrings_and_signatures_agree(module):
    """What is `x: (B, T) int32` in a docstring is `x: Int32[Array, "B T"]` in the signature."""
    for function in (f for m, *_, f in FUNCTIONS if m is module):
        said = re.findall(r"^ +(\w+): \(([A-Z1].*?),?\) (\w+)?", function.__doc__ or "", re.M)
        for name, shape, dtype in said:
            annotation = str(function.__annotations__[name])
            found = re.findall(r"(\w+)\[[\w.]+, '(.*?)'\]", annotation)
            if annotation != "ArrayLike":
                assert shape.replace(",", "") in {at.strip() for _, at in found}, label(function)
            if dtype in DTYPES:
                assert {kind for kind, _ in found} == {DTYPES[dtype]}, label(function)
