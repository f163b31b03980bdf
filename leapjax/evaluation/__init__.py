"""Accuracy and steps of decoding policies on a task (docs/evaluation.md)."""
