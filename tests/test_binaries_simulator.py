"""The stand-in population of black-hole mergers: its density, its draws, and its files."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import special, stats

import fluvial
from fluvial.apps.binaries import population
from fluvial.apps.binaries.simulator import (
    ALPHAS,
    METALLICITIES,
    UNITS,
    cell_probabilities,
    log_density,
    sample,
    simulate,
    write,
)
from fluvial.errors import DataError

CONTEXTS = [(1e-4, 0.5), (1e-4, 5.0), (0.002, 1.0), (0.03, 0.5), (0.03, 5.0), (0.0005, 2.0), (0.0123, 0.7)]
NARROW = np.log([2.0, 110.0])  # log-masses that hold all of the density to better than 1e-6


LOG_MASS, STEP = np.linspace(*NARROW, 480, retstep=True)
MASS = np.exp(LOG_MASS)


@functools.cache
def density_in_log_mass(Z: float, alpha: float) -> np.ndarray:
    """The density per unit of ln mass_0 and ln mass_1, on the grid of ``MASS`` × ``MASS``."""
    return np.exp(log_density(MASS[:, None], MASS, Z, alpha)) * MASS[:, None] * MASS


def marginal(Z: float, alpha: float, column: int) -> np.ndarray:
    """The density of one mass per unit of its logarithm, on ``MASS``."""
    return density_in_log_mass(Z, alpha).sum(1 - column) * STEP


def marginal_cdf(Z: float, alpha: float, column: int, at: np.ndarray) -> np.ndarray:
    # Sums over cells centred on the grid give the cdf at the cells' upper edges.
    cdf = np.cumsum(marginal(Z, alpha, column)) * STEP
    return np.interp(np.log(at), LOG_MASS + STEP / 2, cdf)


# ------------------------------------------------------------------------------------------------ the density


@pytest.mark.parametrize(("Z", "alpha"), CONTEXTS)
@pytest.mark.parametrize("column", [0, 1])
def test_marginals_have_four_peaks_in_the_spike(Z: float, alpha: float, column: int) -> None:
    p = marginal(Z, alpha, column) / MASS
    peaks = MASS[1:-1][(p[1:-1] > p[:-2]) & (p[1:-1] > p[2:])]
    assert ((peaks > 5.5) & (peaks < 9.5)).sum() == 4


def test_ceiling_falls_with_metallicity() -> None:
    poor, rich = (marginal(Z, 0.5, 0)[MASS > 30].sum() * STEP for Z in (1e-4, 0.03))
    assert 0.05 < poor < 0.3
    assert rich < 0.01


def test_nearly_equal_masses_are_preferred() -> None:
    rng = np.random.default_rng(3)
    mass_0, mass_1 = sample(np.full(20_000, 0.001), 1.0, rng)
    q = np.minimum(mass_0, mass_1) / np.maximum(mass_0, mass_1)
    assert np.median(q) > 0.8
    assert 0.3 < (mass_1 > mass_0).mean() < 0.6


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_no_jump_in_metallicity_or_alpha(alpha: float) -> None:
    mass = np.geomspace(4, 70, 15)
    Z = np.geomspace(METALLICITIES[0], METALLICITIES[-1], 300)
    step = math.log(Z[1] / Z[0])
    value = log_density(mass[:, None, None], mass[:, None], Z, alpha)
    slope = np.diff(value) / step
    change = np.abs(np.diff(slope))
    assert np.abs(np.diff(value)).max() < 1.5
    # A kink would leave a change of slope that does not shrink with the step: compare with half as many.
    coarse = np.abs(np.diff(np.diff(value[..., ::2]) / (2 * step)))
    assert change.max() < 0.6 * coarse.max()


def test_density_depends_on_context_everywhere() -> None:
    mass = np.array([5.9, 6.8, 7.8, 8.8, 12.0, 20.0, 30.0])
    by_Z = log_density(mass, mass, np.array(METALLICITIES)[:, None], 1.0)
    by_alpha = log_density(mass, mass, 0.001, np.array(ALPHAS)[:, None])
    assert (np.ptp(by_Z, axis=0) > 0.1).all()
    assert (np.ptp(by_alpha, axis=0) > 0.03).all()


def test_density_is_finite_or_minus_infinity() -> None:
    tiny, huge = np.nextafter(0, 1), np.finfo(np.float64).max
    mass = np.array([tiny, 1e-300, 1e-6, 1.0, 1e3, 1e9, 1e300, huge])
    assert np.isfinite(log_density(mass[:, None], mass, 0.001, 1.0)).all()
    for bad in (0.0, -0.0, -3.0, math.inf, -math.inf):
        assert (log_density(bad, [7.0, math.inf, -1.0], 0.001, 1.0) == -math.inf).all()
        assert (log_density([7.0, math.inf, -1.0], bad, 0.001, 1.0) == -math.inf).all()


def test_density_broadcasts() -> None:
    mass_0, mass_1 = np.full((3, 1, 1), 7.0), np.array([[6.0], [9.0]])
    Z, alpha = np.array([1e-4, 1e-3, 1e-2, 0.03]), 1.0
    value = log_density(mass_0, mass_1, Z, alpha)
    assert value.shape == (3, 2, 4)
    assert value.dtype == np.float64
    one_by_one = [[[float(log_density(a, b, z, alpha)) for z in Z] for b in (6.0, 9.0)] for a in (7.0,) * 3]
    np.testing.assert_allclose(value, one_by_one, rtol=1e-12)
    assert log_density(7, 7, 0.001, 1).shape == ()
    assert log_density([], [], 0.001, 1).shape == (0,)


def test_more_rows_than_a_block() -> None:
    n = 2 * population._ROWS_AT_ONCE + 7
    mass, Z = np.geomspace(4, 60, n), np.geomspace(1e-4, 0.03, n)
    whole = log_density(mass, mass, Z, 1.0)
    np.testing.assert_allclose(
        whole[::5000], log_density(mass[::5000], mass[::5000], Z[::5000], 1.0), rtol=1e-12
    )
    one_context = log_density(mass, mass, 0.001, 1.0)
    np.testing.assert_allclose(
        one_context[::5000], log_density(mass[::5000], mass[::5000], 0.001, 1.0), rtol=1e-12
    )


def test_log_normal_cdf_against_scipy() -> None:
    z = np.concatenate([np.linspace(-60, 10, 4001), [-1e4, -1e8, 1e8]])
    np.testing.assert_allclose(population._log_normal_cdf(z), special.log_ndtr(z), rtol=1e-11, atol=1e-15)


# -------------------------------------------------------------------------------------------------- the draws


@pytest.mark.parametrize(("Z", "alpha"), [(1e-4, 0.5), (0.0005, 2.0), (0.03, 5.0)])
@pytest.mark.parametrize("column", [0, 1])
def test_marginal_draws_follow_the_density(Z: float, alpha: float, column: int) -> None:
    masses = sample(np.full(20_000, Z), alpha, np.random.default_rng(11))
    assert stats.kstest(masses[column], lambda m: marginal_cdf(Z, alpha, column, m)).pvalue > 0.01
    # The control: at the wrong context the same test must see the difference.
    for wrong in {(1e-4, 0.5), (0.0005, 2.0), (0.03, 5.0)} - {(Z, alpha)}:
        assert stats.kstest(masses[column], lambda m, w=wrong: marginal_cdf(*w, column, m)).pvalue < 1e-6


def joint_chi2(masses: tuple[np.ndarray, np.ndarray], Z: float, alpha: float) -> float:
    """The p-value of a two-dimensional histogram against the integrated density."""
    width = 8  # of a bin, in steps of the grid
    edges = LOG_MASS[0] + STEP * (np.arange(0, MASS.size + 1, width) - 0.5)
    cells = density_in_log_mass(Z, alpha).reshape(MASS.size // width, width, MASS.size // width, width)
    expected = cells.sum((1, 3)) * STEP**2 * len(masses[0])
    counts, _, _ = np.histogram2d(*np.log(masses), bins=edges)
    rich = expected > 10
    seen, wanted = (
        np.append(counts[rich], counts[~rich].sum()),
        np.append(expected[rich], expected[~rich].sum()),
    )
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


def test_joint_draws_follow_the_density() -> None:
    Z, alpha = 0.0005, 2.0
    masses = sample(np.full(50_000, Z), alpha, np.random.default_rng(5))
    assert joint_chi2(masses, Z, alpha) > 0.01
    assert joint_chi2(masses, 1.3 * Z, alpha) < 1e-6
    assert joint_chi2(masses[::-1], Z, alpha) < 1e-6  # the two masses do not play the same part


def test_log_density_of_draws_agrees_with_the_entropy() -> None:
    Z, alpha = 0.0123, 0.7
    p = density_in_log_mass(Z, alpha) * STEP**2
    expected = (p * log_density(MASS[:, None], MASS, Z, alpha)).sum()
    drawn = log_density(*sample(np.full(20_000, Z), alpha, np.random.default_rng(2)), Z, alpha)
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / math.sqrt(drawn.size)


def test_sample_broadcasts_and_repeats() -> None:
    Z = np.array([[1e-4], [0.01]])
    first, second = (sample(Z, ALPHAS, np.random.default_rng(9)) for _ in range(2))
    assert first[0].shape == first[1].shape == (2, 4)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, sample(Z, ALPHAS, np.random.default_rng(10)))
    assert sample(0.001, 1.0, np.random.default_rng(0))[0].shape == ()


# -------------------------------------------------------------------------------------------------- the table


def test_cells_are_realistic() -> None:
    p = cell_probabilities()
    assert p.shape == (len(METALLICITIES), len(ALPHAS)) == (15, 4)
    assert p.sum() == pytest.approx(1)
    assert (np.diff(p.sum(1)) < 0).all()
    assert 1.2e-4 < p.min() < 1e-3
    assert p[np.array(METALLICITIES) >= 0.017].sum() < 0.02


def test_table_follows_the_cells() -> None:
    table = simulate(100_000, seed=4)
    counts = np.array(
        [[((table["Z"] == z) & (table["alpha"] == a)).sum() for a in ALPHAS] for z in METALLICITIES]
    )
    assert counts.sum() == 100_000
    assert counts.min() >= 12
    assert stats.chisquare(counts.ravel(), cell_probabilities().ravel() * 100_000).pvalue > 0.01


def test_table_has_half_of_its_masses_in_the_spike() -> None:
    table = simulate(50_000, seed=0)
    for name in ("Mass_0", "Mass_1"):
        assert (table[name] > 0).all()
        assert 0.45 < ((table[name] > 5.5) & (table[name] < 9.5)).mean() < 0.6
        assert 45 < table[name].max() < 90
        assert np.quantile(table[name], 0.9999) < 65


def test_table_repeats_with_its_seed() -> None:
    first, again, other = simulate(500, seed=3), simulate(500, seed=3), simulate(500, seed=4)
    assert list(first) == list(UNITS)
    for name in first:
        assert first[name].dtype == np.float64
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first["Mass_0"], other["Mass_0"])


# --------------------------------------------------------------------------------------------------- the file


def test_file_round_trip(tmp_path: Path) -> None:
    path, rows = tmp_path / "mergers.parquet", 20_000
    write(path, rows, seed=7)
    file = pq.ParquetFile(path)
    table = {name: column.to_numpy() for name, column in zip(UNITS, file.read().columns, strict=True)}
    for name, column in simulate(rows, seed=7).items():
        np.testing.assert_array_equal(table[name], column)  # the float32 masses too: nothing is lost
    inputs = (table[name].astype(np.float64) for name in ("Mass_0", "Mass_1", "Z", "alpha"))
    np.testing.assert_array_equal(table["log_density"], log_density(*inputs))
    assert set(np.unique(table["Z"])) <= set(METALLICITIES)
    assert list(tmp_path.iterdir()) == [path]


def test_file_encodings_and_size(tmp_path: Path) -> None:
    path, rows = tmp_path / "mergers.parquet", 20_000
    write(path, rows, seed=7)
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == list(UNITS)
    assert [str(file.schema_arrow.field(k).type) for k in ("Mass_0", "log_density")] == ["float", "double"]
    group = file.metadata.row_group(0)
    for i, name in enumerate(UNITS):
        column = group.column(i)
        assert column.compression == "ZSTD"
        assert column.has_dictionary_page == (name in ("Z", "alpha"))
    # 4 + 4 + 8 bytes for masses and log-density, 4 + 2 bits for the cell.
    assert path.stat().st_size < 17 * rows
    assert group.column(2).total_compressed_size + group.column(3).total_compressed_size < 0.8 * rows


def test_file_says_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 10, seed=12)
    schema = pq.read_schema(tmp_path / "a.parquet")
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    assert metadata["simulator"] == "fluvial.apps.binaries"
    assert metadata["version"] == fluvial.__version__
    assert metadata["seed"] == "12"
    assert "Mass_0: Msun" in metadata["units"]
    assert "not population synthesis" in metadata["note"]
    assert {f.name: f.metadata[b"unit"].decode() for f in schema} == UNITS


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{name}.parquet" for name in "abc")
    write(a, 1000, seed=1)
    write(os.fspath(b), 1000, seed=1)
    write(c, 1000, seed=2)
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mergers.parquet"
    write(path, 10)
    before = path.read_bytes()

    def full(table: pa.Table, where: object, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DataError, match=r"could not write .*mergers\.parquet.*No space left"):
        write(path, 20)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize(
    ("Z", "alpha", "message"),
    [
        (9e-5, 1.0, "expected Z from 0.0001 to 0.03"),
        (0.031, 1.0, "got 0.031 at index 0"),
        ([0.001, -0.001, 1.0], 1.0, r"got -0.001 at index 1 \(2 of 3 outside\)"),
        (math.nan, 1.0, "got nan"),
        (math.inf, 1.0, "got inf"),
        (0.001, 0.4, "expected alpha from 0.5 to 5"),
        (0.001, [1.0, 6.0], "got 6 at index 1"),
        (0.001, math.nan, "got nan"),
        ("solar", 1.0, "expected Z to be a number"),
        ([0.001, 0.002], [1.0, 2.0, 3.0], "broadcast"),
    ],
)
def test_bad_contexts(Z: object, alpha: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(Z, alpha, np.random.default_rng(0))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        log_density(7.0, 7.0, Z, alpha)  # type: ignore[arg-type]


def test_float32_contexts_are_in_range() -> None:
    ends = np.array([METALLICITIES[0], METALLICITIES[-1]], dtype=np.float32)
    assert np.isfinite(log_density(7.0, 7.0, ends, np.float32(5.0))).all()


def test_bad_masses() -> None:
    with pytest.raises(
        DataError, match=r"expected mass_1 in solar masses; got NaN at index 1 \(1 of 2 are NaN\)"
    ):
        log_density(7.0, [7.0, math.nan], 0.001, 1.0)
    with pytest.raises(DataError, match="expected mass_0 to be a number"):
        log_density("heavy", 7.0, 0.001, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "seed", "message"),
    [
        (0, 0, "expected rows to be at least 1; got 0"),
        (-5, 0, "expected rows to be at least 1"),
        (1.5, 0, "expected rows to be a whole number; got 1.5"),
        (10, -1, "expected seed to be at least 0"),
        (10, None, "expected seed to be a whole number"),
    ],
)
def test_bad_rows_and_seeds(tmp_path: Path, rows: int, seed: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulate(rows, seed)
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a.parquet", rows, seed)
    assert not list(tmp_path.iterdir())


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in \.parquet; got .*mergers\.csv"):
        write(tmp_path / "mergers.csv", 10)
    with pytest.raises(DataError, match=r"no folder .*nowhere.* create it first"):
        write(tmp_path / "nowhere" / "mergers.parquet", 10)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match=r"could not write .*folder\.parquet"):
        write(tmp_path / "folder.parquet", 10)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.parquet"]
