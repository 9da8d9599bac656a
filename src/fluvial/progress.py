"""What a person sees while a fit runs: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from fluvial.launch.times import clock
from fluvial.train import EpochEvent, StepEvent


class FitProgress:
    """Shows training events; pass :meth:`show` to ``fluvial.fit(on_event=…)``, inside a ``with`` block.

    On a terminal: a bar with rows per second, losses and time left. In a log: a line each twentieth of the
    budget.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, markup=False)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
            transient=False,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.losses = ""
        self.logged = 0.0
        self.fraction = 0.0

    def __enter__(self) -> FitProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, event: StepEvent | EpochEvent | str) -> None:
        """Show one event."""
        if isinstance(event, str):
            if self.task is not None:
                self.progress.stop()
            self.console.print(event, style="dim", soft_wrap=True, markup=False)
        elif isinstance(event, StepEvent):
            self._step(event)
        else:
            self._epoch(event)

    def _step(self, event: StepEvent) -> None:
        if self.task is None:
            self.task = self.progress.add_task("epoch 1", total=1.0, facts="")
        self.fraction = event.progress
        left = event.seconds * (1 - event.progress) / max(event.progress, 1e-9)
        pace = event.rows / max(event.seconds, 1e-9)
        facts = f"{pace:,.0f} rows/s · {clock(left)} left{self.losses}"
        self.progress.update(
            self.task, completed=event.progress, description=f"epoch {event.epoch}", facts=facts
        )

    def _epoch(self, event: EpochEvent) -> None:
        mark = "*" if event.improved else " "
        self.losses = f" · train {event.train_loss:.4f} · validation {event.validation_loss:.4f}{mark}"
        due = self.fraction >= self.logged + 0.05 or event.stopped is not None
        if not self.console.is_terminal and due:
            self.logged = self.fraction
            self.console.print(
                f"epoch {event.epoch:4d}  {clock(event.seconds)}  {event.rows_per_second:,.0f} rows/s  "
                f"train {event.train_loss:.4f}  validation {event.validation_loss:.4f}{mark}",
                soft_wrap=True,
            )
        if event.stopped is not None:
            self.progress.stop()
            self.console.print(
                f"stopped: {event.stopped}; best epoch {event.best_epoch} of {event.epoch}, "
                f"validation −log p {event.best_loss:.4f} nats per row",
                soft_wrap=True,
            )
