"""A direct NumPy transcription of cached decoding, one row, float64, no batch, no pads.

Written from the rules (docs/contract.md, docs/architecture.md, arXiv 2505.22618), not from
the implementation: a block starts with a pass over the whole sequence that stores keys and
values and commits; the block's later passes recompute a window and replace its keys and
values. For Dream the window starts one position early.
"""

import numpy as np


def _norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _rotate(x, positions, theta):  # (S, heads, E)
    half = x.shape[-1] // 2
    angle = positions[:, None] / theta ** (np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class NumpyModel:
    """The transformer over one row, with a store of keys and values."""

    def __init__(self, params, config):
        self.p = {
            k: np.asarray(v, np.float64)
            if k != "layers"
            else {n: np.asarray(w, np.float64) for n, w in v.items()}
            for k, v in params.items()
        }
        self.c = config
        self.passes = []  # positions computed by each pass
        self.gap = np.inf  # of a chosen expert from the next, in the router's scores

    def logits(self, ids, positions, store):
        """Compute `positions` of the row, update `store` {layer: (K, V)}, give their logits."""
        c, layers = self.c, self.p["layers"]
        self.passes.append(len(positions))
        x = self.p["embed"][ids[positions]] * c.embed_scale
        for n in range(c.n_layers):

            def linear(y, name, n=n):
                out = y @ layers[name][n]
                return out + layers[f"{name}_bias"][n] if f"{name}_bias" in layers else out

            y = _norm(x, layers["attn_norm"][n], c.norm_eps)
            shape = (len(positions), -1, c.head_dim)
            q, k = (linear(y, name).reshape(shape) for name in "qk")
            if c.qk_norm:
                q = _norm(q, layers["q_norm"][n], c.norm_eps)
                k = _norm(k, layers["k_norm"][n], c.norm_eps)
            q, k = (_rotate(part, positions, c.rope_theta) for part in (q, k))
            v = linear(y, "v").reshape(shape)
            keys, values = store.setdefault(
                n, [np.zeros((len(ids), *k.shape[1:])), np.zeros((len(ids), *v.shape[1:]))]
            )
            keys[positions], values[positions] = k, v
            group = c.n_heads // c.n_kv_heads
            mixed = []
            for h in range(c.n_heads):
                score = q[:, h] @ keys[:, h // group].T / np.sqrt(c.head_dim)
                weight = np.exp(score - score.max(-1, keepdims=True))
                weight /= weight.sum(-1, keepdims=True)
                mixed.append(weight @ values[:, h // group])
            x = x + linear(np.concatenate(mixed, -1), "o")
            y = _norm(x, layers["mlp_norm"][n], c.norm_eps)
            if "router" in layers:
                x = x + self.mixture(y, {k: w[n] for k, w in layers.items()}, c.runs[0].experts)
                continue
            gate = linear(y, "gate")
            x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, "up"), "down")
        y = _norm(x, self.p["final_norm"], c.norm_eps)
        table = self.p["embed"] if c.tie_embeddings else self.p["head"]
        out = y @ table.T
        if c.head_bias:
            out = out + self.p["head_bias"]
        return out * c.logit_scale

    def mixture(self, y, layer, rule):
        """Softmax scores, the best of them as they are: LLaDA-MoE's without shared experts."""
        assert (rule.score, rule.normalize, rule.scale, rule.shared_size) == (
            "softmax",
            False,
            1,
            0,
        )
        out = np.zeros_like(y)
        for t, token in enumerate(y):
            score = np.exp(token @ layer["router"])
            score = score / score.sum()
            best = np.argsort(-score)
            self.gap = min(self.gap, score[best[rule.chosen - 1]] - score[best[rule.chosen]])
            for e in best[: rule.chosen]:
                gate, up = (token @ layer[f"experts_{name}"][e] for name in ("gate", "up"))
                out[t] += score[e] * (gate / (1 + np.exp(-gate)) * up) @ layer["experts_down"][e]
        return out


def _choose(logits, masked, o, taken, total):
    """Tokens, and the positions that commit; masked (W,) bool."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    allowed = logits.copy()
    allowed[:, o["mask_id"]] = -np.inf
    token = allowed.argmax(-1)
    confidence = p[np.arange(len(token)), token]
    candidates = [i for i in range(len(token)) if masked[i]]
    surest = max(candidates, key=lambda i: (confidence[i], -i))
    if o["policy"] == "low_confidence":
        passes = o["steps"] // (o["gen_length"] // o["block_length"])
        count = total // passes + (taken < total % passes)
        ranked = sorted(candidates, key=lambda i: (-confidence[i], i))
        chosen = set(ranked[:count])
    else:
        anchors = [i for i in candidates if confidence[i] >= o["threshold"]]
        chosen = set(anchors) | {surest}
        if o["policy"] == "localleap":
            chosen |= {
                i
                for i in candidates
                for a in anchors
                if abs(i - a) <= o["radius"] and confidence[i] >= o["relaxed_threshold"]
            }
    edges = [o.get("threshold"), o.get("relaxed_threshold")]
    gaps = [abs(confidence[i] - e) for i in candidates for e in edges if e is not None]
    second = np.sort(allowed, -1)[:, -2]
    gaps += [allowed[i, token[i]] - second[i] for i in candidates]
    return token, chosen, min(gaps)


def decode(model, prompt, o):
    """Decode one prompt; o: the options' values in force, and mask_id, eos_id, cache.

    Returns:
      dict of output_ids, steps, full_passes, commit_step, and margin: the smallest distance
      of a decision from its alternative.
    """
    shift = model.c.shift_logits
    t0, c, w = len(prompt), o["gen_length"], o["block_length"]
    ids = np.array(list(prompt) + [o["mask_id"]] * c)
    still = np.array([False] * t0 + [True] * c)
    commit_step = [-1] * c
    steps = full = 0
    margin = np.inf
    store = {}
    for start in range(t0, t0 + c, w):
        end = start + w
        total, taken = w, 0
        while still[start:end].any():
            first_pass = taken == 0 or o["cache"] == "none"
            low = max(start - 1, 0) if shift else start
            if first_pass:
                positions = np.arange(len(ids))
                full += 1
            else:
                positions = np.arange(low, end if o["cache"] == "dual" else len(ids))
            model.gap = np.inf
            logits = model.logits(ids, positions, store)
            rows = [max(i - 1, 0) if shift else i for i in range(start, end)]
            block = logits[[r - positions[0] for r in rows]]
            token, chosen, gap = _choose(block, still[start:end], o, taken, total)
            margin = min(margin, gap, 10 * model.gap)
            for i in chosen:
                ids[start + i], still[start + i] = token[i], False
                commit_step[start + i - t0] = steps
            steps, taken = steps + 1, taken + 1
        if o["early_stop"] != "off" and o["eos_id"] in ids[start:end]:
            ids[end:] = o["eos_id"]
            break
    return {
        "output_ids": ids[t0:].tolist(),
        "steps": steps,
        "full_passes": full,
        "commit_step": commit_step,
        "margin": margin,
    }
