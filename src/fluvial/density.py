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
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from fluvial import __version__
from fluvial.conditional import Conditional, ExtrapolationWarning, Outside, listed
from fluvial.contexts import Contexts, stack_contexts
from fluvial.data.choice import CLIP
from fluvial.data.schema import Column, Schema
from fluvial.data.transforms import ColumnTransforms
from fluvial.errors import DataError, RunError, StudyError, nearest
from fluvial.files import write_atomically
from fluvial.flows.encoded import ArrayKind, EncodedFlow, build_encoded_flow
from fluvial.flows.ensemble import EnsembleFlow
from fluvial.flows.flow import AbstractFlow
from fluvial.flows.recalibrated import recalibrated
from fluvial.novelty import Novelty

#: Format 1 knows continuous columns only, format 2 neither array columns, ensembles nor recalibration; a density is
#: written in the first that holds it.
FORMAT = 3
DENSITY_FILE = "density.json"
WEIGHTS_FILE = "weights.safetensors"
#: Array-valued contexts that are encoded at once.
ENCODED_ROWS = 512
#: By what factor an array may be further from the mean than those of the training rows before a warning is due.
FAR = 1.25


class Density:
    """p(target | context) in the user's columns and units.

    Made by :func:`fluvial.fit` or :func:`fluvial.load`.

    Attributes
    ----------
    schema : Schema
        Columns with role, unit and support.
    flow : AbstractFlow
        The flow over standardised columns; of array columns, in their units, an :class:`~fluvial.flows.EncodedFlow`.
    context_range : dict
        The smallest and the largest value of each scalar context column in the training rows.
    array_range : dict
        For each array column, between what numbers the training rows lie away from their mean: the root mean square of
        their standardised pixels.
    architecture, options
        What :func:`fluvial.flows.build_flow` needs to rebuild the flow.
    encoder : dict or None
        Where the context has arrays: ``architecture`` and options of their encoder.
    recalibration : dict or None
        Of a recalibrated density: the ``map`` in its latent space, on which rows it was fitted, and what it gained.
    novelty : fluvial.novelty.Novelty or None
        What tells a context that is unlike those of the training rows; made when the density is checked.
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
        encoder: Mapping[str, Any] | None = None,
        array_range: Mapping[str, tuple[float, float]] | None = None,
        recalibration: Mapping[str, Any] | None = None,
    ):
        self.flow = flow.eval()
        self.schema = schema
        self.target_transforms = targets
        self.context_transforms = context
        self.architecture = architecture
        self.options = dict(options)
        self.context_range = {name: (float(a), float(b)) for name, (a, b) in (context_range or {}).items()}
        self.encoder = None if encoder is None else dict(encoder)
        self.array_range = {name: (float(a), float(b)) for name, (a, b) in (array_range or {}).items()}
        self.recalibration = dict(recalibration) if recalibration is not None else None
        self.novelty: Novelty | None = None
        self.folder: Path | None = None

    def __repr__(self) -> str:
        targets, context = ", ".join(self.schema.target_names), ", ".join(self.schema.context_names)
        weights = sum(p.numel() for p in self.flow.parameters())
        measure = "" if self.plain else f"; log_prob against {self.reference_measure}"
        encoder = f"{self.encoder['architecture']} encoder, " if self.encoder else ""
        mended = ""
        if self.recalibration is not None:
            mended = f", recalibrated on {self.recalibration['rows']:,} {self.recalibration['split']} rows"
        ensemble = f"ensemble of {len(self.flow.members)} " if isinstance(self.flow, EnsembleFlow) else ""
        what = f"{encoder}{ensemble}{self.architecture}, {weights:,} weights{mended}"
        return f"Density p({targets} | {context}): {what}{measure}"

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
            Or the context columns by name, in their units: numbers, or arrays that broadcast to one shape. An array
            column (a spectrum) is ``[*shape, length]``.

        Raises
        ------
        DataError
            If a column is missing or unknown, a value is not finite or outside its column's support, or an array is not
            on the grid that the density knows; or, if it is to be refused, outside the range of the training rows.

        Warns
        -----
        ExtrapolationWarning
            Unless told otherwise, if a value is outside the range of the training rows, or an array further from their
            mean than they are (or nearer): there nothing was learnt.
        """
        names = self.schema.context_names
        if table is not None and context:
            raise DataError("Expected a table or columns by name, not both.")
        for name in context:
            if name not in names:
                expected = f"context columns {listed(names)}" if names else "no context"
                raise DataError(f"Expected {expected}; got {name!r}{nearest(name, names)}")
        asked = stack_contexts(table if table is not None else context, self.schema)
        return Conditional(self, asked, outside=outside)

    def features(self, context: Contexts) -> torch.Tensor:
        """Return what the flow knows of contexts, ``[*shape, F]``: coded scalars, and what an encoder makes of arrays.

        Arrays pass through the encoder once, a few at a time.
        """
        coded, _ = self.context_transforms.forward(context.scalars)
        scalars = torch.from_numpy(coded.astype(np.float32))
        with torch.no_grad():
            if not context.arrays:
                return self._encode_scalars(scalars)
            first = self.members[0].flow  # members of an ensemble standardise arrays alike
            assert isinstance(first, EncodedFlow)
            count = math.prod(context.shape)
            flat = scalars.reshape(count, scalars.shape[-1])  # no −1: there may be no scalars
            arrays = [a.reshape(count, a.shape[-1]) for a in context.arrays]
            parts, distances = [], []
            for start in range(0, max(count, 1), ENCODED_ROWS):
                rows = slice(start, start + ENCODED_ROWS)
                pixels = [torch.from_numpy(np.array(a[rows])) for a in arrays]
                distances.append(torch.stack(first.distances(pixels), -1))
                parts.append(self.flow.encode(torch.cat([flat[rows], *pixels], -1)))
        self._warn_far(torch.cat(distances).numpy())
        features = torch.cat(parts)
        return features.reshape(*context.shape, features.shape[-1])

    def _encode_scalars(self, scalars: torch.Tensor) -> torch.Tensor:
        """Return what the flow makes of coded scalars: most nothing, a trunk its features.

        Rows are encoded in blocks of one size: the last bits of a row's features do not hang on its company.
        """
        if not scalars.shape[-1] or type(self.flow).encode is AbstractFlow.encode:
            return scalars
        rows = scalars.reshape(-1, scalars.shape[-1])
        parts = []
        for start in range(0, max(len(rows), 1), ENCODED_ROWS):
            part = rows[start : start + ENCODED_ROWS]
            filled = torch.cat([part, part.new_zeros(ENCODED_ROWS - len(part), part.shape[-1])])
            features = self.flow.encode(filled)
            assert features is not None
            parts.append(features[: len(part)])
        out = torch.cat(parts)
        return out.reshape(*scalars.shape[:-1], out.shape[-1])

    def _warn_far(self, distances: np.ndarray) -> None:
        for column, of in zip(self.schema.arrays, distances.T, strict=True):
            if column.name not in self.array_range:
                continue
            low, high = self.array_range[column.name]
            far = (of < low / FAR) | (of > high * FAR)
            if far.any():
                warnings.warn(
                    f"{column.name}: {int(far.sum())} of {far.size} arrays are unlike those of the table: "
                    f"{of[far][0]:.3g} standard deviations from their mean, where those are {low:.3g} to {high:.3g}: "
                    "what the density says there is a guess. Are they in the same units, and normalised in the same way?",
                    ExtrapolationWarning,
                    stacklevel=5,
                )

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
        if self.novelty is not None:
            self.novelty.save(folder)

    def save_description(self, folder: str | Path) -> None:
        """Write ``density.json`` alone: all but the weights."""
        description = {
            "format": self._format(),
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
        if self.recalibration is not None:
            description["recalibration"] = self.recalibration
        if isinstance(self.flow, EnsembleFlow):
            description["ensemble"] = len(self.flow.members)
        if self.encoder is not None:
            description |= {"encoder": self.encoder, "array_range": self.array_range}
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(Path(folder) / DENSITY_FILE, text.encode())

    def _format(self) -> int:
        if self.schema.arrays or self.recalibration is not None or isinstance(self.flow, EnsembleFlow):
            return 3
        return 1 if all(c.plain for c in self.schema.columns) else 2

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
        density.novelty = Novelty.load(folder)
        return density

    @classmethod
    def _from_description(cls, description: dict[str, Any]) -> Density:
        """Return the density that ``density.json`` describes, with fresh weights."""
        schema = Schema.from_json(description["schema"])
        targets, context = (
            ColumnTransforms.from_json(description["transforms"][role]) for role in ("targets", "context")
        )
        if (targets.names, context.names) != (schema.target_names, [c.name for c in schema.scalars]):
            raise ValueError("its transforms are not those of its columns")
        architecture, options = description["architecture"], description["options"]
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            flow = build_encoded_flow(
                architecture,
                **targets.layout.arguments,
                context=context.layout.width,
                arrays=array_kinds(schema.arrays),
                encoder=description.get("encoder"),
                members=description.get("ensemble", 1),
                **options,
            )
        recalibration = description.get("recalibration")
        if recalibration is not None and recalibration["map"] is not None:
            flow, _ = recalibrated(flow, **recalibration["map"])
        return cls(
            flow,
            schema,
            targets,
            context,
            architecture=architecture,
            options=options,
            context_range=description["context_range"],
            encoder=description.get("encoder"),
            array_range=description.get("array_range"),
            recalibration=recalibration,
        )


def array_kinds(columns: Sequence[Column]) -> list[ArrayKind]:
    """Return what a flow must know of array columns."""
    kinds = []
    for column in columns:
        assert column.length is not None
        clip = (column.scale or CLIP) if column.transform == "log-clip" else None
        kinds.append(
            ArrayKind(
                column.length,
                clip=clip,
                pixels=column.transform in ("standardise-pixels", "log-clip"),
                masked=column.missing == "mask",
            )
        )
    return kinds


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
