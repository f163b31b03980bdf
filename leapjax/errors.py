"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do.

    Command-line entry points print it to stderr as a single line and exit with
    status 2 (docs/contract.md, Errors); from Python it is an ordinary exception.
    """


class NoRoom(UserError):
    """This machine has no memory for a model, or for a single row of it."""
