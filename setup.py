"""Which folder is which package, and an sdist of the same bytes from the same files.

`converters/` is a folder of its own in the repository and the package
`leapjax.converters` once installed, so that nothing generic lands in site-packages.
Folders of data count as packages too: setuptools warns of each that is left out.
Everything else is in pyproject.toml.
"""

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.sdist import sdist


class Reproducible(sdist):
    """An sdist whose members have the date of SOURCE_DATE_EPOCH, if it is set, and no owner."""

    def make_archive(self, *args, **kwargs):
        """Make the archive, then write it anew: setuptools leaves the files' own dates in it."""
        made = super().make_archive(*args, **kwargs)
        date = os.environ.get("SOURCE_DATE_EPOCH")
        if date and made.endswith(".tar.gz"):
            _with_date(Path(made), int(date))
        return made


def _with_date(path: Path, date: int) -> None:
    """Rewrite a .tar.gz in the order of its names, every member and the header dated `date`."""
    new = path.with_suffix(".new")
    with tarfile.open(path) as old, open(new, "wb") as file:
        with gzip.GzipFile("", "wb", fileobj=file, mtime=date) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as out:
                for member in sorted(old.getmembers(), key=lambda m: m.name):
                    member.mtime, member.pax_headers = date, {}
                    member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
                    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                    out.addfile(member, old.extractfile(member) if member.isfile() else None)
    new.replace(path)


setup(
    packages=find_namespace_packages(include=["leapjax", "leapjax.*"])
    + ["leapjax.converters"]
    + [f"leapjax.converters.{name}" for name in find_packages("converters")],
    package_dir={"leapjax.converters": "converters"},
    cmdclass={"sdist": Reproducible},
)
