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


def _choose(logits, masked, standing, o, taken, total):
    """Tokens, the positions that commit, and those that are edited.

    Args:
      masked: (W,) bool.
      standing: (W,) ids.
    """
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    allowed = logits.copy()
    allowed[:, o["mask_id"]] = -np.inf
    token = allowed.argmax(-1)
    confidence = p[np.arange(len(token)), token]
    candidates = [i for i in range(len(token)) if masked[i]]
    if not candidates:
        chosen = set()
    elif o["policy"] == "low_confidence":
        passes = o["steps"] // (o["gen_length"] // o["block_length"])
        count = total // passes + (taken < total % passes)
        ranked = sorted(candidates, key=lambda i: (-confidence[i], i))
        chosen = set(ranked[:count])
    else:
        anchors = [i for i in candidates if confidence[i] >= o["threshold"]]
        chosen = set(anchors) | {max(candidates, key=lambda i: (confidence[i], -i))}
        if o["policy"] == "localleap":
            chosen |= {
                i
                for i in candidates
                for a in anchors
                if abs(i - a) <= o["radius"] and confidence[i] >= o["relaxed_threshold"]
            }
    edges = [o.get("threshold"), o.get("relaxed_threshold")]
    gaps = [abs(confidence[i] - e) for i in candidates for e in edges if e is not None]
    second, edited = np.sort(allowed, -1)[:, -2], set()
    gaps += [allowed[i, token[i]] - second[i] for i in candidates]
    if (edge := o.get("editing_threshold")) is not None:
        closed = [i for i in range(len(token)) if not masked[i]]
        others = [i for i in closed if token[i] != standing[i]]
        edited = {i for i in others if confidence[i] > edge}
        gaps += [abs(confidence[i] - edge) for i in others]
        gaps += [allowed[i, token[i]] - second[i] for i in closed]
    return token, chosen, edited, min(gaps, default=np.inf)


def decode(model, prompt, o):
    """Decode one prompt; o: the options' values in force, and mask_id, eos_id, cache.

    Returns:
      dict of output_ids, steps, full_passes, commit_step, edits, and margin: the smallest distance
      of a decision from its alternative.
    """
    shift = model.c.shift_logits
    t0, c, w = len(prompt), o["gen_length"], o["block_length"]
    ids = np.array(list(prompt) + [o["mask_id"]] * c)
    still = np.array([False] * t0 + [True] * c)
    commit_step = [-1] * c
    steps, full, edits = 0, 0, []
    margin = np.inf
    store = {}
    for start in range(t0, t0 + c, w):
        end = start + w
        total, taken, post = w, 0, 0
        while True:
            masks = still[start:end].any()
            post += not masks
            if not masks and (o.get("editing_threshold") is None or post > o["max_post_steps"]):
                break
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
            block_now = still[start:end], ids[start:end].copy()
            token, chosen, edited, gap = _choose(block, *block_now, o, taken, total)
            margin = min(margin, gap, 10 * model.gap)
            for i in chosen:
                ids[start + i], still[start + i] = token[i], False
                commit_step[start + i - t0] = steps
            for i in sorted(edited):
                ids[start + i] = token[i]
                edits.append([steps, start + i - t0, int(token[i])])
            steps, taken = steps + 1, taken + 1
            if not masks and not edited:
                break
        if o["early_stop"] != "off" and o["eos_id"] in ids[start:end]:
            ids[end:] = o["eos_id"]
            break
    return {
        "output_ids": ids[t0:].tolist(),
        "steps": steps,
        "full_passes": full,
        "commit_step": commit_step,
        "edits": edits,
        "margin": margin,
    }
