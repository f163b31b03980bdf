"""A trace as a moving picture for slides: a frame a step, then a rest on the last."""

import io

from leapjax.trace.data import Trace
from leapjax.trace.picture import Painter

_FRAME_MS, _REST_MS = 160, 3000
_MOST_FRAMES = 160  # of longer decodes every second, third, … step is shown


def render(trace: Trace) -> bytes:
    """The GIF, which repeats for ever. `trace`: at most a few prompts."""
    painter = Painter(trace)  # says so where Pillow is missing
    from PIL.Image import Dither

    last = max(item.steps for item in trace.items)
    stride = -(-last // _MOST_FRAMES)
    shown = [*range(0, last, max(stride, 1)), last]
    # One palette for all frames: colours that changed from frame to frame would flicker.
    palette = painter.frame(last).quantize(64)
    frames = [painter.frame(n).quantize(palette=palette, dither=Dither.NONE) for n in shown]
    out = io.BytesIO()
    frames[0].save(
        out,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[_FRAME_MS] * (len(frames) - 1) + [_REST_MS],
        loop=0,
        optimize=False,
    )
    return out.getvalue()
