"""The fastest setting whose answers agree with greedy's; the same as `leapjax calibrate`."""

from _command import run

if __name__ == "__main__":
    run("calibrate")
