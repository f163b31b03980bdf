"""The seeded fuzzer: odd inputs give the oracle's answer or one line, never anything else.

    pytest tests/fuzz -m slow -n 0 -s                     all kinds, as `make test-all` runs it
    pytest tests/fuzz -m slow -n 0 --fuzz-seed 7 --fuzz-count 500
    pytest tests/fuzz -m slow -n 0 --fuzz-case '{"kind": ...}'   one case, as printed by a failure

A case that failed goes into regressions.jsonl; the quick suite runs those. A new golden folder
takes part by itself; a new family needs a module in `families`.
"""

import collections
import random
import time
from pathlib import Path

import pytest

from tests.fuzz import judge
from tests.fuzz.case import CHECKPOINTS, Case
from tests.fuzz.kinds import KINDS, SHARES

REGRESSIONS = Path(__file__).parent / "regressions.jsonl"


def draw(kind, checkpoint, seed):
    """The case of a seed."""
    rng = random.Random(f"{kind} {checkpoint} {seed}")
    edits, extra = KINDS[kind](rng, checkpoint, seed)
    return Case(kind, checkpoint, seed, edits, extra)


def cases(seed, count):
    """`count` cases, shared out over the kinds and checkpoints."""
    for kind, share in SHARES.items():
        for number in range(round(count * share)):
            place, turn = number % len(CHECKPOINTS), number // len(CHECKPOINTS)
            yield draw(kind, CHECKPOINTS[place], seed + turn)


def run(chosen, tmp_path, oracle):
    """Judge cases; fail with a line for each that went wrong."""
    tallies, failed, start = {}, [], time.perf_counter()
    slowest = (0.0, None)
    for case in chosen:
        began = time.perf_counter()
        how, detail = judge.judge(case, judge.scratch(tmp_path), oracle)
        slowest = max(slowest, (time.perf_counter() - began, case.line()[:200]))
        tallies.setdefault(case.kind, collections.Counter())[how] += 1
        if how in judge.BAD:
            failed.append(f"{how}: {detail}\n    {case.line()}")
    total = sum((c for c in tallies.values()), collections.Counter())
    seconds = time.perf_counter() - start
    print(
        f"\n{total.total()} cases in {seconds:.0f} s: {_shown(total)}; slowest {slowest[0]:.1f} s"
    )
    for kind, tally in tallies.items():
        print(f"  {kind:<10} {tally.total():>5}: {_shown(tally)}")
    if failed:
        pytest.fail(f"{len(failed)} cases went wrong (each line repeats one with --fuzz-case):\n"
                    + "\n".join(failed), pytrace=False)  # fmt: skip


def _shown(tally):
    return ", ".join(f"{n} {how}" for how, n in tally.most_common())


def the_oracle():
    """transformers without its chatter; skips where it is absent."""
    pytest.importorskip("torch", reason="torch is not installed: the fuzzer has no oracle")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.logging.set_verbosity_error()


@pytest.mark.slow
@pytest.mark.oracle
def test_mutations(request, tmp_path):
    the_oracle()
    option = request.config.getoption
    chosen = cases(option("--fuzz-seed"), option("--fuzz-count"))
    if line := option("--fuzz-case"):
        chosen = [Case.from_line(line)]
    run(chosen, tmp_path, oracle=True)


def known():
    return [Case.from_line(line) for line in REGRESSIONS.read_text().splitlines() if line.strip()]


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("oracle", [False, pytest.param(True, marks=pytest.mark.oracle)])
def test_what_failed_once(oracle, tmp_path):
    if oracle:
        the_oracle()
    run(known(), tmp_path, oracle)


@pytest.mark.usefixtures("without_kernels")
def test_quick_look(tmp_path):
    chosen = [c for c in cases(10**6, 70) if c.kind not in ("records", "options")]
    run(chosen, tmp_path, oracle=False)
