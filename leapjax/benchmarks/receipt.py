"""A receipt: what a device does with leapjax, as one JSON that can be sent back.

    golden   the embedded model decodes known prompts
    floor    copy bandwidth and matrix rates
    passes   window and full passes of a random model (`receipt_passes`)
    ragged   a stream of rows of uneven length

docs/receipts/README.md says what each field means; `receipt_fields` checks them.
"""

import contextlib
import datetime
import time
from collections.abc import Iterator
from typing import Any

from leapjax.benchmarks import (
    decoding,
    known_answers,
    models,
    receipt_facts,
    receipt_passes,
    receipt_plans,
)
from leapjax.benchmarks.machine import measure
from leapjax.benchmarks.receipt_fields import SCHEMA
from leapjax.progress import busy
from leapjax.sharding import MeshShape, placements

DTYPES = ("float32", "bfloat16")
REQUESTS_A_SLOT = 3  # of the ragged stream
RAGGED_ROUNDS = 3


def make(mesh: MeshShape | None, repeats: int, quick: bool = False) -> dict[str, Any]:
    """Make a receipt; some minutes.

    `mesh`: devices to use; None is the default device; `repeats`: rounds of the timings of passes;
    `quick`: a tiny shape and one repetition of the floor; the numbers mean nothing. Returns the
    receipt, JSON-ready, numbers to six digits.
    """
    shape, seconds = mesh or MeshShape(), {}

    @contextlib.contextmanager
    def part(name: str, what: str) -> Iterator[None]:
        start = time.perf_counter()
        with busy(what):
            yield
        seconds[name] = time.perf_counter() - start

    if mesh is not None:
        placements(mesh)  # refuses one that is too large before anything is timed
    facts = {"device": receipt_facts.device(), "versions": receipt_facts.versions()}
    wanted = receipt_passes.subject(shape, quick)
    with part("golden", "decoding known prompts with the embedded model"):
        golden = known_answers.compare(mesh)
    with part("floor", "measuring copy bandwidth and matrix rates"):
        machine = measure(wanted.dtype, quick, DTYPES)
    with part("passes", "timing passes"):
        lm, where, cases = receipt_passes.time(wanted, mesh, machine, repeats)
    with part("ragged", "timing a stream of uneven rows"):
        case = wanted.cases[0]
        count = REQUESTS_A_SLOT * case.batch * shape.data
        rounds = min(repeats, RAGGED_ROUNDS)
        stream = (case.cache, case.batch, count)
        ragged = decoding.ragged(lm, *stream, rounds)
        passes, planned = receipt_plans.planned_ragged(lm, where, *stream)
    over = receipt_plans.times(1 / planned, ragged["seconds"])
    ragged |= {"passes_planned": passes, "planned_s": planned, "over_plan": over}
    spreads = machine.spreads
    return _rounded(
        {
            "receipt": SCHEMA,
            "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "options": {"mesh": mesh and str(mesh), "repeats": repeats, "quick": quick},
            **facts,
            "golden": golden,
            "floor": {
                "copied_bytes": machine.copy_bytes,
                "copy_bytes_per_s": spreads["copy"],
                "read_bytes_per_s": spreads.get("read"),
                "fastest_product": machine.flops_by,
                **{f"{name}_flops_per_s": spreads[name] for name in DTYPES},
            },
            "model": {
                "name": wanted.name,
                "layers": lm.config.n_layers,
                "layers_in_full": wanted.config.n_layers,
                "parameters": models.size(lm.config),
                "dtype": lm.dtype,
                "devices": shape.replica,
            },
            "plan": {
                "chip": where.chip.name if where.chip.kinds else None,
                "flops_per_s": where.chip.flops / where.chip.devices,
                "bytes_per_s": where.chip.bandwidth / where.chip.devices,
            },
            "cases": cases,
            "ragged": ragged,
            "part_seconds": seconds,
        }
    )


def _rounded(value: Any) -> Any:
    """Floats to six significant digits."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
