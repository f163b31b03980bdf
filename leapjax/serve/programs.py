"""A folder of compiled programs, so that a run need not compile what another machine did.

    plan --save DIR        Executable ─▶ header + executables as jax pickles them ─▶ DIR/….program
    decode --programs DIR  headers of DIR ─▶ all made by this code, for devices like these?
                           program of a lane ─▶ its file ─▶ executables on the lane's devices

A file is named after what its program computes: a hash of the header's `computes`. Its first line
is the header, as JSON. The executables behind it are pickles, and loading one runs what it says:
a folder must be trusted. The header is read, and compared, before anything is unpickled; its
digest of the rest finds damage, not malice.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental import serialize_executable

from leapjax import storage
from leapjax.decoding import Program
from leapjax.errors import UserError
from leapjax.ops import hardware
from leapjax.progress import note
from leapjax.serve.lowering import lower_between, structures
from leapjax.sharding import Placement, local_devices
from leapjax.wording import plural

if TYPE_CHECKING:
    from leapjax.serve.executables import Executable

_SUFFIX = ".program"
_FORMAT = 1

# The parts of the package that a compiled program is made of.
_SOURCES = """
    caches decoding models native ops policies types.py sharding.py serve/lowering.py
""".split()


class Programs:
    """The programs of a folder.

    Args:
      path: the folder, a path or a URL. Its files are unpickled: it must be trusted.
      compiles: whether what is missing is compiled; if not, it ends the run.
      device: that the programs are for; None is one of this process's.

    Raises:
      UserError: a file was made by other code, or for other devices; it says which field differs.
    """

    def __init__(self, path: str, compiles: bool = True, device: Any = None):
        self.path, self.compiles = path, compiles
        self._folder = storage.folder(path)
        self._here = _here(device or local_devices()[0])
        self._missed: set[Program] = set()
        try:
            names = sorted(n for n in self._folder.sizes() if n.endswith(_SUFFIX))
            self.headers = {name: self._header(name) for name in names}
        except OSError as e:
            raise UserError(f"{path}: can't be read ({e.strerror or e})") from e

    def _header(self, name: str) -> dict[str, Any]:
        where = f"{self.path}/{name}"
        with storage.open_read(where) as file:
            line = file.readline()
        try:
            header = json.loads(line)
            made, known = header["made"], {"computes", "mesh", "rows", "parts", "digest"}
            if not known <= header.keys() or not isinstance(made, dict):
                raise KeyError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where}: is no saved program; remove it") from None
        for field, here in self._here.items():
            if made.get(field) != here:
                raise UserError(
                    f"{where}: was saved with {field} {made.get(field)}, here it is {here}; save "
                    "the programs anew (leapjax plan --save), in an empty folder"
                )
        return header

    def agreed(self, field: str) -> Any:
        """What all files say of `mesh` or `rows`, which count all replicas; they must agree."""
        found = {header[field] for header in self.headers.values()}
        if len(found) > 1:
            flag = {"mesh": "--mesh", "rows": "--batch-size"}[field]
            each = ", ".join(sorted(map(str, found)))
            raise UserError(f"{self.path}: was saved with several {flag} ({each}); name one")
        return found.pop()

    def find(
        self, program: Program, slots: int, params, placement: Placement | None
    ) -> dict[str, Callable[[], jax.stages.Compiled]] | None:
        """What loads the executables of a lane, by name; None if the folder lacks them.

        `params` are the arranged weights, on the devices of `placement`.
        """
        name = _name(_computes(program, slots, params, placement))
        header = self.headers.get(name)
        if header is None:
            return None
        try:
            data = self._folder.read(name) or b""
        except OSError as e:
            raise UserError(f"{self.path}/{name}: can't be read ({e.strerror or e})") from e
        body = data[data.find(b"\n") + 1 :]
        if hashlib.sha256(body).hexdigest() != header["digest"]:
            raise UserError(f"{self.path}/{name}: is damaged; save the programs anew")
        made, start = {}, 0
        trees, devices = structures(params, program, slots), _devices(placement)
        for part, size in header["parts"]:
            whole = body[start : start + size]
            made[part] = functools.partial(
                _load, f"{self.path}/{name}", whole, *trees[part], devices
            )
            start += size
        return made

    def miss(
        self, what: str, program: Program, slots: int, params, placement: Placement | None
    ) -> None:
        """Say that there is no program for `what`; a `UserError` if nothing shall be compiled."""
        wanted = _flat(_computes(program, slots, params, placement))
        others = {n: _differences(_flat(h["computes"]), wanted) for n, h in self.headers.items()}
        nearest = min(others, key=lambda name: len(others[name]), default=None)
        why = f"; {nearest} differs in {', '.join(others[nearest])}" if nearest else ""
        line = f"{self.path}: no program for {what}, {plural(slots, 'row')} at once{why}"
        if self.compiles:
            if program not in self._missed:
                note(f"{line}; compiling")
            self._missed.add(program)
            return
        prompt = program.length - program.gen_length
        raise UserError(
            f"{line}; bring it (leapjax plan --save {self.path} --prompt-length {prompt} with this "
            "run's options), or leave out --no-compile"
        )

    def save(self, lane: Executable, mesh: str | None, rows: int) -> tuple[str, int]:
        """Write the programs of one replica; gives the file's name and its size in bytes.

        `mesh` (None is the default device) and `rows` are of all replicas.
        """
        program, slots, placement = lane.program, lane.slots, lane.replica.placement
        between = {n: x.compile() for n, x in lower_between(program, slots, placement).items()}
        made = {**lane.executables, **between}
        parts = {n: serialize_executable.serialize(x)[0] for n, x in made.items()}
        body = b"".join(parts.values())
        computes = _computes(program, slots, lane.replica.params, placement)
        header = {
            "made": self._here,
            "computes": computes,
            "mesh": mesh,
            "rows": rows,
            "parts": [[name, len(part)] for name, part in parts.items()],
            "digest": hashlib.sha256(body).hexdigest(),
        }
        name = _name(computes)
        try:
            self._folder.create()
            self._folder.write(name, json.dumps(header).encode() + b"\n" + body)
        except OSError as e:
            raise UserError(f"{self.path}: can't be written ({e.strerror or e})") from e
        self.headers[name] = header
        return name, len(body)


def _load(where: str, data: bytes, takes, gives, devices) -> jax.stages.Compiled:
    try:
        return serialize_executable.deserialize_and_load(
            data, takes, gives, backend=devices[0].client, execution_devices=devices
        )
    except Exception as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{where}: can't be loaded here ({reason}); save it anew") from e


def _here(device: Any) -> dict[str, Any]:
    """The part of a header that must be the same in all files and here."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    found = hardware.described(device)
    if found["platform"] == "tpu" and importlib.util.find_spec("libtpu"):
        versions["libtpu"] = importlib.metadata.version("libtpu")
    return {"format": _FORMAT, **versions, "code": _code(), **found}


@functools.cache
def _code() -> str:
    """A hash of the code that programs are compiled from."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for place in _SOURCES:
        inside = [root / place] if place.endswith(".py") else sorted((root / place).rglob("*"))
        for file in inside:
            if file.suffix in (".py", ".cc"):
                found.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def _computes(program: Program, slots: int, params, placement: Placement | None) -> dict[str, Any]:
    """What a program computes, and where: everything that its code depends on."""
    fields = {f.name: repr(getattr(program, f.name)) for f in dataclasses.fields(program)}
    leaves, structure = jax.tree.flatten(params)
    form = [str(structure), *(f"{x.shape} {x.dtype}" for x in leaves)]
    return {
        "program": fields,
        "slots": slots,
        "replica": "" if placement is None else str(dict(placement.mesh.shape)),
        "devices": [device.id for device in _devices(placement)],
        "weights": hashlib.sha256("\n".join(form).encode()).hexdigest()[:16],
    }


def _devices(placement: Placement | None) -> list[Any]:
    return local_devices()[:1] if placement is None else list(placement.mesh.devices.flat)


def _name(computes: Mapping[str, Any]) -> str:
    text = json.dumps(computes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16] + _SUFFIX


def _flat(computes: Mapping[str, Any]) -> dict[str, Any]:
    return {**computes["program"], **{k: v for k, v in computes.items() if k != "program"}}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields that differ, in words."""
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    long = ("model", "weights")  # shapes, and hashes, which say nothing
    return [
        name if name in long else f"{name} ({found.get(name)}, not {wanted.get(name)})"
        for name in names
    ]
