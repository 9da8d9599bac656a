"""The journal of a search: trials that any number of workers claim, one file on a shared file system, no server.

It is a journal of Optuna's, so that ``optuna-dashboard JOURNAL`` and ``optuna.load_study`` open it. What is added here:
claims are made under a lock, so that workers together make exactly as many trials as asked; and a trial whose worker
has died is taken up by another, from its last checkpoint.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.errors import RunError
from fluvial.extras import optional_module
from fluvial.record import RECORD, RunFolder
from fluvial.study_tuning import Range, TuneSection

JOURNAL = "journal.log"
#: A trial is given up for dead when nothing has been written into its run folder for so many seconds.
SILENCE = 1800
#: A lock on the claims that one worker has held for so many seconds is broken: that worker was killed in the midst.
HOLDING = 60
#: Of a budget in minutes, at how many points trials are compared by a pruner.
POINTS = 20


def working_lock(folder: Path) -> str:
    """Return which kind of lock works in a folder: ``symlink`` or ``open``.

    Both are files that only one process can make, as NFS also has it; it is tried out.

    Raises :class:`~fluvial.errors.RunError` if neither does.
    """
    stem = folder / f".lock-{socket.gethostname()}-{os.getpid()}"

    def by_symlink(path: Path) -> None:
        os.symlink("target", path)

    def by_open(path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    found = {}
    for kind, make in (("symlink", by_symlink), ("open", by_open)):
        path = stem.with_suffix(f".{kind}")
        try:
            make(path)
            make(path)
            found[kind] = "a second process is not kept out"
        except FileExistsError:
            return kind
        except OSError as error:
            found[kind] = error.strerror or str(error)
        finally:
            path.unlink(missing_ok=True)
    raise RunError(
        f"{folder} is on a file system without locks that work (symbolic links: {found['symlink']}; exclusive files: "
        f"{found['open']}), so that several workers would spoil their journal. Choose a folder on another with --runs."
    )


class Journal:
    """The trials of one search, in one file.

    ``worker`` tells workers that begin at the same moment apart, for their random numbers.
    """

    def __init__(self, folder: Path, name: str, section: TuneSection, worker: int = 0):
        self.optuna: Any = optional_module("optuna", "tune")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        journal = self.optuna.storages.journal
        kinds = {"symlink": journal.JournalFileSymlinkLock, "open": journal.JournalFileOpenLock}
        lock = kinds[working_lock(folder)]
        self.folder, self.section, self.worker = folder, section, worker
        self.path = folder / JOURNAL
        # A symbolic link is a lock by where it points to, and is left alone for ever if that is not there: the
        # paths are absolute, since a relative one would be taken from the folder of the link.
        self._claims_file = (folder / "claims").absolute()
        self._claims_file.touch()
        self._claims = lock(str(self._claims_file), grace_period=HOLDING)
        backend = journal.JournalFileBackend(str(self.path), lock_obj=lock(str(self.path.absolute())))
        with self._claiming():
            self.study: Any = self.optuna.create_study(
                storage=self.optuna.storages.JournalStorage(backend),
                study_name=name,
                direction="minimize",
                load_if_exists=True,
                pruner=self._pruner(),
            )

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        self._claims.acquire()
        try:
            os.utime(self._claims_file)  # those who wait count from now, not from when the first of them came
            yield
        finally:
            self._claims.release()

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Put on record what is searched; raise :class:`~fluvial.errors.RunError` if it was something else before."""
        with self._claiming():
            before = self.study.user_attrs
            for name, value in facts.items():
                if name not in before:
                    self.study.set_user_attr(name, value)
                elif before[name] != value:
                    raise RunError(
                        f"{self.folder} holds a search with another {name}: {_short(before[name])} there, "
                        f"{_short(value)} now. Choose another --name, or remove that folder."
                    )

    def claim(self) -> Any | None:
        """Return a trial to make: one whose worker is gone, or a new one; ``None`` if there is none left."""
        with self._claiming():
            trials = self.study.get_trials(deepcopy=False)
            running = self.optuna.trial.TrialState.RUNNING
            for frozen in trials:
                if frozen.state == running and self._is_orphan(frozen):
                    trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
                    break
            else:
                if len(trials) >= self.section.number:
                    return None
                trial = self._new(len(trials))
            trial.set_user_attr("worker", identity())
            return trial

    def _new(self, number: int) -> Any:
        samplers, section = self.optuna.samplers, self.section
        seed = int(np.random.SeedSequence([section.seed, self.worker, number]).generate_state(1)[0])
        if section.sampler == "tpe":
            self.study.sampler = samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            self.study.sampler = samplers.RandomSampler(seed=seed)
        if section.sampler == "grid":
            self.study.enqueue_trial(section.combinations()[number])
        trial = self.study.ask(self._distributions())
        trial.set_user_attr("run", run_name(trial.number))
        return trial

    def release(self, trial: Any) -> None:
        """Leave a trial for whoever comes next."""
        trial.set_user_attr("worker", None)

    def _distributions(self) -> dict[str, Any]:
        kinds = self.optuna.distributions
        out = {}
        for name, space in self.section.space.items():
            if not isinstance(space, Range):
                out[name] = kinds.CategoricalDistribution(tuple(space))
            elif self.section.sampler == "grid":
                out[name] = kinds.CategoricalDistribution(tuple(space.grid()))
            elif space.whole:
                out[name] = kinds.IntDistribution(
                    space.low, space.high, log=space.log, step=int(space.step or 1)
                )
            else:
                low, high = float(space.low), float(space.high)
                out[name] = kinds.FloatDistribution(low, high, log=space.log, step=space.step)
        return out

    def _pruner(self) -> Any:
        pruners, section = self.optuna.pruners, self.section
        points = section.epochs or POINTS
        if section.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, points // 10))
        if section.pruner == "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=max(1, points // 9), reduction_factor=3)
        return pruners.NopPruner()

    def _is_orphan(self, frozen: Any) -> bool:
        worker = frozen.user_attrs.get("worker", {})
        if worker is None:
            return True
        me = identity()
        if worker and worker["job"] is not None and worker["job"] == me["job"]:
            return worker["restarts"] < me["restarts"]
        if worker and worker["host"] == me["host"] and worker["job"] is None:
            return not _alive(worker["pid"])
        folder = self.folder / frozen.user_attrs.get("run", "")
        written = last_written(folder) if (folder / RECORD).exists() else None
        return time.time() - (written or frozen.datetime_start.timestamp()) > SILENCE

    def importances(self) -> dict[str, float]:
        """Return how much of the loss each option decides, by PED-ANOVA (Watanabe et al. 2023); of few trials, none."""
        state = self.optuna.trial.TrialState.COMPLETE
        values = [t.value for t in self.study.get_trials(deepcopy=False, states=(state,))]
        if len(values) < 8 or max(values) == min(values):
            return {}
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
        return self.optuna.importance.get_param_importances(self.study, evaluator=evaluator)


def last_written(folder: Path) -> float | None:
    """Return when a file of a folder was last written, in seconds since 1970; ``None`` if it holds none.

    Files that are gone before they are looked at are passed over: whoever works there writes by renaming.
    """
    times = []
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times, default=None)


def run_name(number: int) -> str:
    """Return the name of a trial's run folder."""
    return f"trial-{number:04d}"


def identity() -> dict[str, Any]:
    """Return what tells this worker from others, and from itself before it was requeued."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"


def finished_loss(folder: Path) -> float | None:
    """Return the best loss of a run whose training came to its end, else ``None``."""
    if not (folder / RECORD).exists():
        return None
    record = RunFolder.open(folder).record()
    return record["training"].get("best_loss") if record["status"] == "finished" else None
