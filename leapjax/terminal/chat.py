"""`leapjax decode --chat`: a conversation, on a terminal or through pipes."""

import contextlib
import sys
import time
from typing import IO

from leapjax.cli.decode_model import note
from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.lm import LM
from leapjax.studies.counts import counts
from leapjax.terminal import canvas
from leapjax.types import Completion
from leapjax.wording import plural

HELP = "/help shows this, /reset forgets the conversation, /quit or the end of input ends it"


def run(
    lm: LM, config: DecodeConfig, source: IO[str], stream: IO[str], system: str | None = None
) -> None:
    """Answer line by line, each with everything said before it.

    `lm`: a model with a chat template; `stream`: answers; on a terminal, the canvas fills in;
    `system`: what the model is told before the first turn.
    """
    if lm.codec is None or not lm.codec.is_instruct:
        raise UserError("the model has no chat template, so it can't hold a conversation")
    screen = canvas.console(stream) if source.isatty() and stream.isatty() else None
    if screen is not None:
        screen.print(HELP, style="dim")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (`input` then edits lines and remembers them)
    begin = [] if system is None else [{"role": "system", "content": system}]
    messages: list[dict[str, str]] = begin
    explained: set[str] = set()
    while (line := _ask(source, screen)) is not None and line != "/quit":
        if line == "/reset":
            messages = begin
            note("the conversation starts again")
        elif line == "/help":
            note(HELP)
        elif line.startswith("/"):
            note(f"unknown command {line.split()[0]}; {HELP}")
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            start = time.perf_counter()
            try:
                (completion,) = lm.generate([{"messages": asked}], config, batch_size=1)
                seconds = time.perf_counter() - start
                messages = [*asked, {"role": "assistant", "content": completion.text}]
                if screen is None:
                    print(completion.text, file=stream, flush=True)
                else:
                    _show(lm, config, completion, seconds, screen, explained)
            except UserError as e:
                # Mostly a conversation that has grown too long; nothing of it is lost.
                note(f"{e} (/reset starts again)")
            except KeyboardInterrupt as e:
                if screen is None or e.args:  # with a number: another signal, such as SIGTERM
                    raise
                note("stopped; Ctrl-C again or /quit ends the conversation")


def _show(
    lm: LM,
    config: DecodeConfig,
    completion: Completion,
    seconds: float,
    screen,
    explained: set[str],
) -> None:
    """Play an answer, then print it; kinds of commits are explained when they first appear."""
    new = canvas.kinds_of(completion) - explained
    legend = canvas.legend(new, signs=not explained)
    if legend.plain:
        screen.print(legend, end="")
    explained |= new
    canvas.play(screen, canvas.Canvas.of(lm, completion))
    screen.print(f"\n{canvas.printable(completion.text)}")  # to be read and copied
    tokens = plural(counts(completion, lm.options(config).end_ids)["tokens"], "token")
    steps = plural(completion.steps, "step") + canvas.edits_of(completion)
    took = f"{steps}, {tokens} in {seconds:.1f} s"
    screen.print(f"[{took}]", style="dim")


def _ask(source: IO[str], screen) -> str | None:
    """The next line, or None at the end."""
    if screen is not None and source is sys.stdin:
        try:
            return input("> ").strip()
        except EOFError:
            print(file=screen.file)
            return None
    line = source.readline()
    return line.strip() if line else None
