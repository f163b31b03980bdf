"""What a policy's numbers do, on a grid or in a study; the same as `leapjax ablate`."""

import sys

from leapjax.cli.ablate import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax ablate"))
