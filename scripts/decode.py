"""Complete prompts; the same as `leapjax decode`."""

import sys

from leapjax.cli.decode import main

if __name__ == "__main__":
    sys.exit(main(prog="leapjax decode"))
