"""Decoding written out in plain Python: one row, one position at a time, no batch, no pads.

Written from the rules (docs/contract.md, docs/architecture.md and the papers), not from the
implementation. Every decision records its distance from the alternative, so that a caller
can leave out rows that float32 may decide otherwise.
"""

import dataclasses
import hashlib
import math

import jax
import numpy as np


@dataclasses.dataclass
class Ids:
    """Special ids, and whether the model is Dream-like (output i - 1 predicts i)."""

    mask: int
    eos: int
    eot: int | None
    shift: bool


class Noise:
    """The contract's noise: a function of row key, step, canvas position, vocabulary index."""

    def __init__(self, seed, record_id, own_seed=None, sample=None):
        if own_seed is not None:
            key = jax.random.key(own_seed)
        else:
            digest = hashlib.blake2b(str(record_id).encode(), digest_size=8).digest()
            low, high = np.frombuffer(digest, "<u4")
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), high), low)
        self.key = jax.random.fold_in(key, sample) if sample else key

    def _at(self, step, place, use):
        fold = jax.random.fold_in
        return fold(fold(fold(self.key, step), place), use)

    def gumbel(self, step, place, size):
        """(V,) noise for the token."""
        key = self._at(step, place, 0)
        return np.asarray(jax.random.gumbel(key, (size,), np.float32, mode="high"), np.float64)

    def uniform(self, step, place):
        """One number for the random order."""
        return float(jax.random.uniform(self._at(step, place, 1)))


class Margin:
    """The smallest distance of any decision from its alternative."""

    def __init__(self):
        self.least = math.inf

    def saw(self, distance, scale=1.0):
        self.least = min(self.least, abs(distance) / scale)

    def reaches(self, confidence, threshold):
        """`confidence >= threshold`; none is below 0 and none reaches 1: those are no decisions."""
        if 0 < threshold < 1:
            self.saw(confidence - threshold)
        return confidence >= threshold and threshold < 1


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def filtered(logits, o, margin):
    """Which tokens may be drawn: top-p of the tempered softmax, then top-k of the rest."""
    order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    p = softmax(np.asarray(logits) / o["temperature"])
    keep, mass = [], 0.0
    for rank, v in enumerate(order):
        if o["top_p"] < 1 and rank:
            margin.saw(mass - o["top_p"])
        if o["top_p"] < 1 and mass >= o["top_p"]:
            break
        if o["top_k"] and rank >= o["top_k"]:
            break
        keep.append(v)
        mass += p[v]
    if len(keep) < len(order) and np.isfinite(logits[order[len(keep)]]):
        margin.saw(logits[keep[-1]] - logits[order[len(keep)]], 10.0)
    return set(keep)


def draw(logits, barred, o, gumbel, margin):
    """The token: the most probable one, or with temperature a draw."""
    allowed = [v for v in range(len(logits)) if v not in barred and np.isfinite(logits[v])]
    score = dict.fromkeys(allowed, 0.0) | {v: logits[v] for v in allowed}
    if o["temperature"] > 0:
        open_logits = np.where(np.isin(np.arange(len(logits)), allowed), logits, -np.inf)
        keep = filtered(open_logits, o, margin)
        allowed = [v for v in allowed if v in keep]
        score = {v: logits[v] + o["temperature"] * gumbel[v] for v in allowed}
    ranked = sorted(allowed, key=lambda v: (-score[v], v))
    if len(ranked) > 1:
        margin.saw(score[ranked[0]] - score[ranked[1]], 10.0)
    return ranked[0]


def propose(logits, o, ids, last_pass, gumbel, margin):
    """One position: (token, confidence, lead over the second, entropy, held open)."""
    logits = np.array(logits, np.float64)
    if o["logits_eos_inf"]:
        logits[ids.eos] = -np.inf
    token = draw(logits, {ids.mask}, o, gumbel, margin)
    weighed_token, held = token, False
    dream = o.get("schedule") == "dream"
    if dream and not last_pass:
        best = draw(logits, set(), o, gumbel, margin)
        if best == ids.mask:
            weighed_token, held = best, True
    if o["confidence_eos_eot_inf"]:
        logits[ids.eos] = -np.inf
        if ids.eot is not None:
            logits[ids.eot] = -np.inf
    p = softmax(logits)
    rivals = sorted(
        (p[v] for v in range(len(p)) if v != ids.mask or (dream and not last_pass)), reverse=True
    )
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    return token, p[weighed_token], rivals[0] - rivals[1], entropy, held


def ranked(score, candidates, count, margin, scale=1.0):
    """The `count` highest; the leftmost of equals."""
    order = sorted(candidates, key=lambda i: (-score[i], i))
    if 0 < count < len(order):
        last, next_one = score[order[count - 1]], score[order[count]]
        if not last == next_one == 0.0:  # muted end tokens tie exactly, on every machine
            margin.saw(last - next_one, scale)
    return set(order[:count])


def localleap(confidence, masked, o, margin):
    """{position: kind} of the positions that commit."""
    anchors = [i for i in masked if margin.reaches(confidence[i], o["threshold"])]
    out = dict.fromkeys(anchors, "anchor")
    for i in masked:
        near = any(abs(i - a) <= o["radius"] for a in anchors)
        if i not in out and near and margin.reaches(confidence[i], o["relaxed_threshold"]):
            out[i] = "propagated"
    return _with_surest(out, confidence, masked, margin)


def confidence_threshold(confidence, masked, o, margin):
    """As above."""
    out = {i: "anchor" for i in masked if margin.reaches(confidence[i], o["threshold"])}
    return _with_surest(out, confidence, masked, margin)


def low_confidence_dynamic(confidence, masked, o, count, margin):
    """As above: all above the threshold if they are enough, else the `count` surest."""
    sure = [i for i in masked if confidence[i] > o["threshold"]]
    for i in masked:
        if o["threshold"] < 1:
            margin.saw(confidence[i] - o["threshold"])
    if len(sure) >= count:
        return dict.fromkeys(sure, "anchor")
    return dict.fromkeys(ranked(confidence, masked, count, margin), "schedule")


def joint_threshold(confidence, masked, o, margin):
    """As above: all above the threshold if they are enough, else the surest."""
    for i in masked:
        if o["threshold"] < 1:
            margin.saw(confidence[i] - o["threshold"])
    sure = [i for i in masked if confidence[i] > o["threshold"]]
    if len(sure) >= o["num_to_transfer"]:
        return dict.fromkeys(sure, "anchor")
    best = ranked(confidence, masked, o["num_to_transfer"], margin)
    return {i: "anchor" if i in sure else "top1" for i in best}


def rewritten(offered, closed, tokens, o, margin):
    """{position: new token} of the closed positions that a pass edits; in order."""
    out = {}
    for i in closed:
        token, sure = offered["token"][i], offered["confidence"][i]
        if token == tokens[i]:
            continue
        if 0 < o["editing_threshold"] < 1:
            margin.saw(sure - o["editing_threshold"])
        if sure > o["editing_threshold"]:
            out[i] = token
    return out


def entropy_bounded(entropy, masked, o, margin):
    """As above: the lowest entropies, while their sum is below the bound; one at least."""
    order = sorted(masked, key=lambda i: (entropy[i], i))
    total, within = 0.0, []
    for i in order:
        total += entropy[i]
        margin.saw(total - o["eb_threshold"])
        if total >= o["eb_threshold"]:
            break
        within.append(i)
    last = max(len(within), 1)
    if last < len(order):
        margin.saw(entropy[order[last]] - entropy[order[last - 1]])
    return dict.fromkeys(within, "anchor") or {order[0]: "top1"}


def _with_surest(out, confidence, masked, margin):
    (surest,) = ranked(confidence, masked, 1, Margin())
    if surest not in out:
        ranked(confidence, masked, 1, margin)
        out[surest] = "top1"
    return out


def even_quota(total, taken, passes):
    """LLaDA: as evenly as whole tokens allow, the first passes one more."""
    return [total // passes + (1 if s < total % passes else 0) for s in range(taken + 1)][taken]


def dream_quota(left, taken, passes, margin):
    """Dream: `int(left (1 - s / t))`, times from 1 to 1e-3; the last pass takes the rest."""
    if taken >= passes - 1:
        return left
    times = np.linspace(1.0, 1e-3, passes + 1)
    share = left * (1 - times[taken + 1] / times[taken])
    margin.saw(share - round(share))
    return int(share)


def offers(out, masked, o, ids, last_pass, noise, step, origin, margin):
    """What a pass proposes at the masked positions: name -> {position: value}.

    Args:
      out: (T, V) float64 logits, guidance applied.
      step: of the row, from 0; with the canvas position it decides the noise.
    """
    names = ("token", "confidence", "lead", "entropy", "held")
    offered = {name: {} for name in (*names, "uniform")}
    for i in masked:
        row = out[i - 1 if ids.shift and i > 0 else i]
        gumbel = noise.gumbel(step, i - origin, len(row)) if o["temperature"] > 0 else None
        for name, value in zip(names, propose(row, o, ids, last_pass, gumbel, margin), strict=True):
            offered[name][i] = value
        if o["policy"] == "random":
            offered["uniform"][i] = noise.uniform(step, i - origin)
    return offered


def choose(offered, masked, o, count, margin):
    """{position: kind} of what the policy commits; `count` is a schedule's quota."""
    confidence, entropy = offered["confidence"], offered["entropy"]
    match o["policy"]:
        case "localleap":
            return localleap(confidence, masked, o, margin)
        case "confidence_threshold":
            return confidence_threshold(confidence, masked, o, margin)
        case "low_confidence_dynamic":
            return low_confidence_dynamic(confidence, masked, o, count, margin)
        case "joint_threshold":
            return joint_threshold(confidence, masked, o, margin)
        case "entropy_bounded":
            return entropy_bounded(entropy, masked, o, margin)
    score = {
        "low_confidence": confidence,
        "margin": offered["lead"],
        "entropy": {i: -e for i, e in entropy.items()},
        "random": offered["uniform"],
        "sequential": {i: -i for i in masked},
    }[o["policy"]]
    return dict.fromkeys(ranked(score, masked, count, margin), "schedule")


def decode(logits_of, given_ids, is_open, o, ids, noise, origin=0):
    """Decode one row to its end.

    Args:
      logits_of: list of T ids -> (T, V) raw logits.
      given_ids: T ids; where open, the mask id.
      is_open: T bools.
      o: every option's value in force (`DecodeConfig.to_dict()`), early_stop included.
      ids: `Ids`.
      noise: `Noise`, or None if nothing draws.
      origin: index of canvas position 0.

    Returns:
      dict of tokens, steps, commit_step, commit_kind, commit_confidence, edits (without editing
      None), margin; and
      `kept_open`: how often Dream's schedule chose a position whose best token is the mask.
    """
    tokens, still = list(given_ids), list(is_open)
    n, w = len(tokens), o["block_length"]
    commit_step = [-1 if x else -2 for x in still]
    kinds, confidences = ["none"] * n, [0.0] * n
    margin, steps, kept_open = Margin(), 0, 0
    fixed = "steps" in o
    passes = o["steps"] // (o["gen_length"] // w) if fixed else None
    editing = o.get("editing_threshold") is not None
    edits = []
    grid = still.index(True)  # blocks are cut from the first open position on
    for start in range(grid, n, w):
        members = range(start, min(start + w, n))
        total, taken, post = sum(still[i] for i in members), 0, 0
        while total:
            masked = [i for i in members if still[i]]
            post += not masked
            if not masked and (not editing or post > o["max_post_steps"]):
                break
            closed = [i for i in members if editing and is_open[i] and not still[i]]
            out = np.asarray(logits_of(tokens), np.float64)
            if o["cfg_scale"] > 0:
                blind = [t if x else ids.mask for t, x in zip(tokens, is_open, strict=True)]
                un = np.asarray(logits_of(blind), np.float64)
                out = un + (o["cfg_scale"] + 1) * (out - un)
            last_pass = fixed and taken >= passes - 1
            both = [*masked, *closed]
            offered = offers(out, both, o, ids, last_pass, noise, steps, origin, margin)
            count = 0
            if fixed and o["schedule"] == "dream":
                count = dream_quota(len(masked), taken, passes, margin)
            elif fixed:
                count = even_quota(total, taken, passes)
            chosen = choose(offered, masked, o, count, margin) if masked else {}
            edited = rewritten(offered, closed, tokens, o, margin)
            token, confidence, held = offered["token"], offered["confidence"], offered["held"]
            for i, kind in chosen.items():
                if held[i]:
                    kept_open += 1
                    continue
                tokens[i], still[i], commit_step[i] = token[i], False, steps
                kinds[i], confidences[i] = kind, confidence[i]
            for i, new in edited.items():
                tokens[i] = new
                edits.append([steps, i - origin, new])
            steps, taken = steps + 1, taken + 1
            if not masked and not edited:
                break
        ended = any(is_open[i] and tokens[i] == ids.eos for i in members)
        if o["early_stop"] != "off" and ended and total:
            for i in range(n):
                if still[i]:
                    tokens[i], still[i] = ids.eos, False
            break
    return {
        "tokens": tokens,
        "steps": steps,
        "commit_step": commit_step,
        "commit_kind": kinds,
        "commit_confidence": confidences,
        "edits": edits if editing else None,
        "margin": margin.least,
        "kept_open": kept_open,
    }
