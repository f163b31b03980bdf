"""Train or fine-tune a masked diffusion model: `leapjax train`."""

import sys

from leapjax.cli.train import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax train"))
