"""Decodes of block-causal models in plain Python: one row, no cache, no pads.

Every pass computes the whole sequence under the block-causal mask. Written from the rules of SDAR
and Fast-dLLM v2 (docs/contract.md and the papers), not from the implementation. Proposals and
policies are those of `transcription.py`.
"""

import numpy as np

from tests.decoding.transcription import Ids, Margin, choose, offers, rewritten


def canvas_positions(model, prompt, gen, block):
    """Positions behind a prompt of so many tokens."""
    if model.canvas == "to_border":
        return next(n for n in range(gen, gen + block) if (prompt + n) % block == 0)
    assert model.canvas == "whole_blocks"
    return gen // block * block - prompt % block


def first_stop(tokens, still, begin, stop_ids):
    """(index of the first decided stop id from `begin` on, whether all before it is decided)."""
    for i in range(begin, len(tokens)):
        if not still[i] and tokens[i] in stop_ids:
            return i, not any(still[begin:i])
    return None, False


class Row:
    """A row that is decoded."""

    def __init__(self, logits_of, given_ids, is_open, o, model, eot, noise, origin):
        self.logits_of, self.o, self.model, self.noise = logits_of, o, model, noise
        self.ids = Ids(model.mask_token_id, model.eos_token_id, eot, shift=model.shift_logits)
        self.begin, self.is_open = origin, is_open
        self.tokens, self.still = list(given_ids), list(is_open)
        self.commit_step = [-1 if x else -2 for x in is_open]
        self.kinds = ["none"] * len(self.tokens)
        self.confidence = [0.0] * len(self.tokens)
        self.margin, self.steps, self.stopped = Margin(), 0, False
        self.editing, self.edits = o.get("editing_threshold") is not None, []

    def logits(self):
        """(T, V) logits of the row as it stands, guidance applied."""
        out = np.asarray(self.logits_of(self.tokens), np.float64)
        if self.o["cfg_scale"] > 0:
            both = zip(self.tokens, self.is_open, strict=True)
            blind = [t if x else self.ids.mask for t, x in both]
            un = np.asarray(self.logits_of(blind), np.float64)
            out = un + (self.o["cfg_scale"] + 1) * (out - un)
        return out

    def outputs(self, masked):
        """(T, V) logits that a pass offers for the masked positions."""
        return self.logits()

    def seed(self, at):
        """Decide a block's first token: the most probable one after the block before."""
        plain = self.o | {"temperature": 0.0, "policy": "localleap"}
        offered = offers(
            self.logits(), [at], plain, self.ids, False, None, self.steps, 0, self.margin
        )
        self.tokens[at], self.still[at], self.commit_step[at] = offered["token"][at], False, -3
        self.kinds[at], self.confidence[at] = "seed", offered["confidence"][at]

    def a_pass(self, masked, count, closed=()):
        """Offer the masked positions to the policy, and with editing the closed ones.

        Returns:
          The tokens that it commits, and {position: token} of its edits.
        """
        offered = offers(
            self.outputs(masked),
            [*masked, *closed],
            self.o,
            self.ids,
            False,
            self.noise,
            self.steps,
            self.begin,
            self.margin,
        )
        chosen = choose(offered, masked, self.o, count, self.margin) if masked else {}
        edited = rewritten(offered, closed, self.tokens, self.o, self.margin)
        for i, kind in chosen.items():
            self.tokens[i], self.still[i] = offered["token"][i], False
            self.commit_step[i], self.kinds[i] = self.steps, kind
            self.confidence[i] = offered["confidence"][i]
        for i, token in edited.items():
            self.tokens[i] = token
            self.edits.append([self.steps, i - self.begin, token])
        self.steps += 1
        return [self.tokens[i] for i in chosen], edited

    def settled(self):
        """A stop id stands, and no mask before it."""
        return first_stop(self.tokens, self.still, self.begin, self.o["stop_ids"])[1]

    def block(self, start):
        """Decode the block that begins at a position; `stopped` says whether the row ends."""
        o, width = self.o, self.o["block_length"]
        places = range(start, min(start + width, len(self.tokens)))
        if self.model.seeds_blocks and start > 0 and self.still[start]:
            self.seed(start)
        part = o.get("sub_block_length") or width
        taken, post = 0, 0
        while any(self.still[i] for i in places) or (self.editing and taken):
            if o["early_stop"] == "settled" and self.settled():
                self.stopped = True
                return
            left = [i for i in places if self.still[i]]
            masked = [i for i in left if (i - start) // part == (left[0] - start) // part]
            post += not masked
            if not masked and post > o["max_post_steps"]:
                break
            closed = [i for i in places if self.editing and self.commit_step[i] >= 0]
            count = None
            if "steps_per_block" in o:
                passes = o["steps_per_block"]
                count = width // passes + (1 if taken < width % passes else 0)
            new, edited = self.a_pass(masked, count, closed)
            taken += 1
            if not masked and not edited:
                break
            if o["early_stop"] == "on_eos" and set(new) & set(o["stop_ids"]) and self.settled():
                self.stopped = True
                return
        generated = [self.tokens[i] for i in places if self.is_open[i]]
        self.stopped = o["early_stop"] != "off" and bool(set(generated) & set(o["stop_ids"]))

    def fill(self):
        """What is not decided is eos; where the answer is cut, all behind the first stop id is."""
        if self.o["early_stop"] == "on_eos":
            cuts = True
        else:
            cuts = self.stopped and self.model.canvas == "whole_blocks"
        end = first_stop(self.tokens, self.still, self.begin, self.o["stop_ids"])[0]
        for i in range(self.begin, len(self.tokens)):
            if self.still[i] or (cuts and end is not None and i > end):
                self.tokens[i], self.still[i], self.commit_step[i] = self.ids.eos, False, -1
                self.kinds[i], self.confidence[i] = "none", 0.0
                self.edits = [edit for edit in self.edits if edit[1] != i - self.begin]


class SubBlockCache(Row):
    """Fast-dLLM v2's `use_block_cache`: within a block, keys and values may be stale.

    The block's first pass, and those in which the sub-block's first position is open, compute the
    whole block; the others its sub-block, against the block's other keys and values as they are.
    Finished blocks are exact.
    """

    def __init__(self, network, *row):
        super().__init__(None, *row)
        self.network, self.store = network, {}
        self.start, self.stored, self.last, self.fresh = 0, 0, None, True

    def compute(self, positions):
        """(T, V) with the logits of these positions, which see what is computed so far."""
        seen = max((positions[-1] + 1, *(len(keys) for keys, _ in self.store.values())))
        for n, pair in self.store.items():
            room = [(0, seen - len(pair[0])), (0, 0), (0, 0)]
            self.store[n] = [np.pad(x, room) for x in pair]
        out = np.full((len(self.tokens), self.model.vocab_size), np.nan)
        out[positions] = self.network.logits(
            np.array(self.tokens[:seen]), np.array(positions), self.store
        )
        return out

    def logits(self):
        """Those of the pass that stored the block before the active one."""
        for start in range(self.stored, self.start, self.o["block_length"]):
            self.last = self.compute(range(start, start + self.o["block_length"]))
        self.stored = self.start
        return self.last

    def block(self, start):
        """See `Row.block`."""
        self.start, self.fresh = start, True
        super().block(start)

    def outputs(self, masked):
        """See `Row.outputs`."""
        self.logits()
        start, part = self.start, self.o["sub_block_length"]
        sub = start + (masked[0] - start) // part * part
        places = range(start, start + self.o["block_length"])
        if not (self.fresh or self.still[sub]):
            places = range(sub, sub + part)
        self.fresh = False
        return self.compute([i for i in places if i < len(self.tokens)])


def canvas(prompt, o, model):
    """(ids, which are open) of a prompt and its canvas."""
    size = canvas_positions(model, len(prompt), o["gen_length"], o["block_length"])
    return [*prompt, *[model.mask_token_id] * size], [False] * len(prompt) + [True] * size


def decode(logits_of, given_ids, is_open, o, model, eot=None, noise=None, origin=0):
    """Decode one row to its end.

    Args:
      logits_of: list of T ids -> (T, V) raw logits, under the block-causal mask; with
        `sub_block_cache` a `cached_oracle.NumpyModel`.
      given_ids: T ids; where open, the mask id.
      is_open: T bools.
      o: every option's value in force: `DecodeConfig.to_dict()` of the model's own options; with
        infilling, `early_stop` is off.
      model: its shape and special ids.
      eot: end-of-turn id.
      noise: `transcription.Noise`, or None if nothing draws.
      origin: index of canvas position 0.

    Returns:
      dict of output_ids, commit_step, commit_kind and commit_confidence from `origin` on; of edits
      (None without editing), steps, and the margin (`transcription.Margin`).
    """
    row = (SubBlockCache if o["sub_block_cache"] else Row)(
        logits_of, given_ids, is_open, o, model, eot, noise, origin
    )
    width = o["block_length"]
    for start in range(0, len(row.tokens), width):
        row.block(start)
        if row.stopped:
            break
    row.fill()
    out = slice(origin, None)
    return {
        "output_ids": row.tokens[out],
        "steps": row.steps,
        "commit_step": row.commit_step[out],
        "commit_kind": row.kinds[out],
        "commit_confidence": row.confidence[out],
        "edits": row.edits if row.editing else None,
        "margin": row.margin.least,
    }
