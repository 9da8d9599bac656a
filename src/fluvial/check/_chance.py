r"""What chance alone gives to a distance, and how to take it away.

A distance of two samples, or of one from what it should be, is the norm of a mean of n independent terms, and a norm is
never 0: by chance it is about :math:`E_0`. Its fluctuation *around* that is Gaussian in the tail, whatever the norm
(Borell 1975; Tsirelson, Ibragimov & Sudakov 1976):

.. math:: P(\|\cdot\| > E_0 + k\,\sigma) \le e^{-k^2/2}

with :math:`\sigma^2` the largest variance of any linear functional of norm 1.
"""

from __future__ import annotations

import math

from fluvial.check.result import STANDARD_ERRORS


def excess(distance: float, null_square: float, sigma: float) -> tuple[float, float]:
    r"""Return a distance less what chance adds, and its standard error.

    The distance is :math:`d = \sqrt{\max(0,\, \|\cdot\|^2 - E_0^2)}`, with ``null_square`` :math:`E_0^2` the mean
    square of the norm by chance; ``sigma``: see the head of this module. The standard error u is such that d of an
    exact density exceeds 4 u just where the norm exceeds :math:`E_0 + 4\sigma`: :math:`u = \sqrt{(E_0 + 4\sigma)^2 -
    E_0^2}\,/\,4 = \sqrt{\sigma^2 + E_0\,\sigma / 2}`.
    """
    null = math.sqrt(max(null_square, 0.0))
    error = math.sqrt(sigma**2 + 2.0 * null * sigma / STANDARD_ERRORS)
    return math.sqrt(max(0.0, distance**2 - null_square)), error
