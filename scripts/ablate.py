"""What a policy's numbers do, on a grid or in a study; the same as `leapjax ablate`."""

from _command import run

if __name__ == "__main__":
    run("ablate")
