"""Measure delayed decoding and local determinism; the same as `leapjax analyze`."""

import sys

from leapjax.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax analyze"))
