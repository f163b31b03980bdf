"""`leapjax COMMAND …`: finds the command's module and hands over."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from leapjax.cli.common import BAD, OK, complain, run_main
from leapjax.terminal import examples

# command -> what it does; its module is `leapjax.cli.COMMAND`, imported when it is called
COMMANDS = {
    "decode": "complete prompts, from the command line or a file",
    "convert": "convert a hub checkpoint to a leapjax checkpoint, and back",
    "train": "train a model, or fine-tune a checkpoint",
    "evaluate": "compare accuracy and steps of all policies on a task",
    "ablate": "the effect of a policy's options, on grids of settings",
    "calibrate": "find the fastest setting whose answers agree with greedy decoding's",
    "analyze": "measure delayed decoding and local determinism on a model",
    "chain": "the exact cost of parallel commits, on hidden Markov chains",
    "plan": "whether a decode fits on a TPU slice, and its estimated speed",
    "benchmark": "time decoding on this machine",
}


def usage() -> str:
    """The text of `leapjax --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: leapjax COMMAND [options]\n\n"
        "Decode masked diffusion language models (LLaDA, Dream) with LocalLeap, in JAX.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  -h, --help  show this text; `leapjax help COMMAND` or `leapjax COMMAND --help`\n"
        "              explains a command\n"
        "  --version   show the version\n\n"
        "examples:\n"
        "  leapjax decode               solve sample problems with the included model\n"
        f'  leapjax decode --prompt "{examples.QUESTION}"\n'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    `argv`: arguments without the program's name; None takes those of the process.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["help"] and args[1:]:
        args = [args[1], "--help"]  # `leapjax help COMMAND`
    if not args or args[0] in ("-h", "--help", "help", "--version"):
        return run_main(_about, args, "leapjax")
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}"
        what = "option" if name.startswith("-") else "command"
        complain("leapjax", f"unknown {what} {name!r}; {hint} (see leapjax --help)")
        return BAD
    return importlib.import_module(f"leapjax.cli.{name}").main(rest)


def _about(args: Sequence[str] | None) -> int:
    """Print the version, or what commands there are."""
    if args and args[0] == "--version":
        from leapjax import __version__

        print(f"leapjax {__version__}")
    else:
        print(usage(), end="")
    return OK if args else BAD


if __name__ == "__main__":
    sys.exit(main())
