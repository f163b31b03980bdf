"""The seam between the model and the hardware: a few operations, and how weights lie for them.

    canonical parameters --arrange--> Arranged: weights as one backend reads them
    transformer's block  --calls----> heads, attention, linear, mlp, head, head_summary

A backend is a module with these functions: `xla` (every platform), `cpu` (kernels of our own on one
CPU device). The model asks the arranged weights for their backend and never where it runs; a kernel
for another platform is a new module and one line in `leapjax.ops.arrangement.BACKENDS`.

    heads         norm, projections, per-head norm, RoPE      -> (B, S, heads, E) each
    attention     queries over cached or fresh keys           -> (B, S, H * E)
    linear        product, bias, residual sum                 -> (B, S, D)
    mlp           norm, gated MLP, residual sum               -> (B, S, D)
    head          final norm, logits                          -> (B, W, V)
    head_summary  what a softmax needs, without all logits    -> (B, W) each

Shapes: B rows, S positions computed now, T keys, W window, V vocabulary, D width, H query heads,
E head width.
"""
