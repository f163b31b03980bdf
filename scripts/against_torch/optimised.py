"""LocalLeap in PyTorch made as fast as we know how.

The head is computed on the block only, with a float32 log-sum-exp; commits are vectorised,
projections fused; torch.compile is used for the shapes where it is faster. Its tokens and steps are
leapjax's, as for `against_torch.plain`. The layers are written out here because transformers'
don't fuse their projections, and an opponent should be as fast as it can.

Shapes: B rows, T columns (pads, prompt, canvas), S columns computed, W block, V vocabulary,
H query heads, K key/value heads, E head width, D width.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from against_torch.decoder import Decoder, Rows
from against_torch.job import Rule
from against_torch.llama import LAYER, torch_model
from leapjax.models.config import ModelConfig


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


class _Network(torch.nn.Module):
    """The transformer with fused projections, and a proposal for a window of each row."""

    def __init__(self, model: torch.nn.Module, config: ModelConfig):
        super().__init__()
        self.config = config
        weights = {n.removesuffix(".weight"): w for n, w in model.state_dict().items()}

        def fixed(*tensors):
            return torch.nn.Parameter(torch.cat(tensors), requires_grad=False)

        self.embed = fixed(weights["model.embed_tokens"])
        self.head = self.embed if config.tie_embeddings else fixed(weights["lm_head"])
        self.final_norm = fixed(weights["model.norm"])
        fused = {name: (name,) for name in ("attn_norm", "o", "mlp_norm", "down")}
        fused |= {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
        self.layers = torch.nn.ModuleList()
        for i in range(config.n_layers):
            module = torch.nn.Module()
            for name, parts in fused.items():
                given = (weights[f"model.layers.{i}.{LAYER[part]}"] for part in parts)
                module.register_parameter(name, fixed(*given))
            self.layers.append(module)

    def forward(self, ids, cos, sin, valid, window, columns, cache):
        """Token and confidence of a window.

        `ids`: (B, S); `cos`: (B, S, 1, E / 2); `window`: (B, W), which of the S columns to propose
        for; None for all; `columns`: (B, S), where keys and values belong in the cache; None if S
        is T; `cache`: None, or keys and values, a list of (B, T, K, E) tensors each, a layer one;
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


class Fast(Decoder):
    """The decoder. `compiled`: try torch.compile for each shape and keep it where it is faster."""

    def __init__(self, params, config: ModelConfig, cache: str, compiled: bool = True):
        super().__init__("torch, optimised", config, cache)
        self.network = _Network(torch_model(params, config), config).eval()
        self.compiled = compiled
        self.chosen: dict[tuple, tuple[str, Callable]] = {}
        self.trouble = ""
        self.used: list[tuple] = []

    def notes(self) -> str:
        """How the shapes of the last decode were run."""
        parts = ", ".join(f"{key[0]} pass of {key[1]} {self.chosen[key][0]}" for key in self.used)
        return f"{parts} ({self.trouble})" if self.trouble else parts

    def begin(self, rows: Rows) -> None:
        """The rotary tables of all columns, and an empty cache: keys and values, each a layer."""
        self.used = []
        self.angles = _tables(rows.positions, self.config)
        self.kept = None
        if self.stores:
            shape = (*rows.tokens.shape, self.config.n_kv_heads, self.config.head_dim)
            self.kept = [
                [torch.zeros(shape) for _ in range(self.config.n_layers)] for _ in ("k", "v")
            ]

    def groups(self, full: torch.Tensor):
        """One row at a time: on a CPU company saves a row nothing, and one shape is compiled."""
        some = full.nonzero()[:, 0]
        return [some] if bool(full.all()) else some.split(1)

    def full_pass(self, rows: Rows, some: torch.Tensor):
        """See `Decoder`."""
        at = slice(int(some[0]), int(some[-1]) + 1)  # a view, into which the cache is written
        cache = self.kept and [[layer[at] for layer in part] for part in self.kept]
        cos, sin = (table[at] for table in self.angles)
        valid = None if rows.valid is None else rows.valid[at]
        return self._pass("full", (rows.tokens[at], cos, sin, valid, rows.block[at], None, cache))

    def window_pass(self, rows: Rows):
        """See `Decoder`."""
        slots = torch.arange(len(rows.done))[:, None]
        cos, sin = (table[slots, rows.block] for table in self.angles)
        ids = rows.of_block(rows.tokens)
        return self._pass("window", (ids, cos, sin, rows.valid, None, rows.block, self.kept))

    def choose(self, confidence, masked, rule: Rule) -> torch.Tensor:
        """The rule on all rows at once."""
        anchor = masked & (confidence >= rule.threshold)
        reach = F.max_pool1d(anchor.float()[:, None], 2 * rule.radius + 1, 1, rule.radius)[:, 0]
        near = masked & (reach > 0) & (confidence >= rule.relaxed_threshold)
        surest = torch.where(masked, confidence, -1.0).argmax(1, keepdim=True)
        first = torch.arange(masked.shape[1])[None, :] == surest
        return anchor | near | (first & masked)

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
