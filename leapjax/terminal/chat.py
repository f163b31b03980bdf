"""`leapjax decode --chat`: a conversation, on a terminal or through pipes."""

from __future__ import annotations

import sys
import time
from typing import IO

from leapjax.config import DecodeConfig
from leapjax.errors import UserError
from leapjax.evaluation.measures import counts
from leapjax.lm import LM
from leapjax.terminal import canvas

HELP = "/reset forgets the conversation, /quit or the end of input ends it"


def run(lm: LM, config: DecodeConfig, source: IO[str], stream: IO[str]) -> None:
    """Answer line by line, each with everything said before it.

    Args:
      lm: a model with a chat template.
      config: decode options.
      source: a user's turn per line.
      stream: answers; on a terminal, the canvas fills in.

    Raises:
      UserError: the model has no chat template.
    """
    if lm.codec is None or not lm.codec.is_instruct:
        raise UserError("the model has no chat template, so it can't hold a conversation")
    screen = canvas.console(stream) if source.isatty() and stream.isatty() else None
    if screen is not None:
        screen.print(HELP, style="dim")
    messages: list[dict[str, str]] = []
    legend = screen is not None
    while True:
        line = _ask(source, screen)
        if line is None or line == "/quit":
            return
        if line == "/reset":
            messages = []
            _note("the conversation starts again")
            continue
        if line.startswith("/"):
            _note(f"unknown command {line.split()[0]}; {HELP}")
            continue
        if not line:
            continue
        asked = [*messages, {"role": "user", "content": line}]
        start = time.perf_counter()
        try:
            (completion,) = lm.generate([{"messages": asked}], config, batch_size=1)
        except UserError as e:
            # Mostly a conversation that has grown too long; nothing of it is lost.
            _note(f"{e} (/reset starts again)")
            continue
        seconds = time.perf_counter() - start
        messages = [*asked, {"role": "assistant", "content": completion.text}]
        if screen is None:
            print(completion.text, file=stream, flush=True)
            continue
        if legend:
            screen.print(canvas.legend(completion.commit_kind))
            legend = False
        canvas.play(screen, canvas.Canvas.of(lm, completion))
        tokens = counts(completion, lm.config.eos_token_id).tokens
        screen.print(f"[{completion.steps} steps, {tokens} tokens in {seconds:.1f} s]", style="dim")


def _ask(source: IO[str], screen) -> str | None:
    """The next line, or None at the end."""
    if screen is not None:
        screen.print("> ", end="")
        screen.file.flush()
    line = source.readline()
    return line.strip() if line else None


def _note(line: str) -> None:
    print(f"leapjax decode: note: {line}", file=sys.stderr, flush=True)
