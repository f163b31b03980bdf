"""Measure delayed decoding and local determinism; the same as `leapjax analyze`."""

from _command import run

if __name__ == "__main__":
    run("analyze")
