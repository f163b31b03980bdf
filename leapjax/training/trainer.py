"""The training loop: batches in, checkpoints and metrics out; a pure step in between.

    data.batch(step) ─▶ train_step(state, batch, step) ─▶ state ─▶ store (every so often)
                                    └─▶ loss, norm ─▶ metrics.jsonl, terminal

A step depends on the state, the seed and its own number only, so a run that was stopped (or
killed) and resumed goes through the same states as one that was not.
"""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from leapjax import signals
from leapjax.errors import UserError
from leapjax.models import ModelConfig, transformer
from leapjax.progress import bar, busy, say
from leapjax.sharding import MeshShape, parse
from leapjax.training import block_diffusion, optimizer, setup
from leapjax.training import objective as masked_diffusion
from leapjax.training.config import TrainConfig
from leapjax.training.placement import TrainingPlacement
from leapjax.training.store import Store


def make_optimizer(config: TrainConfig, model: ModelConfig) -> optax.GradientTransformation:
    """The run's optimiser; see `leapjax.training.optimizer.make`."""
    return optimizer.make(
        config.optimizer,
        model,
        config.learning_rate,
        config.warmup_steps,
        config.steps,
        config.weight_decay,
        config.clip_norm,
        config.adam_b2,
        config.adam_learning_rate or None,
        config.final_learning_rate,
    )


def init_state(
    config: TrainConfig, model: ModelConfig, params, placement: TrainingPlacement | None = None
):
    """The state before the first step: `params`, `optimizer` and, with `ema_decay`, `ema`.

    `params` are float32; the state takes them over. Without `placement` it is on the default
    device.
    """
    init = make_optimizer(config, model).init
    if placement is not None:
        shapes = jax.eval_shape(init, params)
        init = jax.jit(init, out_shardings=placement.state(shapes))
    state = {"params": params, "optimizer": init(params)}
    if config.ema_decay:
        state["ema"] = jax.tree.map(jnp.array, params)
    return state


def make_step(
    config: TrainConfig, model: ModelConfig, placement: TrainingPlacement | None = None
) -> Callable:
    """The training step: `step(state, batch, number, window)` → (state, metrics).

    The old state is given up (donated). `number` is traced, `window` static: one program per batch
    shape.
    """
    rule = make_optimizer(config, model)
    objective = block_diffusion if model.block_causal else masked_diffusion
    # Weights were drawn from key(seed); masks have a key of their own.
    key = jax.random.key(config.seed + 1)

    @functools.partial(jax.jit, static_argnums=(3,), donate_argnums=(0,))
    def step(state, batch, number, window):
        params = state["params"]
        (loss, nats), gradient = jax.value_and_grad(objective.loss, has_aux=True)(
            params, model, batch, jax.random.fold_in(key, number), window, config.balance
        )
        updates, moments = rule.update(gradient, state["optimizer"], params)
        params = optax.apply_updates(params, updates)
        out = {"params": params, "optimizer": moments}
        if "ema" in state:
            # Early on the average follows quickly; the start is nothing to remember.
            taken = number.astype(jnp.float32)
            decay = jnp.minimum(config.ema_decay, (1.0 + taken) / (10.0 + taken))
            out["ema"] = jax.tree.map(
                lambda a, b: decay * a + (1.0 - decay) * b, state["ema"], params
            )
        if placement is not None:  # the state comes out where it went in
            out = jax.lax.with_sharding_constraint(out, placement.state(out))
        return out, {"loss": loss, "nats": nats, "grad_norm": optax.tree.norm(gradient)}

    if placement is None:
        return step

    def spread(state, batch, number, window):
        where = placement.batch(batch["ids"].shape[0])
        return step(state, jax.device_put(batch, where), number, window)

    return spread


@dataclasses.dataclass
class Result:
    """How a run ended."""

    step: int
    finished: bool  # False: it was stopped and can be resumed
    loss: float | None  # mean over the last stretch of metrics


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after a checkpoint: the resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the line that a kill cut short
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept), "utf-8")
    temporary.replace(path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def train(
    config: TrainConfig,
    log: Callable[[str], None] = print,
    *,
    until: int | None = None,
    start: setup.Start | None = None,
    mesh: str | MeshShape | None = None,
) -> Result:
    """Train, resuming where the output folder's newest checkpoint left off.

    `log` takes a line of progress. `until` is a step to stop after, as if interrupted (a piece of a
    run). `start` is what `setup.prepare` returned, if the caller has it already. `mesh` names
    devices to spread the run over, such as `data=2,fsdp=4` (None: the default device); a resumed
    run may have another. A loss that is not finite is an error.
    """
    start = setup.prepare(config) if start is None else start
    shape = parse(mesh) if isinstance(mesh, str) else mesh
    placement = None if shape is None else TrainingPlacement(shape, start.model)
    source = setup.batches(config, start)
    store = Store(config.output, config.keep)
    try:
        for name in store.remember(config):
            log(f"{name} changed since this run began; from here on the new value holds")
        where = None
        if placement is not None:
            shapes = jax.eval_shape(lambda: transformer.init_params(start.model, jax.random.key(0)))
            where = placement.state(shapes)
        state = init_state(config, start.model, start.params(config.seed, where), placement)
        done = 0
        if store.latest() is not None:
            done, state = store.restore(state)
            log(f"resuming {config.output} at step {done}")
        else:
            count = sum(x.size for x in jax.tree.leaves(state["params"]))
            log(f"training {count / 1e6:.2f} M parameters for {config.steps} steps")
        stop = signals.Flag()  # read between steps
        with signals.handled(stop):
            step = make_step(config, start.model, placement)
            return _loop(config, step, source, store, state, done, log, until, stop)
    finally:
        store.close()


def _loop(config, step, source, store, state, done, log, until, stop) -> Result:
    rate = optimizer.schedule(
        config.learning_rate, config.warmup_steps, config.steps, config.final_learning_rate
    )
    metrics = Path(config.output) / "metrics.jsonl"
    _cut_metrics(metrics, done)
    end = config.steps if until is None else min(until, config.steps)
    if done >= end:
        return Result(done, done >= config.steps, None)
    shown = sys.stderr.isatty()
    sums: dict[str, float] = {}
    tokens, began, first, last = 0, time.monotonic(), done, None
    warm = began  # the first step compiles; it is left out of the forecast
    with (
        open(metrics, "a", encoding="utf-8") as file,
        ThreadPoolExecutor(1) as pool,
        bar("steps", config.steps, lambda n: f"{n}/{config.steps}", keep=False, forecast=False)
        if shown
        else contextlib.nullcontext(lambda done: None) as show,
    ):
        coming = pool.submit(source.batch, done)
        while done < end and not stop.asked:
            batch = coming.result()
            if done + 1 < end:
                coming = pool.submit(source.batch, done + 1)
            window = batch.pop("window")
            with busy("compiling the step") if done == first else contextlib.nullcontext():
                state, got = step(state, batch, jnp.int32(done), window)
                got = {k: float(v) for k, v in got.items()}
            if not math.isfinite(got["loss"]):
                raise UserError(
                    f"the loss at step {done} is not finite; lower learning_rate and start "
                    f"again from the last checkpoint in {config.output}"
                )
            done += 1
            tokens += int(batch["valid"].sum())
            if done == first + 1:
                warm = time.monotonic()
            for name, value in got.items():
                sums[name] = sums.get(name, 0.0) + value
            sums["count"] = sums.get("count", 0.0) + 1
            show(done)
            if done % config.log_every == 0 or done == end or stop.asked:
                now, count = time.monotonic(), sums.pop("count")
                means = {name: value / count for name, value in sums.items()}
                left = (now - warm) / max(done - first - 1, 1) * (config.steps - done)
                record = {
                    "step": done,
                    **{name: round(value, 6) for name, value in means.items()},
                    "learning_rate": float(jnp.asarray(rate(done))),
                    "tokens_per_second": round(tokens / (now - began), 1),
                    "seconds": round(now - began, 2),
                }
                file.write(json.dumps(record) + "\n")
                file.flush()
                line = (
                    f"step {done}/{config.steps}  loss {means['loss']:.4f}  "
                    f"masked token {means['nats']:.4f} nats  norm {means['grad_norm']:.2f}  "
                    f"{record['tokens_per_second']:.0f} tokens/s  left {_clock(left)}"
                )
                say(line) if shown else log(line)
                last, sums = means["loss"], {}
            if done % config.checkpoint_every == 0 or done == end or stop.asked:
                store.save(done, state)
    if stop.asked:
        log(f"stopped at step {done}, saved; the same command goes on from here")
    return Result(done, done >= config.steps, last)
