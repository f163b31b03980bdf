"""LLaDA-MoE and LLaDA2 in NumPy float64: what their originals have in common.

Written from the meaning of the hub's `modeling_lladamoe.py` and `modeling_llada2_moe.py`, not from
leapjax: a token at a time, an expert at a time.
"""

import numpy as np

from tests.models.transcription import attention, rms_norm, softmax

FLAGS = [False, True, None]


def must_refuse(raw):
    if raw.get("quantization_config") is not None:
        return "quantization_config"
    if raw.get("expert_capacity") is not None:
        return "expert_capacity"
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name) or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            return "another kind of rotary embedding"
    return None


def settings(raw, keys):
    """The configuration class's defaults, with what config.json says in their place."""
    s = {key: values[0] for key, values in keys.items()} | raw
    rope = raw.get("rope_parameters")
    for name in ("rope_theta", "partial_rotary_factor"):
        if name not in raw and isinstance(rope, dict) and name in rope:
            s[name] = rope[name]
    assert s["hidden_act"] == "silu"
    return s


def facts(raw, length):
    named = {"mask_token_id", "eos_token_id", "pad_token_id"} & raw.keys()
    out = {name: raw[name] for name in named if type(raw[name]) is int}
    return out | {"max_length": raw.get("max_position_embeddings", length), "shift_logits": False}


def rope(x, theta, share):
    """(T, H, E): of E, int(E * share) leading dimensions turn, or one more if that is odd."""
    number = int(x.shape[-1] * share)
    assert number >= 0
    speed = np.array([theta ** (-j / number) for j in range(0, number, 2)])
    half = len(speed)
    assert 2 * half <= x.shape[-1]
    angle = np.arange(len(x))[:, None, None] * speed
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    return np.concatenate([*turned, rest], -1)


def linear(w, name, n_in, n_out, biased=False):
    matrix = w.take(f"{name}.weight", (n_out, n_in))
    bias = w.take(f"{name}.bias", (n_out,)) if biased else 0.0
    return lambda x: x @ matrix.T + bias


def mlp(w, name, d, inner):
    gate, up = (linear(w, f"{name}.{part}_proj", d, inner) for part in ("gate", "up"))
    down = linear(w, f"{name}.down_proj", inner, d)
    return lambda x: down(gate(x) / (1 + np.exp(-gate(x))) * up(x))


def weighted(experts, choose):
    """The mixture: `choose` gives the experts of a token and their weights."""

    def layer(x):
        out = np.zeros_like(x)
        for t, token in enumerate(x):
            for expert, weight in choose(token):
                out[t] += weight * experts[expert](token)
        return out

    return layer


def largest(scores, count):
    """The numbers of the largest scores; so many there must be, and -inf is none."""
    best = np.argsort(-scores, kind="stable")[:count]
    assert len(best) == count and np.isfinite(scores[best]).all()
    return best


def softmax_router(w, d, s, name, bias):
    matrix = w.take(f"{name}.weight", (s["num_experts"], d))
    extra = w.take(bias, (s["num_experts"],)) if bias else 0.0

    def choose(token):
        weights = softmax(matrix @ token) + extra
        return [(i, weights[i]) for i in largest(weights, s["num_experts_per_tok"])]

    return choose


def sigmoid_router(w, d, s, name):
    count, chosen, groups = s["num_experts"], s["num_experts_per_tok"], s["n_group"]
    assert count % groups == 0 and count // groups >= 2
    matrix, bias = w.take(f"{name}.weight", (count, d)), w.take(f"{name}.expert_bias", (count,))

    def choose(token):
        scores = 1 / (1 + np.exp(-(matrix @ token)))
        routed = (scores + bias).reshape(groups, -1)
        best = largest(np.sort(routed, 1)[:, -2:].sum(1), s["topk_group"])
        out = [group for group in range(groups) if group not in best]
        routed[out] = -np.inf
        picked = largest(routed.ravel(), chosen)
        total = scores[picked].sum() + 1e-20 if chosen > 1 else 1.0
        return [(i, scores[i] / total * s["routed_scaling_factor"]) for i in picked]

    return choose


def attend(w, s, norms, qkv, out, block):
    """A layer's attention, from `qkv`: x -> queries, keys, values of (T, heads, E)."""
    eps = s["rms_norm_eps"]

    def layer(x):
        q, k, v = qkv(x)
        q, k = (
            t if norm is None else np.stack([rms_norm(h, norm, None, eps) for h in t])
            for t, norm in zip((q, k), norms, strict=True)
        )
        if s.get("clip_qkv") is not None:
            q, k, v = (np.clip(t, -s["clip_qkv"], s["clip_qkv"]) for t in (q, k, v))
        q, k = (rope(t, s["rope_theta"], s["partial_rotary_factor"]) for t in (q, k))
        place = np.arange(len(x)) // block
        return out(attention(q, k, v, place[:, None] >= place[None, :]))

    return layer


def model(w, s, embed, layer, ids):
    """(B, T, V); `layer` gives a layer's (norm, attention, norm, MLP, whatever is added to it)."""
    d, vocabulary = s["hidden_size"], s["vocab_size"]
    table = w.take(f"{embed}.weight", (vocabulary, d))
    norm = lambda name: w.take(f"{name}.weight", (d,))  # noqa: E731
    layers = []
    for n in range(s["num_hidden_layers"]):
        at = f"model.layers.{n}"
        norms = norm(f"{at}.input_layernorm"), norm(f"{at}.post_attention_layernorm")
        layers.append((*norms, *layer(n, at)))
    final = norm("model.norm")
    if s["tie_word_embeddings"]:
        w.drop("lm_head.weight")
        head = table
    else:
        head = w.take("lm_head.weight", (vocabulary, d))
    w.done()

    def one(row):
        x = table[row]
        for before, after, attend, *parts in layers:
            x = x + attend(rms_norm(x, before, None, s["rms_norm_eps"]))
            y = rms_norm(x, after, None, s["rms_norm_eps"])
            x = x + sum(part(y) for part in parts)
        return rms_norm(x, final, None, s["rms_norm_eps"]) @ head.T

    return np.stack([one(row) for row in ids])
