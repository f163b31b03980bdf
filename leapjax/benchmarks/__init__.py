"""Timings: what `scripts/benchmark.py` measures. Never imported by the rest."""
