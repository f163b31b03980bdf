"""Compiled TPU programs kept as test data, without what an audit does not read.

`programs/*.hlo.gz` are LLaDA-8B in bfloat16, 64 rows over 8 chips, prompt 512 and canvas 256,
blocks of 32, compiled by libtpu 0.0.42.1 from commit 47f12aa; `pallas` has the calls of
`kernels.py`, compiled for a v5e. To keep another one, with a program's
text in a file: `python -m tests.planning.stored program.txt tests/planning/programs/NAME.hlo.gz`.
"""

import gzip
import re
import sys
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
_FRONTEND = re.compile(r', frontend_attributes=\{(?:[^"{}]|"(?:\\.|[^"\\])*"|\{[^{}"]*\})*\}')
_KEPT = re.compile(
    r'"estimated_cycles":"\d+"|"known_trip_count":\{[^}]*\}'
    r'|"custom_call_config":\{"body":"[^"]*"'
)


def load(name: str) -> str:
    """The text of a stored program."""
    return gzip.decompress((PROGRAMS / f"{name}.hlo.gz").read_bytes()).decode()


def strip(text: str) -> str:
    """A program's text without the places in our files, shardings and most of the configuration."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if i and line.endswith("{"))
    out = [lines[0]]
    for line in lines[start:]:
        line = _FRONTEND.sub("", line)
        line = re.sub(r", sharding=\{[^}]*\}", "", line)
        line = re.sub(r" stack_frame_id=\d+", "", line)
        head, found, config = line.partition(", backend_config=")
        kept = ",".join(_KEPT.findall(config))
        out.append(f"{head}, backend_config={{{kept}}}" if found and kept else head)
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(gzip.compress(strip(source.read_text()).encode(), 9, mtime=0))
