"""`leapjax decode` without a prompt: sample problems, and what they cost against greedy."""

import itertools
import time
from typing import IO, Any, NamedTuple

from leapjax import tasks
from leapjax.config import DecodeConfig
from leapjax.lm import LM
from leapjax.loader import embedded_path
from leapjax.policies import PARAMETERS
from leapjax.studies.counts import counts
from leapjax.tasks import Task
from leapjax.tasks.base import Problem
from leapjax.terminal import canvas
from leapjax.types import Completion
from leapjax.wording import plural, times_fewer

COUNT = 4
MOST_ROWS = 16  # decoded at once


class Draw(NamedTuple):
    """Which problems are shown: of `strata` in turn, `first` is the seed of `--seed 0`."""

    task: str
    strata: tuple[str, ...]
    first: int


# By the embedded model's name. Chosen: most word problems are decoded in one step or two, with
# anchors alone. The first four of either draw show propagated commits.
DRAWS = {
    "wordproblems": Draw("wordproblems", ("main", "long"), 473),
    "dependency": Draw("dependency", ("waiting", "latin"), 16),
}

NEXT = """
The first four are chosen to show several steps. --seed 1 draws others; leapjax evaluate measures.
Ask your own:  leapjax decode --prompt "…"
Talk to it:    leapjax decode --chat
All options:   leapjax decode --help"""


def draw_for(lm: LM) -> Draw:
    """The problems of an embedded model's own task; word problems for every other model."""
    embedded = lm.path is not None and lm.path == embedded_path(lm.path.name)
    return DRAWS[lm.path.name if lm.path is not None and embedded else "wordproblems"]


def problems(draw: Draw, seed: int, count: int = COUNT) -> list[Problem]:
    """Held-out problems, those of each stratum in turn.

    `seed` draws other problems; 0 of word problems begins with four that were chosen.
    """
    task = tasks.get(draw.task)
    drawn = task.problems("heldout", draw.strata, count, draw.first + seed)
    by_stratum = [[p for p in drawn if p.stratum == s] for s in draw.strata]
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*by_stratum))
    return [p for p in mixed if p is not None]


def records(lm: LM, seed: int, count: int = COUNT) -> list[dict[str, Any]]:
    """What the model is asked: the problems of its draw as records (docs/contract.md, Records)."""
    draw = draw_for(lm)
    return [tasks.get(draw.task).record(p) for p in problems(draw, seed, count)]


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

    The seed of `config` chooses the problems. On a terminal the canvases fill in, unless `live` is
    False.
    """
    draw = draw_for(lm)
    task = tasks.get(draw.task)
    chosen = problems(draw, config.seed, count)
    asked = records(lm, config.seed, count)
    baseline = lm.generate(asked, greedy(config), batch_size=min(count, MOST_ROWS))
    lm.generate(asked, config, batch_size=min(count, MOST_ROWS))  # compiles
    start = time.perf_counter()
    completions = lm.generate(asked, config, batch_size=min(count, MOST_ROWS))
    seconds = time.perf_counter() - start
    screen = canvas.console(stream) if live and stream.isatty() else None
    if screen is not None:
        screen.print(canvas.legend(set().union(*map(canvas.kinds_of, completions))))
    for problem, completion, base in zip(chosen, completions, baseline, strict=True):
        _show(lm, task, problem, completion, base, stream, screen)
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


def _show(lm, task: Task, problem: Problem, completion: Completion, base, stream, screen):
    asked = task.record(problem)["prompt"].replace("\n", " ")
    print(f"> {asked}", file=stream, flush=True)
    if screen is None:
        print(completion.text, file=stream)
    else:
        canvas.play(screen, canvas.Canvas.of(lm, completion))
        print(f"\n{canvas.printable(completion.text)}", file=stream)  # to be read and copied
    right = task.score(completion.text, problem)
    verdict = "right" if right else f"wrong, {problem.final} is right"
    edits = canvas.edits_of(completion)
    print(f"[{share(completion.steps, base.steps)}{edits}, {verdict}]\n", file=stream, flush=True)
