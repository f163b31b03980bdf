"""Does a decode fit on a TPU slice, and how fast should it be; the same as `leapjax plan`."""

import sys

from leapjax.cli.plan import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax plan"))
