"""Batches as a pure function of (seed, step), so that a resumed run sees the same data.

problem or record -> (prompt ids, answer ids) -> one padded row of a batch (`layout`)
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from leapjax.data_files import open_data
from leapjax.errors import UserError
from leapjax.tasks import wordproblem_tokenizer, wordproblems
from leapjax.tasks.base import Problem
from leapjax.text import TextCodec
from leapjax.training.config import Phase, Shape, TrainConfig
from leapjax.training.layout import into_blocks, lay_out, pack_text

Pair = tuple[list[int], list[int]]


class WordProblems:
    """Training batches from the word-problem generator."""

    def __init__(
        self,
        phases: Sequence[Phase],
        seed: int,
        encode: Callable[[Sequence[Problem]], list[Pair]] | None = None,
        pad_id: int | None = None,
        eos_id: int | None = None,
        block_length: int | None = None,
    ):
        """Take the plan of the run and, for a model with a tokenizer of its own, that.

        Args:
          phases: which batches to draw, and until when.
          seed: of the problems.
          encode: problems to (prompt ids, answer ids); None: the task's own tokenizer.
          pad_id: None: the own tokenizer's.
          eos_id: None: the own tokenizer's.
          block_length: of block-causal models; None: rows for the others.

        Raises:
          UserError: block_share with block-causal models.
        """
        self.phases = tuple(phases)
        self.seed = seed
        self.block_length = block_length
        if block_length and any(b.block_share for p in phases for b in p.batches):
            raise UserError(
                "block_share is for bidirectional models; block-causal ones always train on "
                "blocks: leave it out"
            )
        self.tokenizer = wordproblem_tokenizer.build()
        bos, user, assistant, eos = (
            self.tokenizer.encode(spelling).ids[0]
            for spelling in (
                wordproblem_tokenizer.BOS,
                wordproblem_tokenizer.USER,
                wordproblem_tokenizer.ASSISTANT,
                wordproblem_tokenizer.EOS,
            )
        )
        self.eos_id = eos if eos_id is None else eos_id
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self._before, self._after = [bos, user], [assistant]
        self.encode = encode or self._encode

    def _encode(self, problems: Sequence[Problem]) -> list[Pair]:
        """(prompt, answer) id lists, the prompt as the chat template renders it."""
        questions = self.tokenizer.encode_batch([p.question for p in problems])
        answers = self.tokenizer.encode_batch([p.answer for p in problems])
        return [
            (self._before + q.ids + self._after, a.ids)
            for q, a in zip(questions, answers, strict=True)
        ]

    def shape(self, step: int) -> tuple[Shape, np.random.Generator]:
        """The kind of batch of a step, and the generator that fills it."""
        phase = next((p for p in self.phases if not p.until or step < p.until), self.phases[-1])
        rng = np.random.default_rng([self.seed, step])
        shares = np.array([b.share for b in phase.batches])
        return phase.batches[int(rng.choice(len(shares), p=shares / shares.sum()))], rng

    def batch(self, step: int) -> dict:
        """The batch of a step.

        Args:
          step: from 0.

        Returns:
          What `lay_out` returns.

        Raises:
          UserError: hardly any problem fits the batch's lengths.
        """
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
            limit = shape.limit or wordproblems.LIMIT
            problems = [wordproblems.draw(rng, "train", names[i], limit) for i in chosen]
            if shape.steps:
                problems = [p for p in problems if p.answer.count(" = ") <= shape.steps]
            pairs += [
                (q, a)
                for q, a in self.encode(problems)
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
        if shape.block_share:
            out = into_blocks(out, rng, shape.block_share, shape.block_length)
        if shape.mask_floor:
            out["floor"] = np.float32(shape.mask_floor)
        return out


class Rows:
    """Batches from rows that are in memory, in a new order each epoch."""

    def __init__(self, rows: Sequence, batch_size: int, seed: int, make: Callable[[list], dict]):
        """Take the rows.

        Args:
          rows: whatever `make` lays out.
          batch_size: B; the last batch of an epoch runs on into the next.
          seed: of the order.
          make: a list of B rows to a batch.
        """
        self.rows, self.batch_size, self.seed, self.make = rows, batch_size, seed, make
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def _index(self, place: int) -> int:
        epoch, i = divmod(place, len(self.rows))
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            self._order = (epoch, order)
        return int(self._order[1][i])

    def batch(self, step: int) -> dict:
        """The batch of a step; see `WordProblems.batch`."""
        first = step * self.batch_size
        return self.make([self.rows[self._index(first + i)] for i in range(self.batch_size)])


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """The records of a JSONL file with their line numbers, from 1.

    Raises:
      UserError: unreadable file, or a line that is no JSON object.
    """
    try:
        with io.TextIOWrapper(open_data(str(path)), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise UserError(f"{path} line {number}: not valid JSON") from e
                if not isinstance(record, dict):
                    raise UserError(f"{path} line {number}: expected a JSON object")
                yield number, record
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"{path}: can't be read ({reason})") from e


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

    Args:
      config: the run; reads data, the lengths, batch_size, seed and too_long.
      codec: the model's tokenizer.
      pad_id: the model's.
      eos_id: the model's.
      block_length: of block-causal models.

    Raises:
      UserError: a bad record (with its line number), or nothing to train on.
    """
    pairs: list[Pair] = []
    texts: list[list[int]] = []
    for number, record in read_jsonl(config.data):
        where = f"{config.data} line {number}"
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
