"""Batches as a pure function of (seed, step), so that a resumed run sees the same data.

problem or record -> (prompt ids, answer ids) -> one padded row of a batch (`layout`)
"""

from collections.abc import Callable, Sequence

import numpy as np

from leapjax.data_files import read_jsonl
from leapjax.errors import UserError
from leapjax.tasks import Task
from leapjax.tasks.base import Problem
from leapjax.text import TextCodec
from leapjax.training.config import Phase, Shape, TrainConfig
from leapjax.training.layout import into_blocks, lay_out, pack_text, shorten

Pair = tuple[list[int], list[int]]


class Generated:
    """Training batches from a task's generator."""

    def __init__(
        self,
        task: Task,
        phases: Sequence[Phase],
        seed: int,
        encode: Callable[[str, Problem], Pair],
        pad_id: int,
        eos_id: int,
        block_length: int | None = None,
    ):
        """`encode` turns a prompt and its problem into (prompt ids, answer ids)."""
        assert task.sample is not None
        self.sample = task.sample
        self.phases = tuple(phases)
        self.seed = seed
        self.encode = encode
        self.pad_id, self.eos_id = pad_id, eos_id
        self.block_length = block_length
        for name in ("block_share", "short_share") if block_length else ():
            if any(getattr(b, name) for p in phases for b in p.batches):
                raise UserError(
                    f"{name} is for bidirectional models; block-causal ones always train on "
                    "blocks, which end with the answer: leave it out"
                )

    def shape(self, step: int) -> tuple[Shape, np.random.Generator]:
        """The kind of batch of a step, and the generator that fills it."""
        phase = next((p for p in self.phases if not p.until or step < p.until), self.phases[-1])
        rng = np.random.default_rng([self.seed, step])
        shares = np.array([b.share for b in phase.batches])
        return phase.batches[int(rng.choice(len(shares), p=shares / shares.sum()))], rng

    def batch(self, step: int) -> dict:
        """The batch of a step (from 0), as `lay_out` returns it."""
        shape, rng = self.shape(step)
        names = list(shape.strata)
        shares = np.array([shape.strata[n] for n in names])
        pairs: list[Pair] = []
        drawn = 0
        while len(pairs) < shape.batch_size:
            if drawn > 200 * shape.batch_size:
                raise UserError(
                    f"hardly any problem of {', '.join(names)} fits prompt_length "
                    f"{shape.prompt_length} and gen_length {shape.gen_length}; make them longer"
                )
            missing = shape.batch_size - len(pairs)
            drawn += missing
            chosen = rng.choice(len(names), size=missing, p=shares / shares.sum())
            drawn_now = [self.sample(rng, names[i], shape.limit) for i in chosen]
            pairs += [
                (q, a)
                for q, a in (
                    self.encode(prompt, problem)
                    for prompt, problem in drawn_now
                    if not shape.steps or problem.answer.count(" = ") <= shape.steps
                )
                if len(q) <= shape.prompt_length and len(a) < shape.gen_length
            ]
        out = lay_out(
            pairs,
            shape.prompt_length,
            shape.gen_length,
            self.pad_id,
            self.eos_id,
            self.block_length,
        )
        if shape.short_share:
            out = shorten(out, rng, shape.short_share, self.eos_id)
        if shape.block_share:
            out = into_blocks(out, rng, shape.block_share, shape.block_length)
        if shape.mask_floor:
            out["floor"] = np.float32(shape.mask_floor)
        return out


class Rows:
    """Batches from rows that are in memory, in a new order each epoch.

    `make` lays a list of rows out; an epoch's last batch runs on into the next epoch.
    """

    def __init__(self, rows: Sequence, batch_size: int, seed: int, make: Callable[[list], dict]):
        self.rows, self.batch_size, self.seed, self.make = rows, batch_size, seed, make
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def _index(self, place: int) -> int:
        epoch, i = divmod(place, len(self.rows))
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            self._order = (epoch, order)
        return int(self._order[1][i])

    def batch(self, step: int) -> dict:
        """The batch of a step; see `Generated.batch`."""
        first = step * self.batch_size
        return self.make([self.rows[self._index(first + i)] for i in range(self.batch_size)])


def from_jsonl(
    config: TrainConfig,
    codec: TextCodec,
    pad_id: int,
    eos_id: int,
    block_length: int | None = None,
) -> Rows:
    """Training rows from a user's file.

    A record is `{"prompt", "response"}`, `{"messages"}` with an assistant's turn last, or
    `{"text"}`; one file holds either texts or prompts with responses.
    """
    pairs: list[Pair] = []
    texts: list[list[int]] = []
    for where, record in read_jsonl(config.data):
        try:
            if "text" in record:
                if not isinstance(record["text"], str) or not record["text"]:
                    raise UserError("text should be a text that is not empty")
                ids = [*codec.encode(record["text"], control=False), eos_id]
                size = config.sequence_length
                texts += [ids[i : i + size] for i in range(0, len(ids), size)]
            else:
                pair = _pair(record, codec, eos_id)
                if len(pair[0]) <= config.prompt_length and len(pair[1]) < config.gen_length:
                    pairs.append(pair)
                elif config.too_long == "error":
                    raise UserError(
                        f"a prompt of {len(pair[0])} and a response of {len(pair[1])} tokens do "
                        f"not fit prompt_length {config.prompt_length} and gen_length "
                        f"{config.gen_length} (an eos included); raise them or set "
                        "too_long: skip"
                    )
        except UserError as e:
            raise UserError(f"{where}: {e}") from e
        if pairs and texts:
            raise UserError(f"{where}: the file mixes texts with prompts and responses")
    if texts:
        return Rows(
            texts,
            config.batch_size,
            config.seed,
            lambda rows: pack_text(rows, config.sequence_length, pad_id),
        )
    if not pairs:
        raise UserError(f"{config.data}: holds no record to train on")

    def make(rows):
        lengths = config.prompt_length, config.gen_length
        return lay_out(rows, *lengths, pad_id, eos_id, block_length)

    return Rows(pairs, config.batch_size, config.seed, make)


def _pair(record: dict, codec: TextCodec, eos_id: int) -> Pair:
    """Prompt and response ids of a record; an end-of-turn token other than eos is kept."""
    if "messages" in record:
        messages = record["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise UserError("messages should end with an assistant's turn")
        prompt = codec.encode_chat(messages[:-1], codec.template_options)
        response = last.get("content")
    elif "prompt" in record and "response" in record:
        if not isinstance(record["prompt"], str):
            raise UserError("prompt should be a text")
        prompt, response = codec.encode_prompt(record["prompt"]), record["response"]
    else:
        raise UserError("expected prompt and response, messages, or text")
    if not isinstance(response, str):
        raise UserError("the response should be a text")
    ids = codec.encode(response, control=False)
    if codec.eot_id is not None and codec.eot_id != eos_id:
        ids = [*ids, codec.eot_id]
    return prompt, ids
