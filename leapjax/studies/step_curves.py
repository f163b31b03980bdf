"""The studies of `leapjax ablate --study`: curves of settings that are compared at equal steps."""

from __future__ import annotations

from typing import NamedTuple

from leapjax.config import DecodeConfig

NAMES = ("locality", "decay")


class Curve(NamedTuple):
    """Settings of one kind, from many steps to few."""

    label: str
    configs: tuple[DecodeConfig, ...]


class Study(NamedTuple):
    """A question, as settings and comparisons.

    Attributes:
      name: one of `NAMES`.
      title: the question.
      curves: by a short name for tables and files.
      pairs: (curve, control): each point of the curve against the control at its mean steps.
      kinds: (label, setting): whose commits are looked at one by one.
    """

    name: str
    title: str
    curves: dict[str, Curve]
    pairs: tuple[tuple[str, str], ...]
    kinds: tuple[tuple[str, DecodeConfig], ...] = ()

    @property
    def configs(self) -> list[DecodeConfig]:
        """Every setting once."""
        every = [c for curve in self.curves.values() for c in curve.configs]
        return list(dict.fromkeys([*every, *(config for _, config in self.kinds)]))


def study(name: str, base: DecodeConfig) -> Study:
    """A study by its name.

    Args:
      name: one of `NAMES`.
      base: canvas, block and everything else that all settings share.

    >>> len(study("locality", DecodeConfig()).configs)
    26
    """
    return {"locality": _locality, "decay": _decay}[name](base)


def _curve(label: str, base: DecodeConfig, relaxed: tuple[float, ...], **options) -> Curve:
    settings = [{"threshold": 0.9, "relaxed_threshold": r, **options} for r in relaxed]
    return Curve(label, tuple(base.replace(**s) for s in settings))


def _locality(base: DecodeConfig) -> Study:
    relaxed = (0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25)
    # A control needs a wider range: it is read off at LocalLeap's steps, between its points.
    lower = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4)
    threshold = base.replace(policy="confidence_threshold")
    placebo, wider = base.replace(policy="placebo"), (0.9, *relaxed, 0.1)
    label = "placebo: random neighbourhoods (0.9, r, radius 4)"
    curves = {
        "localleap": _curve("LocalLeap (0.9, r, radius 4)", base, relaxed, radius=4),
        "threshold": Curve(
            "one global threshold", tuple(threshold.replace(threshold=t) for t in lower)
        ),
        "placebo": _curve(label, placebo, wider, radius=4),
    }
    widest = base.block_length  # reaches the whole block, so every distance is seen
    everywhere = base.replace(threshold=0.9, relaxed_threshold=0.55, radius=widest)
    kinds = (
        ("LocalLeap (0.9, 0.75, radius 4)", curves["localleap"].configs[1]),
        (f"LocalLeap (0.9, 0.55, radius {widest}: the whole block)", everywhere),
    )
    pairs = (("localleap", "threshold"), ("localleap", "placebo"))
    return Study("locality", "Is it locality?", curves, pairs, kinds)


def _decay(base: DecodeConfig) -> Study:
    constant = (0.9, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25)
    few = (0.75, 0.55)
    curves = {
        "constant": _curve("constant within radius 4 (the paper's)", base, constant, radius=4),
        "decay-0.02": _curve("decay 0.02, radius 8", base, few, radius=8, decay=0.02),
        "decay-0.05": _curve("decay 0.05, radius 8", base, few, radius=8, decay=0.05),
        "radius-8": _curve("constant within radius 8", base, few, radius=8),
        "left": _curve("4 to the left only", base, few, radius_left=4, radius_right=0),
        "right": _curve("4 to the right only", base, few, radius_left=0, radius_right=4),
    }
    pairs = tuple((name, "constant") for name in list(curves)[1:])
    return Study("decay", "Does decay help, and do sides matter?", curves, pairs)
