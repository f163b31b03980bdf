"""The transformer written out in NumPy float64: one row, no padding, no batch.

Written from the papers' definitions, not from the implementation: rotary pairs are complex
numbers, heads are a Python loop.
"""

import numpy as np


def rms_norm(x, weight, bias, eps):
    """(T, D): divide by the root of the mean square, scale, shift."""
    out = np.empty_like(x)
    for t, row in enumerate(x):
        out[t] = row / np.sqrt(np.mean(row**2) + eps) * weight
    return out if bias is None else out + bias


def rotate(x, positions, theta):
    """(T, heads, E): component j and j + E/2 are one complex number, turned by its angle."""
    half = x.shape[-1] // 2
    pair = x[..., :half] + 1j * x[..., half:]
    speed = np.array([theta ** (-2 * j / (2 * half)) for j in range(half)])
    turned = pair * np.exp(1j * np.asarray(positions, np.float64)[:, None, None] * speed)
    return np.concatenate([turned.real, turned.imag], -1)


def softmax(x):
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sees(rule, i, j):
    """Whether position i may see position j."""
    name = type(rule).__name__
    if name == "BlockCausal":
        return j // rule.length <= i // rule.length
    if name == "Causal":
        return j <= i
    return name == "Bidirectional" or -rule.size < i - j < rule.size


def attention(q, k, v, mask=True):
    """q (S, H, E), k and v (T, K, E) -> (S, H * E); query head h reads key head h // (H / K)."""
    group = q.shape[1] // k.shape[1]
    out = []
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h // group].T / np.sqrt(q.shape[2])
        weight = softmax(np.where(mask, scores, -np.inf))
        out.append(weight @ v[:, h // group])
    return np.concatenate(out, -1)


def block(x, layer, c, positions, rule):
    """One transformer block over (T, D); `layer` holds this layer's arrays alone."""
    mask = np.array([[sees(rule, i, j) for j in positions] for i in positions])

    def linear(y, name):
        return y @ layer[name] + layer.get(f"{name}_bias", 0.0)

    def heads(y, n, norm=None):
        y = y.reshape(len(y), n, c.head_dim)
        if norm not in layer:
            return y
        return np.stack([rms_norm(y[:, h], layer[norm], None, c.norm_eps) for h in range(n)], 1)

    y = rms_norm(x, layer["attn_norm"], layer.get("attn_norm_bias"), c.norm_eps)
    q = rotate(heads(linear(y, "q"), c.n_heads, "q_norm"), positions, c.rope_theta)
    k = rotate(heads(linear(y, "k"), c.n_kv_heads, "k_norm"), positions, c.rope_theta)
    x = x + linear(attention(q, k, heads(linear(y, "v"), c.n_kv_heads), mask), "o")
    y = rms_norm(x, layer["mlp_norm"], layer.get("mlp_norm_bias"), c.norm_eps)
    gate = linear(y, "gate")
    return x + linear(gate / (1 + np.exp(-gate)) * linear(y, "up"), "down")


class Model:
    """Weights in float64; `logits(ids)` is the raw output, for Dream not shifted."""

    def __init__(self, params, config):
        self.config = config
        self.top = {k: np.asarray(v, np.float64) for k, v in params.items() if type(v) is not dict}
        self.layers = []
        for run in config.runs:
            stacked = {k: np.asarray(v, np.float64) for k, v in params[run.name].items()}
            for n in range(run.n_layers):
                self.layers.append(({k: v[n] for k, v in stacked.items()}, run.attention))

    def logits(self, ids, positions=None):
        """Ids of one row -> (T, V)."""
        c = self.config
        positions = np.arange(len(ids)) if positions is None else positions
        x = self.top["embed"][np.asarray(ids)] * c.embed_scale
        for layer, rule in self.layers:
            x = block(x, layer, c, positions, rule)
        y = rms_norm(x, self.top["final_norm"], self.top.get("final_norm_bias"), c.norm_eps)
        out = y @ self.top["embed" if c.tie_embeddings else "head"].T
        return (out + self.top.get("head_bias", 0.0)) * c.logit_scale
