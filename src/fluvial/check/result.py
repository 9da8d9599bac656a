"""What a check returns, and the one rule that turns a statistic into a verdict.

A check measures how far a density is from exact, with a standard error, and compares it with a threshold.

**Thresholds are sizes, not p-values.** A threshold says how large a deviation may be before it matters in
use: a cumulative probability wrong by 0.03, an error bar wrong by 10 %. It does not move with the number of
rows, so that with a million rows a deviation that is certain but trivial passes, and with few rows a
deviation that might be chance does not fail. With d = |statistic − exact|, u the standard error and T the
threshold::

    fail               d > T  and  d > 4 u     too large, and not by chance
    insufficient data  else, d > T or u > T/2  too few rows to tell
    pass               else                    small, and known to be small

Why these numbers:

* *4 standard errors.* A normal statistic of an exact density goes beyond four standard errors with
  probability 6e-5, so that a report of a dozen results raises a false alarm less than once in a thousand,
  however few the rows. Four, and not three, also because standard errors are themselves estimated. Once
  there are rows enough for u < T/4 this clause never decides; the threshold does.
* *T/2.* A pass then bounds the truth: a deviation as large as 2 T is excluded by at least two standard
  errors.
* *Look-elsewhere.* The worst of L results is judged at sqrt(16 + 2 ln L) standard errors, which divides the
  Gaussian tail exp(−k²/2) by L (Bonferroni).

What can be no estimate has no standard error: a draw outside the support is counted, u = 0, and one is
enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "insufficient data"]

STANDARD_ERRORS = 4.0
"""How many standard errors a deviation must exceed before it can fail."""

MINIMUM_ROWS = 50
"""The fewest rows from which a standard error is estimated; fewer give "insufficient data"."""

_NUMBERS = ("statistic", "uncertainty", "threshold", "exact")
SYMBOLS: dict[Verdict, str] = {"pass": "✓", "fail": "✗", "insufficient data": "?"}
"""The mark of each verdict."""


@dataclass(frozen=True)
class CheckResult:
    """One statistic of one check: its value, standard error, threshold and verdict.

    ``name`` is the check ("PIT", "pull width", …) and ``column`` the target that it is about, ``None`` if
    about all of them. The density deviates by |``statistic`` − ``exact``|, where ``exact`` is what an exact
    density gives; ``threshold`` is the deviation allowed and ``uncertainty`` the standard error, all in the
    unit of the statistic. ``n`` counts the rows (or draws, or integrals) used. ``meaning`` is one plain
    sentence: what the statistic is, and what an exact density would give.

    >>> result = CheckResult.judge("pull width", "Mass_0", 1.02, 0.01, 0.1, 5000, "How wide.", exact=1.0)
    >>> result.verdict, round(result.deviation, 3)
    ('pass', 0.02)
    >>> print(result)
    ✓ pull width of Mass_0: 1.02 ± 0.01 (exact 1, threshold 0.1, n = 5000): pass
    """

    name: str
    column: str | None
    statistic: float
    uncertainty: float
    threshold: float
    n: int
    verdict: Verdict
    meaning: str
    exact: float = 0.0

    @classmethod
    def judge(
        cls,
        name: str,
        column: str | None,
        statistic: float,
        uncertainty: float,
        threshold: float,
        n: int,
        meaning: str,
        *,
        exact: float = 0.0,
        looks: int = 1,
    ) -> CheckResult:
        """Return the result whose verdict :func:`verdict_for` gives."""
        statistic, uncertainty = float(statistic), float(uncertainty)
        verdict = verdict_for(statistic, uncertainty, threshold, exact=exact, looks=looks)
        return cls(name, column, statistic, uncertainty, float(threshold), int(n), verdict, meaning, exact)

    @property
    def title(self) -> str:
        """The check, and the column that it is of."""
        return f"{self.name} of {self.column}" if self.column else self.name

    @property
    def deviation(self) -> float:
        """The distance from exact, |statistic − exact|: what is compared with the threshold."""
        return abs(self.statistic - self.exact)

    @property
    def rows_needed(self) -> int | None:
        """About how many rows would decide where there are too few, if the statistic stays; ``None`` if unknown.

        The standard error falls as 1/√n: rows must make it T/2 for a pass, or the deviation 4 of it for a fail. A result
        that is decided needs no more than it has.

        >>> CheckResult.judge("PIT", "x", 0.02, 0.025, 0.03, 400, "…").rows_needed
        1112
        """
        if self.verdict != "insufficient data":
            return self.n
        wanted = self.deviation / STANDARD_ERRORS if self.deviation > self.threshold else self.threshold / 2
        if not (self.uncertainty > 0 and wanted > 0 and self.n > 0):  # NaN as well
            return MINIMUM_ROWS if 0 <= self.n < MINIMUM_ROWS else None
        return max(math.ceil(self.n * (self.uncertainty / wanted) ** 2), self.n + 1)

    def to_json(self) -> dict[str, Any]:
        """Return a value for strict JSON; NaN and infinities become the strings that ``float`` reads.

        >>> CheckResult.judge("KL(truth‖fit)", None, math.inf, math.nan, 0.05, 9, "…").to_json()["statistic"]
        'inf'
        """
        out = asdict(self)
        out.update({key: _number_to_json(out[key]) for key in _NUMBERS})
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CheckResult:
        """Inverse of :meth:`to_json`."""
        return cls(**{**value, **{key: float(value[key]) for key in _NUMBERS if key in value}})

    def __str__(self) -> str:
        exact = f"exact {self.exact:g}, " if self.exact else ""
        return (
            f"{SYMBOLS[self.verdict]} {self.title}: {self.statistic:.3g} ± {self.uncertainty:.2g} "
            f"({exact}threshold {self.threshold:g}, n = {self.n}): {self.verdict}"
        )


def verdict_for(
    statistic: float, uncertainty: float, threshold: float, *, exact: float = 0.0, looks: int = 1
) -> Verdict:
    """Return the verdict on a statistic, by the rule at the head of this module.

    ``looks`` is the number of results of which this is the worst. An infinite statistic fails: it is how a
    check reports a density that gives no answer at all. NaN, in the statistic or in its standard error,
    means that it could not be computed: "insufficient data".

    >>> verdict_for(0.01, 0.002, 0.03), verdict_for(0.05, 0.002, 0.03)
    ('pass', 'fail')
    >>> verdict_for(0.01, 0.02, 0.03), verdict_for(0.05, 0.02, 0.03)
    ('insufficient data', 'insufficient data')
    >>> verdict_for(0.85, 0.01, 0.1, exact=1.0)
    'fail'
    """
    deviation = abs(statistic - exact)
    if math.isinf(deviation):
        return "fail"
    if math.isnan(deviation) or math.isnan(uncertainty):
        return "insufficient data"
    if deviation > threshold:
        by_chance = math.sqrt(STANDARD_ERRORS**2 + 2.0 * math.log(max(looks, 1))) * uncertainty
        return "fail" if deviation > by_chance else "insufficient data"
    return "insufficient data" if uncertainty > threshold / 2.0 else "pass"


def overall(results: Iterable[CheckResult]) -> Verdict:
    """Return the verdict on several results together: "fail" if one fails, "pass" if all pass.

    No results at all are "insufficient data".

    >>> overall([])
    'insufficient data'
    """
    verdicts = {result.verdict for result in results}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "insufficient data"


def worst(results: Sequence[CheckResult]) -> CheckResult:
    """Return the result of the worst verdict, and of those the most deviant; the first one wins a tie.

    A fail is worse than insufficient data, and that worse than a pass. ``results`` must not be empty.
    """
    severity: dict[Verdict, int] = {"pass": 0, "insufficient data": 1, "fail": 2}
    return max(results, key=lambda result: (severity[result.verdict], result.deviation))


def _number_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
