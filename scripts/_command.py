"""Runs a command of leapjax for the script of its name; says what to install if that's missing."""

import importlib
import os
import sys


def run(name):
    """Run `leapjax.cli.NAME` and end the process with its status.

    Args:
      name: of the command's module in `leapjax.cli`.
    """
    with installed():
        status = importlib.import_module(f"leapjax.cli.{name}").main()
    sys.exit(status)


class installed:  # noqa: N801  (a context, as in contextlib)
    """Turns the import of a missing package into one line and status 2."""

    def __enter__(self):
        """Look at Python's version first."""
        if sys.version_info < (3, 11):  # noqa: UP036  (a bare clone may meet any)
            sys.exit(_complain(f"needs Python 3.11 or newer, {sys.executable} is older"))

    def __exit__(self, kind, error, trace):
        """End the process if a package is missing."""
        if kind is not ModuleNotFoundError or (error.name or "").startswith("leapjax."):
            return
        sys.exit(
            _complain(
                f"the package {error.name} is not installed for {sys.executable}; run `make demo` "
                "(it sets up .venv, whose Python has everything), or `pip install .`"
            )
        )


def _complain(message):
    print(f"{os.path.relpath(sys.argv[0])}: error: {message}", file=sys.stderr)
    return 2
