"""leapjax as a step of a Ray Data job (extra `ray`; docs/ray.md).

    ray.data.read_json("prompts.jsonl").map_batches(
        leapjax.integrations.ray.Decoder,
        fn_constructor_kwargs={"model": "checkpoints/llada-8b", "gen_length": 256},
        compute=ray.data.ActorPoolStrategy(size=8), batch_size=512, num_gpus=1,
    )

Each actor loads the model once and decodes a batch as `leapjax decode` decodes a file: the same
records, options and engine. A bad record becomes a row with an `error`. If an actor dies, another
decodes its batch again; an answer depends only on its record, so the answers stay the same.
"""

# pyright: reportMissingImports=false

import datetime
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from leapjax import arguments
from leapjax.config import OPTIONS, check_keys
from leapjax.errors import UserError
from leapjax.jobs.loop import Loop
from leapjax.jobs.source import Item
from leapjax.jsonl import parse_line
from leapjax.policies import POLICIES
from leapjax.policies.parameters import EDITING_THRESHOLD
from leapjax.records import Intake, to_record

try:
    import pyarrow as pa
except ImportError as e:
    raise UserError("Ray Data is not installed; pip install leapjax[ray]") from e

LINES = "text"  # what `ray.data.read_text` calls its only column
_ARGUMENTS = (
    "model",
    "dtype",
    "quantize",
    "revision",
    "mesh",
    "config",
    "rows",
    "raw",
    "stop",
    "num_samples",
    "details",
)


class Decoder:
    """Decode batches of records: a callable class for `Dataset.map_batches`.

    `dtype`, `quantize` and `revision` as in `leapjax.load`.

    Args:
      model: checkpoint, hub folder or hub id, readable on every node; None is the embedded one.
      mesh: as in `leapjax.load`, over the devices that Ray gives the actor; None is `auto`.
      config: YAML of decode options, as `leapjax decode --config` takes it.
      rows: rows decoded at once; None lets leapjax choose.
      raw: as `leapjax decode --raw`.
      stop: as `leapjax decode --stop`.
      num_samples: as `leapjax decode --num-samples`.
      details: as `leapjax decode --details`.
      **options: decode options, such as `gen_length`, `threshold`, `cache`.

    Raises:
      UserError: an unknown argument, a value that is out of range, or no such model.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        dtype: str | None = None,
        quantize: str | None = None,
        revision: str | None = None,
        mesh: str | None = None,
        config: str | None = None,
        rows: int | None = None,
        raw: bool = False,
        stop: str | Sequence[str] = (),
        num_samples: int | None = None,
        details: bool = False,
        **options: Any,
    ):
        import leapjax
        from leapjax.compilation import enable_cache
        from leapjax.config.resolve import for_checkpoint
        from leapjax.fit import wanted
        from leapjax.options import read_config

        check_keys(options, "Decoder", (*OPTIONS, *_ARGUMENTS), "argument")
        file = read_config(config) if config else None
        model = model or (file.model if file else None)
        self.options = for_checkpoint(options, file, model, revision=revision)
        enable_cache()  # an actor that takes another's place need not compile again
        self.lm = leapjax.load(
            model,
            dtype=dtype,
            revision=revision,
            quantize=quantize,
            mesh=wanted(mesh, self.options, rows),
        )
        self.rows = arguments.row_count(rows, "rows")
        self.details = arguments.switch(details, "details")
        self._shape = {"raw": arguments.switch(raw, "raw"), "stop": stop, "samples": num_samples}
        self._intake()  # refuses what is unusable before any record comes

    def __call__(self, batch: Any) -> Any:
        """Decode a batch.

        Args:
          batch: a pyarrow table or a dict of NumPy columns, one record a row: its keys are the
            columns, null where a record lacks one (docs/contract.md, Records in). Or, with the
            one column `text`, the lines of a JSONL file, as `ray.data.read_text` gives them.

        Returns:
          A pyarrow table with the columns of docs/contract.md, Records out, and `error`: null, or
          why the record is a bad one, all but its `id` being null then. In the batch's order.
        """
        records = list(_records(batch))
        ids = [r.get("id") if isinstance(r, Mapping) else None for r in records]
        sink = _Sink(self.details, ids)
        items = (Item(n, f"record {n}", record) for n, record in enumerate(records, 1))
        # No count: a small last batch must not compile a program of its own.
        loop = Loop(
            self.lm,
            self._intake(),
            sink,
            max_errors=sys.maxsize,
            batch_size=self.rows,
        )
        loop.run(items)
        return self._table(sink.rows)

    def _intake(self) -> Intake:
        """For one batch: ids of another are unknown here, and a batch may come twice."""
        return _Intake(self.options, self.lm.config, self.lm.codec, **self._shape)

    def _table(self, rows: list[dict[str, Any]]):
        """Rows as a table whose columns are the same for every batch."""
        ids = [row["id"] for row in rows]
        if len({type(i) for i in ids if i is not None}) > 1:
            ids = [i if i is None else str(i) for i in ids]  # a column has one type
        columns = {"id": pa.array(ids)}
        for name, kind in self._kinds().items():
            columns[name] = pa.array([row.get(name) for row in rows], kind)
        metadata = [row.get("metadata") for row in rows]
        try:
            columns["metadata"] = pa.array(metadata)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a key with values of several types
            columns["metadata"] = pa.array([m and json.dumps(m, default=str) for m in metadata])
        columns["error"] = pa.array([row.get("error") for row in rows], pa.string())
        return pa.table(columns)

    def _kinds(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {
            "text": pa.string(),
            "output_ids": pa.list_(pa.int64()),
            "finish_reason": pa.string(),
            "steps": pa.int64(),
            "full_passes": pa.int64(),
            "nfe": pa.int64(),
            "commit_step": pa.list_(pa.int64()),
        }
        policy = POLICIES[self.options.policy]
        if policy.replaces or EDITING_THRESHOLD.name in policy.reads:  # a record may set it
            kinds["edits"] = pa.list_(pa.list_(pa.int64()))
        if self.details:
            kinds |= {
                "commit_kind": pa.list_(pa.string()),
                "commit_confidence": pa.list_(pa.float64()),
            }
        if self._shape["samples"] is not None:
            kinds["sample"] = pa.int64()
        return kinds


class _Intake(Intake):
    """Records of a data set have no line numbers, so they need ids."""

    def requests(self, record: Any, line: int, where: str | None = None):
        if isinstance(record, Mapping) and record.get("id") is None:
            raise UserError(
                f"{where}: has no id, and a data set has no line numbers; give every record one"
            )
        return super().requests(record, line, where)


class _Sink:
    """Rows of one batch.

    Args:
      details: see `to_record`.
      ids: of the batch's records, as they came.
    """

    def __init__(self, details: bool, ids: list[Any]):
        self.rows: list[dict[str, Any]] = []
        self._details, self._ids = details, ids

    def write(self, completion) -> None:
        """Take an answer."""
        self.rows.append(to_record(completion, self._details))

    def keep_bad(self, record: dict[str, Any]) -> None:
        """Take a bad record's error; an id that is none is left out."""
        own = self._ids[record["line"] - 1]
        usable = isinstance(own, str | int) and not isinstance(own, bool)
        self.rows.append({"id": own if usable else None, "error": record["error"]})

    def settle(self, item: Item) -> None:
        """Nothing to do: a batch counts as a whole."""


def _records(batch: Any) -> Iterable[Any]:
    """The records of a batch: objects, or the bytes of a line that is none."""
    if isinstance(batch, pa.Table):
        rows = batch.to_pylist()
    elif isinstance(batch, Mapping):
        names = list(batch)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    else:
        raise UserError(
            f"batch_format: got {type(batch).__name__}; leave it out or take 'numpy' or 'pyarrow'"
        )
    if rows and rows[0].keys() == {LINES}:
        for row in rows:
            line = str(row[LINES]).encode("utf-8", "surrogatepass")
            try:
                yield parse_line(line, "")
            except UserError:
                yield line  # the loop says what is wrong with it
        return
    whole = not isinstance(batch, pa.Table)
    for row in rows:
        yield _plain(row, whole)


def _plain(value: Any, whole: bool) -> Any:
    """A cell as JSON has it; nulls of an object are keys that a record lacks.

    Args:
      value: what Arrow or NumPy hold.
      whole: floats may be whole numbers of a column with nulls, as NumPy has them.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.datetime64):
        return str(value)
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {k: made for k, v in value.items() if (made := _plain(v, whole)) is not None}
    if isinstance(value, list | tuple):
        return [_plain(v, whole) for v in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None  # NumPy's null
        return int(value) if whole and value.is_integer() else value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value
