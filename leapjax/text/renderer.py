"""Runs chat templates, untrusted jinja2 that comes with a checkpoint, in a process of its own.

The environment offers what published templates expect (the conventions of the `transformers`
library). A template may write what it likes, so its limits lie outside its language: the
operating system's, on this process. One JSON object a line comes in and one goes out:

    {"source", "values", "memory", "seconds"}  ->  {"text", "who"} or {"error"}

`leapjax.text.template` starts this process and speaks to it. Nothing here imports jax, so that
it starts in a tenth of a second.
"""

import contextlib
import datetime
import functools
import json
import re
import signal
import sys
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.meta
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

from leapjax.text import provenance
from leapjax.text.provenance import ASSISTANT, TEMPLATE, USER, author, covered, lifted

_LARGEST = 1 << 24  # characters that a template may write
# Filters that make new text; the others pass on what they are given.
_MAKING = (
    "capitalize center e escape filesizeformat forceescape format indent lower pprint replace "
    "string striptags title tojson trim truncate upper urlencode urlize wordwrap xmlattr"
).split()
# Those of them that use nothing but methods that keep account.
_EXACT = "capitalize format lower replace string trim truncate upper".split()


class _Generator(jinja2.compiler.CodeGenerator):
    """Compiles `a ~ b` to an operation that keeps account of who wrote what."""

    def visit_Concat(self, node, frame):
        """Write the call."""
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            return super().visit_Concat(node, frame)
        self.write("environment.concat(map(environment.finalize, (")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")))")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox, where text keeps account of who wrote it (`provenance`)."""

    code_generator_class = _Generator
    concat = staticmethod(provenance.concat)
    intercepted_binops = frozenset({"%"})

    def call_binop(self, context, operator, left, right):
        """Format with `%`."""
        if isinstance(left, str) and not hasattr(left, "__html__"):
            return provenance.percent(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context, __obj, *args, **kwargs):  # noqa: B902 - as in jinja2
        """Call a method of a string so that it keeps account of its arguments."""
        if type(getattr(__obj, "__self__", None)) is str:
            __obj = getattr(lifted(__obj.__self__), __obj.__name__)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value):
        """`str.format` and `str.format_map`, which jinja2 asks about at every access."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None or hasattr(value.__self__, "__html__"):
            return wrapped
        form, formatter = value.__self__, jinja2.sandbox.SandboxedFormatter(self)

        def call(*args, **kwargs):
            if value.__name__ == "format_map":
                args, kwargs = (), dict(*args, **kwargs)
            return provenance.formatted(form, args, kwargs, formatter)

        return call

    def is_safe_attribute(self, obj, attr, value):
        """Text stays text: bytes would keep no account."""
        if isinstance(obj, str) and attr == "encode":
            return False
        return super().is_safe_attribute(obj, attr, value)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which training code uses; here its body is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser):
        """Parse the tag into a plain scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _finalize(value: Any) -> str:
    """What `{{ value }}` writes."""
    if isinstance(value, provenance.Escaped):
        return provenance.Sourced(value, provenance.who_of(value))
    if isinstance(value, str):
        return value
    return str(value) if author(value) == TEMPLATE else covered(str(value), value)


def _keeping(name: str, make):
    """A filter that makes text, keeping account of who wrote it."""

    @functools.wraps(make)
    def call(*args, **kwargs):
        given = [a for a in args if not isinstance(a, _CONTEXTS)]
        if author(given) == author(kwargs) == TEMPLATE:
            result = make(*args, **kwargs)
            return covered(result, given) if hasattr(result, "__html__") else result
        kwargs = {k: lifted(v) for k, v in kwargs.items()}
        result = make(*map(lifted, args), **kwargs)
        exact = name in _EXACT and isinstance(result, provenance.Sourced)
        return result if exact else covered(result, (given, kwargs))

    return call


_CONTEXTS = (jinja2.Environment, jinja2.runtime.Context, jinja2.nodes.EvalContext)


@jinja2.pass_environment
def _join(env, value, d="", attribute=None):
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(env, attribute), value)
    return lifted(_finalize(d)).join(map(_finalize, value))


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # jinja's own filter escapes for HTML, which no model was trained on
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message):
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return covered(datetime.datetime.now().strftime(form), form)


@functools.lru_cache(8)
def _compiled(source: str) -> tuple[jinja2.Template, set[str]]:
    """A template, and the names of the variables that it reads."""
    env = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        finalize=_finalize,
    )
    env.filters |= {"tojson": _tojson}
    env.filters |= {name: _keeping(name, env.filters[name]) for name in _MAKING}
    env.filters |= {"join": _join, "safe": provenance.safe}
    env.globals |= {"raise_exception": _raise, "strftime_now": _now}
    parsed = env.parse(source)
    if parsed.find(jinja2.nodes.EvalContextModifier):
        raise jinja2.TemplateError("autoescape blocks are not supported")
    return env.from_string(parsed), _reads(parsed) - {*env.globals}


def _reads(parsed: jinja2.nodes.Template) -> set[str]:
    """Variables that a template takes from outside; its own count where it asks for them first."""
    names = [n for n in parsed.find_all(jinja2.nodes.Name) if n.ctx == "store"]
    asked = [t.node for t in parsed.find_all(jinja2.nodes.Test) if t.name == "defined"]
    own = {n.name for n in names} - {n.name for n in asked if isinstance(n, jinja2.nodes.Name)}
    return jinja2.meta.find_undeclared_variables(parsed) - own


def _message(message: dict) -> dict:
    """A message as the template sees it; its role is one of the words that chat formats use."""
    writer = ASSISTANT if message["role"] == "assistant" else USER
    rest = {k: v for k, v in message.items() if k != "role"}
    return {"role": message["role"], **provenance.told(rest, writer)}


def render(source: str, values: dict | None) -> dict:
    """Render a template.

    `values`: its variables, `messages` among them, and `options`, further ones that a user set;
    None only compiles it. Returns `text`, and `who` as (count, author) pairs; compiled only:
    `reads`, the names of the variables; or `error`, one line.
    """
    try:
        template, reads = _compiled(source)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as e:
        return {"error": f"the chat template can't be compiled: {_line(e)}"}
    if values is None:
        return {"reads": sorted(reads)}
    options = provenance.told(values.pop("options", {}), USER)
    values = {**options, **values, "messages": [_message(m) for m in values["messages"]]}
    pieces, length = [], 0
    try:
        for piece in template.generate(values):
            length += len(piece)
            if length > _LARGEST:
                raise jinja2.TemplateError(f"it wrote more than {_LARGEST} characters")
            pieces.append(piece)
        text = provenance.concat(pieces)
    except MemoryError:
        raise
    except Exception as e:  # whatever a stranger's template does
        return {"error": f"the chat template does not take this conversation: {_line(e)}"}
    runs = re.finditer(r"(.)\1*", provenance.who_of(text))
    return {"text": text, "who": [(len(run[0]), run[1]) for run in runs]}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _limit(memory: int, seconds: float) -> None:
    """Let the operating system end what goes beyond; what it doesn't offer is not limited."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))


def serve() -> None:
    """Answer requests until the input ends, as it does when the other side is gone."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit(request["memory"], request["seconds"])
        spent = False
        try:
            answer = render(request["source"], request["values"])
        except MemoryError:
            spent, answer = True, {"error": "memory"}
        _limit(request["memory"], 0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        if spent:
            return
