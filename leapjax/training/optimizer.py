"""The optimiser: AdamW or Muon, warm-up and cosine, clipping, decay on matrices only."""

import functools

import jax
import optax
from optax import contrib

from leapjax.errors import UserError
from leapjax.models.config import ModelConfig
from leapjax.models.families import table


def matrices(config: ModelConfig, params):
    """True at the layers' weight matrices: not norms, biases, embeddings or the head."""
    names = {weight.name for weight in table(config) if weight.quantized}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: ".".join(key.key for key in path) in names, params
    )


def schedule(peak: float, warmup: int, steps: int, final: float = 0.0):
    """Linear warm-up from 0 to `peak`, then a cosine down to `final * peak`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(steps, warmup + 1), final * peak
    )


def make(
    name: str,
    model: ModelConfig,
    learning_rate: float,
    warmup_steps: int,
    steps: int,
    weight_decay: float,
    clip_norm: float,
    b2: float = 0.99,
    adam_learning_rate: float | None = None,
    final: float = 0.0,
) -> optax.GradientTransformation:
    """Build the gradient transformation from what `TrainConfig` explains (lengths in steps).

    `name` is "adamw", or "muon" (arXiv 2502.16982): Muon on the layers' matrices, AdamW on the
    rest, which `adam_learning_rate` is for (None: `learning_rate`).
    """
    is_matrix = functools.partial(matrices, model)
    lr = schedule(learning_rate, warmup_steps, steps, final)
    if name == "adamw":
        rule = optax.adamw(lr, b1=0.9, b2=b2, weight_decay=weight_decay, mask=is_matrix)
    elif name == "muon":
        other = schedule(adam_learning_rate or learning_rate, warmup_steps, steps, final)

        def numbers(params):
            # Inputs and outputs are the last axes; layers, and experts, are matrices of their own.
            def spec(is_one, leaf):
                n = leaf.ndim
                return contrib.MuonDimensionNumbers(n - 2, n - 1) if is_one else None

            return jax.tree.map(spec, is_matrix(params), params)

        rule = contrib.muon(
            lr,
            weight_decay=weight_decay,
            weight_decay_mask=is_matrix,
            adam_b2=b2,
            adam_learning_rate=other,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=numbers,
            consistent_rms=0.2,
        )
    else:
        raise UserError(f"optimizer {name!r} is unknown (known: adamw, muon)")
    return optax.chain(optax.clip_by_global_norm(clip_norm), rule)
