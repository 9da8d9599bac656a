"""What a signal does to a fit: the first ends training at the next step, with a checkpoint; later ones the program.

========= =========================== ========= =====================================
signal    sent by                     exit code the best density so far is checked
========= =========================== ========= =====================================
SIGINT    Ctrl-C                      130       yes, unless it is sent again
SIGTERM   schedulers, ``kill``        143       no: who sends it wants an end soon
SIGUSR1   SLURM's warning of the end  138       no
========= =========================== ========= =====================================
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fluvial.errors import FluvialError


class Terminated(FluvialError):
    """The process was asked to end by SIGTERM or SIGUSR1; the best density so far is kept, and a checkpoint.

    ``code`` is the exit code that says so: 128 and the number of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.signal = signal.Signals(number)
        self.code = 128 + int(number)


class EndedEarly(FluvialError):
    """Raised by who listens to a fit's events, to end it: the run is then "interrupted", for the reason given."""


@dataclass
class Stop:
    """Set by a signal; training asks it after every step."""

    signal: signal.Signals | None = None
    training: bool = True

    def __call__(self) -> str | None:
        """Return who wants training to end, if anybody does."""
        return None if self.signal is None else f"interrupted by {shown(self.signal)}"

    def training_is_over(self) -> None:
        """From now on nothing asks: a signal ends what is going on at once."""
        self.training = False

    def handle(self, number: int, frame: object) -> None:
        """Remember a signal; raise where nothing asks for it, or on the second Ctrl-C."""
        again = self.signal is not None
        self.signal = signal.Signals(number)
        if self.training and not (again and number == signal.SIGINT):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(f"stopped by {self.signal.name}", number)


def shown(number: signal.Signals) -> str:
    """Return what to call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else number.name


def handled() -> list[signal.Signals]:
    """Return the signals that a fit answers to; Windows has no SIGUSR1."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


@contextmanager
def signals() -> Iterator[Stop]:
    """Answer signals as the table above says, while the block runs in the main thread."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in handled()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
