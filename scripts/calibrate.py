"""The fastest setting whose answers agree with greedy's; the same as `leapjax calibrate`."""

import sys

from leapjax.cli.calibrate import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax calibrate"))
