"""Does a decode fit on a TPU slice, and how fast should it be; the same as `leapjax plan`."""

from _command import run

if __name__ == "__main__":
    run("plan")
