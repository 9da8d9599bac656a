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
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from fluvial import __version__
from fluvial.conditional import Conditional, Outside, listed, stack_columns
from fluvial.data.schema import Schema
from fluvial.data.transforms import ColumnTransforms
from fluvial.errors import DataError, RunError, StudyError, nearest
from fluvial.files import write_atomically
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.flow import AbstractFlow
from fluvial.flows.mixed import build_mixed_flow

#: Format 1 knows continuous columns only; a density that has no others is still written so. Format 3 is of ensembles.
FORMAT = 3
DENSITY_FILE = "density.json"
WEIGHTS_FILE = "weights.safetensors"


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
        ensemble = f"ensemble of {len(self.members)} " if isinstance(self.flow, EnsembleFlow) else ""
        return (
            f"Density p({targets} | {context}): {ensemble}{self.architecture}, {weights:,} weights{measure}"
        )

    @property
    def plain(self) -> bool:
        """Whether every target is continuous, so that the density is one per unit of each."""
        return all(c.plain or c.period is not None for c in self.schema.targets)

    @property
    def members(self) -> list[Density]:
        """The members of an ensemble, each a density of its own; of any other density, itself alone."""
        if not isinstance(self.flow, EnsembleFlow):
            return [self]
        out = []
        for flow in self.flow.members:
            member = copy(self)
            member.flow = flow
            out.append(member)
        return out

    @property
    def reference_measure(self) -> str:
        """What ``log_prob`` is a density against: volume for numbers, one for every atom and integer.

        With the counting measure on the atoms a of a column and the Lebesgue measure elsewhere, p is the probability
        of an atom at the atom, and the density per unit elsewhere: the two add up to one.
        """
        return self.schema.reference_measure

    def given(self, table: Any = None, /, *, outside: Outside = "warn", **context: ArrayLike) -> Conditional:
        """Return p(target | context) at one context or at many.

        Parameters
        ----------
        table
            A table (dict of arrays, pandas, polars or Arrow table, structured array) with the context columns.
        outside
            What to do with contexts outside the range of the training rows, where the density is a guess: ``warn``,
            ``raise``, or ``allow``. :attr:`Conditional.outside` marks them.
        **context
            Or the context columns by name, in their units: numbers, or arrays that broadcast to one shape.

        Raises
        ------
        DataError
            If a column is missing or unknown, or a value is not finite or outside its column's support; or, if it is
            to be refused, outside the range of the training rows.

        Warns
        -----
        ExtrapolationWarning
            Unless told otherwise, if a value is outside the range of the training rows: there nothing was learnt.
        """
        names = self.schema.context_names
        if table is not None and context:
            raise DataError("Expected a table or columns by name, not both.")
        for name in context:
            if name not in names:
                expected = f"context columns {listed(names)}" if names else "no context"
                raise DataError(f"Expected {expected}; got {name!r}{nearest(name, names)}")
        values = stack_columns(table if table is not None else context, self.schema.context, "context")
        return Conditional(self, values, outside=outside)

    def sample(self, context: Any, draws: int, *, seed: int | None = None) -> np.ndarray:
        """Draw for every row of a table of contexts: a structured array ``[rows, draws]`` of target columns."""
        return self.given(context).sample(draws, seed=seed)

    def log_prob(self, table: Any) -> np.ndarray:
        """Return log p(target | context) in nats for every row of a table that holds targets and context."""
        return self.given(table if self.schema.context else None).log_prob(table)

    def log_prob_tensor(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return log p(x | context) in nats per unit of every target, with gradients to both.

        For samplers that follow gradients. ``x: [*batch, D]`` and ``context: [*batch, C]`` are tensors in the order and
        the units of the columns; their batch shapes broadcast. Of float64 tensors the flow is evaluated in float64. Where
        x is outside the support the result is −inf, with a gradient of zero; contexts outside the range of the training
        rows are taken without a word.

        Raises
        ------
        DataError
            If a shape or type does not fit, a context is outside its support, or a column has atoms or whole numbers, to
            which there is no gradient.
        """
        from fluvial.differentiable import log_prob_tensor

        return log_prob_tensor(self, x, context)

    def save(self, folder: str | Path) -> None:
        """Write ``density.json`` and ``weights.safetensors`` into a folder, each file at once or not at all."""
        self.save_description(folder)
        self.save_weights(folder)

    def save_description(self, folder: str | Path) -> None:
        """Write ``density.json`` alone: all but the weights."""
        description = {
            "format": 1 if all(c.plain for c in self.schema.columns) else 2,
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
        if isinstance(self.flow, EnsembleFlow):
            description |= {"format": FORMAT, "ensemble": len(self.flow.members)}
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
                architecture,
                **targets.layout.arguments,
                context=context.layout.width,
                members=description.get("ensemble", 1),
                **options,
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
