"""Processes of a job on a simulated store: operations interleave, processes crash and stall.

Each process is a thread that runs the real `job.run`. Before each operation on the store it waits
for its turn, which a scheduler gives in an order that its seed decides. Every process has a clock
of its own, with another offset and rate. A process that crashes never comes back; one that stalls
neither runs nor beats, and goes on later.
"""

import contextlib
import json
import random
import threading

from leapjax.jobs import claims, job, members, shards
from leapjax.jobs.names import claim_number
from tests.jobs.fakes import Crash, FakeLM

LIMIT = 60_000  # turns until a job counts as stuck


class Process:
    """One process.

    Args:
      sim: the simulation.
      number: of the process.
      start: when it starts, in simulated seconds.
      rate: its clock's seconds per simulated one.
      fate: turns after which something happens to it, and what: `crash`, or the seconds of a stall.
    """

    def __init__(self, sim, number, start, rate, fate, look_ahead):
        self.sim, self.number, self.rate, self.fate = sim, number, rate, dict(fate)
        self.wake, self.offset = start, 1e4 * number
        self.turns, self.crashed, self.members, self.beaten = 0, False, None, 0.0
        self.lm, self.result = Model(self, look_ahead), None
        self.growing = []
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        self.sim.by_thread[threading.get_ident()] = self
        try:
            self.turn()
            self.result = job.run(self.lm, self.sim.spec)
        except BaseException as e:
            self.result = e
        self.sim.give_back(ended=self)

    def clock(self):
        return self.offset + self.rate * self.sim.now

    def turn(self):
        """Wait until the scheduler gives the next turn."""
        if self.crashed:
            raise Crash
        self.sim.give_back()
        self.sim.wait_for(self)
        self.turns += 1
        what = self.fate.pop(self.turns, None)
        if what == "crash":
            self.crashed = True
            self.sim.crashes += 1
            self.sim.crashed_at = self.sim.now
            for file in self.growing:
                file.rest = file.rest[: self.sim.random.randint(0, len(file.rest))]
            raise Crash
        if what is not None:
            self.sim.stalls += 1
            self.wake = self.sim.now + what
            self.turn()

    def sleep(self, seconds):
        self.sim.idle_at.append(self.sim.now)
        self.wake = self.sim.now + seconds / self.rate
        self.turn()


class Model(FakeLM):
    """Notes who answers what, and that nothing journalled is answered again."""

    def __init__(self, process, look_ahead):
        super().__init__(look_ahead)
        self.process = process

    def answer(self, request):
        self.process.sim.note_answer(self.process, request)
        return super().answer(request)


class View:
    """The store as one process sees it; a crash may come before or after an operation."""

    path, exclusive = "store", True

    def __init__(self, process):
        self.process, self.disk = process, process.sim.disk

    def _turn(self):
        if threading.current_thread() is self.process.thread:
            self.process.turn()

    def create(self):
        self.disk.create()

    def sizes(self):
        self._turn()
        return self.disk.sizes()

    def read(self, name):
        self._turn()
        return self.disk.read(name)

    def read_many(self, names):
        return {name: self.read(name) for name in names}

    def write(self, name, data):
        self._turn()
        self.process.sim.note_write(name, data)
        self.disk.write(name, data)

    def create_new(self, name, data):
        self._turn()
        created = self.disk.create_new(name, data)
        if created and claim_number(name):
            shard, turn = claim_number(name)
            if turn:
                self.process.sim.taken_over.append(self.process.sim.now)
            self.process.sim.claimed[self.process.number, shard] = self.process.sim.steps
        return created

    def rename_new(self, old, new):
        self._turn()
        if old not in self.disk.files:
            raise FileNotFoundError(old)
        self.disk.files.setdefault(new, self.disk.files[old])
        self.remove(old)

    def remove(self, name):
        self._turn()
        self.disk.remove(name)

    def grow(self, name, keep=0):
        self._turn()
        file = self.disk.grow(name, keep)
        self.process.growing.append(file.file)
        view = self

        class Growing:
            def write(self, data):
                view._turn()
                file.write(data)

            def sync(self):
                view._turn()
                file.sync()

            def close(self):
                file.close()

        return Growing()


class Simulation:
    """Runs processes until all have ended.

    Args:
      spec: the job.
      disk: the store.
      seed: decides the order of turns.
      size: records of a shard.
      same_machine: a process that has crashed is seen to have vanished.
    """

    def __init__(self, spec, disk, seed, size, same_machine):
        self.spec, self.disk, self.size, self.same_machine = spec, disk, size, same_machine
        self.random = random.Random(seed)
        self.now, self.steps, self.crashes, self.stalls = 0.0, 0, 0, 0
        self.processes, self.by_thread = [], {}
        self.current, self.changed = None, threading.Condition()
        self.running = set()
        self.claimed = {}  # (process, shard) -> step at which it claimed
        self.journalled = {}  # (shard, records) -> first step at which so many were saved
        self.repeated = []
        self.crashed_at, self.idle_at, self.taken_over = 0.0, [], []

    def add(self, start=0.0, rate=1.0, fate=(), look_ahead=3):
        process = Process(self, len(self.processes), start, rate, fate, look_ahead)
        self.processes.append(process)

    # The module `time`, as jobs use it.

    def monotonic(self):
        process = self.by_thread.get(threading.get_ident())
        return self.now if process is None else process.clock()

    def sleep(self, seconds):
        self.by_thread[threading.get_ident()].sleep(seconds)

    # The baton.

    def give_back(self, ended=None):
        with self.changed:
            if ended is not None:
                self.running.discard(ended)
            self.current = None
            self.changed.notify_all()

    def wait_for(self, process):
        with self.changed:
            assert self.changed.wait_for(lambda: self.current is process, 60)

    def run(self):
        for process in self.processes:
            self.running.add(process)
            self.current = process
            process.thread.start()
            self._until_back()
        while self.running:
            self.steps += 1
            assert self.steps < LIMIT, "stuck"
            ready = [p for p in self.processes if p in self.running and p.wake <= self.now]
            if not ready:
                self._pass(min(p.wake for p in self.running) - self.now)
                continue
            self._pass(self.random.choice([0.0, 0.01, 0.3]))
            self.current = self.random.choice(ready)
            with self.changed:
                self.changed.notify_all()
            self._until_back()
        for process in self.processes:
            process.thread.join(10)

    def _until_back(self):
        with self.changed:
            assert self.changed.wait_for(lambda: self.current is None, 60)

    def _pass(self, seconds):
        """Let time pass, in which the processes' threads beat."""
        end = self.now + seconds
        while self.now < end or seconds == 0:
            self.now = min(self.now + 1.0, end)
            for process in self.running:
                # While it stalls, its thread does, too.
                stalls = process.wake > self.now and process.wake - self.now > 5
                beats = process.members is not None and not process.crashed and not stalls
                due = process.clock() - process.beaten >= members.BEAT
                if beats and due and not process.members._lock.locked():
                    process.beaten = process.clock()
                    process.members.beat()
            if seconds == 0:
                return

    # What must hold.

    def note_write(self, name, data):
        if claim_number(name) and (value := json.loads(data)).get("kind"):
            for count in range(1, value["records"] + 1):
                self.journalled.setdefault((value["shard"], count), self.steps)

    def note_answer(self, process, request):
        record = self.spec_order[request.id]
        shard, place = divmod(record, self.size)
        saved = self.journalled.get((shard, place + 1))
        if saved is not None and saved < self.claimed[process.number, shard]:
            self.repeated.append((process.number, request.id))

    @contextlib.contextmanager
    def patched(self, monkeypatch):
        def keep_beating(itself):
            process = self.by_thread[threading.get_ident()]
            process.members, process.beaten = itself, process.clock()
            itself._me["pid"] = process.number

            def stop():
                process.members = None

            return stop

        def vanished(content):
            number = content["pid"]
            known = number < len(self.processes)
            return self.same_machine and known and self.processes[number].crashed

        with monkeypatch.context() as patch:
            patch.setattr(members.Members, "_keep_beating", keep_beating)
            patch.setattr(members, "_has_vanished", vanished)
            here = self.by_thread
            patch.setattr(job.storage, "folder", lambda path: View(here[threading.get_ident()]))
            for module in (job, claims, members, shards):
                patch.setattr(module, "time", self)
            yield
