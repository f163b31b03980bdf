"""Which requests decode next: queues by program, plain Python without jax.

    submit ─▶ queue of its program ─▶ take ─▶ slots of that program's lane

The engine asks for the order of programs and takes requests for free slots. Tickets count up, so
the smallest is the oldest.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from leapjax.types import Request

P = TypeVar("P", bound=Hashable)  # a program


class Scheduler(Generic[P]):
    """Requests that wait for a slot, in order of submission.

    >>> queue, request = Scheduler(), Request(id="a", ids=(1, 2), config=None)
    >>> for ticket, program in enumerate(["short", "long", "short"]):
    ...     queue.add(ticket, program, request)
    >>> queue.order({}), queue.waiting("short"), len(queue)
    (['short', 'long'], 2, 3)
    >>> [ticket for ticket, _ in queue.take("short", 1)]
    [0]
    >>> queue.order({}), queue.cancel(0), queue.cancel(2)
    (['long', 'short'], False, True)
    """

    def __init__(self):
        self._queues: dict[P, dict[int, Request]] = {}
        self._program: dict[int, P] = {}

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._program)

    def add(self, ticket: int, program: P, request: Request) -> None:
        """Queue a request."""
        self._queues.setdefault(program, {})[ticket] = request
        self._program[ticket] = program

    def restore(self, ticket: int, program: P, request: Request) -> None:
        """Queue a request again, at its original place."""
        self.add(ticket, program, request)
        self._queues[program] = dict(sorted(self._queues[program].items()))

    def cancel(self, ticket: int) -> bool:
        """Drop a request; False if it does not wait here."""
        program = self._program.pop(ticket, None)
        if program is None:
            return False
        self._drop(program, ticket)
        return True

    def waiting(self, program: P) -> int:
        """Requests that wait for this program."""
        return len(self._queues.get(program, ()))

    def take(self, program: P, count: int) -> list[tuple[int, Request]]:
        """Remove the oldest requests of a program. `count`: the largest number to take."""
        queue = self._queues.get(program, {})
        taken = [(t, queue[t]) for t, _ in zip(list(queue), range(count), strict=False)]
        for ticket, _ in taken:
            del self._program[ticket]
            self._drop(program, ticket)
        return taken

    def order(self, seated: Mapping[P, Iterable[int]]) -> list[P]:
        """Programs with work, the one with the oldest unanswered request first.

        `seated`: tickets of the rows in slots, by program.
        """
        oldest = {program: next(iter(queue)) for program, queue in self._queues.items()}
        for program, tickets in seated.items():
            first = min(tickets, default=None)
            if first is not None:
                oldest[program] = min(first, oldest.get(program, first))
        return sorted(oldest, key=oldest.__getitem__)

    def _drop(self, program: P, ticket: int) -> None:
        queue = self._queues[program]
        del queue[ticket]
        if not queue:
            del self._queues[program]
