"""Which table converts which family: one line each."""

from __future__ import annotations

from . import dream, llada
from .table import Row

TABLES: dict[str, tuple[Row, ...]] = {
    "llada": llada.TABLE,
    "dream": dream.TABLE,
}
