"""Outcomes of finished evaluations: written beside the report, read again to compare folders."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.errors import UserError
from leapjax.studies.comparisons import differing
from leapjax.studies.evaluation import is_baseline

FILE = "outcomes.json"
_LEFT_OUT = ("id", "numbers")
_IDENTITY = ("policy", "cache", "equal", "options", "manifest")


def document(
    head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], searches: Sequence[Any]
) -> dict[str, Any]:
    """What `read` needs, JSON-ready: of each row a list per number, of texts a hash."""
    told = []
    for row in rows:
        names = [n for n in row["answers"][0] if n not in _LEFT_OUT]
        columns = {n: [a[n] for a in row["answers"]] for n in names}
        columns["text"] = [
            hashlib.blake2b(text.encode(), digest_size=6).hexdigest() for text in columns["text"]
        ]
        told.append({**row, "answers": columns})
    return {"head": head, "rows": told, "searches": list(searches)}


def read(folder: str) -> dict[str, Any]:
    """The outcomes in a folder of `leapjax evaluate --output`."""
    path = Path(folder) / FILE
    try:
        made = json.loads(path.read_text("utf-8"))
        for row in made["rows"]:
            columns = row["answers"]
            lines = zip(*columns.values(), strict=True)
            row["answers"] = [dict(zip(columns, line, strict=True)) for line in lines]
        return {name: made[name] for name in ("head", "rows", "searches")}
    except OSError as e:
        raise UserError(
            f"{path}: can't be read ({e.strerror or e}); --compare takes folders that leapjax "
            "evaluate --output has finished"
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: is damaged; run its evaluation again, answers are kept") from e


def merge(folders: Sequence[str], allow_unequal: bool) -> dict[str, Any]:
    """The rows of several folders as those of one evaluation, on the trials that all have.

    A row that another folder has as well is there once; labels of different rows that are called
    the same get their folder's name. Folders whose manifests differ are refused.
    """
    if len(folders) < 2:
        raise UserError("--compare needs at least two folders of leapjax evaluate --output")
    found = {folder: read(folder) for folder in folders}
    for a, b in itertools.combinations(found, 2):
        fields = _apart(found[a]["rows"], found[b]["rows"])
        if fields and not allow_unequal:
            raise UserError(
                f"{a} and {b} differ in {', '.join(fields)}, so that the policy is not all that is "
                "compared; --allow-unequal compares them all the same, and says so"
            )
    asked = [[_trial(x) for x in made["rows"][0]["answers"]] for made in found.values()]
    common = set(asked[0]).intersection(*asked[1:])
    if not common:
        raise UserError(f"{', '.join(folders)}: have no problem in the same template in common")
    order = [trial for trial in asked[0] if trial in common]
    rows: list[dict[str, Any]] = []
    searches: list[dict[str, Any]] = []
    for folder, made in found.items():
        names = {}
        for row in made["rows"]:
            by_trial = {_trial(a): a for a in row["answers"]}
            row = {**row, "answers": [by_trial[trial] for trial in order]}
            names[row["label"]] = row["label"]
            if any(all(row[key] == other[key] for key in _IDENTITY) for other in rows):
                continue
            if any(row["label"] == other["label"] for other in rows if other["from"] != folder):
                names[row["label"]] = row["label"] = f"{row['label']} [{Path(folder).name}]"
            rows.append(row | {"from": folder})
        for search in made["searches"]:
            told = {key: names[search[key]] for key in ("label", "reference")}
            if search | told not in searches:
                searches.append(search | told)
    first = found[folders[0]]["head"]
    return {"head": first, "rows": rows, "searches": searches}


def _trial(answer: Mapping[str, Any]) -> tuple:
    return answer["problem"], answer["template"], answer["seed"]


def _apart(these: Sequence[Mapping[str, Any]], those: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that keep every row of one side from being compared with the other's."""
    sides = [
        [r for r in rows if not (r["equal"] or is_baseline(r))] or rows for rows in (these, those)
    ]
    pairs = itertools.product(*sides)
    return min((differing(a["manifest"], b["manifest"]) for a, b in pairs), key=len)
