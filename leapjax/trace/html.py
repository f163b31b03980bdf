"""A trace as one self-contained page: data, style and script in one file, no requests.

The texts of prompts and answers travel as JSON in which no character can end the element,
and reach the page as text nodes only. The content security policy allows this page's own
style and script, by their hashes, and nothing else.
"""

import base64
import hashlib
import html
import importlib.resources
import json
from typing import Any

from leapjax.trace.data import KINDS, Trace

_HOSTILE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render(trace: Trace) -> bytes:
    """The page, in UTF-8."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    content = trace.to_json() | {"kinds": {k: list(v) for k, v in KINDS.items()}}
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(f"Decoding trace: {trace.model}"),
        "SETTINGS": html.escape(trace.settings),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": _json(content),
    }
    # Cut once, so that nothing inside a part is taken for a place.
    page = []
    for n, piece in enumerate(_asset("page.html").split("%%")):
        page.append(parts[piece] if n % 2 else piece)
    return "".join(page).encode()


def _asset(name: str) -> str:
    return (importlib.resources.files("leapjax.trace") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _json(value: dict[str, Any]) -> str:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character, escape in _HOSTILE.items():
        text = text.replace(character, escape)
    return text
