"""Compiled programs of a model's replicas: compiled on first use, then cached.

A program gets the requested number of slots, halved until it fits in memory: by the compiler's
word, by its memory analysis, or because the device ran out of memory.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from leapjax.decoding import Program
from leapjax.errors import NoRoom
from leapjax.failures import out_of_memory
from leapjax.progress import busy, note
from leapjax.serve.lane import Lane, Replica
from leapjax.serve.lowering import PASSES, lower_passes, state_bytes
from leapjax.serve.memory import Footprint, footprint, together
from leapjax.serve.prefills import PrefillCounter
from leapjax.serve.programs import Programs
from leapjax.wording import plural


class Executable:
    """A program for one replica, perhaps still compiling or being read."""

    def __init__(self, program: Program, replica: Replica, slots: int, made: Mapping[str, Future]):
        self.program, self.replica, self.slots = program, replica, slots
        self._made = made

    @property
    def executables(self) -> dict[str, jax.stages.Compiled]:
        """What `Lane` takes; waits for the compiler."""
        return {name: one.result() for name, one in self._made.items()}

    @functools.cached_property
    def footprint(self) -> Footprint:
        """Memory of one lane on one device; waits for the compiler."""
        state = state_bytes(self.program, self.slots, self.replica.placement)
        passes = [one for name, one in self.executables.items() if name in PASSES]
        return footprint(passes, state)

    def lane(self, share: bool, counter: PrefillCounter) -> Lane:
        """A new lane; waits for the compiler."""
        params, placement = self.replica.params, self.replica.placement
        made = self.executables
        return Lane(params, self.program, self.slots, made, placement, share=share, counter=counter)


class Executables:
    """The programs that an engine has compiled.

    `slots`: rows that a replica decodes at once, at most; `fixed`: use exactly `slots`; otherwise
    halve them until the program fits in memory; `programs`: those that a user brought.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        slots: int,
        fixed: bool,
        programs: Programs | None = None,
    ):
        self._replicas, self._slots, self._fixed = replicas, slots, fixed
        self._programs = programs
        self._made: dict[tuple[int, Program], Executable] = {}
        self._most: dict[Program, int] = {}  # slots of programs that were halved

    def get(self, program: Program, users: Sequence[int], limit: int) -> Executable:
        """The executable of a program on the first of `users`.

        `users`: replicas that need it now; an executable is bound to its devices, so one is
        compiled for each, in parallel; `limit`: bytes that it may take on one device.
        """
        if (users[0], program) not in self._made:
            missing = [i for i in users if (i, program) not in self._made]
            what, most = "prompts", program.length - program.gen_length
            if program.infill:
                what, most = "sequences", program.length
            what = f"{what} up to {most} tokens"
            replicas = [self._replicas[i] for i in missing]
            made = self._brought(program, replicas, what)
            if made is None:
                with busy(f"compiling for {what}"):
                    made = self._compile(program, replicas, limit)
            self._made |= {(i, program): one for i, one in zip(missing, made, strict=True)}
        return self._made[users[0], program]

    def _brought(
        self, program: Program, replicas: Sequence[Replica], what: str
    ) -> list[Executable] | None:
        """The programs that a user brought, with as many slots as there are; None to compile.

        Raises:
          UserError: there are none, and nothing shall be compiled.
        """
        if self._programs is None:
            return None
        most = slots = self._most.get(program, self._slots)
        while slots:
            found = [self._programs.find(program, slots, r.params, r.placement) for r in replicas]
            if all(found):
                work = [one for one in found if one]
                return _in_threads(program, replicas, slots, work)
            slots = 0 if self._fixed else slots // 2
        self._programs.miss(what, program, most, replicas[0].params, replicas[0].placement)
        return None

    def _compile(
        self, program: Program, replicas: Sequence[Replica], limit: int
    ) -> list[Executable]:
        slots, why = self._most.get(program, self._slots), ""
        while True:
            made = _compiling(program, replicas, slots)
            try:  # the replicas are equal, so the first one decides
                needed = together([made[0].footprint])
            except jax.errors.JaxRuntimeError as e:  # a TPU's compiler refuses what doesn't fit
                if not out_of_memory(e):
                    raise
                if self._fixed or slots == 1:
                    raise NoRoom(_too_large(slots, self._fixed, e)) from e
                why = f"{slots} do not fit in memory, says the compiler"
            else:
                if self._fixed or slots == 1 or needed <= limit:
                    break
                why = f"{slots} need {needed / 1e9:.1f} GB of {limit / 1e9:.1f} GB"
            slots //= 2
        if why:
            self._tell(slots, why)
        return made

    def halve(self, program: Program, index: int, error: BaseException) -> None:
        """Give a program half its slots from now on: the device had no memory for it.

        `program`: what was to run; `get` compiles it anew; `index`: the replica that had no memory.
        Raises NoRoom: the slots are fixed, or there is only one.
        """
        slots = self._made[index, program].slots
        if self._fixed or slots == 1:
            raise NoRoom(_too_large(slots, self._fixed, error)) from error
        del self._made[index, program]
        self._most[program] = slots // 2
        self._tell(slots // 2, f"the device had no memory for {slots}")

    def _tell(self, slots: int, why: str) -> None:
        note(f"decoding {plural(slots, 'row')} at once, not {self._slots}: {why}")


def _too_large(slots: int, fixed: bool, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200]
    advice = "shorten gen_length or the prompts, quantize, or spread the model over a mesh"
    if fixed and slots > 1:
        advice = "choose a smaller --batch-size"
    return f"the device has no memory for {plural(slots, 'row')} at once; {advice} ({reason})"


def _compiling(program: Program, replicas: Sequence[Replica], slots: int) -> list[Executable]:
    """Start compiling a program for several replicas; XLA releases the GIL."""
    # Lower in this thread, where the caller's JAX settings apply.
    lowered = [lower_passes(r.params, program, slots, r.placement) for r in replicas]
    work = [{name: one.compile for name, one in parts.items()} for parts in lowered]
    return _in_threads(program, replicas, slots, work)


def _in_threads(
    program: Program,
    replicas: Sequence[Replica],
    slots: int,
    work: Sequence[Mapping[str, Callable[[], jax.stages.Compiled]]],
) -> list[Executable]:
    """Executables that threads make: for each replica, name -> what makes it."""
    at_once = min(2 * len(replicas), max(2, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="leapjax-compile")
    try:
        return [
            Executable(
                program, replica, slots, {name: pool.submit(make) for name, make in parts.items()}
            )
            for replica, parts in zip(replicas, work, strict=True)
        ]
    finally:
        pool.shutdown(wait=False)
