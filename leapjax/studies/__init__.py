"""Studies: what decoding policies do, measured on a model.

    requests under settings ─▶ runner ─▶ engine ─▶ answers ─▶ store (JSONL, resumable)
                                                       │
    ablation, analysis, calibration, evaluation ◀──────┘ ─▶ tables, plots, files

`runner`, `store`, `statistics`, `tables`, `plots` and `files` are shared; the other modules are a
study's own (docs/architecture.md).
"""
