"""Time decoding on this machine: the same as `leapjax benchmark`."""

from _command import run

if __name__ == "__main__":
    run("benchmark")
