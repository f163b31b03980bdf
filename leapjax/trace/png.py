"""A trace as one picture: the finished canvases, each token with the step that committed it."""

import io

from leapjax.trace.data import Trace
from leapjax.trace.picture import Painter


def render(trace: Trace) -> bytes:
    """The PNG. `trace`: at most a few prompts."""
    out = io.BytesIO()
    image = Painter(trace).frame(max(item.steps for item in trace.items), numbers=True)
    image.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()
