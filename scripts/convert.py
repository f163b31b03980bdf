"""Convert a hub checkpoint to a leapjax checkpoint, and back: `leapjax convert`."""

import sys

from leapjax.cli.convert import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax convert"))
