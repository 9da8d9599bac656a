r"""How well fast simulation stands in for full simulation, as the field asks it: numbers with statistical errors.

*Full* simulation is a table of pairs, *fast* simulation the draws of a density at the contexts of the same pairs. All
functions here take arrays; :func:`compare` puts them together, :mod:`fluvial.apps.collider.figures` draws them. The set
of comparisons follows FlashSim (Vaselli, Rizzi, Cattafesta & Cicconofri 2023, CMS NOTE-2023/003).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluvial.check import CheckResult
from fluvial.errors import DataError

Array = NDArray[np.float64]
Table = Mapping[str, NDArray[Any]]

SAMPLE = 20_000
"""Rows of a sample in distances: the same for two samples of truth as for truth against fast simulation."""

RATIO_THRESHOLD = 2.0
"""Largest distance of fast simulation from the truth, in units of that between two samples of the truth."""

CORRELATION_THRESHOLD = 0.03
RESPONSE_THRESHOLD = 0.02
RESOLUTION_THRESHOLD = 0.1
ROC_THRESHOLD = 3.0

TRUE_POSITIVE_RATES: Array = np.append(np.arange(6, 20) * 0.05, 0.98)


@dataclass(frozen=True)
class Distances:
    """Mean 1-D Wasserstein distances of samples of ``n`` rows: two of the truth; truth and fast simulation."""

    name: str
    n: int
    truth: float
    truth_error: float  # how far that of one pair scatters
    fast: float
    ratio_error: float

    @property
    def ratio(self) -> float:
        """The distance of fast simulation in units of that of the truth from itself."""
        return self.fast / self.truth if self.truth else (1.0 if self.fast == 0 else math.inf)


@dataclass(frozen=True)
class Profile:
    """Mean and RMS of a quantity in bins of another, with standard errors; NaN where a bin has too few rows."""

    edges: Array
    n: NDArray[np.int64]
    mean: Array
    mean_error: Array
    rms: Array
    rms_error: Array


@dataclass(frozen=True)
class Roc:
    """False-positive rates at given true-positive rates, with standard errors of both samples' sizes."""

    tpr: Array
    fpr: Array
    error: Array


@dataclass(frozen=True)
class Comparison:
    """All comparisons of one process; ``curves`` by (tagger, background flavour), as (full, fast)."""

    process: str
    rows: int
    full: Table
    fast: Table
    distances: list[Distances]
    correlations: tuple[Array, Array]
    correlation_names: tuple[list[str], list[str]]
    profiles: dict[str, tuple[Profile, Profile]]
    curves: dict[tuple[str, str], tuple[Roc, Roc]]
    results: list[CheckResult]


def wasserstein_distances(
    full: NDArray[Any], fast: NDArray[Any], name: str = "", sample: int = SAMPLE
) -> Distances:
    r"""Return the 1-D Wasserstein distances :math:`\int |F - G| dx` of disjoint samples, in the unit of the values.

    ``full`` and ``fast`` are ``[N]``, row by row at one context. They are cut into samples of ``sample`` rows (fifths if
    there are fewer than five). Every sample of fast simulation is compared with those samples of the truth that it
    shares no context with, as two samples of the truth are; the error of the ratio is a jackknife over samples.

    Raises
    ------
    DataError
        If there are fewer than 10 rows.
    """
    n = min(sample, len(full) // 5)
    if n < 2:
        raise DataError(f"expected at least 10 rows to compare; found {len(full)}")
    k = min(len(full) // n, 10)
    truth, drawn = (
        np.sort(np.asarray(v[: k * n], dtype=np.float64).reshape(k, n), axis=1) for v in (full, fast)
    )
    # Of samples of one size the distance is the mean of |differences| of sorted values.
    among = np.array([[np.abs(truth[i] - truth[j]).mean() for j in range(k)] for i in range(k)])
    between = np.array([[np.abs(drawn[i] - truth[j]).mean() for j in range(k)] for i in range(k)])
    off = ~np.eye(k, dtype=bool)

    def ratio(kept: NDArray[np.bool_]) -> float:
        use = off & kept[:, None] & kept[None, :]
        below = among[use].mean()
        return float(between[use].mean() / below) if below else 1.0

    left_out = np.array([ratio(np.arange(k) != i) for i in range(k)])
    error = math.sqrt((k - 1) * left_out.var())
    pairs = among[np.triu_indices(k, 1)]
    return Distances(name, n, pairs.mean(), pairs.std(), float(between[off].mean()), error)


def rank_correlations(rows: Sequence[NDArray[Any]], columns: Sequence[NDArray[Any]]) -> Array:
    """Return Spearman's rank correlations ``[rows, columns]``: steep tails and atoms do not spoil them.

    >>> x = np.array([1.0, 2.0, 3.0, 4.0])
    >>> rank_correlations([x], [x**9, -x]).round(6).tolist()
    [[1.0, -1.0]]
    """
    left, right = (np.stack([_standard_ranks(v) for v in part]) for part in (rows, columns))
    return left @ right.T / left.shape[1]


def _standard_ranks(values: NDArray[Any]) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - 0.5 * (counts + 1))[inverse]  # ties get their mean rank
    spread = ranks.std()
    return (ranks - ranks.mean()) / spread if spread else np.zeros(len(ranks))


def profile(values: NDArray[Any], against: NDArray[Any], edges: Array, least: int = 50) -> Profile:
    r"""Return mean and RMS (about the mean) in bins.

    Their standard errors are :math:`s/\sqrt n` and :math:`\sqrt{(m_4 - s^4)/(4 s^2 n)}`, with the fourth moment m₄.
    Bins with fewer than ``least`` rows are NaN.
    """
    at = np.searchsorted(edges, against, side="right") - 1
    bins = len(edges) - 1
    keep = (at >= 0) & (at < bins)
    at, x = at[keep], np.asarray(values, dtype=np.float64)[keep]
    n = np.bincount(at, minlength=bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(at, x, bins) / n
        off = x - mean[at]
        variance, fourth = (np.bincount(at, off**p, bins) / n for p in (2, 4))
        rms = np.sqrt(variance)
        rms_error = np.sqrt(np.maximum(fourth - variance**2, 0.0) / (4 * variance * n))
        mean_error = rms / np.sqrt(n)
    few = n < least
    return Profile(edges, n, *(np.where(few, np.nan, v) for v in (mean, mean_error, rms, rms_error)))


def roc(signal: NDArray[Any], background: NDArray[Any], tpr: Array = TRUE_POSITIVE_RATES) -> Roc:
    r"""Return the false-positive rate at each true-positive rate t, a cut on a score from above.

    The standard error has two parts: of the share f of the background, :math:`\sqrt{f(1-f)/n_b}`, and of where the cut
    falls: :math:`|df/dt|\, s` with :math:`s = \sqrt{t(1-t)/n_s}`, the slope being that between :math:`t \pm 2s`, as far
    as the cut may well fall. Scores that stand together (a tagger that failed) pass in proportion.

    >>> roc(np.arange(100) + 50.0, np.arange(100.0), np.array([0.5])).fpr.round(2).tolist()
    [0.0]
    """
    s, b = np.asarray(signal, dtype=np.float64), np.asarray(background, dtype=np.float64)
    cuts = np.unique(np.concatenate([s, b]))
    above_s, above_b = (1 - np.searchsorted(np.sort(v), cuts) / len(v) for v in (s, b))
    # From the highest cut down both rates rise; between neighbouring cuts a share of the ties is taken.
    at_s, at_b = np.append(0.0, above_s[::-1]), np.append(0.0, above_b[::-1])
    fpr = np.interp(tpr, at_s, at_b)
    spread = np.sqrt(tpr * (1 - tpr) / len(s))
    left, right = np.maximum(tpr - 2 * spread, 0.0), np.minimum(tpr + 2 * spread, 1.0)
    slope = (np.interp(right, at_s, at_b) - np.interp(left, at_s, at_b)) / np.maximum(right - left, 1e-12)
    error = np.sqrt(np.maximum(fpr * (1 - fpr), 1 / len(b)) / len(b) + (slope * spread) ** 2)
    return Roc(tpr, fpr, error)


def compare(
    process: str,
    full: Table,
    fast: Table,
    targets: Sequence[str],
    context: Sequence[str],
    *,
    looks: str = "",
) -> Comparison:
    """Return all comparisons of a table of pairs with draws at its contexts.

    ``full`` has the columns of targets and context, ``fast`` those of the targets. ``looks`` is put before the names of
    the results, where there are several processes.
    """
    rows = len(full[targets[0]])
    distances = [wasserstein_distances(full[n], fast[n], n) for n in targets]
    names = list(targets), [*targets, *context]
    pairs = []
    for table in (full, fast):
        left = [table[n] for n in targets]
        pairs.append(rank_correlations(left, [*left, *(full[n] for n in context)]))
    profiles = _profiles(full, fast, targets)
    curves = _curves(full, fast, targets)
    results = [
        *_of_distances(distances, looks),
        _of_correlations(pairs[0], pairs[1], names, rows, looks),
        *_of_profiles(profiles, looks),
        *_of_curves(curves, looks),
    ]
    return Comparison(
        process, rows, full, fast, distances, (pairs[0], pairs[1]), names, profiles, curves, results
    )


def _profiles(full: Table, fast: Table, targets: Sequence[str]) -> dict[str, tuple[Profile, Profile]]:
    out = {}
    for name in targets:
        collection, _, quantity = name.partition("_")
        pt = f"Gen{collection}_pt"
        if quantity in ("ptRatio", "etaMinusGen", "phiMinusGen") and pt in full:
            low, high = np.quantile(full[pt], [0.001, 0.999])
            edges = np.geomspace(max(low, 1e-3), high, 16)
            out[name] = tuple(profile(t[name], full[pt], edges) for t in (full, fast))
    return out


def _curves(full: Table, fast: Table, targets: Sequence[str]) -> dict[tuple[str, str], tuple[Roc, Roc]]:
    if "GenJet_hadronFlavour" not in full:
        return {}
    flavour = full["GenJet_hadronFlavour"]
    parts = {"b": flavour == 5, "c": flavour == 4, "light": flavour == 0}
    out = {}
    for name in targets:
        if not b_tagger(name):
            continue
        for background in ("light", "c"):
            if min(parts["b"].sum(), parts[background].sum()) < 50:
                continue
            curves = (roc(t[name][parts["b"]], t[name][parts[background]]) for t in (full, fast))
            out[name, background] = tuple(curves)
    return out


def b_tagger(name: str) -> bool:
    """Return whether a target is a score that is high for b jets.

    >>> [b_tagger(n) for n in ("Jet_btagDeepFlavB", "Jet_btagDeepFlavCvL", "Jet_btagCSVV2", "Jet_btagPNetQvG")]
    [True, False, True, False]
    """
    return name.startswith("Jet_btag") and (name.endswith(("B", "V2", "MVA")))


# ---------------------------------------------------------------------------------------------------- verdicts


def _of_distances(distances: Sequence[Distances], looks: str) -> list[CheckResult]:
    meaning = (
        "1-D Wasserstein distance between full and fast simulation, in units of that between two samples of full "
        "simulation of the same size; 1 if they are the same."
    )
    return [
        CheckResult.judge(
            f"{looks}Wasserstein distance", d.name, d.ratio, d.ratio_error, RATIO_THRESHOLD - 1, d.n, meaning,
            exact=1.0, looks=len(distances),
        )
        for d in distances
    ]  # fmt: skip


def _of_correlations(
    full: Array, fast: Array, names: tuple[list[str], list[str]], rows: int, looks: str
) -> CheckResult:
    # The error of the difference of two independent coefficients, at its largest (correlation 0).
    i, j = np.unravel_index(int(np.abs(fast - full).argmax()), full.shape)
    meaning = (
        "Largest difference of a rank correlation of targets with targets and context: "
        f"{names[0][i]} with {names[1][j]}."
    )
    error = math.sqrt(2 / rows) * (1 - full[i, j] ** 2)
    return CheckResult.judge(
        f"{looks}correlation", None, float(fast[i, j] - full[i, j]), error, CORRELATION_THRESHOLD, rows, meaning,
        looks=full.size,
    )  # fmt: skip


def _of_profiles(profiles: Mapping[str, tuple[Profile, Profile]], looks: str) -> list[CheckResult]:
    results = []
    for name, (full, fast) in profiles.items():
        whole = np.isfinite(full.rms) & np.isfinite(fast.rms)
        if not whole.any():
            continue
        itself = name.endswith("Ratio")
        scale = np.abs(full.mean) if itself else full.rms
        response = (
            (fast.mean - full.mean) / scale,
            np.hypot(fast.mean_error, full.mean_error) / scale,
            RESPONSE_THRESHOLD if itself else RESOLUTION_THRESHOLD,
            f"Difference of the mean, fast − full, {'of itself' if itself else 'in units of the RMS'}",
        )
        resolution = (
            fast.rms / full.rms - 1,
            np.hypot(fast.rms_error, full.rms_error * fast.rms / full.rms) / full.rms,
            RESOLUTION_THRESHOLD,
            "Relative difference of the RMS, fast − full",
        )
        for what, (value, error, threshold, meaning) in (("response", response), ("resolution", resolution)):
            worst = int(np.argmax(np.where(whole, np.abs(value) - 2 * error, -np.inf)))
            at = f"{full.edges[worst]:.3g} to {full.edges[worst + 1]:.3g} GeV"
            meaning += f", in bins of generator-level pt. Worst of {whole.sum()} bins: {at}."
            number, looked = int(full.n[worst]), int(whole.sum())
            results.append(
                CheckResult.judge(
                    f"{looks}{what}",
                    name,
                    value[worst],
                    error[worst],
                    threshold,
                    number,
                    meaning,
                    looks=looked,
                )
            )
    return results


def _of_curves(curves: Mapping[tuple[str, str], tuple[Roc, Roc]], looks: str) -> list[CheckResult]:
    results = []
    for (name, background), (full, fast) in curves.items():
        high = full.tpr > 0.5
        pull = ((fast.fpr - full.fpr) / np.hypot(fast.error, full.error))[high]
        worst = int(np.abs(pull).argmax())
        meaning = (
            f"Difference of the false-positive rate of {background} jets, fast − full, in units of its statistical "
            f"error, where it is largest at true-positive rates above 0.5 (here {full.tpr[high][worst]:g})."
        )
        results.append(
            CheckResult.judge(
                f"{looks}b-tag ROC, {background}", name, pull[worst], 1.0, ROC_THRESHOLD, len(pull), meaning
            )
        )
    return results
