"""A run's weights as a model folder that every command reads."""

from pathlib import Path

import jax
import jax.numpy as jnp
import yaml

from leapjax import checkpoint
from leapjax.errors import UserError
from leapjax.training import setup
from leapjax.training.store import Store, read_run
from leapjax.training.trainer import init_state

DTYPES = ("bfloat16", "float32")


def export(
    run: str | Path,
    target: str | Path,
    *,
    dtype: str = "bfloat16",
    card: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[int, str]:
    """Write a model folder from a run's newest checkpoint; returns its step and the weights' hash.

    The weights, stored as `dtype`, are the averaged ones where the run keeps an average. `card` is
    a model card to put in as README.md; `overwrite` replaces a model's folder that is there
    already.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    config = read_run(run)
    checkpoint.refuse_existing(target, overwrite)
    start = setup.prepare(config)
    files: dict[str, bytes | Path] = dict(start.files)
    if config.decode:
        files["decode.yaml"] = yaml.safe_dump(config.decode, sort_keys=False).encode()
    if card is not None:
        if not Path(card).is_file():
            raise UserError(f"{card}: no such model card")
        files["README.md"] = Path(card).read_bytes()
    store = Store(run, config.keep)
    try:
        shapes = jax.eval_shape(lambda: init_state(config, start.model, start.params(config.seed)))
        step, state = store.restore(shapes)
    finally:
        store.close()
    params = jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)), state.get("ema", state["params"]))
    raw = start.raw_config | {"torch_dtype": dtype}
    extra = {"training": {"step": step, "steps": config.steps, "seed": config.seed}}
    return step, checkpoint.save(
        target, params, raw, files, manifest_extra=extra, overwrite=overwrite
    )
