"""`leapjax decode` without a prompt: sample problems, and what they cost against greedy."""

import itertools
import time
from typing import IO

from leapjax import tasks
from leapjax.config import DecodeConfig
from leapjax.lm import LM
from leapjax.policies import PARAMETERS
from leapjax.studies.counts import counts
from leapjax.tasks.base import Problem
from leapjax.terminal import canvas
from leapjax.types import Completion
from leapjax.wording import plural, times_fewer

COUNT = 4
MOST_ROWS = 16  # decoded at once
STRATA = ("main", "long")
# Chosen: most problems are decoded in one step or two, with anchors alone. The first four of this
# draw take two or three steps and show propagated commits; `leapjax evaluate` measures on all.
FIRST = 473

NEXT = """
The first four are chosen to show several steps. --seed 1 draws others; leapjax evaluate measures.
Ask your own:  leapjax decode --prompt "…"
Talk to it:    leapjax decode --chat
All options:   leapjax decode --help"""


def problems(seed: int, count: int = COUNT) -> list[Problem]:
    """Held-out problems, shorter and longer ones in turn.

    `seed`: other problems for another one; 0 begins with four that were chosen; `count`: how many.
    """
    drawn = tasks.get("wordproblems").problems("heldout", STRATA, count, FIRST + seed)
    by_stratum = [[p for p in drawn if p.stratum == s] for s in STRATA]
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*by_stratum))
    return [p for p in mixed if p is not None]


def greedy(config: DecodeConfig) -> DecodeConfig:
    """One token a step, everything else alike."""
    return config.replace(policy="greedy", **dict.fromkeys(PARAMETERS))


def share(steps: int, of: int) -> str:
    """Steps against greedy's, in words."""
    return f"{plural(steps, 'step')}, greedy {of}: {times_fewer(steps, of)}"


def run(
    lm: LM, config: DecodeConfig, stream: IO[str], live: bool = True, count: int = COUNT
) -> None:
    """Decode the samples and show them.

    `config`: decode options; its seed chooses the problems; `stream`: where to; on a terminal, the
    canvases fill in; `live`: False shows plain answers on a terminal too; `count`: how many
    problems.
    """
    task = tasks.get("wordproblems")
    chosen = problems(config.seed, count)
    records = [task.record(p) for p in chosen]
    baseline = lm.generate(records, greedy(config), batch_size=min(count, MOST_ROWS))
    lm.generate(records, config, batch_size=min(count, MOST_ROWS))  # compiles
    start = time.perf_counter()
    completions = lm.generate(records, config, batch_size=min(count, MOST_ROWS))
    seconds = time.perf_counter() - start
    screen = canvas.console(stream) if live and stream.isatty() else None
    if screen is not None:
        screen.print(canvas.legend(set().union(*map(canvas.kinds_of, completions))))
    for problem, completion, base in zip(chosen, completions, baseline, strict=True):
        _show(lm, problem, completion, base, stream, screen)
    ends = lm.options(config).end_ids
    tokens = sum(counts(c, ends)["tokens"] for c in completions)
    steps, of = sum(c.steps for c in completions), sum(c.steps for c in baseline)
    right = sum(task.score(c.text, p) for c, p in zip(completions, chosen, strict=True))
    print(
        f"{right} of {len(chosen)} right; {share(steps, of)}{canvas.edits_of(*completions)}; "
        f"{tokens} tokens in {seconds:.2f} s: "
        f"{tokens / max(seconds, 1e-9):.0f} tokens/s, compiling not counted",
        file=stream,
        flush=True,
    )
    if screen is not None:
        screen.print(NEXT, style="dim")


def _show(lm: LM, problem: Problem, completion: Completion, base: Completion, stream, screen):
    print(f"> {problem.question}", file=stream, flush=True)
    if screen is None:
        print(completion.text, file=stream)
    else:
        canvas.play(screen, canvas.Canvas.of(lm, completion))
        print(f"\n{canvas.printable(completion.text)}", file=stream)  # to be read and copied
    right = tasks.score(completion.text, problem)
    verdict = "right" if right else f"wrong, it is {problem.final}"
    edits = canvas.edits_of(completion)
    print(f"[{share(completion.steps, base.steps)}{edits}, {verdict}]\n", file=stream, flush=True)
