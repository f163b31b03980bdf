"""The least that a forward pass has to multiply, and has to read or write.

    matrices    2 FLOPs a weight and computed position, in every layer; in a pass over the whole
                sequence the last layer's query, output and MLP on the window only, because only
                the window's outputs are read (its keys and values may be cached, so they count)
    attention   4 T FLOPs a query and unit of width, for scores and mixing
    experts     as matrices, of the experts that a position chooses
    head        2 D V FLOPs a position of the window
    bytes       the weights of layers and head once a pass, however many rows, of experts those
                that its positions touch; with a KV cache also its keys and values: written by a
                full pass, read by a pass over the window

Routing is assumed to be uniform and independent: N tokens that choose k of X experts touch
X (1 - (1 - k / X)^N) of them on average. Groups of experts do not change that, since each token
still chooses every expert with the same probability. This is the maximum: routers that prefer some
experts, and tokens that resemble each other, touch fewer.

Embeddings, norms, softmaxes, logits and other activations are left out. `leapjax plan` and the
floor of `leapjax benchmark` (docs/performance.md) are computed from these counts.

Shapes: B rows, T columns, W window, V vocabulary, L layers, D width, F' inner width of an expert.
"""

import dataclasses
import math

from leapjax.models.config import Experts, ModelConfig, Run
from leapjax.models.families import table
from leapjax.models.weights import EXPERT


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done at least."""

    flops: float  # multiplications and additions of matrix products
    bytes: float  # to and from memory


def parameters(config: ModelConfig) -> tuple[int, int]:
    """The numbers of all and of active parameters; unchosen experts are not active.

    Both include embeddings and head, as in the names of released models (30B-A3B).

    >>> from leapjax.testing import tiny_config
    >>> parameters(tiny_config("llada2"))
    (10936, 8056)
    """
    by_run = {run.name: run.experts for run in config.runs}
    total = active = 0
    for weight in table(config):
        size, experts = math.prod(weight.shape), by_run.get(weight.name.partition(".")[0])
        total += size
        if weight.role == EXPERT and experts is not None:
            size = size * experts.chosen // experts.count
        active += size
    return total, active


def sparsity(config: ModelConfig) -> float:
    """Weights of the layers' matrices for each that a token uses; 1 without experts.

    So many times more columns than of a dense model does a pass compute while it waits for its
    weights.
    """
    every = used = 0
    for run in config.runs:
        one, routed = _weights(config, run), run.experts
        alike = one.keys_values + one.rest
        every += run.n_layers * (alike + (routed.count * one.expert if routed else 0))
        used += run.n_layers * (alike + (routed.chosen * one.expert if routed else 0))
    return every / used


def touched(experts: Experts, tokens: float) -> float:
    """Experts of a layer that a pass reads, in the mean, if routing is uniform."""
    return experts.count * (1 - (1 - experts.chosen / experts.count) ** tokens)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Weights of a layer's matrices."""

    keys_values: int  # of keys and values
    rest: int  # of all the others that every position multiplies by; routers and shared experts too
    expert: int  # of one expert, 0 without


def _weights(config: ModelConfig, run: Run) -> _Weights:
    d, e = config.d_model, config.head_dim
    keys_values, rest = 2 * d * config.n_kv_heads * e, 2 * d * config.n_heads * e
    if run.experts is None:
        return _Weights(keys_values, rest + 3 * d * run.mlp_hidden_size, 0)
    routed = d * run.experts.count + 3 * d * run.experts.shared_size
    return _Weights(keys_values, rest + routed, 3 * d * run.experts.hidden_size)


def _bytes(config: ModelConfig, tokens: float, rows: float, columns: int, item: int) -> float:
    """Bytes of the weights, and of the keys and values of `rows` cached rows."""
    weights = config.vocab_size * config.d_model
    for run in config.runs:
        one = _weights(config, run)
        read = touched(run.experts, tokens) * one.expert if run.experts else 0
        weights += run.n_layers * (one.keys_values + one.rest + read)
    kept = 2 * config.n_layers * columns * config.n_kv_heads * config.head_dim
    return item * (weights + rows * kept)


def full_pass(
    config: ModelConfig, rows: float, columns: int, window: int, cached: bool, item: int = 4
) -> Work:
    """A pass over whole sequences that computes the logits of a window. `item`: bytes a number."""
    flops = sum(full_pass_flops(config, rows, columns, window).values())
    return Work(flops, _bytes(config, rows * columns, rows if cached else 0, columns, item))


def full_pass_flops(
    config: ModelConfig, rows: float, columns: int, window: int
) -> dict[str, float]:
    """FLOPs of a pass over whole sequences by what they are for; arguments as for `full_pass`."""
    # Beyond the window, the last layer computes only keys and values.
    found = _layer_flops(config, columns, columns, columns)
    last = _layer_flops(config, 0, columns - window, columns, config.runs[-1:])
    found = {name: rows * (found[name] - last[name] / config.runs[-1].n_layers) for name in found}
    return found | {"head": rows * window * 2 * config.d_model * config.vocab_size}


def _layer_flops(
    config: ModelConfig, keys: float, positions: float, columns: int, runs: tuple[Run, ...] = ()
) -> dict[str, float]:
    """FLOPs of layers by what they are for.

    `keys`: positions whose keys and values are computed; `positions`: those of which everything
    else is; `runs`: runs of layers; () for all.
    """
    found: dict[str, float] = dict.fromkeys(("matrices", "experts", "attention"), 0.0)
    for run in runs or config.runs:
        one, chosen = _weights(config, run), run.experts.chosen if run.experts else 0
        mixed = 2 * columns * config.n_heads * config.head_dim
        found["matrices"] += 2 * run.n_layers * (keys * one.keys_values + positions * one.rest)
        found["experts"] += 2 * run.n_layers * positions * chosen * one.expert
        found["attention"] += 2 * run.n_layers * positions * mixed
    return found


def window_pass(config: ModelConfig, rows: float, columns: int, window: int, item: int = 4) -> Work:
    """A pass over a window of each row against a KV cache; arguments as for `full_pass`."""
    flops = sum(window_pass_flops(config, rows, columns, window).values())
    return Work(flops, _bytes(config, rows * window, rows, columns, item))


def window_pass_flops(
    config: ModelConfig, rows: float, columns: int, window: int
) -> dict[str, float]:
    """FLOPs of a pass over windows by what they are for, as `full_pass_flops` has them."""
    positions = rows * window
    found = _layer_flops(config, positions, positions, columns)
    return found | {"head": positions * 2 * config.d_model * config.vocab_size}
