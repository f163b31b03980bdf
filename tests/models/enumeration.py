"""A chain's conditionals by enumeration of all sequences, in float64."""

import numpy as np

PARTS = ("initial", "transition", "emission")


def joint(params, tokens, length):
    """The probability of every sequence of `length` tokens 0 .. tokens - 1: (tokens,) * length."""
    initial, transition, emission = (np.exp(np.asarray(params[n], np.float64)) for n in PARTS)
    initial, transition = initial / initial.sum(), transition / transition.sum(1, keepdims=True)
    emission = (emission / emission.sum(1, keepdims=True))[:, :tokens]  # (S, tokens)
    out = initial * emission.T  # (tokens, S): p(sequence so far, state)
    for _ in range(length - 1):
        out = np.einsum("...s,st,tv->...vt", out, transition, emission)
    return out.sum(-1)


def conditionals(table, ids, mask, only=None):
    """(length, tokens): p(token at a position, or at one only | tokens that are not `mask`)."""
    left = table[tuple(slice(None) if i == mask else i for i in ids)]
    axes, out = list(range(left.ndim)), np.zeros((len(ids), table.shape[0]))
    for place, i in enumerate(ids):
        if i == mask:
            own, *axes = axes
            if only not in (None, place):
                continue
            out[place] = left.sum(tuple(a for a in range(left.ndim) if a != own)) / left.sum()
        else:
            out[place, i] = 1
    return out
