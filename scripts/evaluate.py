"""Accuracy and steps of every policy on a task; the same as `leapjax evaluate`."""

from _command import run

if __name__ == "__main__":
    run("evaluate")
