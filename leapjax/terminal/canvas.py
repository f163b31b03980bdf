"""The canvas as it fills in: which token was committed when, and why.

Colour and a mark after the token both tell the kind, so neither is needed to read it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from leapjax.types import Completion, replaced, steps_until_shown
from leapjax.wording import plural

# kind -> mark behind the token (none that sums are written with), style, what it means
KINDS = {
    "top1": ("^", "bold yellow", "top-1: the block's most probable"),
    "anchor": ("!", "bold green", "anchor: above the threshold"),
    "propagated": ("~", "bold cyan", "propagated: near an anchor, above the relaxed threshold"),
    "schedule": ("|", "bold blue", "schedule: its turn"),
    "seed": ("@", "bold magenta", "seed: a block's first token, decided with the block before"),
    "edited": ("&", "bold red", "edited: the token was replaced after its commit"),
}
OPEN, END, FILLED = "_", "$", "."  # open position, the first eos, an eos behind it
FRAME_S = 0.15  # a pass lasts so long on the screen, slow enough to follow


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A decoded canvas, by position, as it can be shown after any of its steps."""

    pieces: Sequence[str | None]  # each token's text; None for eos
    steps: Sequence[int]  # which step committed it, as `Completion.commit_step`
    kinds: Sequence[str]  # why, names of `leapjax.types.COMMIT_KINDS`
    last: int  # steps in all
    # of edited positions, (the step of an edit, the text that it replaced), oldest first
    earlier: Mapping[int, Sequence[tuple[int, str | None]]] = dataclasses.field(
        default_factory=dict
    )

    @classmethod
    def of(cls, lm, completion: Completion) -> Canvas:
        """The canvas of a completion. `lm`: the model that made it, for the texts of its tokens."""
        ids, ends = completion.output_ids, lm.default_config.end_ids

        def shown(ids: Sequence[int]) -> list[str | None]:
            pieces = lm.codec.tokens_of(ids)
            return [None if i in ends else p for i, p in zip(ids, pieces, strict=True)]

        earlier = {}
        for place, before in enumerate(replaced(completion)):
            if before:
                steps, old = zip(*before, strict=True)
                earlier[place] = list(zip(steps, shown(old), strict=True))
        commits = completion.commit_step, completion.commit_kind
        return cls(shown(ids), *commits, completion.steps, earlier)

    def edits(self, place: int, done: int) -> int:
        """How often a position was edited in so many steps."""
        return sum(step < done for step, _ in self.earlier.get(place, ()))

    def after(self, done: int) -> Text:
        """What the canvas holds after so many steps."""
        text = Text()
        pieces, edits = list(self.pieces), [0] * len(self.pieces)
        for place, before in self.earlier.items():
            edits[place] = self.edits(place, done)
            if edits[place] < len(before):
                pieces[place] = before[edits[place]][1]
        # Behind the end there is only padding: a sign a position, without marks.
        end = pieces.index(None) + 1 if None in pieces else len(pieces)
        shown = steps_until_shown(self.steps, self.last)
        for place, (piece, step, kind) in enumerate(
            zip(pieces, self.steps, self.kinds, strict=True)
        ):
            if shown[place] > done:
                text.append(OPEN, "dim")
            elif step == -1 or (piece is None and place >= end):
                text.append(FILLED, "dim")
            else:
                mark, style, _ = KINDS.get(kind, ("", "", ""))
                if edits[place]:
                    also, style, _ = KINDS["edited"]
                    mark += also
                before, newline = _split(END if piece is None else piece)
                text.append(before + mark + newline, style)
        return text


def _split(piece: str) -> tuple[str, str]:
    """A token and the line ends behind it: the mark goes between."""
    visible = printable(piece)
    kept = visible.rstrip("\n")
    return kept, visible[len(kept) :]


def printable(text: str) -> str:
    """A text that does nothing to a terminal but to be shown.

    `text`: maybe with control characters.
    """
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def kinds_of(completion: Completion) -> set[str]:
    """The kinds in `KINDS` that a completion's canvas shows, and `none`."""
    return set(completion.commit_kind) | ({"edited"} if completion.edits else set())


def edits_of(*completions: Completion) -> str:
    """The number of edits, to be put behind a number of steps; nothing without any."""
    count = sum(len(c.edits or ()) for c in completions)
    return f", {plural(count, 'edit')}" if count else ""


def legend(kinds: Iterable[str], signs: bool = True) -> Text:
    """What the marks and colours of these kinds mean, a line each.

    `kinds`: names in `KINDS`; others have no mark; `signs`: explain the signs of a canvas, too.
    """
    text, kinds = Text(), set(kinds)
    for kind, (mark, style, meaning) in KINDS.items():
        if kind in kinds:
            text.append(f"token{mark}", style)
            text.append(f"  {meaning}\n")
    if signs:
        text.append(f"{OPEN} open   {END} end of text   {FILLED} padding after it\n", "dim")
    return text


def console(stream) -> Console:
    """A terminal; without colour where `NO_COLOR` is set or the terminal has none."""
    no_color = bool(os.environ.get("NO_COLOR"))
    return Console(file=stream, no_color=no_color, highlight=False, markup=False, soft_wrap=False)


def play(screen: Console, canvas: Canvas, frame_s: float = FRAME_S) -> None:
    """Show the canvas filling in, step by step, and leave it there complete.

    The steps are those of the decode, shown at a pace that can be followed.

    `frame_s`: seconds a step.
    """
    with Live(canvas.after(0), console=screen, auto_refresh=False) as live:
        for done in range(canvas.last + 1):
            frame = canvas.after(done)
            frame.append(f"\nstep {done} of {canvas.last}", "dim")
            if canvas.earlier:
                made = sum(canvas.edits(place, done) for place in canvas.earlier)
                frame.append(f", {plural(made, 'edit')}", "dim")
            live.update(frame, refresh=True)
            if done < canvas.last:
                time.sleep(frame_s)
        live.update(canvas.after(canvas.last), refresh=True)
