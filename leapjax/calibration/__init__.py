"""Choosing decode options whose answers agree with greedy's (docs/calibration.md).

prompts ─▶ greedy answers, then each setting's, safe to fast ─▶ disagreements ─▶ the sequence of
tests ─▶ the chosen setting as YAML
"""
