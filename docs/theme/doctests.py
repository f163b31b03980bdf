"""The examples of docstrings as code, wherever in the docstring they stand."""

from __future__ import annotations

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.M)


class Doctests(griffe.Extension):
    """Fences each paragraph that begins with `>>>`."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Change an object's docstring once it is read."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
