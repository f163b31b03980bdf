"""The drawings of docs/concepts, as SVG.

    python docs/drawings/draw.py            # writes them anew
    python docs/drawings/draw.py --measure  # decodes first, and writes passes.json

Colours are attributes, so that a drawing can be looked at by itself; the site's style sheet
(docs/theme/extra.css) replaces them by class in its dark scheme.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PROMPT = "Ann has 12 apples and finds 5. How many apples now?"
FILLS = {
    "anchor": "#a9d8f5",
    "propagated": "#a5e07f",
    "top1": "#ffe08a",
    "open": "#e9e7e0",
    "read": "#dcd6f2",
    "bg": "#ffffff",
    "ink": "#1c1d20",
    "soft": "#5d6068",
    "line": "#b9b7b0",
}
SIGNS = {"anchor": "◆", "propagated": "◇", "top1": "▲"}


class Drawing:
    """Shapes of one SVG, in the order in which they are drawn."""

    def __init__(self, width: int, height: int):
        self.size = width, height
        self.parts: list[str] = []
        self.box(0, 0, width, height, "bg", line=None)

    def box(self, x, y, w, h, fill: str, line: str | None = "line", dash: bool = False):
        """Draw a rectangle from its left upper corner on."""
        stroke = f' stroke="{FILLS[line]}"' if line else ""
        dashes = ' stroke-dasharray="3 2"' if dash else ""
        self.parts.append(
            f'<rect class="d-{fill}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
            f'fill="{FILLS[fill]}"{stroke}{dashes}/>'
        )

    def rule(self, x1, y1, x2, y2, line: str = "line", dash: bool = False):
        """Draw a straight line."""
        dashes = ' stroke-dasharray="3 2"' if dash else ""
        self.parts.append(
            f'<path class="s-{line}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}" '
            f'stroke="{FILLS[line]}"{dashes}/>'
        )

    def text(self, x, y, words: str, size: float = 12, fill="ink", anchor="start", bold=False):
        """Write words, `anchor` of which is at x."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text class="d-{fill}" x="{x:g}" y="{y:g}" font-size="{size:g}" '
            f'fill="{FILLS[fill]}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def svg(self) -> str:
        """The drawing's file."""
        w, h = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" '
            f'font-family="system-ui, sans-serif">\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def measure() -> dict:
    """Decode `PROMPT` with the embedded model and LocalLeap's defaults, pass by pass.

    Each pass has the model's proposals at the open positions of the first block: token and
    confidence from `lm.logits` of the canvas as it stands before the pass; and the kind of commit
    that the decode itself recorded, or None where the position stays open.
    """
    import jax
    import numpy as np

    import leapjax
    from leapjax.decoding import step

    lm = leapjax.load()
    batch = lm.batch([PROMPT])
    one = jax.jit(step, static_argnames="program")
    states = [batch.state]
    while not bool(states[-1].done.all()):
        states.append(one(batch.params, states[-1], batch.program))
    [answer] = batch.completions(states[-1])
    first, length = int(states[0].first[0]), batch.program.gen_length
    start, size = states[0].tokens.shape[1] - length, batch.program.block_length
    passes = []
    for number, state in enumerate(states[:-1]):
        logits = lm.logits(np.asarray(state.tokens)[:, first:])[0, start - first :]
        chance = np.array(jax.nn.softmax(logits, axis=-1))
        chance[:, lm.config.mask_token_id] = -1
        here = []
        for i in range(size):
            if not bool(state.open[0, start + i]):
                continue
            token = int(chance[i].argmax())
            eos = token == lm.config.eos_token_id
            kind = answer.commit_kind[i] if answer.commit_step[i] == number else None
            here.append(
                {
                    "position": i,
                    "token": "<eos>" if eos else lm.codec.decode([token]),
                    "confidence": round(float(chance[i, token]), 4),
                    "commits": kind,
                }
            )
        passes.append(here)
    return {"prompt": PROMPT, "text": answer.text, "steps": answer.steps, "passes": passes}


def passes(data: dict) -> Drawing:
    """One column a pass, one line a position: proposal, confidence, and what became of it."""
    first = data["passes"][0]
    end = max(p["position"] for p in first if p["token"] != "<eos>") + 1
    lines, wide, top, high = end + 2, 142, 48, 21
    art = Drawing(34 + wide * len(data["passes"]) + 4, top + high * lines + 74)
    for n, proposals in enumerate(data["passes"]):
        x = 34 + n * wide
        art.text(x + 4, 18, f"pass {n + 1}", 13, bold=True)
        for mark, words, side in ((0.75, "0.75", "end"), (0.9, "0.9", "start")):
            art.text(x + 64 + mark * 66, 41, words, 8.5, "soft", side)
        known = {p["position"]: p for p in proposals}
        for i in range(lines):
            y = top + i * high
            if n == 0:
                art.text(26, y + 14, "…" if i > end else str(i + 1), 10, "soft", "end")
            _proposal(art, x, y, known.get(i), _decided(data, i), last=i > end)
        for mark in (0.75, 0.9):
            at = x + 64 + mark * 66
            art.rule(at, 45, at, top + lines * high, dash=True)
    y = top + lines * high + 20
    for fill, words in (
        ("anchor", "anchor: confidence at least 0.9"),
        ("propagated", "propagated: at least 0.75, an anchor within 4 positions"),
        ("top1", "the surest open position: commits in any case"),
    ):
        art.box(36, y - 10, 18, 13, fill)
        art.text(45, y, SIGNS[fill], 9, anchor="middle")
        art.text(62, y, words, 11)
        y += 20
    return art


def _decided(data: dict, position: int) -> str:
    for proposals in data["passes"]:
        for p in proposals:
            if p["position"] == position and p["commits"]:
                return p["token"]
    return ""


def _proposal(art: Drawing, x, y, proposal: dict | None, token: str, last: bool):
    """A position in a pass: its bar, or the token alone where it was decided before."""
    shown = (proposal["token"] if proposal else token).replace("\n", "↵").strip()
    if proposal is None:
        art.text(x + 4, y + 14, shown, 11, "soft")
        return
    kind = proposal["commits"]
    art.box(x + 64, y + 3, 66 * proposal["confidence"], 14, kind or "open")
    art.text(x + 4, y + 14, shown, 11, bold=bool(kind))
    if kind:
        art.text(x + 72, y + 14, SIGNS[kind], 9, anchor="middle")
    if not last and kind != "anchor":
        at = x + (80 if kind else 68)
        art.text(at, y + 14, f"{proposal['confidence']:.2f}", 9, "ink")


def canvas() -> Drawing:
    """Prompt and canvas at three moments of a decode."""
    art, c = Drawing(440, 236), 19
    x0, blocks = 76, (8, 8)
    prompt = 3
    art.text(x0 + prompt * c / 2, 16, "prompt", 11, "soft", "middle")
    for b, size in enumerate(blocks):
        middle = x0 + (prompt + 8 * b + size / 2) * c
        art.text(middle, 16, f"block {b + 1}", 11, "soft", "middle")
    rows = (
        ("at the start", "................", None),
        ("pass 2", "aa.pa..aa.......", 0),
        ("pass 4", "aaapaptaa.a.....", 1),
        ("at the end", "aaapaptaaaaptaaa", None),
    )
    for r, (name, cells, active) in enumerate(rows):
        y = 30 + r * 42
        art.text(4, y + 14, name, 11)
        for i in range(prompt):
            art.box(x0 + i * c, y, c, c, "read")
        for i, cell in enumerate(cells):
            fill = {"a": "anchor", "p": "propagated", "t": "top1", ".": "open"}[cell]
            x = x0 + (prompt + i) * c
            art.box(x, y, c, c, fill)
            words = SIGNS.get(fill, "·")
            art.text(x + c / 2, y + 13, words, 9, "soft" if cell == "." else "ink", "middle")
        if active is not None:
            x = x0 + (prompt + 8 * active) * c
            art.rule(x, y + c + 5, x + 8 * c, y + c + 5, "ink")
            art.text(x + 4 * c, y + c + 16, "active block", 9.5, "soft", "middle")
    art.text(x0, 206, "· mask token: still open", 11, "soft")
    art.text(x0, 224, "◆ anchor   ◇ propagated   ▲ the surest: committed", 11, "soft")
    return art


def caches() -> Drawing:
    """What a pass computes, by cache: one line for a block's first pass, one for the others."""
    art, c, x0 = Drawing(440, 322), 15, 124
    groups = (("prompt", 5), ("done", 5), ("active", 5), ("later", 5))
    for g, (name, size) in enumerate(groups):
        art.text(x0 + (g * 5 + size / 2) * c, 14, name, 11, "soft", "middle")
    rows = (
        ("none", "first pass", "xxxx"),
        ("", "later passes", "xxxx"),
        ("prefix", "first pass", "xxxx"),
        ("", "later passes", "rrxx"),
        ("dual", "first pass", "xxxx"),
        ("", "later passes", "rrxr"),
        ("block", "first pass", "rxx-"),
        ("", "later passes", "rrx-"),
    )
    for r, (name, which, cells) in enumerate(rows):
        y = 24 + r * 26 + r // 2 * 14
        art.text(4, y + 12, name, 12, bold=True)
        art.text(x0 - 8, y + 12, which, 10.5, "soft", "end")
        for i in range(20):
            fill = {"x": "anchor", "r": "read", "-": "bg"}[cells[i // 5]]
            art.box(x0 + i * c, y, c, c, fill, dash=fill == "bg")
    for n, (fill, words) in enumerate((("anchor", "computed"), ("read", "read from the cache"),
                                       ("bg", "not looked at"))):  # fmt: skip
        x = 10 + (0, 100, 260)[n]
        art.box(x, 300, 14, 14, fill, dash=fill == "bg")
        art.text(x + 20, 311, words, 11)
    return art


def attention() -> Drawing:
    """Who attends to whom: bidirectional beside block-causal."""
    art, c, n, block = Drawing(440, 250), 15, 12, 4
    for g, (name, rule) in enumerate((("bidirectional", None), ("block-causal", block))):
        x0, y0 = 24 + g * 214, 46
        art.text(x0 + n * c / 2, 16, name, 12.5, anchor="middle", bold=True)
        art.text(x0 + n * c / 2, 38, "key position →", 10, "soft", "middle")
        for q in range(n):
            for k in range(n):
                sees = rule is None or k // rule <= q // rule
                art.box(x0 + k * c, y0 + q * c, c, c, "anchor" if sees else "bg")
        for edge in range(0, n + 1, block):
            art.rule(x0, y0 + edge * c, x0 + n * c, y0 + edge * c, "ink")
            art.rule(x0 + edge * c, y0, x0 + edge * c, y0 + n * c, "ink")
        art.text(x0 - 8, y0 + 10, "↓", 11, "soft", "middle")
    art.text(24, 244, "A blue cell: the query (line) attends to the key (column). Blocks of 4.", 11,
             "soft")  # fmt: skip
    return art


def slots() -> Drawing:
    """Rows of several lengths in three slots; a slot is refilled when its row is done."""
    art, c, x0 = Drawing(440, 172), 24, 62
    plan = (
        (("A", 6), ("D", 4), ("G", 4)),
        (("B", 3), ("E", 7), ("H", 4)),
        (("C", 5), ("F", 3), ("I", 6)),
    )
    art.text(x0 + 7 * c, 16, "passes →", 11, "soft", "middle")
    for s, rows in enumerate(plan):
        y, at = 28 + s * 36, 0
        art.text(4, y + 17, f"slot {s + 1}", 11.5)
        for n, (name, length) in enumerate(rows):
            fill = "top1" if name == "E" else ("anchor", "read")[(n + s) % 2]
            art.box(x0 + at * c, y, length * c, 26, fill)
            art.text(x0 + (at + length / 2) * c, y + 17, f"row {name}", 11, anchor="middle")
            at += length
    art.text(x0, 158, "Row E gives the same tokens in every slot, beside any rows.", 11.5, "soft")
    return art


def drawings() -> dict[str, str]:
    """Every drawing's name and SVG."""
    data = json.loads((HERE / "passes.json").read_text())
    made = {"passes": passes(data)}
    made |= {f.__name__: f() for f in (canvas, caches, attention, slots)}
    return {name: art.svg() for name, art in made.items()}


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        text = json.dumps(measure(), indent=1, ensure_ascii=False)
        (HERE / "passes.json").write_text(text + "\n")
    for name, text in drawings().items():
        (HERE / f"{name}.svg").write_text(text)
