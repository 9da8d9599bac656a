"""Simulate jets and muons whose conditional density is known exactly, and write them to Parquet.

**The numbers are invented.** Tables look like what FlashSim is trained on (Vaselli, Rizzi, Cattafesta, Cicconofri
2023, CMS NOTE-2023/003): generator-level objects like those of top-quark pairs, each with its reconstructed partner, in
the units and under the names of CMS NanoAOD. Resolutions fall with pt and have long tails; tag scores depend on
flavour, peak at 0 and 1, and are −1 where a tagger failed; identification flags are integers; isolations are exactly
0 for many muons; ratios saturate; and targets depend on one another. But the detector is made up, so that a fitted
density can be compared with the truth row by row.

========  ================  =================  ==================================================
table     context columns   target columns     defined in
========  ================  =================  ==================================================
jets      14                17                 :mod:`fluvial.apps.collider.jets`
muons     30                22                 :mod:`fluvial.apps.collider.muons`
========  ================  =================  ==================================================

A last column, ``log_density``, is the exact ln p(targets | context) of the row in nats: against the counting measure
on integers and atoms, and per unit of each target elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fluvial
from fluvial.apps.collider import jets, muons
from fluvial.apps.collider.chain import Chain, Table, Variable
from fluvial.apps.collider.conditionals import Array
from fluvial.errors import DataError, nearest
from fluvial.words import whole_number

Objects = Literal["jets", "muons"]

CHAINS: Mapping[str, Chain] = {"jets": jets.JETS, "muons": muons.MUONS}
"""The response of each kind of object."""

LOG_DENSITY = Variable("log_density", "continuous", "nats")

PROCESSES = ("ttbar", "dy")
"""Spectra at generator level: of top-quark pairs, and of Z bosons with jets. The detector is the same."""

_CONTEXTS = {"jets": jets.draw_context, "muons": muons.draw_context}
_BLOCK = 16_384  # rows with random numbers of their own; small enough for the processor's caches
_GROUP = 16  # blocks in a row group of the file


def variables(objects: Objects) -> tuple[Variable, ...]:
    """Return the columns of a table in order: context, targets, ``log_density``.

    >>> [len(variables(objects)) for objects in ("jets", "muons")]
    [32, 53]
    """
    chain = _chain(objects)
    return (*chain.context, *chain.targets, LOG_DENSITY)


def simulate(objects: Objects, rows: int, seed: int = 0, process: str = "ttbar") -> Table:
    """Draw a table of independent objects.

    Args:
        objects: ``"jets"`` or ``"muons"``.
        rows: how many, at least 1.
        seed: not negative; the same seed gives the same rows, of which a larger table has more.
        process: one of :data:`PROCESSES`; the response to an object is the same in all.

    Returns:
        The columns of :func:`variables`: int32 where integer, float64 the log-density, float32 the others. The
        log-density is that of the float32 values.

    Raises:
        DataError: if ``objects`` or ``process`` is unknown, ``rows`` less than 1, ``seed`` negative, or either no
            whole number.

    >>> table = simulate("jets", 1000, seed=1)
    >>> sum(k.startswith("Jet_") for k in table), table["Jet_puId"].dtype, table["Jet_ptRatio"].dtype
    (17, dtype('int32'), dtype('float32'))
    >>> bool(np.allclose(table["log_density"], log_density(table), rtol=0, atol=1e-9))
    True
    """
    return _joined(
        list(_blocks(objects, whole_number("rows", rows, 1), whole_number("seed", seed, 0), process))
    )


def log_densities(table: Mapping[str, Any]) -> Table:
    """Return, for each target, the exact ln p(target | context, targets earlier in the chain) in nats, ``[n]``.

    Integers and atoms (see :class:`~fluvial.apps.collider.chain.Variable`) have probabilities, all else a density
    per unit. An impossible value gives −inf, there and in later targets of its row.

    Raises:
        DataError: if the table has the columns of neither jets nor muons, or one is of another length, or holds
            NaN or an impossible context.
    """
    for objects, telling in (("jets", "Jet_ptRatio"), ("muons", "Muon_ptRatio")):
        if telling in table:
            return CHAINS[objects].log_densities(table)
    raise DataError(
        "expected a table of simulated jets (with Jet_ptRatio) or muons (with Muon_ptRatio); found columns "
        f"{', '.join(list(table)[:8])} …"
    )


def log_density(table: Mapping[str, Any]) -> Array:
    """Return the exact ln p(targets | context) of each row in nats: the sum of :func:`log_densities`."""
    return np.sum(list(log_densities(table).values()), axis=0)


def write(
    objects: Objects, path: str | os.PathLike[str], rows: int, seed: int = 0, process: str = "ttbar"
) -> None:
    """Simulate and write to a Parquet file, whole or not at all, in memory that does not grow with ``rows``.

    The metadata of the file name the simulator, its version, the seed, and the unit of each column.

    Args:
        objects: ``"jets"`` or ``"muons"``.
        path: where, with the suffix ``.parquet``; the folder must exist, an existing file is replaced.
        rows: see :func:`simulate`.
        seed: see :func:`simulate`.
        process: see :func:`simulate`.

    Raises:
        DataError: as :func:`simulate`; if the suffix is another, if the folder is missing, or if the file cannot
            be written; then what was there before is left as it was.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    rows, seed = whole_number("rows", rows, 1), whole_number("seed", seed, 0)
    if path.suffix != ".parquet":
        raise DataError(f"expected a file name that ends in .parquet; got {str(path)!r}")
    if not path.parent.is_dir():
        raise DataError(f"no folder {str(path.parent)!r} to write {path.name!r} into; create it first")
    schema = _arrow_schema(objects, seed, _process(process))
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                waiting: list[Table] = []
                for block in _blocks(objects, rows, seed, process):
                    waiting.append(block)
                    if len(waiting) == _GROUP:
                        writer.write_table(pa.table(_joined(waiting), schema=schema))
                        waiting.clear()
                if waiting:
                    writer.write_table(pa.table(_joined(waiting), schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"could not write {str(path)!r}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename, or never made
            temporary.unlink()


def _arrow_schema(objects: Objects, seed: int, process: str) -> Any:
    import pyarrow as pa

    columns = variables(objects)
    types = {"integer": pa.int32(), "continuous": pa.float32(), "mixed": pa.float32()}
    fields = [
        pa.field(
            v.name,
            pa.float64() if v is LOG_DENSITY else types[v.kind],
            metadata={"unit": v.unit, "kind": v.kind},
        )
        for v in columns
    ]
    metadata = {
        "simulator": f"fluvial.apps.collider {objects}",
        "version": fluvial.__version__,
        "seed": str(seed),
        "process": process,
        "units": ", ".join(f"{v.name}: {v.unit}" for v in columns),
        "note": "a stand-in with invented numbers, no real detector",
    }
    return pa.schema(fields, metadata=metadata)


def _blocks(objects: Objects, rows: int, seed: int, process: str) -> Iterator[Table]:
    """Yield the table in blocks, each with random numbers of its own: a longer table begins like a shorter."""
    chain, process = _chain(objects), _process(process)
    for block, start in enumerate(range(0, rows, _BLOCK)):
        rng = np.random.Generator(np.random.PCG64([seed, block]))
        context = _CONTEXTS[objects](rng, _BLOCK, process)
        targets, total = chain.draw(context, rng)
        keep = min(_BLOCK, rows - start)
        yield {k: v[:keep] for k, v in {**context, **targets, LOG_DENSITY.name: total}.items()}


def _joined(blocks: list[Table]) -> Table:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _chain(objects: str) -> Chain:
    if objects not in CHAINS:
        raise DataError(f"no simulator of {objects!r}{nearest(objects, CHAINS)}")
    return CHAINS[objects]


def _process(name: str) -> str:
    if name not in PROCESSES:
        raise DataError(f"no process {name!r}{nearest(name, PROCESSES)}")
    return name
