"""Folders on this machine or elsewhere (`gs://`, `s3://`, `memory://`), for a job's files.

Ways to write, the same in both places:

    write     a small file at once; readers see the old content or the new one
    create_new  the same, unless there is one
    Whole     a file that is written bit by bit and appears when it is complete
    Growing   a file that grows; `sync` makes what was written so far survive a crash
    rename    puts a finished file in place

On this machine that is temp + fsync + rename and fsync of the folder. An object store
has whole objects only, so there a growing file is kept in memory and `sync` puts it anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from leapjax.errors import UserError

_READ_BYTES = 2**20  # at once, of a remote file
# Where `pipe_file(mode="create")` is one conditional request: ifGenerationMatch=0 in gcsfs,
# If-None-Match in s3fs. Elsewhere fsspec looks first and writes then.
_EXCLUSIVE = {"gs", "gcs", "s3", "s3a", "memory"}


class Growing(Protocol):
    """A file that grows; nothing counts as written before `sync`."""

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        ...

    def sync(self) -> None:
        """Return once everything written survives a crash."""
        ...

    def close(self) -> None:
        """Let go of it; does not sync."""
        ...


class Whole(Protocol):
    """A file that appears when it is complete, over an older one."""

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        ...

    def publish(self) -> None:
        """Put it in place, to survive a crash."""
        ...

    def discard(self) -> None:
        """Leave nothing, unless it is published."""
        ...


class Folder(Protocol):
    """A folder of files that are named without slashes. Errors are `OSError`.

    Attributes:
      path: as it was given.
      exclusive: `create_new` is decided in one place, so of several callers one succeeds.
    """

    path: str
    exclusive: bool

    def create(self) -> None:
        """Make the folder, and those above it, unless it is there."""
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, by name; folders too, with any number."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if there is none."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file in place, over an older one."""
        ...

    def create_new(self, name: str, data: bytes) -> bool:
        """Put a whole file in place unless there is one; whether it was put."""
        ...

    def grow(self, name: str, keep: int = 0) -> Growing:
        """Open a file for growing, cut to its first `keep` bytes."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file its final name."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...


def is_remote(path: str) -> bool:
    """Whether a path names a place that only a filesystem library reaches."""
    return "://" in path and not path.startswith(("file://", "local://"))


def local_path(path: str) -> str:
    """A local path without its `file://`."""
    return path.removeprefix("file://").removeprefix("local://")


def folder(path: str) -> Folder:
    """The folder at a path, which need not exist yet.

    Args:
      path: a path or URL.

    Raises:
      UserError: no library here knows such URLs.
    """
    return RemoteFolder(path) if is_remote(path) else LocalFolder(local_path(path))


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path inside it.

    Raises:
      UserError: no library here knows such URLs.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as e:
        raise UserError(f"{path}: can't be reached ({e})") from e


def open_read(path: str) -> BinaryIO:
    """Open a file for reading, here or elsewhere.

    Args:
      path: a path or URL.

    Raises:
      OSError: it can't be opened.
      UserError: no library here knows such URLs.
    """
    if not is_remote(path):
        return open(local_path(path), "rb")
    system, inside = filesystem(path)
    with _as_oserror(path):
        # Files of object stores read lines of any length only, and as slowly as bytes.
        return io.BufferedReader(system.open(inside, "rb"), _READ_BYTES)


def whole(path: str) -> Whole:
    """Begin a file that appears when it is complete.

    Args:
      path: a path or URL.

    Raises:
      OSError: it can't be begun.
      UserError: no library here knows such URLs.
    """
    return _RemoteWhole(path) if is_remote(path) else _LocalWhole(local_path(path))


def exists(path: str) -> bool:
    """Whether something is at a path or URL.

    Raises:
      OSError: that can't be found out.
      UserError: no library here knows such URLs.
    """
    if not is_remote(path):
        return os.path.exists(local_path(path))
    system, inside = filesystem(path)
    with _as_oserror(path):
        return system.exists(inside)


def remove(path: str) -> None:
    """Delete a file, if it is there.

    Raises:
      OSError: it can't be deleted.
      UserError: no library here knows such URLs.
    """
    parent, name = os.path.split(path)
    folder(parent or ".").remove(name)


class LocalFolder:
    """A folder on this machine."""

    exclusive = True

    def __init__(self, path: str):
        self.path = path

    def create(self) -> None:  # noqa: D102
        os.makedirs(self.path, exist_ok=True)

    def sizes(self) -> dict[str, int]:  # noqa: D102
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted since; the others are there
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def size(self, name: str) -> int | None:  # noqa: D102
        try:
            return os.stat(self._at(name)).st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:  # noqa: D102
        try:
            with open(self._at(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102
        temporary = f"{name}.new"
        try:
            file = self.grow(temporary)
            try:
                file.write(data)
                file.sync()
            finally:
                file.close()
            self.rename(temporary, name)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise

    def create_new(self, name: str, data: bytes) -> bool:  # noqa: D102
        temporary = f"{name}.{uuid.uuid4().hex}.new"
        self.write(temporary, data)
        try:
            os.link(self._at(temporary), self._at(name))  # the content is there with the name
        except FileExistsError:
            return False
        finally:
            self.remove(temporary)
        return True

    def grow(self, name: str, keep: int = 0) -> Growing:  # noqa: D102
        return _LocalGrowing(self._at(name), keep)

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        os.replace(self._at(old), self._at(new))
        _sync_folder(self.path)

    def remove(self, name: str) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name))

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)


def _sync_folder(path: str) -> None:
    """Make a folder's entries survive a crash."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    except OSError:  # some network filesystems can't; they order renames themselves
        pass
    finally:
        os.close(number)


class _LocalWhole:
    def __init__(self, path: str):
        self._path = os.path.realpath(path)  # a link stays, what it names is written
        parent, name = os.path.split(self._path)
        self._parent = parent
        self._hidden = os.path.join(parent, f".{name}.{os.getpid()}.part")
        self._file: BinaryIO | None = open(self._hidden, "wb")

    def write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)

    def publish(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._hidden, self._path)
        self._file = None
        _sync_folder(self._parent)

    def discard(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # a full disk; what was buffered is not wanted
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._hidden)
        self._file = None


class _LocalGrowing:
    def __init__(self, path: str, keep: int):
        self._file = open(path, "r+b" if keep else "wb", buffering=0)
        if keep:
            self._file.truncate(keep)
            self._file.seek(keep)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # a file without a buffer may take less than all
            view = view[self._file.write(view) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class RemoteFolder:
    """A folder in an object store or the like, through fsspec."""

    def __init__(self, path: str):
        self.path = path.rstrip("/")
        self._system, self._root = filesystem(self.path)
        kinds = self._system.protocol
        self.exclusive = not _EXCLUSIVE.isdisjoint([kinds] if isinstance(kinds, str) else kinds)

    def create(self) -> None:  # noqa: D102
        with _as_oserror(self.path):
            self._system.makedirs(self._root, exist_ok=True)

    def sizes(self) -> dict[str, int]:  # noqa: D102
        with _as_oserror(self.path):
            try:
                self._system.invalidate_cache()
                found = self._system.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        named = {posixpath.basename(f["name"].rstrip("/")): f.get("size") or 0 for f in found}
        # Some stores list the folder itself, as an empty object.
        return {n: size for n, size in named.items() if n and n != posixpath.basename(self._root)}

    def size(self, name: str) -> int | None:  # noqa: D102
        with _as_oserror(self.path):
            try:
                return self._system.size(self._at(name))
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:  # noqa: D102
        with _as_oserror(self.path):
            try:
                return self._system.cat_file(self._at(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:  # noqa: D102
        with _as_oserror(self.path):
            self._system.pipe_file(self._at(name), data)

    def create_new(self, name: str, data: bytes) -> bool:  # noqa: D102
        with _as_oserror(self.path):
            try:
                self._system.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def grow(self, name: str, keep: int = 0) -> Growing:  # noqa: D102
        return _RemoteGrowing(self, name, keep)

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        with _as_oserror(self.path):
            self._system.copy(self._at(old), self._at(new))
        self.remove(old)

    def remove(self, name: str) -> None:  # noqa: D102
        with _as_oserror(self.path), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class _RemoteWhole:
    """Written beside its place and copied there: not every store hides unfinished files."""

    def __init__(self, path: str):
        self._path = path
        parent, name = path.rsplit("/", 1)
        self._hidden = f"{parent}/.{name}.part"
        self._system, inside = filesystem(self._hidden)
        with _as_oserror(path):
            self._file: Any = self._system.open(inside, "wb")

    def write(self, data: bytes) -> None:
        with _as_oserror(self._path):
            self._file.write(data)

    def publish(self) -> None:
        with _as_oserror(self._path):
            self._file.close()
            self._system.copy(filesystem(self._hidden)[1], filesystem(self._path)[1])
        self.discard()

    def discard(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(Exception):
            if not self._file.closed:
                self._file.discard()
        with contextlib.suppress(Exception):
            self._system.rm_file(filesystem(self._hidden)[1])
        self._file = None


class _RemoteGrowing:
    def __init__(self, folder: RemoteFolder, name: str, keep: int):
        self._folder, self._name = folder, name
        self._content = bytearray((folder.read(name) or b"")[:keep] if keep else b"")

    def write(self, data: bytes) -> None:
        self._content += data

    def sync(self) -> None:
        self._folder.write(self._name, bytes(self._content))

    def close(self) -> None:
        self._content = bytearray()


@contextlib.contextmanager
def _as_oserror(path: str) -> Iterator[None]:
    """Whatever a filesystem library raises becomes an OSError of one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split()) or "failed"
        raise OSError(f"{path}: {type(e).__name__}: {reason}") from e
