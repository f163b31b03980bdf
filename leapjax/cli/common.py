"""What every command shares: its `main`, arguments of several commands, errors of one line.

A command's module declares its arguments in `add_arguments`, carries them out in `run`, and
ends with

    main = command("NAME", add_arguments, run, DESCRIPTION, EPILOG)
"""

import argparse
import contextlib
import difflib
import errno
import io
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from leapjax.cli.help_format import HelpFormatter
from leapjax.errors import UserError
from leapjax.failures import explained
from leapjax.progress import announced
from leapjax.signals import Listener, handled, interrupt

OK, INTERRUPTED, BAD = 0, 130, 2

MESH_HELP = (
    "devices to shard the model over: data=2,tensor=4 (also fsdp, expert); auto, the default: a "
    "mesh that fits according to memory analysis; on a CPU, one device"
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help keeps its layout."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)  # a new flag must not change an old command
        super().__init__(*args, **kwargs)
        self.given: list[str] = []

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; what is given is kept for `error`."""
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        # As argparse's, which swallows that the message could not be written.
        if message:
            print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str) -> NoReturn:
        """Print `PROG: error: MESSAGE` and exit with status 2, without the usage block."""
        # A mistyped flag first: that a required one is missing may just follow from it.
        for word in self.given:
            flag = word.partition("=")[0]
            if re.fullmatch(r"--\w\S*", flag) and flag not in self._option_string_actions:
                near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
                message = f"unrecognized arguments: {word}"
                message += f"; did you mean {near[0]}?" if near else ""
                break
        complain(self.prog, f"{message} (see {self.prog} --help)")
        raise SystemExit(BAD)


def command(
    name: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
    description: str,
    epilog: str | None = None,
    prefix: str = "leapjax",
) -> Callable[..., int]:
    """The `main` of a command; `leapjax NAME` and `scripts/NAME.py` call it.

    `name`: of the command, as the user types it behind `prefix`. `run`: takes the parsed arguments
    and returns the exit status. They hold the command line that was typed too, as `command`.
    `description`: the head of the help text; `prefix`: what is typed before the name. Returns
    `main(argv=None) -> status`, where `argv` are the arguments without the program's name, those of
    the process by default. See `run_main` for the status.
    """
    prog = f"{prefix} {name}"

    def parse_and_run(argv: Sequence[str] | None) -> int:
        parser = Parser(prog=prog, description=description, epilog=epilog)
        add_arguments(parser)
        args = parser.parse_args(argv)
        args.command = shlex.join([*prog.split(), *parser.given])
        return run(args)

    def main(argv: Sequence[str] | None = None) -> int:
        return run_main(parse_and_run, argv, prog)

    return main


def add_model_options(
    parser: argparse._ActionsContainer,
    *,
    dtype: str = "as in decode",
    mesh: str = MESH_HELP,
    batch_size: Callable[[str], int] = int,
) -> None:
    """Declare the options that choose the model and say how it is loaded.

    `parser`: of a command, or a group of its options; `dtype`: the default compute type, for the
    help.
    """
    from leapjax.config import QUANTIZATIONS

    add = parser.add_argument
    inside = "checkpoint; dependency is the second model in the package (default: the first)"
    add("--model", metavar="PATH_OR_ID", help=inside)
    add("--dtype", choices=("float32", "bfloat16"), help=f"compute type (default: {dtype})")
    add("--quantize", choices=QUANTIZATIONS, help="quantise the matrices to 8 bits after loading")
    add("--mesh", metavar="AXES", help=mesh)
    add("--batch-size", type=batch_size, metavar="N", help="rows decoded at once")
    add(
        "--template-option",
        action="append",
        type=named_value,
        metavar="NAME=VALUE",
        help="a variable of the chat template, such as enable_thinking=true (VALUE is JSON, or "
        "else a string); may be given several times",
    )


def named_value(text: str) -> tuple[str, object]:
    """The type of an argument such as `enable_thinking=true`.

    `text`: a name and a JSON value; what is no JSON is a text.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def add_canvas_options(parser: argparse._ActionsContainer) -> None:
    """Declare `--gen-length` and `--block-length` for a command that decodes a task.

    `parser`: of a command, or a group of its options.
    """
    add = parser.add_argument
    add("--gen-length", type=int, metavar="N", help="canvas length (default: by model or task)")
    add("--block-length", type=int, metavar="N", help="block length (default: by model or task)")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number."""

    def whole(text: str) -> int:
        value = int(text) if text.isdecimal() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return whole


def listed(text: str) -> list[str]:
    """The type of an argument that is a list of names, such as `none,dual`.

    `text`: as given; blanks around the commas don't count.
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """The type of an argument that is a list of whole numbers, such as `1,8,32`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers") from None


def shares(text: str) -> list[float]:
    """The type of an argument that is a list of numbers, such as `0.8,0.95`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None


def place(text: str) -> str:
    """The type of an argument that names a file or folder to write.

    Raises ArgumentTypeError: it stands for stdout.
    """
    if text == "-":
        raise argparse.ArgumentTypeError("- is stdout, which does not do here; name a path")
    return text


def complain(prog: str, message: object) -> None:
    """One line on stderr, whatever the message contains."""
    text = " ".join(str(message).split()) or "failed"
    with contextlib.suppress(OSError):  # stderr may be full, too
        print(f"{prog}: error: {text}", file=sys.stderr)


def note(prog: str, line: str) -> None:
    """One line for the user on stderr."""
    print(f"{prog}: note: {line}", file=sys.stderr, flush=True)


def run_main(
    func: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None, prog: str
) -> int:
    """Run a command so that a user's mistake ends as one line and a status, no traceback.

    `func`: takes the arguments, returns the exit status; `argv`: arguments without the program's
    name; None takes those of the process; `prog`: as the user calls it, for the message. Returns
    the exit status: func's; 2 after a `UserError` or a failure of the machine; 130 after Ctrl-C,
    143 after SIGTERM; argparse's own.
    """
    _replace_closed_streams()
    with handled(interrupt, signal.SIGTERM):  # a polite kill cleans up like Ctrl-C
        try:
            try:
                with announced(), Listener(f"{prog}: stopping"):
                    status = func(argv)
            except SystemExit as e:
                status = e.code if isinstance(e.code, int) else (BAD if e.code else OK)
            sys.stdout.flush()
            return status
        except UserError as e:
            complain(prog, e)
            return BAD
        except KeyboardInterrupt as e:
            print(f"{prog}: interrupted", file=sys.stderr)
            return 128 + e.args[0] if e.args else INTERRUPTED
        except BrokenPipeError:
            _drop_output()  # the reader (`| head`) has gone
            return 128 + signal.SIGPIPE
        except Exception as e:
            if (line := explained(e)) is None:
                raise
            if isinstance(e, OSError):
                _drop_output()
            complain(prog, line)
            return BAD


class _Closed(io.TextIOBase):
    """Stands for a standard stream that is closed."""

    def __init__(self, name: str):
        self._name = name

    @property
    def buffer(self) -> NoReturn:
        raise OSError(errno.EBADF, "closed", self._name)

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "closed", self._name)

    def read(self, size: int | None = -1) -> str:
        raise OSError(errno.EBADF, "closed", self._name)

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        raise OSError(errno.EBADF, "closed", self._name)


def _replace_closed_streams() -> None:
    """Python has None where a standard stream is closed, and files would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        with contextlib.suppress(OSError):
            while (found := os.open(os.devnull, os.O_RDWR)) < number:
                pass
            if found > number:
                os.close(found)
        setattr(sys, name, _Closed(name) if name != "stderr" else open(os.devnull, "w"))


def _drop_output() -> None:
    """Keep Python from writing what is left, and complaining, when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load_model(
    args: argparse.Namespace,
    prog: str,
    model: str | None,
    config,
    *,
    batch_size: int | None = None,
    requests: int | None = None,
):
    """Load a command's model on the devices that fit it; say which, where there was a choice.

    `model`: path or hub id; None is the embedded model; `config`: the decode options that need the
    most memory; `batch_size`: rows decoded at once; default: `--batch-size`, if it is given;
    `requests`: how many will come, if that is known. Raises UserError: no such model, or the
    devices here can't hold it.
    """
    import leapjax
    from leapjax.fit import wanted

    mesh = wanted(args.mesh, config, batch_size or args.batch_size, requests)
    lm = leapjax.load(
        model,
        dtype=args.dtype,
        quantize=args.quantize,
        mesh=mesh,
        template_options=dict(args.template_option or ()),
    )
    if args.mesh in (None, "auto") and lm.mesh is not None:
        note(prog, f"--mesh {lm.mesh}: what memory analysis says fits the devices here")
    return lm


def note_plots(prog: str) -> None:
    """Say, before the work, if plots will be missing."""
    from leapjax.studies import plots

    if not plots.available():
        note(prog, "plots are left out, matplotlib is not installed (pip install 'leapjax[plots]')")


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, in GB (10^9 bytes)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def human_bytes(count: float) -> str:
    """A number of bytes as `16.0 GB`; powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.95 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
