"""Time decoding on this machine: the same as `leapjax benchmark`."""

import sys

from leapjax.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
