"""Which kind of file a trace becomes, and the rules of an output file."""

import os
from pathlib import Path

from leapjax.errors import UserError
from leapjax.outputs import Whole, check_output
from leapjax.trace.data import Trace

SUFFIXES = (".html", ".gif", ".png")
PICTURES = (".gif", ".png")
MOST_IN_PICTURE = 4  # prompts, one above the other


def check_path(path: str, overwrite: bool) -> None:
    """Refuse a path that can't become a trace, before any work is done.

    `overwrite`: an existing file may be replaced. Raises UserError: unknown suffix, no such folder,
    in the way, or a library is missing.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise UserError(f"trace {path}: not a file name that ends in {', '.join(SUFFIXES)}")
    check_output(path, overwrite, suffixes=(os.path.splitext(path)[1],), what="trace")
    if suffix in PICTURES:
        from leapjax.trace import picture

        picture.check_libraries()


def check_count(path: str, count: int) -> None:
    """Refuse more prompts than a picture can show.

    `count`: prompts. Raises UserError: too many for a picture; a page is only bounded by its size.
    """
    if os.path.splitext(path)[1].lower() in PICTURES and count > MOST_IN_PICTURE:
        raise UserError(
            f"trace {path}: a picture shows at most {MOST_IN_PICTURE} prompts, not {count}; "
            f"add --limit {MOST_IN_PICTURE} or write an .html page"
        )


def render(trace: Trace, suffix: str) -> bytes:
    """The file's content."""
    from leapjax.trace import html, picture

    return {".html": html.render, ".gif": picture.gif, ".png": picture.png}[suffix](trace)


def write(trace: Trace, path: str | Path, overwrite: bool = False) -> None:
    """Write a trace as a page or picture; the file appears whole or not at all.

    `path`: ends in `.html`, `.gif` or `.png`; a path or a URL; `overwrite`: an existing file may be
    replaced. Raises UserError: the path can't be written, or too many prompts for a picture.
    """
    path = str(path)
    check_path(path, overwrite)
    check_count(path, len(trace.items))
    content = render(trace, os.path.splitext(path)[1].lower())
    try:
        file = Whole(path)
        try:
            file.write(content)
            file.publish()
        finally:
            file.discard()
    except OSError as e:
        raise UserError(f"trace {path}: can't be written ({e.strerror or e})") from e
