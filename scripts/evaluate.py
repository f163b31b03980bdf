"""Accuracy and steps of every policy on a task; the same as `leapjax evaluate`."""

import sys

from leapjax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax evaluate"))
