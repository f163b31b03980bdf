"""LocalLeap decoding in PyTorch, written from the rules: what leapjax is timed against.

    Plain(cache="none")   (a) the published loop: every pass computes the logits of the whole
                          sequence and their float64 softmax; Python loops choose what commits
    Plain(cache="dual")   (b) the same with a dual cache: a full pass at a block's start, then
                          passes over the block alone whose keys and values replace the cached
    Fast(cache=...)       (c) optimised: head on the block only, float32 log-sum-exp, vectorised
                          commit, fused projections, torch.compile where it is faster

All take leapjax's weights and give leapjax's tokens and steps (docs/contract.md): rows are
independent, ties go to the left and to the lowest id, the mask token is never proposed, early
stop is off. Imports torch, which is no dependency of leapjax; import this module only where
torch is asked for.

Sources: LocalLeap, arXiv 2510.07081; Fast-dLLM, arXiv 2505.22618.

Shapes: B rows, T columns (pads, prompt, canvas), S columns computed, W block, V vocabulary,
H query heads, K key/value heads, E head width, D width.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from leapjax.benchmarks.job import Decoded, Job
from leapjax.caches import CACHES
from leapjax.errors import UserError
from leapjax.models.config import ModelConfig

# The projections of a block, in leapjax's names.
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def torch_weights(params, config: ModelConfig) -> dict[str, Any]:
    """Leapjax's parameters as float32 tensors in torch's layout.

    Args:
      params: the model's pytree, (in, out) matrices with a leading layer axis.
      config: a LLaDA-shaped model.

    Returns:
      `embed` (V, D), `head` (V, D), `final_norm` (D,), and `layers`, a list of dicts with
      (out, in) matrices, which is how checkpoints of PyTorch models hold them.

    Raises:
      UserError: the model has what LLaDA has not.
    """
    extras = config.qkv_bias or config.linear_bias or config.head_bias or config.norm_bias
    scales = (config.embed_scale, config.logit_scale)
    if extras or config.shift_logits or scales != (1.0, 1.0):
        raise UserError("the PyTorch opponents know LLaDA-shaped models only")

    def tensor(leaf):
        # A copy: JAX's arrays may not be written to, and torch assumes that its may.
        return torch.from_numpy(np.array(jnp.asarray(leaf), np.float32))

    stacked = {name: tensor(leaf) for name, leaf in params["layers"].items()}
    layers = [
        {
            name: leaf[i].T.contiguous() if name in PROJECTIONS else leaf[i]
            for name, leaf in stacked.items()
        }
        for i in range(config.n_layers)
    ]
    out = {name: tensor(params[name]) for name in ("embed", "final_norm")}
    head = out["embed"] if config.tie_embeddings else tensor(params["head"])
    return out | {"head": head, "layers": layers}


@dataclasses.dataclass
class Rows:
    """A batch as it is being decoded.

    Attributes:
      tokens: (B, T) int64; pads, prompt, canvas, at the right end of their columns.
      open: (B, T) bool; positions still to be decided.
      first: (B,) int64; each row's first real column.
      block: (B,) int64; first column of its active block.
      steps: (B,) int64; passes offered to its policy.
      full_passes: (B,) int64; those over the whole sequence.
      done: (B,) bool.
    """

    tokens: torch.Tensor
    open: torch.Tensor
    first: torch.Tensor
    block: torch.Tensor
    steps: torch.Tensor
    full_passes: torch.Tensor
    done: torch.Tensor

    @classmethod
    def of(cls, job: Job, config: ModelConfig) -> Rows:
        """The batch before its first pass."""
        b, longest = len(job.prompts), max(len(p) for p in job.prompts)
        tokens = torch.full((b, longest + job.gen_length), config.mask_token_id)
        tokens[:, :longest] = config.pad_token_id
        for i, prompt in enumerate(job.prompts):
            tokens[i, longest - len(prompt) : longest] = torch.tensor(prompt, dtype=torch.int64)
        is_open = torch.zeros(tokens.shape, dtype=torch.bool)
        is_open[:, longest:] = True
        first = torch.tensor([longest - len(p) for p in job.prompts])
        zeros = torch.zeros(b, dtype=torch.int64)
        done = torch.zeros(b, dtype=torch.bool)
        return cls(tokens, is_open, first, zeros + longest, zeros.clone(), zeros.clone(), done)

    def positions(self) -> torch.Tensor:
        """(B, T) rotary positions, counted from each row's first token."""
        columns = torch.arange(self.tokens.shape[1])
        return (columns[None, :] - self.first[:, None]).clamp(min=0)

    def valid(self) -> torch.Tensor | None:
        """(B, 1, 1, T) bool, False at pads; None where nobody has any."""
        if not bool(self.first.any()):
            return None
        columns = torch.arange(self.tokens.shape[1])
        return (columns[None, :] >= self.first[:, None])[:, None, None, :]

    def decoded(self, job: Job, iterations: int) -> Decoded:
        """What came out."""
        return Decoded(
            self.tokens[:, -job.gen_length :].tolist(),
            self.steps.tolist(),
            self.full_passes.tolist(),
            iterations,
        )


def _norm(x, weight, eps: float):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _tables(positions, config: ModelConfig):
    """Cosines and sines, each (B, S, 1, E / 2), of (B, S) positions."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    inverse = 1.0 / config.rope_theta ** (half / config.head_dim)
    angles = positions.to(torch.float32)[:, :, None, None] * inverse
    return angles.cos(), angles.sin()


def _rotate(x, cos, sin):
    """Rotary embedding of (B, S, heads, E), halves layout."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _attend(q, k, v, valid):
    """Attention of (B, S, H, E) to (B, T, K, E), both ways -> (B, S, H * E)."""
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=valid,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return mixed.transpose(1, 2).flatten(2)


class Plain:
    """(a) and (b): as one writes it from the papers.

    Attributes:
      name: for tables.
      cache: `none` or `dual`.
    """

    def __init__(self, params, config: ModelConfig, cache: str):
        self.cache, self.stores = cache, CACHES[cache].stores
        self.name = "torch, plain, dual cache" if self.stores else "torch, plain"
        self.config = config
        self.weights = torch_weights(params, config)

    def notes(self) -> str:
        """What a reader of the table should know."""
        return ""

    def logits(self, ids, positions, valid, past=None, columns=None):
        """Logits of every column given, and the keys and values of every layer.

        Args:
          ids: (B, S).
          positions: (B, S), rotary.
          valid: see `Rows.valid`.
          past: None, or (keys, values) of each layer, (B, T, K, E), to be replaced at
            `columns` (B, S) before anybody attends.
          columns: see `past`.
        """
        c, w = self.config, self.weights
        cos, sin = _tables(positions, c)
        rows = torch.arange(ids.shape[0])[:, None]
        x = w["embed"][ids]
        store = []
        for i, layer in enumerate(w["layers"]):
            y = _norm(x, layer["attn_norm"], c.norm_eps)
            q = F.linear(y, layer["q"]).unflatten(-1, (c.n_heads, c.head_dim))
            k = F.linear(y, layer["k"]).unflatten(-1, (c.n_kv_heads, c.head_dim))
            v = F.linear(y, layer["v"]).unflatten(-1, (c.n_kv_heads, c.head_dim))
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            if past is not None:
                keys, values = past[i]
                keys[rows, columns], values[rows, columns] = k, v
                k, v = keys, values
            store.append((k, v))
            x = x + F.linear(_attend(q, k, v, valid), layer["o"])
            y = _norm(x, layer["mlp_norm"], c.norm_eps)
            y = F.silu(F.linear(y, layer["gate"])) * F.linear(y, layer["up"])
            x = x + F.linear(y, layer["down"])
        return F.linear(_norm(x, w["final_norm"], c.norm_eps), w["head"]), store

    def propose(self, logits):
        """Token and confidence of every column: a float64 softmax, as published."""
        probability = torch.softmax(logits.to(torch.float64), dim=-1)
        logits[..., self.config.mask_token_id] = -torch.inf
        token = logits.argmax(-1)
        return token, probability.gather(-1, token[..., None])[..., 0]

    def choose(self, confidence: list[float], masked: list[int], job: Job) -> set[int]:
        """Which of the masked columns commit; the published rule, a column at a time."""
        # float32, as the thresholds and docs/contract.md have it.
        sure = {i: np.float32(confidence[i]) for i in masked}
        anchors = [i for i in masked if sure[i] >= np.float32(job.threshold)]
        chosen = set(anchors)
        for anchor in anchors:
            for i in masked:
                near = abs(i - anchor) <= job.radius
                if near and sure[i] >= np.float32(job.relaxed_threshold):
                    chosen.add(i)
        chosen.add(max(masked, key=lambda i: sure[i]))  # the first of equals
        return chosen

    @torch.inference_mode()
    def decode(self, job: Job) -> Decoded:
        """Decode the job's rows.

        Args:
          job: prompts and options.
        """
        rows = Rows.of(job, self.config)
        positions, valid = rows.positions(), rows.valid()
        fresh = torch.ones_like(rows.done)  # the row's block has had no pass yet
        store: list[Any] = []
        iterations = 0
        while not bool(rows.done.all()):
            iterations += 1
            if not self.stores:
                logits, _ = self.logits(rows.tokens, positions, valid)
                token, confidence = self.propose(logits)
                live = (~rows.done).nonzero()[:, 0].tolist()
                at = {b: (token[b], confidence[b]) for b in live}
                self._commit(rows, at, fresh, job)
                continue
            full = (fresh & ~rows.done).nonzero()[:, 0]
            moving = (~fresh & ~rows.done).nonzero()[:, 0]
            if len(moving):
                # Every row's block; what a row that doesn't move writes, nobody reads.
                columns = rows.block[:, None] + torch.arange(job.block_length)[None, :]
                logits, store = self.logits(
                    rows.tokens.gather(1, columns),
                    positions.gather(1, columns),
                    valid,
                    store,
                    columns,
                )
                token, confidence = self.propose(logits)
                at = {b: (token[b], confidence[b]) for b in moving.tolist()}
                self._commit(rows, at, fresh, job, block_only=True)
            if len(full):
                mask = None if valid is None else valid[full]
                logits, new = self.logits(rows.tokens[full], positions[full], mask)
                if not store:  # the first pass, which every row takes
                    store = new
                else:
                    for (keys, values), (k, v) in zip(store, new, strict=True):
                        keys[full], values[full] = k, v
                token, confidence = self.propose(logits)
                at = {b: (token[i], confidence[i]) for i, b in enumerate(full.tolist())}
                self._commit(rows, at, fresh, job)
        return rows.decoded(job, iterations)

    def _commit(self, rows: Rows, proposals, fresh, job: Job, block_only: bool = False):
        """Commit row by row, from {row: (token, confidence)} of its columns or its block's."""
        for b, (token, confidence) in proposals.items():
            start = int(rows.block[b])
            end = start + job.block_length
            before = start if block_only else 0  # columns without a proposal
            is_open = rows.open[b].tolist()
            masked = [i for i in range(start, end) if is_open[i]]
            chosen = self.choose([0.0] * before + confidence.tolist(), masked, job)
            for i in chosen:
                rows.tokens[b, i] = token[i - before]
                rows.open[b, i] = False
            rows.steps[b] += 1
            rows.full_passes[b] += int(not block_only)
            fresh[b] = len(chosen) == len(masked)
            rows.done[b] = int(rows.steps[b]) == job.max_steps
            if fresh[b] and end == rows.tokens.shape[1]:
                rows.done[b] = True
            elif fresh[b]:
                rows.block[b] = end


class _Network(torch.nn.Module):
    """The transformer with fused projections, and a proposal for a window of each row."""

    def __init__(self, weights: dict[str, Any], config: ModelConfig):
        super().__init__()
        self.config = config

        def fixed(*tensors):
            return torch.nn.Parameter(torch.cat(tensors), requires_grad=False)

        self.embed = fixed(weights["embed"])
        self.head = self.embed if config.tie_embeddings else fixed(weights["head"])
        self.final_norm = fixed(weights["final_norm"])
        fused = {
            "attn_norm": ("attn_norm",),
            "qkv": ("q", "k", "v"),
            "o": ("o",),
            "mlp_norm": ("mlp_norm",),
            "gate_up": ("gate", "up"),
            "down": ("down",),
        }
        self.layers = torch.nn.ModuleList()
        for layer in weights["layers"]:
            module = torch.nn.Module()
            for name, parts in fused.items():
                module.register_parameter(name, fixed(*(layer[p] for p in parts)))
            self.layers.append(module)

    def forward(self, ids, cos, sin, valid, window, columns, cache):
        """Token and confidence of a window.

        Args:
          ids: (B, S).
          cos: (B, S, 1, E / 2).
          sin: likewise.
          valid: see `Rows.valid`.
          window: (B, W), which of the S columns to propose for; None for all.
          columns: (B, S), where keys and values belong in the cache; None if S is T.
          cache: None, or keys and values, a list of (B, T, K, E) tensors each, a layer one;
            written in place.
        """
        c = self.config
        rows = torch.arange(ids.shape[0])[:, None]
        x = F.embedding(ids, self.embed)
        layers: Any = self.layers
        for i, layer in enumerate(layers):
            heads = F.linear(_norm(x, layer.attn_norm, c.norm_eps), layer.qkv)
            heads = heads.unflatten(-1, (-1, c.head_dim))
            q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=2)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
            if cache is not None:
                keys, values = cache[0][i], cache[1][i]
                if columns is None:
                    keys.copy_(k)
                    values.copy_(v)
                else:
                    keys[rows, columns] = k
                    values[rows, columns] = v
                    k, v = keys, values
            x = x + F.linear(_attend(q, k, v, valid), layer.o)
            y = F.linear(_norm(x, layer.mlp_norm, c.norm_eps), layer.gate_up)
            gate, up = y.chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        if window is not None:
            x = x[rows, window]
        logits = F.linear(_norm(x, self.final_norm, c.norm_eps), self.head)
        total = torch.logsumexp(logits, dim=-1)
        logits[..., c.mask_token_id] = -torch.inf
        best, token = logits.max(dim=-1)
        return token, torch.exp(best - total)


def choose(confidence, masked, job: Job):
    """LocalLeap's rule on (B, W) tensors at once; the commit mask."""
    anchor = masked & (confidence >= job.threshold)
    reach = F.max_pool1d(anchor.float()[:, None], 2 * job.radius + 1, 1, job.radius)[:, 0]
    near = masked & (reach > 0) & (confidence >= job.relaxed_threshold)
    surest = torch.where(masked, confidence, -1.0).argmax(1, keepdim=True)
    first = torch.arange(masked.shape[1])[None, :] == surest
    return anchor | near | (first & masked)


class Fast:
    """(c): PyTorch made as fast as we know how.

    Attributes:
      name: for tables.
      cache: `none` or `dual`.
    """

    def __init__(self, params, config: ModelConfig, cache: str, compiled: bool = True):
        """Convert the weights.

        Args:
          params: the model's pytree.
          config: its shape.
          cache: `none` or `dual`.
          compiled: try torch.compile for each shape and keep it where it is faster.
        """
        self.cache, self.stores = cache, CACHES[cache].stores
        self.name = "torch, optimised, dual cache" if self.stores else "torch, optimised"
        self.config = config
        self.network = _Network(torch_weights(params, config), config).eval()
        self.compiled = compiled
        self.chosen: dict[tuple, tuple[str, Callable]] = {}
        self.trouble = ""
        self.used: list[tuple] = []

    def notes(self) -> str:
        """How the shapes of the last decode were run."""
        parts = ", ".join(f"{key[0]} pass of {key[1]} {self.chosen[key][0]}" for key in self.used)
        return f"{parts} ({self.trouble})" if self.trouble else parts

    def _pass(self, kind: str, args: tuple):
        """Run the network, the first time on these shapes in every way to find the fastest."""
        ids, cache = args[0], args[-1]
        columns = None if cache is None else cache[0][0].shape[1]
        key = (kind, *ids.shape, columns, args[3] is None)
        if key not in self.chosen:
            self.chosen[key] = self._fastest(args) if self.compiled else ("eager", self.network)
        if key not in self.used:
            self.used.append(key)
        return self.chosen[key][1](*args)

    def _fastest(self, args: tuple) -> tuple[str, Callable]:
        ways: dict[str, Callable] = {"eager": self.network}
        for name, freezing in (("compiled", False), ("compiled and frozen", True)):
            try:
                from torch._dynamo import config as tracing
                from torch._inductor import config as generating

                # Frozen: the weights are constants, repacked for the matrix library. One code
                # object serves all shapes, so that the usual limit on its variants is too low.
                with generating.patch(freezing=freezing), tracing.patch(recompile_limit=1000):
                    way = torch.compile(
                        lambda *a: self.network(*a), dynamic=False, options={"freezing": freezing}
                    )
                    way(*args)
                ways[name] = way
            except Exception as e:  # no C++ compiler here, or one that can't
                self.trouble = f"torch.compile failed: {type(e).__name__}"
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(5):
            for name, way in ways.items():
                start = time.perf_counter()
                way(*args)  # writes what it wrote before
                times[name].append(time.perf_counter() - start)
        best = min(ways, key=lambda name: min(times[name]))
        return best, ways[best]

    @torch.inference_mode()
    def decode(self, job: Job) -> Decoded:
        """Decode the job's rows.

        Args:
          job: prompts and options.
        """
        c, w = self.config, job.block_length
        self.used = []
        rows = Rows.of(job, c)
        valid = rows.valid()
        cos, sin = _tables(rows.positions(), c)
        b, total = rows.tokens.shape
        slots = torch.arange(b)[:, None]
        cache = None
        if self.stores:
            shape = (b, total, c.n_kv_heads, c.head_dim)
            cache = [[torch.zeros(shape) for _ in range(c.n_layers)] for _ in "kv"]
        fresh = torch.ones_like(rows.done)
        inside = torch.arange(w)[None, :]
        iterations = 0
        while True:
            live = ~rows.done
            if not bool(live.any()):
                return rows.decoded(job, iterations)
            iterations += 1
            columns = rows.block[:, None] + inside
            block = rows.tokens[slots, columns]
            if cache is None:
                full = live
                token, confidence = self._pass(
                    "full", (rows.tokens, cos, sin, valid, columns, None, None)
                )
            else:
                full = fresh & live
                moving = live & ~fresh
                token, confidence = block, torch.zeros(block.shape)
                if bool(moving.any()):
                    # Rows that don't move are computed too; nobody reads what they write.
                    angles = cos[slots, columns], sin[slots, columns]
                    token, confidence = self._pass(
                        "window", (block, *angles, valid, None, columns, cache)
                    )
                if bool(full.all()):
                    token, confidence = self._pass(
                        "full", (rows.tokens, cos, sin, valid, columns, None, cache)
                    )
                else:
                    # One at a time: on a CPU company saves a row nothing, and there is one
                    # shape to compile.
                    for i in full.nonzero()[:, 0].tolist():
                        one = slice(i, i + 1)
                        token[one], confidence[one] = self._pass(
                            "full",
                            (
                                rows.tokens[one],
                                cos[one],
                                sin[one],
                                None if valid is None else valid[one],
                                columns[one],
                                None,
                                [[layer[one] for layer in part] for part in cache],
                            ),
                        )
            masked = rows.open[slots, columns] & live[:, None]
            commit = choose(confidence, masked, job)
            rows.tokens[slots, columns] = torch.where(commit, token, block)
            left = masked & ~commit
            rows.open[slots, columns] = left | (rows.open[slots, columns] & ~live[:, None])
            rows.steps += live
            rows.full_passes += full
            fresh = live & ~left.any(1)
            rows.done |= fresh & (rows.block + w == total)
            if job.max_steps is not None:
                rows.done |= rows.steps >= job.max_steps
            rows.block = torch.where(fresh & ~rows.done, rows.block + w, rows.block)
