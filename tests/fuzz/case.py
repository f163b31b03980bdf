"""A fuzz case: a golden checkpoint, and the edits that its files get. Plain data, so that it stays.

A case is drawn from (kind, checkpoint, seed) and written down as one line of JSON. The line
repeats the case even after the code that drew it has changed; `regressions.jsonl` keeps those
lines that failed once.

Edits, in order, each a list that begins with its name:

    ["set", FILE, PATH, VALUE]       a value in a JSON file; an absent file starts as {}
    ["literal", FILE, PATH, TEXT]    the same, TEXT being any spelling of a JSON value
    ["drop", FILE, PATH]             without a key or list item
    ["twice", FILE, KEY, VALUE]      a top-level key that occurs a second time
    ["encode", FILE, CODING]         the file's text in another coding
    ["text", FILE, TEXT]             a file's whole content
    ["bytes", FILE, OFFSET, LATIN1]  bytes overwritten
    ["insert", FILE, OFFSET, LATIN1] bytes put in between
    ["cut", FILE, N]                 only the first N bytes
    ["copy", FILE, NAME]             the same content under another name
    ["move", FILE, NAME]             another name
    ["delete", FILE]                 no such file
    ["header", FILE, PATH, VALUE]    a value in a safetensors header, its length adjusted
    ["header-drop", FILE, PATH]      without a key of the header
    ["length", FILE, N]              the header's length as the file claims it
"""

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"
CHECKPOINTS = sorted(p.parent.name for p in GOLDEN.glob("*/config.json"))


@dataclasses.dataclass
class Case:
    """What is tried.

    Attributes:
      kind: name in `kinds.KINDS`.
      checkpoint: folder of tests/golden.
      seed: what it was drawn from, for reading only.
      edits: of the checkpoint's files; see above.
      extra: what the kind needs besides (messages, a record file, arguments).
    """

    kind: str
    checkpoint: str
    seed: int
    edits: list = dataclasses.field(default_factory=list)
    extra: dict = dataclasses.field(default_factory=dict)

    def line(self):
        """One line of JSON that repeats the case."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_line(cls, line):
        return cls(**json.loads(line))

    def write(self, folder):
        """The checkpoint with the edits made, at `folder`."""
        shutil.copytree(GOLDEN / self.checkpoint, folder)
        for name, file, *rest in self.edits:
            if name in _NEED_NO_FILE or (folder / file).exists():
                _EDITS[name](folder / file, *rest)
        return folder

    def changes(self, *names):
        """Whether an edit touches a file whose name begins so."""
        return any(edit[1].startswith(names) for edit in self.edits)


def _load(path):
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):  # damaged by an edit before this one
        return {}


def _reach(value, path):
    """The container that holds the last key of `path`, or None."""
    for key in path[:-1]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    if isinstance(value, dict) or (isinstance(value, list) and isinstance(path[-1], int)):
        return value
    return None


def _put(value, path, new):
    if not path:
        return new
    place = _reach(value, path)
    if isinstance(place, list) and path[-1] >= len(place):
        place.append(new)
    elif place is not None:
        place[path[-1]] = new
    return value


def _pull(value, path):
    place = _reach(value, path)
    if isinstance(place, dict):
        place.pop(path[-1], None)
    elif place is not None and path[-1] < len(place):
        del place[path[-1]]
    return value


def _set(path, keys, value):
    path.write_text(json.dumps(_put(_load(path), keys, value)))


def _literal(path, keys, text):
    path.write_text(json.dumps(_put(_load(path), keys, "<literal>")).replace('"<literal>"', text))


def _drop(path, keys):
    path.write_text(json.dumps(_pull(_load(path), keys)))


def _twice(path, key, value):
    text = json.dumps(_load(path)).rstrip()[:-1]
    path.write_text(f"{text}, {json.dumps(key)}: {json.dumps(value)}}}")


def _encode(path, coding):
    path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode(coding, "replace"))


def _text(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _bytes(path, offset, latin):
    new = latin.encode("latin-1")
    data = path.read_bytes()
    path.write_bytes(data[:offset] + new + data[offset + len(new) :])


def _insert(path, offset, latin):
    data = path.read_bytes()
    path.write_bytes(data[:offset] + latin.encode("latin-1") + data[offset:])


def _cut(path, count):
    path.write_bytes(path.read_bytes()[:count])


def _copy(path, name):
    (path.parent / name).write_bytes(path.read_bytes())


def _move(path, name):
    os.replace(path, path.parent / name)


def split_header(path):
    """(header as an object, the bytes behind it) of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _header(path, keys, value, change=_put):
    header, data = split_header(path)
    text = json.dumps(change(header, keys, *value)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _length(path, count):
    path.write_bytes(struct.pack("<Q", count) + path.read_bytes()[8:])


_NEED_NO_FILE = ("set", "literal", "text")
_EDITS = {
    "set": _set,
    "literal": _literal,
    "drop": _drop,
    "twice": _twice,
    "encode": _encode,
    "text": _text,
    "bytes": _bytes,
    "insert": _insert,
    "cut": _cut,
    "copy": _copy,
    "move": _move,
    "delete": lambda path: path.unlink(missing_ok=True),
    "header": lambda path, keys, value: _header(path, keys, [value]),
    "header-drop": lambda path, keys: _header(path, keys, [], _pull),
    "length": _length,
}
