r"""What a population is inferred from: posterior samples of every event, and what a survey can detect.

An event's samples :math:`\theta_{is}` come from its posterior under a *sampling prior* :math:`\pi(\theta)`, which the
population must replace; so every sample brings the density of that prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.errors import DataError, nearest

#: Column of the natural logarithm of the sampling prior's density, per unit of every target.
LOG_PRIOR = "log_prior"
#: Column of the event that a row is a sample of.
EVENT = "event"


@dataclass(frozen=True)
class Events:
    """Posterior samples of N events, one after the other.

    Attributes
    ----------
    names : tuple of str
        The targets.
    samples : numpy.ndarray
        ``[S, D]``, in the targets' units, the samples of an event side by side.
    log_prior : numpy.ndarray
        ``[S]``, log π(θ) of each sample, per unit of every target, up to one constant.
    starts : numpy.ndarray
        ``[N + 1]``: the samples of event i are rows ``starts[i]`` to ``starts[i + 1]``.
    labels : tuple of str
        What the events are called, for messages and figures.
    """

    names: tuple[str, ...]
    samples: np.ndarray
    log_prior: np.ndarray
    starts: np.ndarray
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def counts(self) -> np.ndarray:
        """Return the number of samples of each event."""
        return np.diff(self.starts)

    @classmethod
    def from_samples(
        cls,
        events: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        *,
        log_prior: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None,
        labels: Sequence[str] | None = None,
    ) -> Events:
        """Make events of one table of samples each.

        Parameters
        ----------
        events
            For each event a mapping from target to samples; and ``log_prior``, unless the argument of that name
            computes it. Neither: the sampling prior was flat in the targets.
        names
            The targets, in order.
        log_prior
            Returns log π(θ) for a table of samples.

        Raises
        ------
        DataError
            If there are no events, a column is missing, columns differ in length, or a value is not finite.
        """
        if not events:
            raise DataError("Expected at least one event; found none.")
        known = (
            [str(label) for label in labels] if labels is not None else [str(i) for i in range(len(events))]
        )
        if len(known) != len(events):
            raise DataError(f"Expected a label for each of {len(events)} events; found {len(known)}.")
        samples, priors = [], []
        for label, event in zip(known, events, strict=True):
            table = {name: _column(event, name, label) for name in names}
            lengths = {name: len(values) for name, values in table.items()}
            if len(set(lengths.values())) > 1 or not min(lengths.values()):
                raise DataError(
                    f"event {label}: expected samples, as many of each target; found "
                    + ", ".join(f"{n} of {name}" for name, n in lengths.items())
                )
            if log_prior is not None:
                prior = np.asarray(log_prior(table), dtype=np.float64)
            elif LOG_PRIOR in event:
                prior = _column(event, LOG_PRIOR, label)
            else:
                prior = np.zeros(lengths[names[0]])
            if prior.shape != (lengths[names[0]],) or not np.isfinite(prior).all():
                raise DataError(f"event {label}: expected one finite {LOG_PRIOR} for each sample.")
            samples.append(np.stack([table[name] for name in names], axis=-1))
            priors.append(prior)
        starts = np.concatenate([[0], np.cumsum([len(s) for s in samples])])
        return cls(tuple(names), np.concatenate(samples), np.concatenate(priors), starts, tuple(known))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], names: Sequence[str], *, where: str = "events") -> Events:
        """Make events of one table with a row a sample: targets, ``event``, and ``log_prior`` if it was not flat.

        Raises
        ------
        DataError
            As :meth:`from_samples`.
        """
        known = list(table)
        for name in (EVENT, *names):
            if name not in known:
                raise DataError(
                    f"{where}: expected a column {name!r} of samples; it is missing{nearest(name, known)}"
                )
        labels, first, member = np.unique(np.asarray(table[EVENT]), return_index=True, return_inverse=True)
        order = np.argsort(first)  # events as they come in the table
        columns = [*names, *([LOG_PRIOR] if LOG_PRIOR in known else [])]
        arrays = {name: np.asarray(table[name]) for name in columns}
        rows = [np.flatnonzero(member == i) for i in order]
        parts = [{name: values[r] for name, values in arrays.items()} for r in rows]
        return cls.from_samples(
            parts, names, labels=[f"{labels[i]:g}" if _number(labels[i]) else str(labels[i]) for i in order]
        )

    def thinned(self, most: int, seed: int = 0) -> Events:
        """Return events of at most so many samples each, chosen at random: the likelihood's cost is theirs."""
        rng = np.random.default_rng(seed)
        rows = []
        for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True):
            count = stop - start
            kept = np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))
            rows.append(start + kept)
        starts = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        every = np.concatenate(rows)
        return Events(self.names, self.samples[every], self.log_prior[every], starts, self.labels)


@dataclass(frozen=True)
class Injections:
    r"""Simulated signals that a survey found, of ``drawn`` that were made from a known density.

    They estimate the share of a population that is detected (Farr 2019, RNAAS 3, 66, eq. 1):

    .. math:: \xi(\lambda) = \frac{1}{M} \sum_j w_j \frac{p(\theta_j | \lambda)}{p_\mathrm{draw}(\theta_j)}

    Attributes
    ----------
    names : tuple of str
        The targets.
    found : numpy.ndarray
        ``[J, D]``, the injections that were found.
    log_draw : numpy.ndarray
        ``[J]``, log of the density that they were drawn from, per unit of every target.
    drawn : int
        M, how many were made, found or not.
    log_weight : numpy.ndarray
        ``[J]``, log w: 0 for an injection that was found, or the log of its detection probability.
    """

    names: tuple[str, ...]
    found: np.ndarray
    log_draw: np.ndarray
    drawn: int
    log_weight: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.found):
            raise DataError(
                f"None of {self.drawn} injections was found: expected a survey that detects some of the population."
            )
        if self.drawn < len(self.found):
            raise DataError(
                f"Expected no more injections found than drawn; found {len(self.found)} of {self.drawn} drawn."
            )

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], names: Sequence[str], drawn: int, *, where: str = "injections"
    ) -> Injections:
        """Make injections of a table of those found: targets and ``log_draw``.

        Raises
        ------
        DataError
            If a column is missing or holds a value that is not finite, or nothing was found.
        """
        columns = [_column(table, name, where) for name in (*names, "log_draw")]
        found = np.stack(columns[:-1], axis=-1)
        return cls(tuple(names), found, columns[-1], int(drawn), np.zeros(len(found)))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _column(table: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    try:
        values = np.asarray(table[name], dtype=np.float64)
    except KeyError:
        raise DataError(
            f"event {where}: column {name!r} is missing{nearest(name, map(str, table))}"
        ) from None
    except (TypeError, ValueError) as error:
        raise DataError(f"event {where}: column {name!r} is not numeric ({error}).") from error
    if values.ndim != 1:
        raise DataError(
            f"event {where}: expected {name!r} as one number a sample; found shape {values.shape}."
        )
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(
            f"event {where}: {int(bad.sum())} of {len(values)} values of {name!r} are not finite, the first in "
            f"sample {int(bad.argmax())}; leave those samples out."
        )
    return values
