"""Compiled programs of a model's replicas: compiled on first use, then cached.

A program gets the requested number of slots, halved until it fits in memory: by the compiler's
word, by its memory analysis, or because the device ran out of memory.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from leapjax.decoding import Program
from leapjax.errors import NoRoom
from leapjax.failures import out_of_memory
from leapjax.progress import busy, note
from leapjax.serve.lane import Lane, Replica
from leapjax.serve.lowering import lower_prefill, lower_run, state_bytes
from leapjax.serve.memory import Footprint, footprint, together
from leapjax.serve.prefills import PrefillCounter
from leapjax.wording import plural


class Executable:
    """A program for one replica, perhaps still compiling."""

    def __init__(self, program: Program, replica: Replica, slots: int, made: Sequence[Future]):
        self.program, self.replica, self.slots = program, replica, slots
        self._made = made

    @property
    def executables(self) -> list[jax.stages.Compiled]:
        """The compiled chunk, and the prefill if there is one; waits for the compiler."""
        return [one.result() for one in self._made]

    @functools.cached_property
    def footprint(self) -> Footprint:
        """Memory of one lane on one device; waits for the compiler."""
        state = state_bytes(self.program, self.slots, self.replica.placement)
        return footprint(self.executables, state)

    def lane(self, share: bool, counter: PrefillCounter) -> Lane:
        """A new lane; waits for the compiler."""
        params, placement = self.replica.params, self.replica.placement
        made = self.executables
        return Lane(params, self.program, self.slots, made, placement, share=share, counter=counter)


class Executables:
    """The programs that an engine has compiled.

    `slots`: rows that a replica decodes at once, at most; `fixed`: use exactly `slots`; otherwise
    halve them until the program fits in memory.
    """

    def __init__(self, replicas: Sequence[Replica], slots: int, fixed: bool):
        self._replicas, self._slots, self._fixed = replicas, slots, fixed
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
            with busy(f"compiling for {what} up to {most} tokens"):
                made = self._compile(program, [self._replicas[i] for i in missing], limit)
            self._made |= {(i, program): one for i, one in zip(missing, made, strict=True)}
        return self._made[users[0], program]

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
    """Start compiling a program for several replicas in threads; XLA releases the GIL."""
    # Lower in this thread, where the caller's JAX settings apply.
    lowered = [
        [lower(r.params, program, slots, r.placement) for lower in (lower_run, lower_prefill)]
        for r in replicas
    ]
    at_once = min(2 * len(replicas), max(2, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="leapjax-compile")
    try:
        return [
            Executable(
                program,
                replica,
                slots,
                [pool.submit(one.compile) for one in parts if one is not None],
            )
            for replica, parts in zip(replicas, lowered, strict=True)
        ]
    finally:
        pool.shutdown(wait=False)
