"""Jobs of a page: one runs at a time, the others wait in line, and each can be cancelled.

A job that runs stops at its next step. A job that nobody watches any more is cancelled, too.
"""

import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from fyp_jax.errors import UserError, error_line, reason

log = logging.getLogger(__name__)

MOST_WAITING = 20
UNWATCHED_S = 20.0
"""Seconds after which a job is cancelled if nothing asks for its status."""


class Cancelled(Exception):  # noqa: N818  (names the fact)
    """A job was cancelled; a step of the job raises it."""


class State(enum.Enum):
    """What became of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Status(NamedTuple):
    """A job at one moment."""

    state: State
    ahead: int
    """Number of jobs that come before it."""
    what: str
    """What it does now, such as "inversion"."""
    done: int
    total: int
    """Number of steps; 0 while it is not known."""
    seconds_left: float | None
    """None until two steps are done: the first step of a new size compiles."""


class Job:
    """A piece of work with its progress. It counts steps as tqdm does, so that a run can count with it."""

    def __init__(self, owner: str, work: Callable[["Job"], Any], on_end: Callable[[], object]):
        self.owner, self.work, self.on_end = owner, work, on_end
        self.state, self.result, self.error = State.WAITING, None, ""
        self.notes: list[str] = []
        """Warnings of the run, which the page shows."""
        self.what, self.done, self.total = "", 0, 0
        self.cancelled = False
        self.watched = time.monotonic()
        self._first_step = self._last_step = 0.0

    @property
    def ended(self) -> bool:
        return self.state not in (State.WAITING, State.RUNNING)

    def set_description(self, desc: str, /) -> None:
        self.what = desc

    def update(self) -> None:
        """Count a step. Raises Cancelled where the job was cancelled, or where nobody watches it."""
        self.done += 1
        self._last_step = time.monotonic()
        if self.done == 1:
            self._first_step = self._last_step
        self.check()

    def check(self) -> None:
        """Raise Cancelled where the job was cancelled, or where nobody watches it."""
        if self.cancelled or self.unwatched(UNWATCHED_S):
            raise Cancelled

    def unwatched(self, seconds: float) -> bool:
        return time.monotonic() - self.watched > seconds

    def start_count(self, total: int, what: str = "") -> None:
        """Begin a part of the work that has `total` steps."""
        self.what, self.done, self.total = what, 0, total

    def seconds_left(self) -> float | None:
        if not 2 <= self.done <= self.total:
            return None
        return (self._last_step - self._first_step) / (self.done - 1) * (self.total - self.done)


class JobQueue:
    """Runs jobs in one thread, in the order in which they came."""

    def __init__(self, most_waiting: int = MOST_WAITING):
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._notes = _Notes(self)
        logging.getLogger("fyp_jax").addHandler(self._notes)
        self._thread.start()

    def submit(
        self, owner: str, work: Callable[[Job], Any], on_end: Callable[[], object] = lambda: None
    ) -> Job:
        """Put a job in line. `work` gets the job and gives its result; `on_end` is called once, whatever
        became of the job.

        Raises UserError where the owner has a job already, and where too many wait.
        """
        job = Job(owner, work, on_end)
        with self._changed:
            active = [*self._waiting, *([self._running] if self._running else [])]
            if any(other.owner == owner for other in active):
                raise UserError("this page has a job already: wait until it is done, or cancel it")
            if self._closed or len(self._waiting) >= self._most_waiting:
                raise UserError(f"{len(self._waiting)} jobs are waiting: try again in a few minutes")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def status(self, job: Job) -> Status:
        """The job's status. Asking for it shows that somebody still watches the job."""
        job.watched = time.monotonic()
        with self._changed:
            ahead = 0
            if job in self._waiting:
                ahead = self._waiting.index(job) + (self._running is not None)
            return Status(job.state, ahead, job.what, job.done, job.total, job.seconds_left())

    def cancel(self, job: Job) -> None:
        """Cancel a job: at once if it waits, at its next step if it runs."""
        job.cancelled = True
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        self._end(job, State.CANCELLED)

    def close(self, timeout: float = 30.0) -> None:
        """Cancel all jobs, and wait until the one that runs has stopped."""
        with self._changed:
            self._closed = True
            waiting, running = list(self._waiting), self._running
            self._changed.notify_all()
        for job in [*waiting, *([running] if running else [])]:
            self.cancel(job)
        self._thread.join(timeout)
        logging.getLogger("fyp_jax").removeHandler(self._notes)

    def note(self, thread: int | None, text: str) -> None:
        """Keep a warning for the page whose job runs in this thread."""
        job = self._running
        if job is not None and thread == self._thread.ident:
            job.notes.append(text)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
                job.state = State.RUNNING
            state = self._run(job)
            with self._changed:
                self._running = None
            self._end(job, state)

    def _run(self, job: Job) -> State:
        try:
            job.check()
            job.result = job.work(job)
        except Cancelled:
            return State.CANCELLED
        except UserError as error:
            job.error = error_line(error)
            return State.FAILED
        except Exception as error:
            log.exception("a job of the page failed")
            kind = type(error).__name__
            job.error = f"{kind} on the server, whose log says more: {error_line(UserError(reason(error)))}"
            return State.FAILED
        return State.DONE

    def _end(self, job: Job, state: State) -> None:
        job.work = _nothing  # it holds the clip's arrays
        job.state = state
        try:
            job.on_end()
        except Exception:
            log.exception("the files of a job could not be put away")


def _nothing(job: Job) -> None:
    return None


class _Notes(logging.Handler):
    """Gives the warnings of a run to the job that runs."""

    def __init__(self, queue: JobQueue):
        super().__init__(logging.WARNING)
        self._queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self._queue.note(record.thread, record.getMessage())
