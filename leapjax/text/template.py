"""Chat templates: where they run, and how to speak to them.

One small process for each process of ours renders all templates (`leapjax.text.renderer`). It
starts with the first template, and ends when ours does, however that happens: its input ends
then. The operating system limits its memory and its processor time, so that no template can
fill the memory or run for ever, whatever it computes.
"""

import atexit
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leapjax.errors import UserError

MEMORY = 1 << 30  # bytes of address space that rendering may use
SECONDS = 10.0  # of processor time for one conversation

# The renderer's packages are empty here, so that it imports its own few modules and not jax.
_START = """
import json, sys, types
sys.path[:], folder = json.loads(sys.argv[1])
for name, path in (("leapjax", folder), ("leapjax.text", folder + "/text")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from leapjax.text.renderer import serve
serve()
"""
_GIVEN = ("messages", "add_generation_prompt", "tools", "documents")
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Renderer:
    """The process that renders, as its users see it: one answer for each request."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Start the process if it isn't there, without waiting for it."""
        with self._lock:
            self._running()

    def ask(self, source: str, values: dict | None) -> dict:
        """Have a template rendered.

        `values`: its variables, or None to compile it only. Raises UserError: it does not compile,
        fails, or goes beyond the limits.
        """
        request = {"source": source, "values": values, "memory": MEMORY, "seconds": SECONDS}
        try:
            line = json.dumps(request, default=_json).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as e:
            raise UserError(f"the messages can't be written as JSON: {e}") from e
        with self._lock:
            # A process that somebody else ended is no fault of the template's; ask once more.
            for _ in range(2):
                process = self._running()
                try:
                    answer = self._exchange(process, line)
                except BaseException:  # an interrupt: the answer would meet the next question
                    self._end(1.0)
                    raise
                if answer:
                    break
                if self._end(1.0) == -getattr(signal, "SIGPROF", 0):
                    raise UserError(f"the chat template takes more than {SECONDS:g} s; use another")
            else:
                raise UserError("the chat template ends the process that renders it; use another")
            found = json.loads(answer)
            if found.get("error") == "memory":
                self._end(1.0)
                raise UserError(f"the chat template needs more than {MEMORY >> 20} MiB of memory")
        if "error" in found:
            raise UserError(found["error"])
        return found

    def stop(self) -> None:
        """End the process."""
        if self._lock.acquire(timeout=1.0):
            try:
                self._end(1.0)
            finally:
                self._lock.release()

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is not None:
            self._end(0.0)
        if self._process is None:
            paths = json.dumps([[os.path.abspath(p) for p in sys.path], str(_PACKAGE)])
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _START, paths],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C is for us
                )
            except OSError as e:
                raise UserError(f"can't start the process that renders chat templates ({e})") from e
            self._answers = io.BufferedReader(self._process.stdout)  # type: ignore[arg-type]
        return self._process

    def _exchange(self, process: subprocess.Popen, line: bytes) -> bytes:
        """The answer's line, empty if the process ended instead."""
        left = memoryview(line)
        with contextlib.suppress(BrokenPipeError):
            while left:
                left = left[process.stdin.write(left) :]  # type: ignore[union-attr]
        return self._answers.readline()

    def _end(self, patience: float) -> int | None:
        """Let go of the process; its exit status, if there was one."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._answers.close()
        return process.returncode

    def _forget(self) -> None:
        """In a forked child: the process is the parent's."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.stdin.close()  # type: ignore[union-attr]
            self._process.stdout.close()  # type: ignore[union-attr]
            self._process.returncode = 0  # or its destructor would wait for it
            self._process = None


_PACKAGE = Path(__file__).parents[1]
_RENDERER = _Renderer()
start = _RENDERER.start


class ChatTemplate:
    """A chat template.

    `names`: special token spellings that the template may use, by name. `options`: names of the
    variables that it reads besides those that every template is given.
    """

    def __init__(self, source: str, names: Mapping[str, str]):
        self.source = source
        self._names = dict(names)
        reads = _RENDERER.ask(source, None)["reads"]
        self.options = [n for n in reads if n not in _GIVEN and not n.endswith("_token")]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        reply: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]:
        """Write a conversation down as the model was trained to see it.

        `reply`: end where the assistant's next turn begins; `options`: values of variables in
        `options`; the others stay undefined. Returns the text, and as long a string that says who
        wrote each character of it (`leapjax.text.provenance`).
        """
        values = dict(
            self._names,
            messages=[_message(m) for m in messages],
            add_generation_prompt=reply,
            tools=None,
            documents=None,
            options=dict(options or {}),
        )
        found = _RENDERER.ask(self.source, values)
        return found["text"], "".join(who * count for count, who in found["who"])


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates see it: no nulls, its reasoning under each of the usual names."""
    message = {k: v for k, v in message.items() if v is not None}
    reasoning = next((message[k] for k in _REASONING if k in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _json(value: Any) -> Any:
    """What JSON knows nothing of: other mappings, numpy's numbers and arrays."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
