"""A trace as a picture, drawn with Pillow: a PNG of the finished canvases, a GIF for slides.

Item ─▶ panels side by side, one a policy; several items stand above each other
"""

import io
import os
from typing import Any

from leapjax.errors import UserError
from leapjax.trace.data import KINDS, Earlier, Run, Token, Trace
from leapjax.wording import plural, times_fewer

_FILL = {
    "top1": "#ffe08a",
    "anchor": "#a9d8f5",
    "propagated": "#a5e07f",
    "schedule": "#e3dcf5",
    "seed": "#ffb98a",
    "early_stop": "#ffffff",
    "given": "#ffffff",
    "edited": "#f58fc0",
}
_INK, _SOFT, _LINE, _OPEN = "#1c1d20", "#5d6068", "#d9d7d0", "#eceae4"
_PANEL, _GAP, _MARGIN = 620, 28, 32  # pixels
_ROW, _BOX = 50, 44  # of a line of tokens, and of a box in it

_FRAME_MS, _REST_MS = 160, 3000
_MOST_FRAMES = 160  # of longer decodes every second, third, … step is shown


def check_libraries() -> None:
    """Refuse early where the libraries for pictures are missing."""
    try:
        import matplotlib  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError as e:
        raise UserError(
            "a trace as a picture needs Pillow and matplotlib; pip install 'leapjax[plots]'"
        ) from e


class Painter:
    """Draws one trace at any step, always at the same size."""

    def __init__(self, trace: Trace):
        check_libraries()
        self._trace = trace
        self._text, self._small = _font("DejaVuSansMono.ttf", 19), _font("DejaVuSans.ttf", 15)
        self._label, self._title = _font("DejaVuSans.ttf", 17), _font("DejaVuSans-Bold.ttf", 20)
        most = max(len(item.runs) for item in trace.items)
        self._columns = min(most, 3)
        self.width = 2 * _MARGIN + self._columns * _PANEL + (self._columns - 1) * _GAP
        self.height = self._draw(None, 0, numbers=False)

    def frame(self, done: int, numbers: bool = False):
        """The picture after so many steps.

        `done`: steps done; runs that took fewer stay complete; `numbers`: write each token's step
        under it, for a picture that doesn't move.
        """
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self.width, self.height), "#ffffff")
        self._draw(ImageDraw.Draw(image), done, numbers)
        return image

    def _draw(self, pen: Any, done: int, numbers: bool) -> int:
        """Draw everything, or with no pen only measure; returns the height."""
        y = _MARGIN
        for item in self._trace.items:
            for line in self._wrapped(item.prompt, self.width - 2 * _MARGIN)[:4]:
                self._say(pen, _MARGIN, y, line, self._label, _INK)
                y += 26
            y += 10
            greedy = next((r for r in item.runs if r.policy == "greedy"), None)
            for start in range(0, len(item.runs), self._columns):
                bottoms = [
                    self._panel(pen, _MARGIN + n * (_PANEL + _GAP), y, run, greedy, done, numbers)
                    for n, run in enumerate(item.runs[start : start + self._columns])
                ]
                y = max(bottoms) + 20
        x = _MARGIN
        tokens = [t for i in self._trace.items for r in i.runs for t in r.tokens]
        used = {t.kind for t in tokens} | {"edited" for t in tokens if t.earlier}
        for kind, (mark, meaning) in KINDS.items():
            if kind not in used or kind == "given":
                continue
            words = meaning.split(":")[0] if kind != "early_stop" else "filled in"
            size = self._label.getlength(words) + 60
            if pen is not None:
                pen.rounded_rectangle((x, y, x + 26, y + 24), 4, _FILL[kind], _LINE)
                pen.text((x + 13, y + 12), mark, _INK, font=self._small, anchor="mm")
            self._say(pen, x + 34, y + 2, words, self._label, _SOFT)
            x += size
        return y + 24 + _MARGIN

    def _panel(self, pen, x, y, run: Run, greedy: Run | None, done: int, numbers: bool) -> int:
        fresh = done - 1  # of a run that is over, nothing is fresh
        done = min(done, run.steps)
        self._say(pen, x, y, run.policy, self._title, _INK)
        words = plural(run.steps, "step") if numbers else f"step {done} of {run.steps}"
        if run.edits(run.steps):
            words += f", {plural(run.edits(done), 'edit')}"
        if greedy is not None and run is not greedy:
            ratio = times_fewer(run.steps, greedy.steps)
            words += f" ({ratio} {'as' if ratio == 'as many' else 'than'} greedy)"
        left = x + _PANEL - self._label.getlength(words)
        self._say(pen, left, y + 3, words, self._label, _SOFT)
        y += 34
        if pen is not None:
            pen.rectangle((x, y, x + _PANEL, y + 5), _OPEN)
            pen.rectangle((x, y, x + _PANEL * done / max(run.steps, 1), y + 5), "#1a5fd0")
        y += 14
        at = x
        for token in run.tokens:
            # As wide as the widest that stands there, so that nothing jumps.
            texts = [self._sign(look) for look in (token, *token.earlier)]
            size = max(26, *(self._text.getlength(text) + 8 for text in texts))
            if at + size > x + _PANEL:
                at, y = x, y + _ROW
            if pen is not None:
                self._box(pen, at, y, size, token, done, numbers, fresh)
            at += size + 4
            if "\n" in token.text and not token.special:
                at, y = x, y + _ROW
        return y + _ROW

    def _sign(self, look: Token | Earlier) -> str:
        text = "□" if look.special else look.text.replace("\n", "↵") or "·"
        text = "".join(c if c.isprintable() else "·" for c in text)  # some stop the drawing
        while len(text) > 1 and self._text.getlength(text) > _PANEL - 12:
            text = text[:-1]
        return text

    def _box(self, pen, x, y, size, token: Token, done: int, numbers: bool, last: int):
        here = token.shown <= done
        look, edits = token.after(done)
        steps = (token.step, *(e.step for e in token.earlier[:edits]))
        fresh = here and last in steps and not numbers
        fill = _FILL["edited" if edits else token.kind] if here else _OPEN
        pen.rounded_rectangle((x, y, x + size, y + _BOX), 4, fill, _INK if fresh else None, 2)
        if not here:
            return
        colour = _SOFT if look.special or token.confidence is None else _INK
        pen.text((x + size / 2, y + 15), self._sign(look), colour, font=self._text, anchor="mm")
        signs = [KINDS[token.kind][0], KINDS["edited"][0] if edits else ""]
        mark = "".join(signs)
        if numbers and token.step >= 0:
            own, last_one = f"{signs[0]}{steps[0] + 1}", f"{signs[1]}{steps[-1] + 1}"
            wanted = (own + last_one, last_one) if edits else (own,)
            fits = (s for s in wanted if self._small.getlength(s) <= size)
            mark = next(fits, str(steps[-1] + 1))
        pen.text((x + size / 2, y + 34), mark, _INK, font=self._small, anchor="mm")

    def _say(self, pen, x, y, text: str, font, colour: str) -> None:
        if pen is not None:
            pen.text((x, y), text, colour, font=font)

    def _wrapped(self, text: str, width: float) -> list[str]:
        lines, line = [], ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and self._label.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        return [*lines, line]


def _font(name: str, size: int):
    """A font that comes with matplotlib, so that every machine draws the same."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts/ttf", name), size)


def png(trace: Trace) -> bytes:
    """The finished canvases, each token with the step that committed it."""
    out = io.BytesIO()
    image = Painter(trace).frame(max(item.steps for item in trace.items), numbers=True)
    image.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def gif(trace: Trace) -> bytes:
    """A frame a step, then a rest on the last; it repeats for ever."""
    painter = Painter(trace)  # says so where Pillow is missing
    from PIL.Image import Dither

    last = max(item.steps for item in trace.items)
    stride = -(-last // _MOST_FRAMES)
    shown = [*range(0, last, max(stride, 1)), last]
    # One palette for all frames: colours that changed from frame to frame would flicker.
    palette = painter.frame(last).quantize(64)
    frames = [painter.frame(n).quantize(palette=palette, dither=Dither.NONE) for n in shown]
    out = io.BytesIO()
    duration = [_FRAME_MS] * (len(frames) - 1) + [_REST_MS]
    frames[0].save(
        out,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=duration,
        loop=0,
        optimize=False,
    )
    return out.getvalue()
