"""Complete prompts; the same as `leapjax decode`."""

from _command import run

if __name__ == "__main__":
    run("decode")
