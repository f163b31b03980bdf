"""What parallel commits cost where the truth is known; the same as `leapjax chain`."""

from _command import run

if __name__ == "__main__":
    run("chain")
