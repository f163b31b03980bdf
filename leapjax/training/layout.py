"""Rows of a batch, laid out as at decode time.

bidirectional   [pads] prompt | canvas of a fixed length: answer eos eos ...
block-causal    prompt | answer, eos to the end of its block | [pads]; blocks begin in column 0
text            text [pads]
"""

from collections.abc import Sequence

import numpy as np

from leapjax.errors import UserError


def pack(pairs, prompt_length: int, gen_length: int, pad_id: int, eos_id: int) -> dict:
    """Lay out (prompt, answer) rows: `[pads] prompt | answer eos eos …`.

    `pairs` are B pairs of id lists. Pads fill the prompt's columns, eos tokens those of the canvas:
    trained, they are how the model stops, so an answer must leave room for one. Returns `ids`
    (B, T) int32, `valid` (B, T) bool and `trainable` (B, T) bool.
    """
    shape = (len(pairs), prompt_length + gen_length)
    ids = np.full(shape, pad_id, np.int32)
    valid = np.zeros(shape, bool)
    trainable = np.zeros(shape, bool)
    for row, (prompt, answer) in enumerate(pairs):
        _check_fits(prompt, answer, prompt_length, gen_length)
        start = prompt_length - len(prompt)
        ids[row, start:prompt_length] = prompt
        ids[row, prompt_length:] = eos_id
        ids[row, prompt_length : prompt_length + len(answer)] = answer
        valid[row, start:] = True
        trainable[row, prompt_length:] = True
    return {"ids": ids, "valid": valid, "trainable": trainable}


def _check_fits(prompt: list[int], answer: list[int], prompt_length: int, gen_length: int) -> None:
    if len(prompt) > prompt_length or len(answer) >= gen_length:
        raise UserError(
            f"a prompt of {len(prompt)} and an answer of {len(answer)} tokens do not fit "
            f"prompt_length {prompt_length} and gen_length {gen_length}"
        )


def pack_blocks(
    pairs, prompt_length: int, gen_length: int, pad_id: int, eos_id: int, block_length: int
) -> dict:
    """Lay out (prompt, answer) rows for block-causal models: `prompt | answer eos … | [pads]`.

    The eos tokens fill the block in which the answer ends: a decoder stops after it. `gen_length`
    is the longest answer with its first eos. Returns as `pack`, and `window`, the most columns that
    the blocks of an answer have.

    >>> pack_blocks([([5, 6, 7], [8, 9])], 3, 4, pad_id=0, eos_id=1, block_length=4)["ids"].tolist()
    [[5, 6, 7, 8, 9, 1, 1, 1]]
    """

    def whole(tokens: int) -> int:
        return -(-tokens // block_length) * block_length

    shape = (len(pairs), whole(prompt_length + gen_length))
    ids = np.full(shape, pad_id, np.int32)
    valid = np.zeros(shape, bool)
    trainable = np.zeros(shape, bool)
    for row, (prompt, answer) in enumerate(pairs):
        _check_fits(prompt, answer, prompt_length, gen_length)
        start, end = len(prompt), whole(len(prompt) + len(answer) + 1)
        ids[row, :start] = prompt
        ids[row, start:end] = [*answer, *[eos_id] * (end - start - len(answer))]
        valid[row, :end] = True
        trainable[row, start:end] = True
    window = min(whole(gen_length + block_length - 1), shape[1])
    return {"ids": ids, "valid": valid, "trainable": trainable, "window": window}


def into_blocks(batch: dict, rng: np.random.Generator, share: float, block_length: int) -> dict:
    """Narrow some rows to one block of the canvas, as a decoder of blocks meets it.

    Uniform masks hardly ever show a model what block-wise decoding asks of it: everything behind
    the current block still masked, everything before it settled. `batch` is what `pack` returns;
    `share` of its rows (0 to 1) are narrowed, and get `unseen` (B, T) bool. The canvas's last block
    may be shorter.
    """
    trainable = batch["trainable"]
    rows, columns = trainable.shape
    first = np.argmax(trainable, axis=1)
    blocks = -(-trainable.sum(axis=1) // block_length)
    start = first + block_length * rng.integers(0, blocks)
    chosen = (rng.random(rows) < share)[:, None]
    column = np.arange(columns)[None, :]
    inside = (column >= start[:, None]) & (column < start[:, None] + block_length)
    behind = trainable & (column >= start[:, None] + block_length)
    return {**batch, "trainable": trainable & (inside | ~chosen), "unseen": behind & chosen}


def shorten(batch: dict, rng: np.random.Generator, share: float, eos_id: int) -> dict:
    """End the canvas of some rows at a random place behind the answer's first eos.

    A model that meets one length of canvas only learns places from the canvas's end, and is lost on
    every other length. `share` is that of the rows, 0 to 1. Columns behind the end are neither
    valid nor trainable.
    """
    trainable = batch["trainable"]
    filled = trainable & (batch["ids"] != eos_id)
    column = np.arange(trainable.shape[1])[None, :]
    before = np.argmax(trainable, axis=1)[:, None] - 1
    answered = np.max(np.where(filled, column, before), axis=1)  # the answer's last column
    end = rng.integers(answered + 2, trainable.shape[1] + 1)
    end[rng.random(len(end)) >= share] = trainable.shape[1]
    kept = column < end[:, None]
    return {**batch, "trainable": trainable & kept, "valid": batch["valid"] & kept}


def lay_out(
    pairs,
    prompt_length: int,
    gen_length: int,
    pad_id: int,
    eos_id: int,
    block_length: int | None = None,
) -> dict:
    """Lay out (prompt, answer) rows as the model's objective reads them.

    With `block_length` as `pack_blocks`, without as `pack`. `window` is the number of columns that
    can be trained (bidirectional: at the end, the canvas).
    """
    if block_length is None:
        made = pack(pairs, prompt_length, gen_length, pad_id, eos_id)
        return {**made, "window": gen_length}
    return pack_blocks(pairs, prompt_length, gen_length, pad_id, eos_id, block_length)


def pack_text(rows: Sequence[list[int]], length: int, pad_id: int) -> dict:
    """Lay out texts: `text [pads]`, every token of the text trainable.

    Returns `ids` (B, length) int32, `valid` and `trainable` (B, length) bool, and `window`, the
    length.
    """
    ids = np.full((len(rows), length), pad_id, np.int32)
    valid = np.zeros(ids.shape, bool)
    for row, text in enumerate(rows):
        ids[row, : len(text)] = text
        valid[row, : len(text)] = True
    return {"ids": ids, "valid": valid, "trainable": valid.copy(), "window": length}
