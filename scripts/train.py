"""Train or fine-tune a masked diffusion model: `leapjax train`."""

from _command import run

if __name__ == "__main__":
    run("train")
