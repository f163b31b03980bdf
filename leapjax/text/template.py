"""Chat templates: untrusted jinja2 that comes with a checkpoint, run in a sandbox.

The environment offers what published templates expect (the conventions of the
`transformers` library), with bounds on how much a template can produce.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from leapjax.errors import UserError

_LARGEST = 1 << 26  # characters that a template may produce, or multiply a string to


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox, without products that would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context, operator, left, right):
        """Refuse giant repetitions and powers."""
        if operator == "**" and isinstance(right, int) and abs(right) > 1024:
            raise jinja2.TemplateError(f"power {right} is too large")
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int):
                if len(one) * other > _LARGEST:
                    raise jinja2.TemplateError("a repetition is too large")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which training code uses; here its body is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser):
        """Parse the tag into a plain scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # jinja's own filter escapes for HTML, which no model was trained on
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class ChatTemplate:
    """A compiled chat template.

    Args:
      source: the template's text.
      names: special token spellings that the template may use, by name.

    Raises:
      UserError: the template has a syntax error.
    """

    def __init__(self, source: str, names: Mapping[str, str]):
        env = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise
        env.globals["strftime_now"] = _now
        self.source = source
        self._names = dict(names)
        try:
            self._template = env.from_string(source)
        except (jinja2.TemplateError, RecursionError) as e:
            raise UserError(f"the chat template can't be compiled: {_line(e)}") from e

    def render(self, messages: Sequence[Mapping[str, Any]], reply: bool = True) -> str:
        """Write a conversation down as the model was trained to see it.

        Args:
          messages: objects with `role` and `content`.
          reply: end where the assistant's next turn begins.

        Raises:
          UserError: the template refuses the conversation or fails on it.
        """
        values = dict(
            self._names,
            messages=[dict(m) for m in messages],
            add_generation_prompt=reply,
            tools=None,
            documents=None,
        )
        pieces, length = [], 0
        try:
            for piece in self._template.generate(values):
                length += len(piece)
                if length > _LARGEST:
                    raise jinja2.TemplateError(f"it wrote more than {_LARGEST} characters")
                pieces.append(piece)
        except Exception as e:  # whatever a stranger's template does
            raise UserError(f"the chat template does not take this conversation: {_line(e)}") from e
        return "".join(pieces)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
