"""Draw tables of stand-in black-hole mergers with their exact log-density, and write them to Parquet.

The population, its formula, and the plain statement that its numbers are invented, are in
:mod:`fluvial.apps.binaries.population`. A table has the columns of a population-synthesis catalogue on a
grid of 15 metallicities × 4 common-envelope efficiencies, and one more:

===========  =============  ================================================================
column       unit           meaning
===========  =============  ================================================================
Mass_0       Msun           remnant of the star that was born heavier
Mass_1       Msun           remnant of the other; either may be the heavier
Z            1              metallicity
alpha        1              common-envelope efficiency
log_density  nats / Msun^2  exact ln p(Mass_0, Mass_1 | Z, alpha) of the row
===========  =============  ================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fluvial
from fluvial.apps.binaries.population import ALPHAS, METALLICITIES, Array, log_density, sample
from fluvial.errors import DataError
from fluvial.words import whole_number

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ALPHAS",
    "METALLICITIES",
    "UNITS",
    "cell_probabilities",
    "log_density",
    "sample",
    "simulate",
    "write",
]

UNITS: Mapping[str, str] = {
    "Mass_0": "Msun",
    "Mass_1": "Msun",
    "Z": "1",
    "alpha": "1",
    "log_density": "nats / Msun^2",
}
"""The columns of a table, in order, with their units."""


def cell_probabilities() -> Array:
    r"""Return the share of all mergers in each cell of the grid.

    An equal number of binaries is imagined in every cell; how many of them merge is flat below Z ≈ 0.004
    and falls steeply above, and depends mildly on alpha. With :math:`\ell = \log_{10} Z` and y the scaled
    log alpha in [−1, 1],

    .. math:: \ln N = -0.78 \ln(1 + e^{(\ell + 2.4)/0.15}) + 0.30\,y - 0.35\,y^2 + \text{const}.

    Returns:
        float64 array [15, 4] in the order of ``METALLICITIES`` and ``ALPHAS``; sums to 1. The poorest cell
        holds a few in 10,000, so that 100,000 rows leave it a dozen or so.

    >>> p = cell_probabilities()
    >>> p.shape, round(float(p.sum()), 12), bool((p[0] > 50 * p[-1]).all())
    ((15, 4), 1.0, True)
    """
    log_z = np.log10(METALLICITIES)[:, None]
    log_alpha = np.log(ALPHAS)
    y = 2 * (log_alpha - log_alpha[0]) / (log_alpha[-1] - log_alpha[0]) - 1
    log_number = -0.78 * np.logaddexp(0, (log_z + 2.4) / 0.15) + 0.30 * y - 0.35 * y**2
    number = np.exp(log_number)
    return number / number.sum()


def simulate(rows: int, seed: int = 0) -> dict[str, Array]:
    """Draw a table of mergers: cells of the grid by :func:`cell_probabilities`, then the masses in each.

    The masses are rounded to what a float32 holds, which is how :func:`write` stores them, and
    ``log_density`` is that of the rounded masses: the table in memory, the file, and the density agree to
    the last digit.

    Args:
        rows: how many, at least 1; independent and identically distributed.
        seed: not negative; the same seed and number of rows give the same table.

    Returns:
        The columns of ``UNITS``, each a float64 array [rows].

    Raises:
        DataError: if ``rows`` is less than 1 or ``seed`` is negative, or if either is not a whole number.

    >>> table = simulate(1000, seed=1)
    >>> list(table)
    ['Mass_0', 'Mass_1', 'Z', 'alpha', 'log_density']
    >>> truth = log_density(*(table[k] for k in ("Mass_0", "Mass_1", "Z", "alpha")))
    >>> bool((table["log_density"] == truth).all())
    True
    """
    rows = whole_number("rows", rows, least=1)
    rng = np.random.Generator(np.random.PCG64(whole_number("seed", seed, least=0)))
    probabilities = cell_probabilities()
    cell = rng.choice(probabilities.size, size=rows, p=probabilities.ravel())
    i, j = np.unravel_index(cell, probabilities.shape)
    Z, alpha = np.array(METALLICITIES)[i], np.array(ALPHAS)[j]
    mass_0, mass_1 = (m.astype(np.float32).astype(np.float64) for m in sample(Z, alpha, rng))
    columns = (mass_0, mass_1, Z, alpha, log_density(mass_0, mass_1, Z, alpha))
    return dict(zip(UNITS, columns, strict=True))


def write(path: str | os.PathLike[str], rows: int, seed: int = 0) -> None:
    """Simulate ``rows`` mergers and write them to a Parquet file, whole or not at all.

    Masses are stored as float32, the rest as float64; Z and alpha are dictionary-encoded (a few bits a row)
    and all is compressed with Zstandard. The key-value metadata of the file name the simulator, its
    version, the seed, and the unit of each column. The same arguments give the same bytes, with the same
    version of pyarrow.

    Args:
        path: where, with the suffix ``.parquet``; the folder must exist, an existing file is replaced.
        rows: see :func:`simulate`.
        seed: see :func:`simulate`.

    Raises:
        DataError: as :func:`simulate`; if the suffix is another, if the folder is missing, or if the file
        cannot
            be written; then nothing is left behind.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise DataError(f"expected a file name that ends in .parquet; got {str(path)!r}")
    if not path.parent.is_dir():
        raise DataError(f"no folder {str(path.parent)!r} to write {path.name!r} into; create it first")
    _replace(path, _arrow_table(simulate(rows, seed), seed))


def _arrow_table(table: dict[str, Array], seed: int) -> pa.Table:
    import pyarrow as pa

    columns = {
        "Mass_0": pa.array(table["Mass_0"].astype(np.float32)),
        "Mass_1": pa.array(table["Mass_1"].astype(np.float32)),
        "Z": pa.array(table["Z"]).dictionary_encode(),
        "alpha": pa.array(table["alpha"]).dictionary_encode(),
        "log_density": pa.array(table["log_density"]),
    }
    fields = [pa.field(k, v.type, metadata={"unit": UNITS[k]}) for k, v in columns.items()]
    metadata = {
        "simulator": "fluvial.apps.binaries",
        "version": fluvial.__version__,
        "seed": str(whole_number("seed", seed, least=0)),
        "units": ", ".join(f"{k}: {v}" for k, v in UNITS.items()),
        "note": "a stand-in with invented numbers, not population synthesis",
    }
    return pa.table(list(columns.values()), schema=pa.schema(fields, metadata=metadata))


def _replace(path: Path, table: pa.Table) -> None:
    """Write to a temporary file beside ``path``, then rename: a reader sees the old file or the new one."""
    import pyarrow.parquet as pq

    # Not tempfile: its files are private to the user, and would stay so after the rename.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            # pyarrow's type hints know only a bool here; its documentation allows a list of columns.
            dictionary: Any = ["Z", "alpha"]
            pq.write_table(table, f, compression="zstd", use_dictionary=dictionary)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"could not write {str(path)!r}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # already gone after the rename
