"""Compile the programs of a run and save them, for devices here or for a slice elsewhere."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from leapjax import fit
from leapjax.compilation import without_cache
from leapjax.config import DecodeConfig
from leapjax.decoding import Program
from leapjax.errors import UserError
from leapjax.loader import stored_leaves
from leapjax.models.quantize import quantize as quantized
from leapjax.ops.arrangement import arrange
from leapjax.planning import chips, compiled
from leapjax.planning.candidates import Workload
from leapjax.serve.executables import Executables
from leapjax.serve.lane import Replica
from leapjax.serve.memory import memory_limit
from leapjax.serve.programs import Programs
from leapjax.sharding import MeshShape, placements
from leapjax.text import load_codec
from leapjax.types import Request

Saved = tuple[str, int]  # a file's name, and its bytes


def save_here(
    lm, config: DecodeConfig, prompt_length: int, batch_size: int | None, path: str
) -> tuple[list[Saved], int]:
    """Save the programs of a loaded `LM` for its devices, one file a replica.

    They serve prompts of the bucket of `prompt_length` tokens. Without a batch size, rows are as
    many as in decode. Gives the files, and the rows of all replicas.
    """
    programs, engine = Programs(path), lm.engine_for(None, batch_size)
    ids = (lm.config.pad_token_id,) * prompt_length
    program = engine.program(Request(id="", ids=ids, config=config, seed=0))
    fixed = batch_size is not None
    return _save(
        programs,
        lm.replicas,
        program,
        engine.slots,
        fixed,
        memory_limit(),
        str(lm.mesh) if lm.mesh else None,
    )


def save_for(
    where: chips.Slice,
    mesh: MeshShape,
    work: Workload,
    slots: int,
    quantize: str | None,
    model: str,
    path: str,
) -> list[Saved]:
    """Save the programs of a checkpoint for a slice that is not attached, one file a replica.

    `slots` are the rows of a replica, `model` the checkpoint's folder, `path` that of programs.
    """
    devices = compiled.devices(where)
    codec = load_codec(Path(model), work.model, None)
    program = dataclasses.replace(
        work.program(where.chip), eot_token_id=codec.eot_id if codec else None
    )
    weights = fit.tree(stored_leaves(model))
    if quantize is not None:
        weights = jax.eval_shape(lambda tree: quantized(tree, work.model, quantize), weights)
    replicas = []
    for place in placements(mesh, devices):
        _, params = fit.placed(weights, place, work.model)
        replicas.append(Replica(arrange(params, work.model, work.dtype), place))
    programs = Programs(path, device=devices[0])
    return _save(programs, replicas, program, slots, True, sys.maxsize, str(mesh))[0]


def _save(
    programs: Programs,
    replicas: Sequence[Replica],
    program: Program,
    slots: int,
    fixed: bool,
    limit: int,
    mesh: str | None,
) -> tuple[list[Saved], int]:
    if not program.policy.commit.__module__.startswith("leapjax."):
        raise UserError(
            f"policy {program.policy_name}: is not part of leapjax, so nobody would notice that "
            "its code has changed; its programs can't be saved"
        )
    every = Executables(replicas, slots, fixed)
    with without_cache():
        made = [every.get(program, range(i, len(replicas)), limit) for i in range(len(replicas))]
        rows = sum(one.slots for one in made)
        return [programs.save(one, mesh, rows) for one in made], rows
