"""Files and folders on this machine or elsewhere (`gs://`, `s3://`, `memory://`).

Ways to write, the same in both places:

    write       a small file at once; readers see the old content or the new one
    create_new  the same, unless the file exists
    grow        a file that grows; `sync` makes what was written so far survive a crash
    rename      puts a finished file in place
    rename_new  the same, unless the name is taken

On this machine that is a temporary file, fsync, rename, and fsync of the folder. An object store
has whole objects only, so there a growing file is kept in memory and `sync` puts it anew.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import posixpath
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from leapjax.errors import UserError

_READ_BYTES = 2**20  # at once, of a remote file
_PAUSES = (0.1, 0.5, 1.5)  # seconds before a call that a remote store failed is tried again
# Where a filesystem has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
# Where `pipe_file(mode="create")` is one conditional request: ifGenerationMatch=0 in gcsfs,
# If-None-Match in s3fs. Elsewhere fsspec looks first and writes then.
_EXCLUSIVE = {"gs", "gcs", "s3", "s3a", "memory"}


def is_remote(path: str) -> bool:
    """Whether only a filesystem library reaches a path.

    >>> is_remote("gs://bucket/out"), is_remote("file:///tmp/out")
    (True, False)
    """
    return "://" in path and not path.startswith(("file://", "local://"))


def local_path(path: str) -> str:
    """A local path without its `file://`."""
    return path.removeprefix("file://").removeprefix("local://")


def folder(path: str) -> Folder:
    """The folder at a path or URL, which need not exist yet."""
    return Folder(path) if is_remote(path) else LocalFolder(local_path(path))


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path inside it; raises as `folder`."""
    try:
        import fsspec
    except ImportError as e:
        raise UserError(f"{path}: needs fsspec; install leapjax[gcs] or leapjax[s3]") from e
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as e:
        raise UserError(f"{path}: can't be reached ({e})") from e


def open_read(path: str) -> BinaryIO:
    """Open the file at a path or URL for reading.

    Raises OSError: it can't be opened; UserError: no installed library knows such URLs.
    """
    if not is_remote(path):
        return open(local_path(path), "rb")
    system, inside = filesystem(path)
    with _as_oserror(path):
        # Files of object stores read lines of any length only, and as slowly as bytes.
        return io.BufferedReader(system.open(inside, "rb"), _READ_BYTES)


def exists(path: str) -> bool:
    """Whether something is at a path or URL; raises as `open_read`."""
    parent, name = split(path)
    return name in parent.sizes()


def remove(path: str) -> None:
    """Delete the file at a path or URL, if it exists; raises as `open_read`."""
    parent, name = split(path)
    parent.remove(name)


def split(path: str) -> tuple[Folder, str]:
    """The folder of a file, and the file's name there."""
    parent, slash, name = path.rpartition("/")
    return folder(parent + slash or "."), name


class Growing:
    """A file that grows; nothing counts as written before `sync`.

    `keep`: bytes of its content that stay.
    """

    def __init__(self, path: str, keep: int = 0):
        self._file = open(path, "r+b" if keep else "wb", buffering=0)
        if keep:
            self._file.truncate(keep)
            self._file.seek(keep)

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        view = memoryview(data)
        while view:  # a file without a buffer may take less than all
            view = view[self._file.write(view) :]

    def sync(self) -> None:
        """Return once everything written survives a crash."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; does not sync."""
        self._file.close()


@contextlib.contextmanager
def _as_oserror(path: str) -> Iterator[None]:
    """Whatever a filesystem library raises becomes an `OSError` of one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split()) or "failed"
        raise OSError(f"{path}: {type(e).__name__}: {reason}") from e


class Folder:
    """A folder of files whose names have no slashes, through fsspec. Errors are `OSError`.

    `exclusive`: `create_new` is decided in one place, so of several callers one succeeds.
    """

    def __init__(self, path: str):
        self.path = path.rstrip("/")
        self._system, root = filesystem(path)
        self._root = root.rstrip("/")
        kinds = self._system.protocol
        self.exclusive = not _EXCLUSIVE.isdisjoint([kinds] if isinstance(kinds, str) else kinds)

    def create(self) -> None:
        """Make the folder, and those above it, unless it exists."""
        self._call("makedirs", self._root, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, by name; folders too, with any number."""
        try:
            self._system.invalidate_cache()
            found = self._call("ls", self._root, detail=True)
        except FileNotFoundError:
            return {}
        named = {posixpath.basename(f["name"].rstrip("/")): f.get("size") or 0 for f in found}
        # Some stores list the folder itself, as an empty object.
        return {n: size for n, size in named.items() if n and n != posixpath.basename(self._root)}

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self._call("cat_file", self._at(name))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """The content of several files by name, None where there is none."""
        paths = {name: self._at(name) for name in names}
        if not paths:
            return {}
        found = self._call("cat", [*paths.values()], on_error="return")
        whole = {n: d for n, p in paths.items() if isinstance(d := found.get(p), bytes)}
        return {name: whole[name] if name in whole else self.read(name) for name in paths}

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file in place, over an older one."""
        self._call("pipe_file", self._at(name), data)

    def create_new(self, name: str, data: bytes) -> bool:
        """Put a whole file in place unless it exists; False also if a store failed after that."""
        with contextlib.suppress(FileExistsError):
            self._call("pipe_file", self._at(name), data, mode="create")
            return True
        return False

    def grow(self, name: str, keep: int = 0) -> Growing:
        """Open a file for growing, cut to its first `keep` bytes."""
        return _Object(self, name, (self.read(name) or b"")[:keep] if keep else b"")

    def stream(self, name: str) -> Growing:
        """Open an empty file of any length, which is synced once, at its end."""
        with _as_oserror(self.path):
            return _Upload(self.path, self._system.open(self._at(name), "wb"))

    def rename(self, old: str, new: str) -> None:
        """Give a file its final name."""
        self._call("copy", self._at(old), self._at(new))
        self.remove(old)

    def rename_new(self, old: str, new: str) -> None:
        """Give a file its final name, or delete it if the name is taken."""
        data = self.read(old)
        if data is None:
            raise FileNotFoundError(2, "no such file", f"{self.path}/{old}")
        self.create_new(new, data)
        self.remove(old)

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._call("rm_file", self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call the filesystem; a failure may pass, so it is tried again."""
        with _as_oserror(self.path):
            for pause in (*_PAUSES, None):
                try:
                    return getattr(self._system, method)(*args, **options)
                except (FileNotFoundError, FileExistsError, PermissionError):
                    raise
                except Exception:
                    if pause is None:
                        raise
                time.sleep(pause)


class _Object(Growing):
    """An object that is put anew at each sync."""

    def __init__(self, folder: Folder, name: str, content: bytes):
        self._folder, self._name, self._content = folder, name, bytearray(content)

    def write(self, data: bytes) -> None:  # noqa: D102
        self._content += data

    def sync(self) -> None:  # noqa: D102
        self._folder.write(self._name, bytes(self._content))

    def close(self) -> None:  # noqa: D102
        self._content = bytearray()


class _Upload(Growing):
    """An object that is uploaded in pieces."""

    def __init__(self, path: str, file: Any):
        self._path, self._file = path, file

    def write(self, data: bytes) -> None:  # noqa: D102
        with _as_oserror(self._path):
            self._file.write(data)

    def sync(self) -> None:  # noqa: D102
        with _as_oserror(self._path):
            self._file.close()

    def close(self) -> None:  # noqa: D102
        if not self._file.closed:
            with contextlib.suppress(Exception):  # not every library can discard
                self._file.discard()


class LocalFolder(Folder):
    """A folder on this machine; what it writes survives a power failure."""

    def __init__(self, path: str):
        self.path, self.exclusive = path, True

    def create(self) -> None:  # noqa: D102
        os.makedirs(self.path, exist_ok=True)

    def sizes(self) -> dict[str, int]:  # noqa: D102
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted since; the others are there
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
        return found

    def read(self, name: str) -> bytes | None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError), open(self._at(name), "rb") as file:
            return file.read()

    def read_many(self, names: Iterable[str]) -> dict[str, bytes | None]:  # noqa: D102
        return {name: self.read(name) for name in names}

    def write(self, name: str, data: bytes) -> None:  # noqa: D102
        temporary = f"{name}.new"
        try:
            with contextlib.closing(self.grow(temporary)) as file:
                file.write(data)
                file.sync()
            self.rename(temporary, name)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise

    def create_new(self, name: str, data: bytes) -> bool:  # noqa: D102
        temporary = f"{name}.{uuid.uuid4().hex}.new"
        try:
            with contextlib.closing(self.grow(temporary)) as file:
                file.write(data)
                file.sync()
            try:
                os.link(self._at(temporary), self._at(name))  # the content is there with the name
            except OSError as e:
                if e.errno not in _NO_LINKS:
                    raise
                open(self._at(name), "xb").close()
                os.replace(self._at(temporary), self._at(name))
        except FileExistsError:
            return False
        finally:
            self.remove(temporary)
        self._sync()
        return True

    def grow(self, name: str, keep: int = 0) -> Growing:  # noqa: D102
        return Growing(self._at(name), keep)

    stream = grow

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        os.replace(self._at(old), self._at(new))
        self._sync()

    def rename_new(self, old: str, new: str) -> None:  # noqa: D102
        try:
            os.link(self._at(old), self._at(new))
        except FileExistsError:
            pass
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            if not os.path.exists(self._at(new)):
                os.replace(self._at(old), self._at(new))
        self._sync()  # before the other name goes
        self.remove(old)

    def _sync(self) -> None:
        number = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)  # the folder's entries
        except OSError:  # some network filesystems can't; they order renames themselves
            pass
        finally:
            os.close(number)

    def remove(self, name: str) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name))

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)
