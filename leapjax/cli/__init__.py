"""Command-line entry points: one module a command; they parse arguments and call."""
