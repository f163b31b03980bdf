"""Training checkpoints on disk: Orbax, each whole or not there, the newest few kept.

    OUTPUT/checkpoints/STEP/     parameters, optimiser state, averaged weights
    OUTPUT/run.json              the configuration of the run

Orbax writes into a temporary folder and renames it at the end, so a save that is cut short
leaves the checkpoints before it as they were.
"""

import json
import os
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from leapjax.config import check_keys
from leapjax.errors import UserError
from leapjax.training.config import FIELDS, FIXED, TrainConfig, make


class Store:
    """The checkpoints of one run, the newest `keep` of them."""

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(os.path.abspath(folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"{folder}: can't be made ({e.strerror})") from e
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder / "checkpoints", options=options)

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state) -> None:
        """Write a checkpoint; returns when it is whole on disk."""
        if step == self._manager.latest_step():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state))
        self._manager.wait_until_finished()

    def restore(self, state, step: int | None = None):
        """Read a checkpoint, the newest without `step`; returns its step and the state.

        `state` is a pytree of arrays (or their shapes) like the saved one. Each leaf is read to
        where this one lies, whatever mesh saved it.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise UserError(f"{self.folder}: holds no checkpoint; train first")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here
            ),
            state,
        )
        try:
            return step, self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, TypeError, OSError) as e:
            line = " ".join(str(e).split())[:300]
            raise UserError(
                f"{self.folder}/checkpoints/{step}: can't be restored ({line}); is it from a "
                "run with another model or optimizer?"
            ) from e

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()

    def remember(self, config: TrainConfig) -> list[str]:
        """Compare the run's configuration with the one it began with, then write it.

        Returns the keys that changed and may change (steps, phases, rates, …); another that changed
        is an error.
        """
        changed: list[str] = []
        if self.latest() is not None and (self.folder / "run.json").is_file():
            before, now = read_run(self.folder).to_dict(), config.to_dict()
            changed = [k for k in now if before[k] != now[k] and k != "output"]
            for name in changed:
                if name in FIXED:
                    raise UserError(
                        f"{self.folder} was begun with another {name} "
                        f"({before[name]!r}); use another output folder or the old value"
                    )
        text = json.dumps(config.to_dict(), indent=2) + "\n"
        temporary = self.folder / ".run.json.tmp"
        temporary.write_text(text)
        temporary.replace(self.folder / "run.json")
        return changed


def read_run(folder: str | Path) -> TrainConfig:
    """The configuration that a run's folder remembers."""
    file = Path(folder) / "run.json"
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{folder}: holds no training run (run.json can't be read)") from e
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object")
    check_keys(values, str(file), FIELDS, "key")
    return make(values, str(file))
