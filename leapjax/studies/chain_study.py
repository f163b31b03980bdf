"""`leapjax chain`: what parallel commits cost where the truth is known.

    frontier        every policy under many settings: steps against nats
    neighbourhoods  the positions around an anchor against as many commits elsewhere

Shapes: B contexts, T columns, V vocabulary.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax import chains
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.models import chain
from leapjax.policies import POLICIES, Parameter
from leapjax.studies import runner
from leapjax.studies.chain_costs import commit_costs, has_one_token_a_state
from leapjax.studies.statistics import Z, front
from leapjax.types import Request

COLUMNS = 64  # of a context whose neighbourhoods are measured
_ROWS = 1024  # of decodes whose costs are computed at once
_OF_PASSES = ("error", "lost")
MOST_ON_FRONT = 8  # settings of a front that fresh prompts measure
_BASES = (2, 3, 5, 7, 11)


def settings(base: DecodeConfig, count: int) -> list[DecodeConfig]:
    """Settings of a policy, spread evenly over its parameters with one value per row.

    Distinct settings, the defaults first: points of a Halton sequence. A parameter with a largest
    value takes all its range, another one 1/16 to 16 times its default; one of few values has
    fewer than `count`.
    """
    declared = [p for p in POLICIES[base.policy].parameters if p.traced]
    free = [p for p in declared if p.default is not None or p.follows == "gen_length"]
    found, tries = {base: None}, 0
    while len(found) < count and tries < 4 * count:
        tries += 1
        values: dict[str, Any] = {}
        for parameter, prime in zip(free, _BASES, strict=False):
            values[parameter.name] = _value(parameter, _halton(tries, prime), base, values)
        try:
            found.setdefault(base.replace(**values))
        except UserError:
            continue  # numbers that don't go together
    return list(found)


def _halton(number: int, prime: int) -> float:
    out, share = 0.0, 1.0
    while number:
        share /= prime
        number, digit = divmod(number, prime)
        out += digit * share
    return out


def _value(p: Parameter, share: float, base: DecodeConfig, values: Mapping[str, Any]) -> Any:
    """The value at a share of a parameter's range."""
    low, default = p.low or 0, base.value(p.name)
    if p.kind is int:
        most = base.gen_length if p.follows else min(p.high or base.block_length, base.block_length)
        return int(low + share * (most - low + 1))
    if p.high is None:
        return float(default * 16 ** (2 * share - 1))
    high = values.get(p.at_most, p.high) if p.at_most else p.high
    return round(float(low + share * (high - low)), 6)


def candidates(lm: LM, names: Sequence[str], canvas: int, temperature: float):
    """The policies that this model can decode with, one block a canvas.

    Returns name -> its default options, and name -> why it is left out.
    """
    shape = {"gen_length": canvas, "block_length": canvas, "temperature": temperature}
    made, refused = {}, {}
    for name in names:
        try:
            made[name] = lm.options(policy=name, **shape)
        except UserError as e:
            refused[name] = str(e)
    return made, refused


def frontier(
    lm: LM,
    policies: Sequence[str],
    *,
    temperature: float,
    canvas: int,
    prompts: np.ndarray,
    fresh: np.ndarray,
    count: int,
    folder: Path | None,
    batch_size: int,
    show: Callable[[int], None] = lambda done: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Decode prompts under every setting of every policy, and the best settings on fresh prompts.

    `prompts` choose a policy's front, `fresh` ones measure it; both (rows, tokens) int32. A point
    for each setting: `policy`, `temperature`, `numbers`, `steps`, and in nats a decode, with 95 %
    intervals, `gap` (by how much less probable it is than the one of one token a step), `error`
    (the sum over its passes of log p(x_S | given) minus the sum of log p(x_i | given)) and `lost`
    (`Costs.lost`). `fresh` has the same of the fresh prompts, for settings on the front, else
    None. Then name -> why a policy is left out.
    """
    bases, refused = candidates(lm, policies, canvas, temperature)
    alone, _ = candidates(lm, ["low_confidence"], canvas, temperature)
    done, points = 0, []

    def measured(configs: Sequence[DecodeConfig], of: np.ndarray, prefix: str, base=0.0):
        nonlocal done
        named = {f"{prefix}{i}": tuple(p) for i, p in enumerate(of.tolist())}
        questions = [
            runner.Question(f"{runner.setting_key(c)}/{n}", Request(n, p, c))
            for c in configs
            for n, p in named.items()
        ]
        shared, how = runner.shared_options(configs[0]), {"batch_size": batch_size, "details": True}
        name, tell = configs[0].policy, lambda now: show(done + now)
        answers = runner.decode(lm, questions, folder, name, shared, **how, show=tell)
        done += len(answers)
        priced = _priced(lm, of, answers)
        priced["gap"] = base - priced.pop("log_likelihood").reshape(len(configs), -1)
        # A policy that changes what it committed leaves no passes to rebuild.
        whole = not (POLICIES[name].reopens or configs[0].edits)
        tables = {n: x.reshape(len(configs), -1) for n, x in priced.items()}
        kept = {n: x for n, x in tables.items() if whole or n not in _OF_PASSES}
        return [_summary({n: x[i] for n, x in kept.items()}) for i in range(len(configs))], tables

    sides = ((prompts, "chosen-"), (fresh, "fresh-"))
    greedy = [-measured([*alone.values()], *side)[1]["gap"] for side in sides]
    for name, config in bases.items():
        grid, reads = settings(config, count), POLICIES[name].reads
        found, _ = measured(grid, *sides[0], greedy[0])
        own: list[dict[str, Any]] = []
        for c, values in zip(grid, found, strict=True):
            numbers = {n: v for n, v in runner.row_numbers(c).items() if n in reads}
            head = {"policy": name, "temperature": temperature, "numbers": numbers}
            own.append(head | values | {"fresh": None})
        priced = [p for p in own if p[measure(p)] is not None]
        costs = ([p["steps"] for p in priced], [p[measure(p)] for p in priced])
        if best := thinned([priced[i] for i in front(*costs)], MOST_ON_FRONT):
            chosen = [grid[own.index(point)] for point in best]
            again, _ = measured(chosen, *sides[1], greedy[1])
            for point, values in zip(best, again, strict=True):
                point["fresh"] = values
        points += own
    return points, refused


def _priced(lm: LM, prompts: np.ndarray, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, log p(canvas | prompt) and the costs of all passes of each answer, as arrays."""
    rows, steps = np.tile(prompts, (len(answers) // len(prompts), 1)), [a["steps"] for a in answers]
    order = np.argsort(steps, kind="stable")  # a batch takes as many passes as its slowest row
    size = min(_ROWS, 2 ** (len(answers) - 1).bit_length())  # few sizes, few programs
    out: dict[str, Any] = {"steps": np.array(steps, np.float64)}
    for at in range(0, len(answers), size):
        own = order[at : at + size]
        padded = np.resize(own, size)
        these = [answers[i] for i in padded.tolist()]
        canvas = np.array([a["output_ids"] for a in these], np.int32)
        ids = np.concatenate([rows[padded], canvas], axis=1)
        given = np.broadcast_to(np.arange(ids.shape[1]) < prompts.shape[1], ids.shape)
        costs = commit_costs(lm, rows[padded].tolist(), these)
        found = {"log_likelihood": chains.log_joint(lm, ids, given)}
        for name in _OF_PASSES:
            if (table := getattr(costs, name)) is not None:
                found[name] = table.sum(1)
        for name, values in found.items():
            out.setdefault(name, np.zeros(len(answers)))[own] = values[: len(own)]
    return out


def _summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Means over prompts, with intervals of all but the steps."""
    out: dict[str, Any] = {"steps": float(values["steps"].mean())}
    for name in ("gap", *_OF_PASSES):
        mean, interval = _mean(values.get(name))
        out |= {name: mean, f"{name}_interval": interval}
    return out


def _mean(values) -> tuple[float | None, list[float] | None]:
    """A mean and its 95 % normal interval."""
    if values is None:
        return None, None
    n, mean = len(values), float(values.mean())
    half = Z * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return mean, [mean - half, mean + half]


def measure(point: Mapping[str, Any]) -> str:
    """The field of a point that is its cost: `gap` of greedy decodes, `lost` of sampled ones."""
    return "gap" if point["temperature"] == 0 else "lost"


def thinned(points: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` points of a front, evenly along it, both ends included."""
    places = np.linspace(0, len(points) - 1, min(most, len(points))).round()
    return [points[i] for i in dict.fromkeys(places.astype(int).tolist())]


def neighbourhoods(
    lms: Sequence[LM], radii: Sequence[int], relaxed: float, contexts: int, seed: int
) -> list[dict[str, Any]]:
    """Compare committing an anchor's neighbours with as many commits elsewhere, in one pass.

    In each context 5 to 50 % of 64 tokens are observed. The anchor is the surest open position.
    Open positions whose top-1 probability reaches the relaxed threshold are drawn, as many within
    the radius as outside of it, and committed together with the anchor.

    `lms` are chains of one second eigenvalue, one token a state. For each radius there are the
    differences, near minus elsewhere: `greedy`, log p(top-1 tokens | given); `error`, log p(top-1
    tokens | given) minus the sum of each; `sampled`, expected nats that drawing each token by
    itself loses (lautum information). They are means over chains of means over contexts, each with
    its 95 % interval, from the spread over chains. `commits` is the mean number of neighbours
    committed.
    """
    each = [_near_and_far(lm, radii, relaxed, contexts, seed + n) for n, lm in enumerate(lms)]
    out = []
    for radius in radii:
        own = [found[radius] for found in each if found[radius] is not None]
        row: dict[str, Any] = {
            "eigenvalue": round(chains.second_eigenvalue(lms[0]), 6),
            "correlation_length": chains.correlation_length(lms[0]),
            "relaxed_threshold": relaxed,
            "radius": radius,
            "chains": len(own),
            "commits": float(np.mean([f[0] for f in own])) if own else 0.0,
        }
        for place, name in enumerate(("greedy", "error", "sampled"), 1):
            mean, interval = _mean(np.array([f[place] for f in own]) if own else None)
            row |= {name: mean, f"{name}_interval": interval}
        out.append(row)
    return out


def _near_and_far(lm: LM, radii, relaxed: float, contexts: int, seed: int) -> dict[int, Any]:
    """Radius -> means over contexts: commits, and the three differences; None without commits."""
    if not has_one_token_a_state(lm):
        raise UserError("neighbourhoods need chains whose states have one token each")
    rng = np.random.default_rng(seed)
    shape, mask = (contexts, COLUMNS), lm.config.mask_token_id
    drawn = chains.sample(lm, *shape, seed)
    ids = np.where(rng.random(shape) < rng.uniform(0.05, 0.5, (contexts, 1)), drawn, mask)
    logits = np.asarray(lm.logits(ids), np.float64)
    token, score = logits.argmax(2).astype(np.int32), logits.max(2)
    anchor = np.where(ids == mask, score, -np.inf).argmax(1)
    distance = np.abs(np.arange(COLUMNS)[None, :] - anchor[:, None])
    ready = (ids == mask) & (score >= math.log(relaxed)) & (distance > 0)
    out: dict[int, Any] = {}
    for radius in radii:
        near, far = ready & (distance <= radius), ready & (distance > radius)
        count = np.minimum(near.sum(1), far.sum(1))
        order, found = rng.random(shape), []
        for place in (near, far):
            rank = np.where(place, order, 2).argsort(1).argsort(1)
            chosen = (place & (rank < count[:, None])) | (distance == 0)
            joint = chains.log_joint(lm, np.where(chosen, token, ids), ids != mask)
            _, lost = _dependence(lm.params, ids.astype(np.int32), chosen, lm.config)
            separate = np.where(chosen, score, 0).sum(1)
            found.append((joint, joint - separate, np.asarray(lost, np.float64)))
        use = count > 0
        values = [count, *(a - b for a, b in zip(*found, strict=True))]
        out[radius] = [float(x[use].mean()) for x in values] if use.any() else None
    return out


@functools.partial(jax.jit, static_argnames="config")
def _dependence(params, ids, chosen, config):
    valid = jnp.ones(ids.shape, bool)
    found = chain.messages(params, config, ids, valid)
    return chain.dependence(params, config, ids, valid, found, chosen)
