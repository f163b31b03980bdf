"""`leapjax` on a disk that gets stuck: slow_disk.py MARKER OPERATION N ARGUMENTS...

The N-th OPERATION (from 1) stops half-way for a minute, having made the file MARKER; the
test kills the process there. Operations are `write FILE`, `sync FILE`, `rename FILE` (about
to be renamed) and `renamed FILE`, by the name that the file has before, without the numbers of
its shard and turn: `shard.open`, `claim.new`.
"""

import itertools
import re
import sys
import time
from pathlib import Path

from leapjax import storage
from leapjax.cli.main import main

marker, operation, number = sys.argv[1:4]
numbers = itertools.count(1)


def stuck(name):
    if re.sub(r"-\d{5}\.\d+", "", name) == operation and next(numbers) == int(number):
        Path(marker).touch()
        time.sleep(60)


def begin(self, path, keep, real=storage.Growing.__init__):
    self.name = Path(path).name
    real(self, path, keep)


def write(self, data, real=storage.Growing.write):
    real(self, data[: len(data) // 2])
    stuck(f"write {self.name}")
    real(self, data[len(data) // 2 :])


def sync(self, real=storage.Growing.sync):
    stuck(f"sync {self.name}")
    real(self)


def stopping(real):
    def rename(self, old, new):
        stuck(f"rename {old}")
        real(self, old, new)
        stuck(f"renamed {old}")

    return rename


storage.Growing.__init__ = begin
storage.Growing.write = write
storage.Growing.sync = sync
storage.LocalFolder.rename = stopping(storage.LocalFolder.rename)
storage.LocalFolder.rename_new = stopping(storage.LocalFolder.rename_new)
sys.exit(main(sys.argv[4:]))
