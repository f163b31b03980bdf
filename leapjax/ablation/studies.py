"""Studies: curves of settings, and which of them are compared at equal mean steps."""

from __future__ import annotations

import dataclasses

from leapjax.config import DecodeConfig

NAMES = ("locality", "decay")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Settings of one kind from many steps to few.

    Attributes:
      name: short, for tables and files.
      label: for people.
      configs: the settings.
    """

    name: str
    label: str
    configs: tuple[DecodeConfig, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, as settings and comparisons.

    Attributes:
      name: one of `NAMES`.
      title: the question.
      curves: by name.
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
      base: canvas, block and whatever else every setting shares.
    """
    return {"locality": _locality, "decay": _decay}[name](base)


def _curve(name: str, label: str, base: DecodeConfig, settings: list[dict]) -> Curve:
    return Curve(name, label, tuple(base.replace(**s) for s in settings))


def _locality(base: DecodeConfig) -> Study:
    relaxed = (0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25)
    # A control needs a wider range: it is read off at LocalLeap's steps, between its points.
    lower = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4)
    leap = [{"threshold": 0.9, "relaxed_threshold": r, "radius": 4} for r in relaxed]
    widest = base.block_length  # reaches the whole block, so every distance is seen
    curves = (
        _curve("localleap", "LocalLeap (0.9, r, radius 4)", base, leap),
        _curve(
            "threshold",
            "one global threshold",
            base,
            [{"policy": "confidence_threshold", "threshold": t} for t in lower],
        ),
        _curve(
            "placebo",
            "placebo: random neighbourhoods (0.9, r, radius 4)",
            base,
            [
                {"policy": "placebo", "threshold": 0.9, "relaxed_threshold": r, "radius": 4}
                for r in (0.9, *relaxed, 0.1)
            ],
        ),
    )
    return Study(
        "locality",
        "Is it locality?",
        {c.name: c for c in curves},
        (("localleap", "threshold"), ("localleap", "placebo")),
        (
            ("LocalLeap (0.9, 0.75, radius 4)", curves[0].configs[1]),
            (
                f"LocalLeap (0.9, 0.55, radius {widest}: the whole block)",
                base.replace(threshold=0.9, relaxed_threshold=0.55, radius=widest),
            ),
        ),
    )


def _decay(base: DecodeConfig) -> Study:
    constant = (0.9, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25)
    few = (0.75, 0.55)

    def some(**options) -> list[dict]:
        return [{"threshold": 0.9, "relaxed_threshold": r, **options} for r in few]

    control = [{"threshold": 0.9, "relaxed_threshold": r, "radius": 4} for r in constant]
    curves = (
        _curve("constant", "constant within radius 4 (the paper's)", base, control),
        _curve("decay-0.02", "decay 0.02, radius 8", base, some(radius=8, decay=0.02)),
        _curve("decay-0.05", "decay 0.05, radius 8", base, some(radius=8, decay=0.05)),
        _curve("radius-8", "constant within radius 8", base, some(radius=8)),
        _curve("left", "4 to the left only", base, some(radius_left=4, radius_right=0)),
        _curve("right", "4 to the right only", base, some(radius_left=0, radius_right=4)),
    )
    return Study(
        "decay",
        "Does decay help, and do sides matter?",
        {c.name: c for c in curves},
        tuple((c.name, "constant") for c in curves[1:]),
    )
