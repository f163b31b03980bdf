"""Split stacked weights into separate arrays per layer for one GPU, and restore canonical ones.

XLA copies each layer's slice of a stack before it multiplies, which triples the memory traffic.
Split layers make a window pass 2.3 times as fast (LLaDA-8B's shape on an H100,
docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from leapjax.models.config import ModelConfig, Run
from leapjax.ops.arrangement import (
    NORMS,
    UNSTACKED,
    arranged,
    experts_of,
    groups_of,
    head_of,
    norm_of,
)
from leapjax.ops.runs import Unrolled
from leapjax.ops.weights import Arranged, ExpertMatrices, Matrices, Norm, Router

if TYPE_CHECKING:
    from leapjax.lm import LM


def split_layers(
    params: Mapping[str, Any] | Arranged, config: ModelConfig, *, force: bool = False
) -> Any:
    """Split the parameters by layer on one GPU; elsewhere, or where memory is short, return them.

    v, k and q are concatenated into one matrix, gate and up into another, and so are their biases
    and scales. Splitting donates (deletes) the stacks of canonical `params`, so the caller must own
    them. Each group's stacks are deleted once it is split, so at most the largest group is held
    twice. `force` splits on any device, whatever memory is left.
    """
    if isinstance(params, Arranged) or not config.has_attention:
        return params
    devices = {d for x in jax.tree.leaves(params) for d in x.devices()}
    if not force:
        if [d.platform for d in devices] != ["gpu"] or config.n_layers > UNSTACKED:
            return params
        stats = devices.pop().memory_stats()  # None where the allocator can't tell
        if stats and stats["bytes_limit"] - stats["bytes_in_use"] < largest_group(params, config):
            return params
    runs = tuple(_unstacked(params[run.name], run, config) for run in config.runs)
    return arranged(params, runs, head_of(params, config))


def _parts(leaves, run: Run) -> dict[str, tuple[str, ...]]:
    """A split layer's arrays by name -> the canonical leaves that each concatenates."""
    parts = {name: (name,) for name in leaves}
    for group, names in groups_of(run).items():
        for suffix in ("", "_bias", "_scale"):
            if some := tuple(n + suffix for n in names if n + suffix in leaves):
                parts = {k: v for k, v in parts.items() if k not in some} | {group + suffix: some}
    return parts


def largest_group(params: Mapping[str, Any], config: ModelConfig) -> int:
    """Peak bytes that `split_layers` needs on top of the parameters."""
    stacks = [(params[run.name], run) for run in config.runs]
    parts = (
        sum(s[p].nbytes for p in some) for s, run in stacks for some in _parts(s, run).values()
    )
    return max(parts)


def _unstacked(stacks, run: Run, config: ModelConfig) -> Unrolled:
    """Split one run into layers and delete its stacks."""
    views: list[dict] = [{} for _ in range(run.n_layers)]
    groups = groups_of(run)
    widths = {g: tuple(stacks[n].shape[-1] for n in names) for g, names in groups.items()}
    for name, some in _parts(stacks, run).items():
        for view, part in zip(views, _split([stacks[p] for p in some]), strict=True):
            view[name] = part
        jax.block_until_ready(views)
        for p in some:
            stacks[p].delete()

    def layer(view):
        def one(name):
            biases, scales = (
                (view[n],) if n in view else () for n in (f"{name}_bias", f"{name}_scale")
            )
            clip = config.clip_qkv if name == "vkq" else None
            return Matrices((view[name],), biases, scales, widths[name], clip=clip)

        made: dict[str, Any] = {name: one(name) for name in groups} | experts_of(view, run)
        return made | {name: norm_of(view, name, config) for name in NORMS if name in view}

    return Unrolled(tuple(layer(view) for view in views))


@jax.jit
def _split(stacks):
    """Split stacks into layers, concatenated along the last axis."""
    depth = len(stacks[0])
    return tuple(jnp.concatenate([s[i] for s in stacks], axis=-1) for i in range(depth))


def slices(
    params: Mapping[str, Any] | Arranged, config: ModelConfig
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Yield every parameter under its canonical name, on the host, layer by layer.

    Each is (leaf name, layer within its run or None, values); layers of a stacked leaf come in
    order. `params` may be canonical or what `split_layers` returned.
    """
    if isinstance(params, Arranged):
        yield from _slices_of_split(params, config)
        return
    runs = [run.name for run in config.runs if config.has_attention]
    for name, leaf in params.items():
        if name not in runs:
            yield name, None, np.asarray(leaf)
    for run in runs:
        for name, stack in params[run].items():
            on_cpu = isinstance(stack, jax.Array) and {d.platform for d in stack.devices()} == {
                "cpu"
            }
            stack = np.asarray(stack) if on_cpu else stack  # no copy there
            for layer in range(len(stack)):
                yield f"{run}.{name}", layer, np.asarray(stack[layer])


def _slices_of_split(model: Arranged, config: ModelConfig):
    head = model.head
    single = {"embed": model.embed, "final_norm": head.norm.weight, "head": head.table}
    single |= {"head_bias": head.bias, "final_norm_bias": head.norm.bias, "head_scale": head.scales}
    single["log_frequency"] = model.log_frequency
    for name, leaf in single.items():
        if leaf is not None:
            yield name, None, np.asarray(leaf)
    for run, layers in zip(config.runs, model.runs, strict=True):
        for i, layer in enumerate(layers.layers):
            for name, leaf in _leaves(layer, run):
                yield f"{run.name}.{name}", i, leaf


def _leaves(layer, run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """The canonical leaves of one split layer."""
    groups = groups_of(run)
    for name, weight in layer.items():
        if isinstance(weight, ExpertMatrices):
            for i, part in enumerate(("gate", "up", "down")):
                yield f"experts_{part}", np.asarray(getattr(weight, part))
                if weight.scales:
                    yield f"experts_{part}_scale", np.asarray(weight.scales[i])
            continue
        if isinstance(weight, Norm | Router):
            yield name, np.asarray(weight.weight)
            if weight.bias is not None:
                yield f"{name}_bias", np.asarray(weight.bias)
            continue
        names, cuts = groups[name], np.cumsum(weight.widths)[:-1]
        for kind, arrays in (
            ("", weight.weights),
            ("_bias", weight.biases),
            ("_scale", weight.scales),
        ):
            if arrays:
                parts = np.split(np.asarray(arrays[0]), cuts, axis=-1)
                yield from zip((n + kind for n in names), parts, strict=True)


def canonical(params: Mapping[str, Any] | Arranged, config: ModelConfig) -> dict[str, Any]:
    """The parameters under their canonical names and shapes.

    What `split_layers` returned becomes NumPy arrays, stacked on the host.
    """
    if not isinstance(params, Arranged):
        return dict(params)
    layers: dict[str, list[np.ndarray]] = {}
    out: dict[str, Any] = {}
    for name, layer, values in slices(params, config):
        if layer is None:
            out[name] = values
        else:
            layers.setdefault(name, []).append(values)
    for name, values in layers.items():
        run, _, short = name.partition(".")
        out.setdefault(run, {})[short] = np.stack(values)
    return out


# Forms that a benchmark can time: the output of `arrange`, and of `split_layers`.
FORMS = ("stacked", "layers")


def forms(model: Arranged, names: Sequence[str], lm: LM) -> Iterator[tuple[str, Arranged]]:
    """A model's weights in several forms, for benchmarks: (name, weights) for each of `names`.

    If they are split already, `layers` is the only form. `lm` is the source of the canonical
    parameters; the form `layers` deletes them.
    """
    unrolled = all(isinstance(run, Unrolled) for run in model.runs)
    is_split = unrolled and model.backend == "xla" and not model.head.pieces
    for name in ("layers",) if is_split else names:
        whole = is_split or name == "stacked"
        yield name, model if whole else split_layers(lm.params, lm.config, force=True)
