"""The embedded model's answers, known in advance: does this device decode the same?

`leapjax/data/wordproblems-answers.json` holds prompts and their answers in float32: with LocalLeap,
and with a KV cache and a fixed schedule, most of whose passes compute a window. It is written by

    python -m leapjax.benchmarks.known_answers

which is needed when the embedded model, or what its options mean, has changed.
"""

import json
from typing import Any

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.loader import embedded_path, load
from leapjax.sharding import MeshShape
from leapjax.studies.files import write

PATH = embedded_path().with_name("wordproblems-answers.json")
DTYPE = "float32"
CASES: tuple[dict[str, Any], ...] = (
    {"cache": "none"},
    {"cache": "dual", "policy": "low_confidence", "steps": 16},
)


def decode(lm: LM, prompts: list[list[int]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Decode prompts, all at once. Returns `tokens` (of the canvas) and `steps` of each."""
    config = DecodeConfig(**options)
    answers = lm.generate(prompts, config, batch_size=len(prompts))
    return [{"tokens": a.output_ids, "steps": a.steps} for a in answers]


def compare(mesh: MeshShape | None = None) -> dict[str, Any]:
    """Decode the known prompts on the devices here.

    `mesh`: devices to spread the model over; None is the default device. The result is JSON-ready:
    whether all are `equal`; in `differs` those that are not: their `cache` and `row`, how many
    `tokens` differ, the `steps` known and taken. Raises UserError: this installation has no
    embedded model, or answers of another one.
    """
    lm = load(dtype=DTYPE, mesh=mesh)
    known = json.loads(PATH.read_text())
    if known["model_hash"] != lm.model_hash:
        raise UserError(f"{PATH}: holds answers of another model; write it anew")
    differs = []
    for case in known["cases"]:
        found = decode(lm, known["prompts"], case["options"])
        for row, (want, got) in enumerate(zip(case["answers"], found, strict=True)):
            if want != got:
                wrong = sum(a != b for a, b in zip(want["tokens"], got["tokens"], strict=True))
                at = {"cache": case["options"]["cache"], "row": row}
                steps = {"steps_known": want["steps"], "steps": got["steps"]}
                differs.append(at | {"tokens": wrong} | steps)
    return {
        "model_hash": lm.model_hash,
        "dtype": DTYPE,
        "caches": [case["options"]["cache"] for case in known["cases"]],
        "rows": len(known["prompts"]),
        "equal": not differs,
        "differs": differs,
    }


def make(count: int = 8) -> dict[str, Any]:
    """What the file holds, decoded here. `count`: prompts, of `leapjax.terminal.samples`."""
    from leapjax.terminal.samples import records

    lm = load(dtype=DTYPE)
    prompts = [list(lm.request(record).ids) for record in records(lm, 0, count)]
    options = [lm.options(**case).changed() | case for case in CASES]
    cases = [{"options": each, "answers": decode(lm, prompts, each)} for each in options]
    return {"model_hash": lm.model_hash, "prompts": prompts, "cases": cases}


if __name__ == "__main__":
    write(PATH, json.dumps(make()) + "\n")
