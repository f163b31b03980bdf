"""Convert a hub checkpoint to a leapjax checkpoint, and back: `leapjax convert`."""

from _command import run

if __name__ == "__main__":
    run("convert")
