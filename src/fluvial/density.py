r"""The density: a trained flow with its columns, in physical units — the artefact that a fit leaves.

With :math:`u` the column transforms and :math:`f` the flow,

.. math:: \log p(x | c) = \log p_z(f(u(x); v(c))) + \log|\det \partial f| + \log|\det \partial u|

so ``log_prob`` is per unit of every target (per solar mass squared for two masses), and draws are made by the inverse,
which cannot leave the support.

On disk a density is a folder: ``density.json`` (schema, transforms, architecture, versions) and
``weights.safetensors``. Neither can carry code.
"""

from __future__ import annotations

import json
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from fluvial import __version__
from fluvial.data.expressions import parse_expression
from fluvial.data.schema import Column, Schema
from fluvial.data.transforms import ColumnTransforms
from fluvial.errors import DataError, RunError, StudyError, nearest
from fluvial.files import write_atomically
from fluvial.flows.flow import AbstractFlow
from fluvial.flows.mixed import build_mixed_flow

#: Format 1 knows continuous columns only; a density that has no others is still written so.
FORMAT = 2
DENSITY_FILE = "density.json"
WEIGHTS_FILE = "weights.safetensors"

#: Rows that pass through a flow at once: their activations stay in the caches.
CHUNK = 8192


class Density:
    """p(target | context) in the user's columns and units.

    Made by :func:`fluvial.fit` or :func:`fluvial.load`.

    Attributes
    ----------
    schema : Schema
        Columns with role, unit and support.
    flow : AbstractFlow
        The flow over standardised columns.
    context_range : dict
        The smallest and the largest value of each context column in the training rows.
    architecture, options
        What :func:`fluvial.flows.build_flow` needs to rebuild the flow.
    """

    def __init__(
        self,
        flow: AbstractFlow,
        schema: Schema,
        targets: ColumnTransforms,
        context: ColumnTransforms,
        *,
        architecture: str,
        options: Mapping[str, Any],
        context_range: Mapping[str, tuple[float, float]] | None = None,
    ):
        self.flow = flow.eval()
        self.schema = schema
        self.target_transforms = targets
        self.context_transforms = context
        self.architecture = architecture
        self.options = dict(options)
        self.context_range = {name: (float(a), float(b)) for name, (a, b) in (context_range or {}).items()}
        self.folder: Path | None = None

    def __repr__(self) -> str:
        targets, context = ", ".join(self.schema.target_names), ", ".join(self.schema.context_names)
        weights = sum(p.numel() for p in self.flow.parameters())
        measure = "" if self.plain else f"; log_prob against {self.reference_measure}"
        return f"Density p({targets} | {context}): {self.architecture}, {weights:,} weights{measure}"

    @property
    def plain(self) -> bool:
        """Whether every target is continuous, so that the density is one per unit of each."""
        return all(c.plain or c.period is not None for c in self.schema.targets)

    @property
    def reference_measure(self) -> str:
        """What ``log_prob`` is a density against: volume for numbers, one for every atom and integer.

        With the counting measure on the atoms a of a column and the Lebesgue measure elsewhere, p is the probability
        of an atom at the atom, and the density per unit elsewhere: the two add up to one.
        """
        return self.schema.reference_measure

    def given(self, table: Any = None, /, **context: ArrayLike) -> Conditional:
        """Return p(target | context) at one context or at many.

        Parameters
        ----------
        table
            A table (dict of arrays, pandas, polars or Arrow table, structured array) with the context columns.
        **context
            Or the context columns by name, in their units: numbers, or arrays that broadcast to one shape.

        Raises
        ------
        DataError
            If a column is missing or unknown, or a value is not finite or outside its column's support.

        Warns
        -----
        ExtrapolationWarning
            If a value is outside the range of the training rows: there nothing was learnt.
        """
        names = self.schema.context_names
        if table is not None and context:
            raise DataError("Expected a table or columns by name, not both.")
        for name in context:
            if name not in names:
                expected = f"context columns {_listed(names)}" if names else "no context"
                raise DataError(f"Expected {expected}; got {name!r}{nearest(name, names)}")
        values = _stack(table if table is not None else context, self.schema.context, "context")
        return Conditional(self, values)

    def sample(self, context: Any, draws: int, *, seed: int | None = None) -> np.ndarray:
        """Draw for every row of a table of contexts: a structured array ``[rows, draws]`` of target columns."""
        return self.given(context).sample(draws, seed=seed)

    def log_prob(self, table: Any) -> np.ndarray:
        """Return log p(target | context) in nats for every row of a table that holds targets and context."""
        return self.given(table if self.schema.context else None).log_prob(table)

    def save(self, folder: str | Path) -> None:
        """Write ``density.json`` and ``weights.safetensors`` into a folder, each file at once or not at all."""
        self.save_description(folder)
        self.save_weights(folder)

    def save_description(self, folder: str | Path) -> None:
        """Write ``density.json`` alone: all but the weights."""
        description = {
            "format": 1 if all(c.plain for c in self.schema.columns) else FORMAT,
            "fluvial": __version__,
            "architecture": self.architecture,
            "options": self.options,
            "schema": self.schema.to_json(),
            "reference_measure": self.reference_measure,
            "context_range": self.context_range,
            "transforms": {
                "targets": self.target_transforms.to_json(),
                "context": self.context_transforms.to_json(),
            },
        }
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(Path(folder) / DENSITY_FILE, text.encode())

    def save_weights(self, folder: str | Path, **notes: Any) -> None:
        """Write ``weights.safetensors`` alone; ``notes`` (such as the epoch) go into its header, as JSON."""
        state = {name: tensor.contiguous() for name, tensor in self.flow.state_dict().items()}
        write_atomically(
            Path(folder) / WEIGHTS_FILE, safetensors_bytes(state, metadata={"notes": json.dumps(notes)})
        )

    @classmethod
    def load(cls, folder: str | Path) -> Density:
        """Read a density from its folder. No code is run, whoever made it.

        Raises
        ------
        RunError
            If a file is missing, damaged, or of a newer format than this version reads.
        """
        folder = Path(folder)
        description = _read_description(folder)
        try:
            density = cls._from_description(description)
        except (StudyError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{folder / DENSITY_FILE} is damaged ({type(error).__name__}: {error}); restore it, or fit "
                "again."
            ) from error
        _load_weights(density.flow, folder / WEIGHTS_FILE)
        return density

    @classmethod
    def _from_description(cls, description: dict[str, Any]) -> Density:
        """Return the density that ``density.json`` describes, with fresh weights."""
        schema = Schema.from_json(description["schema"])
        targets, context = (
            ColumnTransforms.from_json(description["transforms"][role]) for role in ("targets", "context")
        )
        if (targets.names, context.names) != (schema.target_names, schema.context_names):
            raise ValueError("its transforms are not those of its columns")
        architecture, options = description["architecture"], description["options"]
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            flow = build_mixed_flow(
                architecture, **targets.layout.arguments, context=context.layout.width, **options
            )
        return cls(
            flow,
            schema,
            targets,
            context,
            architecture=architecture,
            options=options,
            context_range=description["context_range"],
        )


class ExtrapolationWarning(UserWarning):
    """A density is asked about contexts outside the range that it was trained on."""


class Conditional:
    """p(target | context) at one context (``shape`` is ``()``) or at an array of them."""

    def __init__(self, density: Density, context: np.ndarray):
        self.density = density
        self.shape = context.shape[:-1]
        _check_support(context, density.schema.context, "context")
        _warn_outside(context, density)
        standardised, _ = density.context_transforms.forward(context)
        self._context = torch.from_numpy(standardised.astype(np.float32))

    def __repr__(self) -> str:
        at = f"{self.shape} contexts" if self.shape else "one context"
        return f"p({_listed(self.density.schema.target_names)} | {at}) of {self.density!r}"

    def sample(self, draws: int, *, seed: int | None = None) -> np.ndarray:
        """Draw from the density.

        Parameters
        ----------
        draws : int
            Draws for each context.
        seed : int, optional
            The same seed gives the same draws on the same kind of machine; ``None`` draws afresh.

        Returns
        -------
        numpy.ndarray
            A structured array of shape ``[*shape, draws]`` with one float64 field for each target, in its unit:
            ``p.sample(100)["Mass_0"]`` is an array; ``pandas.DataFrame(p.sample(100))`` a table.
        """
        return self._draw(draws, seed, with_log_prob=False)[0]

    def sample_and_log_prob(self, draws: int, *, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw as :meth:`sample` does, and return the log-density of each draw from the same pass.

        The log-densities are ``[*shape, draws]``, in nats per unit of every target.
        """
        return self._draw(draws, seed, with_log_prob=True)

    def _draw(self, draws: int, seed: int | None, *, with_log_prob: bool) -> tuple[np.ndarray, np.ndarray]:
        draws = _whole("draws", draws, least=1)
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(_whole("seed", seed, least=0))
        size = self.density.target_transforms.layout.width
        contexts = int(np.prod(self.shape, dtype=int))
        context = self._context.reshape(contexts, self._context.shape[-1])  # no −1: it may have no elements
        x, log_prob = np.empty((contexts, draws, size)), np.empty((contexts, draws) if with_log_prob else 0)
        with torch.no_grad():
            for of, part in _blocks(contexts, draws, self.density.flow.draw_rows):
                p = self.density.flow(context[of] if context.shape[-1] else None)
                # An unconditional flow has no batch dimension: its contexts are all one.
                number = part.stop - part.start
                shape = (number,) if context.shape[-1] else (number, of.stop - of.start)
                if with_log_prob:
                    z, log_density = p.rsample_and_log_prob(shape, generator=generator)
                    log_prob[of, part] = log_density.numpy().T
                else:
                    z = p.sample(shape, generator=generator)
                x[of, part] = z.transpose(0, 1).numpy()
        x = self.density.target_transforms.inverse(x)
        if with_log_prob:
            log_prob += self.density.target_transforms.forward(x)[1]
        shape = (*self.shape, draws)
        table = _structured(x.reshape(*shape, x.shape[-1]), self.density.schema.targets)
        return table, log_prob.reshape(shape if with_log_prob else (0,))

    def log_prob(self, events: Any) -> np.ndarray:
        """Return log p(event | context) in nats, per unit of every target.

        Parameters
        ----------
        events
            A table with the target columns (see :meth:`Density.given` for what a table may be), or an array
            ``[*batch, D]`` in their order. ``batch`` and the contexts' shape broadcast against one another.

        Returns
        -------
        numpy.ndarray
            float64; −inf where an event lies outside the support, or off the values of an integer column. A value
            at an atom has the log-probability of the atom: see :attr:`Density.reference_measure`.
        """
        columns = self.density.schema.targets
        values = _stack(events, columns, "events")
        inside = np.ones(values.shape[:-1], dtype=bool)
        for i, column in enumerate(columns):
            if np.isnan(values[..., i]).any():
                raise DataError(f"events: column {column.name} holds NaN; expected numbers{_unit(column)}.")
            inside &= column.contains(values[..., i])
        # Anything inside stands in for what lies outside; its density is then put to zero.
        stand_in = self.density.target_transforms.inverse(
            np.zeros(self.density.target_transforms.layout.width)
        )
        z, logdet = self.density.target_transforms.forward(np.where(inside[..., None], values, stand_in))
        out = self._flow_log_prob(torch.from_numpy(z.astype(np.float32)))
        return np.where(inside, out + logdet, -np.inf)

    def _flow_log_prob(self, z: torch.Tensor) -> np.ndarray:
        try:
            shape = np.broadcast_shapes(z.shape[:-1], self.shape)
        except ValueError:
            raise DataError(
                f"Expected events and contexts of shapes that broadcast; got events {tuple(z.shape[:-1])} "
                f"and contexts {self.shape}. For every event at every context, give contexts as [N, 1]."
            ) from None
        size, width = z.shape[-1], self._context.shape[-1]
        count = math.prod(shape)
        rows = z.expand(*shape, size).reshape(count, size)
        context = self._context.expand(*shape, width).reshape(count, width)
        out = np.empty(count)
        with torch.no_grad():
            for start in range(0, len(rows), CHUNK):
                part = slice(start, start + CHUNK)
                flow = self.density.flow(context[part] if context.shape[-1] else None)
                out[part] = flow.log_prob(rows[part]).numpy()
        return out.reshape(shape)


def _blocks(contexts: int, draws: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Yield (contexts, draws) in blocks of at most ``most`` rows: whole contexts where they fit, else parts of one.

    >>> [(c.start, c.stop, d.start, d.stop) for c, d in _blocks(3, 2, 4)]
    [(0, 2, 0, 2), (2, 3, 0, 2)]
    """
    per_block = max(1, most // draws)
    for first in range(0, contexts, per_block):
        for start in range(0, draws, most):
            yield slice(first, min(first + per_block, contexts)), slice(start, min(start + most, draws))


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DENSITY_FILE
    try:
        description = json.loads(path.read_bytes())
        version = int(description["format"])
    except FileNotFoundError:
        raise RunError(f"Expected a density at {folder}; found no {DENSITY_FILE} there.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}); restore it, or fit again.") from error
    if version > FORMAT:
        raise RunError(
            f"{path} has format {version}; this is fluvial {__version__}, which reads up to {FORMAT}. Update fluvial."
        )
    return description


def _load_weights(flow: AbstractFlow, path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise RunError(f"Expected weights at {path}; found none.") from None
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged or truncated ({error}); restore it, or fit again.") from error
    try:
        flow.load_state_dict(state)
    except RuntimeError as error:
        found = str(error).splitlines()
        first, more = found[1].strip() if len(found) > 1 else found[0], max(len(found) - 2, 0)
        raise RunError(
            f"{path} does not belong to the {DENSITY_FILE} beside it: {first}"
            f"{f' (and {more} more like it)' if more else ''} Restore both, or fit again."
        ) from error


def _stack(table: Any, columns: tuple[Column, ...], what: str) -> np.ndarray:
    """Return the columns of anything table-like as one array ``[*batch, D]``."""
    names = [c.name for c in columns]
    if not names:
        return np.empty((0,))
    if isinstance(table, np.ndarray) and table.dtype.names is None:
        if table.ndim == 0 or table.shape[-1] != len(names):
            raise DataError(
                f"{what}: expected an array [..., {len(names)}] for columns {_listed(names)}; got shape {table.shape}."
            )
        values = np.asarray(table, dtype=np.float64)
        if all(c.plain for c in columns):
            return values
        return np.stack([c.canonical(values[..., i]) for i, c in enumerate(columns)], axis=-1)
    known = _known(table)
    arrays = []
    for column in columns:
        if column.expression is None or column.name in known:
            arrays.append(_numbers(table, column.name, names, what))
            continue
        expression = parse_expression(column.expression, f"{what}: {column.name}")
        expression.require(known, what)
        arrays.append(expression({name: _numbers(table, name, names, what) for name in expression.columns}))
    arrays = [column.canonical(values) for column, values in zip(columns, arrays, strict=True)]
    try:
        return np.stack(np.broadcast_arrays(*arrays), axis=-1)
    except ValueError:
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True))
        raise DataError(
            f"{what}: expected columns of one shape, or shapes that broadcast; got {shapes}."
        ) from None


def _numbers(table: Any, name: str, names: list[str], what: str) -> np.ndarray:
    try:
        values = table[name]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{what}: expected columns {_listed(names)}; {name!r} is missing{nearest(name, _known(table))}."
        ) from None
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: column {name} is not numeric ({error}).") from error


def _whole(name: str, value: Any, *, least: int) -> int:
    """Return a whole number from ``least`` up to what a generator takes."""
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"Expected {name} to be a whole number; got {value!r}.") from None
    if number < least:
        raise DataError(f"Expected {name} of at least {least}; got {number}.")
    if number >= 2**63:
        raise DataError(f"Expected {name} below 2^63; got {number}.")
    return number


def _known(table: Any) -> list[str]:
    for attribute in ("column_names", "columns", "keys"):
        found = getattr(table, attribute, None)
        if found is not None:
            listed: Any = found() if callable(found) else found
            return [str(n) for n in listed]
    return list(getattr(getattr(table, "dtype", None), "names", None) or ())


def _check_support(values: np.ndarray, columns: tuple[Column, ...], what: str) -> None:
    for i, column in enumerate(columns):
        bad = ~column.contains(values[..., i])
        if bad.any():
            first = values[..., i][bad].flat[0]
            outside = "outside the support" if column.plain else "not among"
            raise DataError(
                f"{what}: {column.name} = {first:g} is {outside} {column.describe_support()}{_unit(column)} "
                f"({int(bad.sum())} of {bad.size} values)."
            )


def _warn_outside(context: np.ndarray, density: Density) -> None:
    """Warn of contexts outside the range of the table that the density was fitted to."""
    for i, column in enumerate(density.schema.context):
        if column.name not in density.context_range or not context.size:
            continue
        low, high = density.context_range[column.name]
        values = context[..., i]
        slack = 1e-6 * (high - low)  # a context that went through float32 is the same context
        far = (values < low - slack) | (values > high + slack)
        if far.any():
            warnings.warn(
                f"{column.name} = {values[far].flat[0]:g} is outside the range of the table, {low:g} to {high:g}"
                f"{_unit(column)} ({int(far.sum())} of {far.size} values): what the density says there is a guess.",
                ExtrapolationWarning,
                stacklevel=4,
            )


def _structured(x: np.ndarray, columns: tuple[Column, ...]) -> np.ndarray:
    out = np.empty(x.shape[:-1], dtype=[(c.name, np.float64) for c in columns])
    for i, column in enumerate(columns):
        out[column.name] = x[..., i]
    return out


def _unit(column: Column) -> str:
    return f" [{column.unit}]" if column.unit else ""


def _listed(names: list[str]) -> str:
    return ", ".join(names)
