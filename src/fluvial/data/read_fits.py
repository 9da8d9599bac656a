"""FITS through astropy: binary and ASCII tables, and spectra stored as images."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.data.read_base import Field, TableReader, numbers
from fluvial.errors import DataError, nearest
from fluvial.extras import optional_module


class FitsReader(TableReader):
    """A table of a FITS file, or the spectra of an image: every row of a 2-D image, or the one of a 1-D image.

    A column of a table is a scalar column, or an array column where its cells hold arrays (a spectrum). The rows
    of an image are an array column, named by its EXTNAME, else ``flux``. A null integer (TNULL) is missing; scaling
    (TSCAL, TZERO, BSCALE, BZERO) is applied.

    ``inside`` is the name or the number of the extension; left out, it is the first table, or else the first image.
    """

    def __init__(self, path: Path, inside: str | None = None) -> None:
        self.path = path
        with self._open() as file:
            self._number = _choose(file, inside, path)
            header = file[self._number].header
            if header.get("XTENSION", "IMAGE").strip() == "IMAGE":
                self._image = str(header.get("EXTNAME", "flux"))
                *shape, length = [header[f"NAXIS{i}"] for i in range(header["NAXIS"], 0, -1)]
                if len(shape) > 1:
                    raise DataError(
                        f"{path}: expected an image of one or two axes, a spectrum a row; found {[*shape, length]}"
                    )
                self._rows = shape[0] if shape else 1
                kind = "integer" if header["BITPIX"] > 0 else f"float{-header['BITPIX']}"
                self._fields = [Field(self._image, kind, length)]
            else:
                self._image = None
                self._rows = header["NAXIS2"]
                self._fields = [_field(column) for column in file[self._number].columns]

    def _open(self) -> Any:
        fits = optional_module("astropy.io.fits", "fits")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                file = fits.open(self.path, memmap=self.path.suffix != ".gz")
                file.readall()  # the headers alone
            except (OSError, ValueError, TypeError, IndexError, EOFError) as error:
                raise DataError(_fault(self.path, error)) from error
        cut = [str(w.message) for w in caught if "truncated" in str(w.message) or "corrupt" in str(w.message)]
        if cut:
            file.close()
            raise DataError(_fault(self.path, " ".join(cut[0].split())))
        return file

    def _blocks(self, names: list[str], rows: int, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        with self._open() as file:
            unit = file[self._number]
            for row in range(start, stop, rows):
                end = min(row + rows, stop)
                if self._image is not None:
                    yield {
                        self._image: numbers(
                            np.atleast_2d(unit.data)[row:end].copy(), self._image, str(self.path), row
                        )
                    }
                else:
                    part = unit.data[row:end]
                    yield {name: self._cells(part, unit.columns[name], row) for name in names}

    def _cells(self, part: Any, column: Any, row: int) -> np.ndarray:
        values = np.asarray(part[column.name])
        values = values.reshape(len(values), -1) if values.ndim > 1 else values
        values = numbers(values, column.name, str(self.path), row)
        if column.null is not None and values.dtype.kind in "iu":
            return np.where(values == column.null, np.nan, values)
        return values.copy()  # not a view of a file that will be closed


def _choose(file: Any, inside: str | None, path: Path) -> int:
    kinds = [unit.header.get("XTENSION", "IMAGE").strip() for unit in file]
    tables = [i for i, kind in enumerate(kinds) if kind in ("BINTABLE", "TABLE")]
    images = [i for i, kind in enumerate(kinds) if kind == "IMAGE" and file[i].header["NAXIS"]]
    found = tables + images
    if inside is None:
        if not found:
            raise DataError(f"{path} holds no table and no image; expected one")
        return found[0]
    named = {str(i): i for i in found} | {file[i].name: i for i in found if file[i].name}
    number = named.get(inside, named.get(inside.upper()))
    if number is None:
        raise DataError(f"{path}: no table or image {inside!r}{nearest(inside, named)}")
    return number


def _field(column: Any) -> Field:
    kind = column.dtype
    length = int(np.prod(kind.shape)) if kind.shape else None
    return Field(column.name, str(kind.base.newbyteorder("=")), length)


def _fault(path: Path, error: Exception | str) -> str:
    with path.open("rb") as file:
        head = file.read(6)
    if path.suffix != ".gz" and head and head != b"SIMPLE":
        return f"{path} is not a FITS file: it starts with {head!r}; mend the suffix"
    return f"{path} looks truncated or corrupt ({error}); copy or write it again"
