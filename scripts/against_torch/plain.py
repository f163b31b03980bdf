"""LocalLeap in PyTorch as one writes it from the papers, on transformers' Llama.

Without a cache it is the published loop: every pass computes the logits of the whole sequence and
their float64 softmax, and Python loops choose what commits. With a dual cache it is the same but
for the passes over a block alone.

Sources: LocalLeap, arXiv 2510.07081; Fast-dLLM, arXiv 2505.22618.

Shapes: B rows, T columns (pads, prompt, canvas), R rows and S columns of a pass, W block,
K key/value heads, E head width.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from against_torch.decoder import Decoder, Rows
from against_torch.job import Rule
from against_torch.llama import torch_model
from leapjax.models.config import ModelConfig

# What the layers call their cache, which releases of transformers disagree about.
_CACHE = next(
    name
    for name in ("cache", "past_key_values", "past_key_value")
    if name in inspect.signature(inspect.unwrap(LlamaDecoderLayer.forward)).parameters
)


class DualCache:
    """Keys and values of whole rows, replaced where the model computes them anew."""

    def __init__(self):
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows: Any = slice(None)
        self._columns: torch.Tensor | None = None

    def at(self, rows: torch.Tensor, columns: torch.Tensor | None = None) -> DualCache:
        """The cache, for a pass over (R,) rows: over all their columns, or over (R, S) of them."""
        self._rows, self._columns = rows, columns
        return self

    def update(self, keys, values, layer: int, *_: Any, **__: Any):
        """Keep (R, K, S, E) keys and values of a layer; returns what its queries attend to."""
        if layer not in self._layers:  # the first pass, which every row takes
            self._layers[layer] = keys, values
            return keys, values
        kept = self._layers[layer]
        for old, new in zip(kept, (keys, values), strict=True):
            if self._columns is None:
                old[self._rows] = new
            else:
                old[self._rows[:, None], :, self._columns] = new.transpose(1, 2)
        return (keys, values) if self._columns is None else kept


class Plain(Decoder):
    """The decoder."""

    def __init__(self, params, config: ModelConfig, cache: str):
        super().__init__("torch, plain", config, cache)
        self.model = torch_model(params, config)

    def begin(self, rows: Rows) -> None:
        """Forget the last batch's keys and values."""
        self.kept = DualCache() if self.stores else None

    def groups(self, full: torch.Tensor):
        """All together."""
        return [full.nonzero()[:, 0]]

    def full_pass(self, rows: Rows, some: torch.Tensor):
        """See `Decoder`."""
        cache = self.kept and self.kept.at(some)
        valid = None if rows.valid is None else rows.valid[some]
        found = self._propose(rows.tokens[some], rows.positions[some], valid, cache)
        token, confidence = (x.gather(1, rows.block[some]) for x in found)
        return token, confidence

    def window_pass(self, rows: Rows):
        """See `Decoder`."""
        assert self.kept is not None
        cache = self.kept.at(torch.arange(len(rows.done)), rows.block)
        ids, positions = rows.of_block(rows.tokens), rows.of_block(rows.positions)
        return self._propose(ids, positions, rows.valid, cache)

    def _propose(self, ids, positions, valid, cache):
        """Token and confidence of every column, by a float64 softmax, as published."""
        model = self.model.model
        x = model.embed_tokens(ids)
        angles = model.rotary_emb(x, positions)
        for layer in model.layers:
            x = layer(x, attention_mask=valid, position_embeddings=angles, **{_CACHE: cache})
        logits = self.model.lm_head(model.norm(x))
        probability = torch.softmax(logits.to(torch.float64), dim=-1)
        logits[..., self.config.mask_token_id] = -torch.inf
        token = logits.argmax(-1)
        return token, probability.gather(-1, token[..., None])[..., 0].to(torch.float32)

    def choose(self, confidence, masked, rule: Rule) -> torch.Tensor:
        """The published rule, a row and a column at a time."""
        chosen = torch.zeros_like(masked)
        for b, sure in enumerate(confidence.numpy()):  # float32, as docs/contract.md has it
            if not (left := masked[b].nonzero()[:, 0].tolist()):
                continue
            anchors = [i for i in left if sure[i] >= np.float32(rule.threshold)]
            commit = set(anchors)
            for anchor in anchors:
                for i in left:
                    near = abs(i - anchor) <= rule.radius
                    if near and sure[i] >= np.float32(rule.relaxed_threshold):
                        commit.add(i)
            commit.add(max(left, key=lambda i: sure[i]))  # the first of equals
            chosen[b, list(commit)] = True
        return chosen
