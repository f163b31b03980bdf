"""`LM`: a loaded model with its tokenizer, the main class of the Python API."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from leapjax import arguments, checkpoint
from leapjax.batch import Batch, batch
from leapjax.config import DecodeConfig
from leapjax.config.resolve import from_python
from leapjax.errors import UserError
from leapjax.logits import logits
from leapjax.models import ModelConfig, parameter_count
from leapjax.ops import hardware
from leapjax.ops.arrangement import arrange, with_log_frequency
from leapjax.ops.split import canonical
from leapjax.options import ConfigFile
from leapjax.records import to_request
from leapjax.serve.engine import Engine, Progress
from leapjax.serve.lane import Replica
from leapjax.serve.programs import Programs
from leapjax.serve.sizes import slots_for
from leapjax.sharding import MeshShape, under_mesh
from leapjax.text import TextCodec, finish
from leapjax.types import Completion, Request


class LM:
    """A masked diffusion language model, ready to decode.

    Attributes:
      params: the weights under their canonical names (`leapjax.models.param_shapes`), in their
        stored dtype, as JAX arrays. On one GPU, a loaded model keeps them split by layer
        (`leapjax.ops.split`), so each access stacks the layers again, on the host.
      config: the model's shape and special ids.
      codec: the tokenizer and chat template; None if the checkpoint has none.
      dtype: compute dtype's name.
      path: the folder it was loaded from.
      model_hash: a hash of the weights (`leapjax.checkpoint.hash_params`). A converted
        checkpoint's manifest stores it; otherwise the first access reads every value.
      quantization: how the weights were quantised after loading, or None.
      replicas: the copies of the weights, with their devices, in the layout of the programs.
      defaults: the checkpoint's decode options (its `decode.yaml`), or None.
      programs: compiled programs for the engines (`leapjax.serve.programs.Programs`); set them
        before the first decode. None compiles all.
    """

    def __init__(
        self,
        params,
        config: ModelConfig,
        codec: TextCodec | None,
        dtype: str = "float32",
        *,
        path: Path | None = None,
        model_hash: str | None = None,
        quantization: str | None = None,
        replicas: Sequence[Replica] | None = None,
        defaults: ConfigFile | None = None,
    ):
        self._copies = tuple(replicas or [Replica(params)])
        self.config = config
        self.codec = codec
        self.dtype = dtype
        self.path = path
        self._model_hash = model_hash
        self.quantization = quantization
        self.defaults = defaults
        self.programs: Programs | None = None
        self._engines: dict[tuple, Engine] = {}

    def with_token_counts(self, counts) -> LM:
        """A copy of the model with token frequencies (policy `position_calibration`).

        Args:
          counts: (V,) whole numbers, occurrences of each token in a corpus.

        Raises:
          UserError: `counts` is not (V,) or holds anything but whole numbers of at least 0.
        """
        from leapjax.policies.position_calibration import checked_counts, log_frequencies

        known = log_frequencies(checked_counts(counts, self.config.vocab_size))
        replicas = []
        for r in self._copies:
            put = jnp.asarray(known)
            if r.placement is not None:
                put = jax.device_put(known, r.placement.everywhere())
            replicas.append(Replica(with_log_frequency(r.params, put), r.placement))
        # Frequencies change the results, so the new LM computes its own hash, which includes them.
        return LM(
            None,
            self.config,
            self.codec,
            self.dtype,
            path=self.path,
            quantization=self.quantization,
            replicas=replicas,
            defaults=self.defaults,
        )

    @functools.cached_property
    def model_hash(self) -> str:
        """64 hex digits that identify the weights; see the class."""
        return self._model_hash or checkpoint.hash_params(self._copies[0].params, self.config)

    def __repr__(self) -> str:
        facts = [
            f"{self.config.family}, {parameter_count(self.config)} parameters, {self.dtype}",
            f"vocabulary {self.config.vocab_size}",
            self.quantization,
            self.path and f"from {self.path}",
            self.mesh and f"on {self.mesh}",
        ]
        return f"LM({', '.join(f for f in facts if f)})"

    @functools.cached_property
    def default_config(self) -> DecodeConfig:
        """The options if none are given: the checkpoint's, else leapjax's."""
        return self.options()

    def options(self, config: DecodeConfig | None = None, **options: Any) -> DecodeConfig:
        """The options in force for a decode, with the model's own defaults filled in.

        Args:
          config: complete options that replace the checkpoint's `decode.yaml`; None uses that
            file.
          **options: options by name (docs/contract.md, Options); they override both.

        Raises:
          UserError: an unknown option, an invalid value, or an option that the model can't use.
        """
        arguments.check_names(options, "options")
        return from_python(config, options, self.defaults, self.config)

    @property
    def mesh(self) -> MeshShape | None:
        """The mesh that the model is sharded over; None is the default device alone."""
        place = self._copies[0].placement
        return None if place is None else MeshShape(len(self._copies), **place.mesh.shape)

    @property
    def params(self) -> dict[str, Any]:
        """The canonical weights; see the class."""
        return canonical(self._copies[0].params, self.config)

    @functools.cached_property
    def replicas(self) -> tuple[Replica, ...]:
        """Every copy of the weights and its devices; see the class."""
        return tuple(
            Replica(arrange(r.params, self.config, self.dtype), r.placement) for r in self._copies
        )

    def logits(self, ids, attention_mask=None, block_length: int | None = None) -> jax.Array:
        """The model's raw output logits, not shifted for Dream and Fast-dLLM v2.

        Args:
          ids: (B, T) or (T,) integers.
          attention_mask: (B, T), 0 or False for pads; they are not attended to and take no
            position.
          block_length: tokens per block of block-causal attention. None is the checkpoint's value;
            with T or more, attention is bidirectional.

        Returns:
          (B, T, V) float32.

        Raises:
          UserError: an id is outside the vocabulary, the shapes don't agree, or the family's
            attention has no blocks.
        """
        with under_mesh(self._copies[0].placement):
            return logits(
                self.replicas[0].params, self.config, self.dtype, ids, attention_mask, block_length
            )

    def generate(
        self,
        prompts: str | Sequence[Any],
        config: DecodeConfig | None = None,
        *,
        raw: bool = False,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Complete prompts.

        Args:
          prompts: each is a str, a list of chat messages (`{"role", "content"}`), token ids,
            or a record as in a JSONL file (docs/contract.md, Records).
          config: complete decode options; None uses the checkpoint's (`default_config`).
          raw: don't apply the chat template, and parse control tokens in the text.
          stop: strings before which the text is cut.
          batch_size: rows decoded at once; see `stream`.
          **options: decode options by name, such as `threshold=0.8`; they override `config`.

        Returns:
          One Completion per prompt, in order.

        Raises:
          UserError: a prompt or option is unusable.
        """
        arguments.check_names(options, "generate", "raw", "stop", "batch_size")
        requests = self._requests(prompts, self.options(config, **options), raw, stop)
        return list(self.stream(requests, batch_size=batch_size))

    def batch(
        self,
        prompts: str | Sequence[Any],
        config: DecodeConfig | None = None,
        *,
        raw: bool = False,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> Batch:
        """Prompts as the arrays of one decode, for research (docs/research.md).

        `config`, `raw`, `stop` and `**options` as in `generate`.

        Args:
          prompts: as in `generate`, one per row.

        Returns:
          A Batch: `leapjax.decoding.decode(batch.params, batch.state, batch.program)` runs it.

        Raises:
          UserError: a prompt or option is unusable, or the prompts need different programs.
        """
        arguments.check_names(options, "batch", "raw", "stop")
        return batch(self, self._requests(prompts, self.options(config, **options), raw, stop))

    def _requests(self, prompts: Any, job: DecodeConfig, raw: bool, stop) -> list[Request]:
        records = arguments.listed(prompts)
        arguments.check_ids(records)
        return [self.request(p, job, line=i, raw=raw, stop=stop) for i, p in enumerate(records, 1)]

    def infill(
        self,
        sequences: Sequence[Any],
        config: DecodeConfig | None = None,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[Completion]:
        """Fill the open positions of sequences; all other tokens stay unchanged.

        Args:
          sequences: each is token ids with at least one mask id, or a text with `[MASK]`, as in
            "Tom has [MASK]*3 apples" (`TextCodec.encode_infill`).
          config: decode options; the first block begins at the first open position.
          batch_size: rows decoded at once.
          **options: decode options by name; they override `config`.

        Returns:
          One Completion per sequence; `output_ids` is the whole sequence.
        """
        arguments.check_names(options, "infill", "batch_size")
        given = arguments.listed(sequences, "sequences")
        records = [{"infill" if isinstance(s, str) else "infill_ids": s} for s in given]
        return self.generate(records, config, batch_size=batch_size, **options)

    def request(
        self,
        prompt: Any,
        config: DecodeConfig | None = None,
        *,
        line: int = 1,
        raw: bool = False,
        stop: Sequence[str] = (),
        **options: Any,
    ) -> Request:
        """Tokenise and check one prompt for `stream`.

        `prompt`, `raw`, `stop` and `**options` as in `generate`.

        Args:
          config: the job's options, as in `generate`; a record's own options override them.
          line: the record's line number, used as its id if it has none.
        """
        arguments.check_names(options, "request", "line", "raw", "stop")
        return to_request(
            prompt,
            line=line,
            job=self.options(config, **options),
            model=self.config,
            codec=self.codec,
            raw=arguments.switch(raw, "raw"),
            stop=() if stop is None else stop,
        )

    def stream(
        self,
        requests: Iterable[Any],
        config: DecodeConfig | None = None,
        *,
        batch_size: int | None = None,
        refresh_group: int | None = None,
        share_prefix: bool | str = "auto",
        each_chunk: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> Iterator[Completion]:
        """Decode a stream of requests in input order, with bounded memory.

        Args:
          requests: items that `request` takes, read lazily within a look-ahead window. A source
            that is slow or waits for an answer does not delay rows in flight.
          config: options for items that are not Requests yet.
          batch_size: rows decoded at once by all replicas; default: all requests, or as many as
            fit in memory, up to the backend's limit.
          refresh_group: with a KV cache, number of rows that a refresh computes together, at
            least 1; affects speed, not answers.
          share_prefix: `auto`, `on` or `off`: with `cache: block`, compute a prefix that prompts
            have in common only once (docs/jobs.md); affects speed, not answers.
          each_chunk: see `Engine.stream`.
          **options: decode options by name; they override `config`.

        Yields:
          Completions.
        """
        own = ("batch_size", "refresh_group", "share_prefix", "each_chunk")
        arguments.check_names(options, "stream", *own)
        job, batch_size = self.options(config, **options), arguments.row_count(batch_size)
        if refresh_group is not None:
            refresh_group = arguments.whole(refresh_group, "refresh_group", 1)
        share_prefix = arguments.sharing(share_prefix, self.config, job)
        requests = arguments.streamed(requests)
        count = len(requests) if isinstance(requests, Sequence) else None
        lines = itertools.count(1)
        settings = {"refresh_group": refresh_group, "share_prefix": share_prefix}
        return self.engine_for(count, batch_size, **settings).stream(
            requests,
            each_chunk,
            prepare=lambda given: (self.request(given, job, line=next(lines)),),
        )

    def engine_for(self, count: int | None, batch_size: int | None = None, **settings) -> Engine:
        """The engine for a number of requests.

        Args:
          count: number of requests, None if unknown.
          batch_size: see `stream`.
          **settings: `refresh_group` and `share_prefix`, see `stream`.
        """
        default = hardware.defaults().slots
        copies = len(self._copies)
        slots = slots_for(count, batch_size, default * copies)
        return self.engine(-(-slots // copies), batch_size is not None, **settings)

    def engine(
        self,
        slots: int,
        fixed: bool = True,
        refresh_group: int | None = None,
        share_prefix: bool | str = "auto",
    ) -> Engine:
        """An engine with a number of slots; engines and their compiled programs are cached.

        `refresh_group` and `share_prefix` as in `stream`.

        Args:
          slots: rows decoded at once by a replica, a multiple of the mesh axis `fsdp`.
          fixed: use exactly this number, even if that might not fit in memory.
        """
        shared = arguments.sharing(share_prefix, self.config)
        if slots < 1:
            raise UserError(f"batch_size is {slots}; expected at least 1")
        place = self._copies[0].placement
        share = 1 if place is None else place.mesh.shape["fsdp"]
        slots = -(-slots // share) * share
        key = (slots, fixed, refresh_group, shared)
        if key not in self._engines:
            self._engines[key] = Engine(
                self.replicas,
                self.config,
                dtype=self.dtype,
                eot_token_id=self.codec.eot_id if self.codec else None,
                finish=self.finish,
                slots=slots,
                fixed=fixed,
                refresh_group=refresh_group,
                share_prefix=shared,
                programs=self.programs,
            )
        return self._engines[key]

    def finish(self, request: Request, ids: list[int]) -> tuple[str, str]:
        """The text of an answer and its finish reason.

        Args:
          ids: token ids of the canvas.
        """
        given = request.config.stop_ids
        return finish(ids, self.codec, self.config, request.stop, request.whole, given)
