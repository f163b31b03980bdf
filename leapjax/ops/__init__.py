"""The interface between model and hardware: a few operations, and the layout of their weights.

    canonical parameters --arrange--> Arranged: weights as one backend reads them
    transformer block    --calls----> heads, attention, linear, mlp, head, head_summary

A backend is a module with these functions: `xla` (every platform) or `cpu` (native kernels on one
CPU device). The arranged weights name their backend, so the model never checks its platform. A new
backend is one module and one line in `leapjax.ops.arrangement.BACKENDS`.

    heads         norm, projections, per-head norm            -> (B, S, heads, E) each
    rotated       RoPE of what `heads` returned               -> (B, S, heads, E)
    attention     queries over cached or fresh keys           -> (B, S, H * E), rotated keys
    linear        product, bias, residual sum                 -> (B, S, D)
    mlp           norm, gated MLP, residual sum               -> (B, S, D)
    head          final norm, logits                          -> (B, W, V)
    head_summary  statistics for a softmax, not all logits    -> (B, W) each

`heads` or `attention` applies RoPE: what a backend's `heads` returns is for its own `attention`.

Shapes: B rows, S positions computed now, T keys, W window, V vocabulary, D width, H query heads,
E head width.
"""
