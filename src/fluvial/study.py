"""The study: the TOML file that says what to fit and how, read strictly into values.

An unknown key is an error that names the nearest valid one; a value that cannot be is an error that names its
key. Every option of an architecture is a key under ``[flow]``: they come from the architecture's own
signature, so a study and the code cannot drift apart.
"""

from __future__ import annotations

import math
import re
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)

from fluvial.data.choice import ARRAY_TRANSFORMS, choose_transform
from fluvial.data.expressions import parse_expression, quoted
from fluvial.data.schema import Column, Role, Schema
from fluvial.data.select import in_source_columns, parse_derived
from fluvial.data.transforms import layout_of
from fluvial.errors import StudyError, nearest
from fluvial.flows.build import architecture_options, default_architecture
from fluvial.flows.mixed import SHARED, build_mixed_flow
from fluvial.nets.encoders import DEFAULT
from fluvial.study_columns import ColumnSection, Section
from fluvial.study_encoder import encoder_model, encoder_values
from fluvial.study_holdout import HOLDOUT_SCHEMA, read_holdout, without
from fluvial.study_training import Seed, TrainingSection
from fluvial.study_tuning import TuneSection

Names = Annotated[list[str], Field(strict=False)]  # from Python, a tuple will do


_RANGE = re.compile(r"(.+)\[(\d+):(\d+)\]")


def expand_columns(names: Any) -> Any:
    """Return names of columns with ``data[2:4]`` written out, as ``data[2]`` and ``data[3]``.

    >>> expand_columns(["Z", "data[2:4]"])
    ['Z', 'data[2]', 'data[3]']
    """
    if not isinstance(names, (list, tuple)):
        return names  # pydantic says what was expected
    out = []
    for name in names:
        found = _RANGE.fullmatch(name) if isinstance(name, str) else None
        if found and int(found[2]) >= int(found[3]):
            raise ValueError(f"expected a range of columns [a:b] with a < b; found {name!r}")
        out += [f"{found[1]}[{i}]" for i in range(int(found[2]), int(found[3]))] if found else [name]
    return out


def _read_source(value: Any) -> Any:
    several = isinstance(value, (list, tuple)) and value
    if isinstance(value, str) or (several and all(isinstance(one, str) for one in value)):
        return value if isinstance(value, str) else list(value)
    raise ValueError(f"expected a path or a list of paths; found {value!r:.80}")


Columns = Annotated[Names, BeforeValidator(expand_columns)]


class SplitSection(Section):
    """Shares of the rows; they sum to 1."""

    train: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.6, description="rows that weights are fitted to"
    )
    validation: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="rows that decide which weights are kept, and when to stop"
    )
    test: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="rows that nothing is decided by: the checks are made on them"
    )
    calibration: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="rows that training never sees, kept for recalibration (`fluvial recalibrate`) and conformal regions",
    )

    @model_validator(mode="after")
    def _sum(self) -> SplitSection:
        total = self.train + self.validation + self.test + self.calibration
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"train + validation + test + calibration must be 1; found {total:g}")
        return self


class DataSection(Section):
    """Which table, which columns, which rows."""

    source: Annotated[str | list[str], BeforeValidator(_read_source)] = Field(
        description='the table: a file, a glob such as "train/*.h5", a folder, a list of these, or "hf://owner/name"; '
        "a relative path is beside the study"
    )
    targets: Annotated[
        Names,
        Field(
            min_length=1,
            description='the columns that the density is over; "data[14:31]" stands for 17 elements of an array',
        ),
        BeforeValidator(expand_columns),
    ]
    context: Columns = Field(default=[], description="the columns that it is conditioned on; may be none")
    where: str | None = Field(
        default=None,
        description="a condition; only rows for which it holds are used: `Mass_0 < 100 and Z > 0.001`",
    )
    holdout: Annotated[str | None, BeforeValidator(read_holdout), WithJsonSchema(HOLDOUT_SCHEMA)] = Field(
        default=None,
        description="contexts that are left out of train, validation and test, and on which the fit is judged "
        "afterwards: `[{ Z = 0.001, alpha = 3.0 }]`, or a condition",
    )
    weight: str | None = Field(
        default=None,
        description="a column with the weight of each row, not negative: how often it stands for others like it",
    )
    derive: dict[str, str] = Field(
        default={}, description='columns made of others, by name: `ptRatio = "Jet_pt / GenJet_pt"`'
    )
    names: dict[str, Names] = Field(
        default={},
        description='names for the columns of a 2-D one: `"data[0:2]" = ["pt", "eta"]`, or `data = [...]` for all',
    )
    split: SplitSection = Field(default=SplitSection(), description="shares of the rows, see below")
    seed: Seed = Field(default=0, description="decides which row falls in which split")
    missing: Literal["error", "drop"] = Field(
        default="error", description="what to do with rows that hold NaN or infinity"
    )
    outside: Literal["error", "drop"] = Field(
        default="error", description="what to do with rows outside a support"
    )
    memory: Literal["auto"] | PositiveFloat = Field(
        default="auto",
        description="GB that the table and the work on it may take; a table that needs more is streamed from disk. "
        "auto is half of what is available",
    )

    @model_validator(mode="after")
    def _expressions(self) -> DataSection:
        if self.where is not None:
            parse_expression(self.where, "[data] where", "condition")
        if self.holdout is not None:
            parse_expression(self.holdout, "[data] holdout", "condition")
        in_source_columns(parse_derived(self.derived))
        return self

    @property
    def fitted(self) -> str | None:
        """The condition of the rows that are fitted: those of ``where`` that are not held out; none: all."""
        return without(self.where, self.holdout)

    @property
    def derived(self) -> dict[str, str]:
        """The expression of every column that is not in the source under its own name.

        >>> DataSection(source="a.h5", targets=["r"], derive={"r": "x / y"}, names={"data[3:5]": ["x", "y"]}).derived
        {'x': 'data[3]', 'y': 'data[4]', 'r': 'x / y'}
        """
        named: dict[str, str] = {}
        for columns, names in self.names.items():
            elements = expand_columns([columns]) if columns.endswith("]") else []
            elements = elements or [f"{columns}[{i}]" for i in range(len(names))]
            if len(elements) != len(names):
                raise ValueError(
                    f"names: {columns} has {len(elements)} columns; found {len(names)} names for it"
                )
            for name, element in zip(names, elements, strict=True):
                if name in named or name in self.derive:
                    raise ValueError(f"names: every name once; found {name!r} twice")
                named[name] = quoted(element)
        return named | self.derive

    @model_validator(mode="after")
    def _once(self) -> DataSection:
        names = self.targets + self.context
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"every column once, as target or as context; found twice: {', '.join(twice)}")
        return self


class CheckSection(Section):
    """How the density is checked after training, on rows that it has not seen."""

    contexts: PositiveInt = Field(default=4000, description="test rows whose contexts are drawn at")
    draws: Annotated[int, Field(ge=50)] = Field(default=250, description="draws at each of them")
    seed: Seed = Field(default=0, description="decides which test rows, and the draws")
    truth: str | None = Field(
        default=None, description="a column with the exact log-density of each row, if it is known"
    )
    kl_threshold: PositiveFloat = Field(default=0.05, description="largest KL(truth‖fit) in nats that passes")


class Study(Section):
    """A study, read and found valid."""

    data: DataSection
    columns: dict[str, ColumnSection] = Field(default={})
    flow: dict[str, Any] = Field(default={})
    encoder: dict[str, Any] = Field(default={})
    training: TrainingSection = TrainingSection()
    check: CheckSection = CheckSection()
    tune: TuneSection | None = None

    @property
    def architecture(self) -> str:
        """The architecture's name: the study's, or the default for its number of targets."""
        return self.flow.get("architecture", default_architecture(len(self.data.targets)))

    @property
    def flow_options(self) -> dict[str, Any]:
        """Every option of the architecture, the defaults filled in."""
        model = options_model(self.architecture)
        options = model(**{k: v for k, v in self.flow.items() if k != "architecture"}).model_dump()
        # A learned matrix would mix into others what may be absent: where the study leaves it open, take a permutation.
        if "mixing" not in self.flow and options.get("mixing") == "lu":
            options["mixing"] = "permutation" if layout_of(self.schema_.targets).held else "lu"
        return options

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The ``architecture`` of the encoder of array columns, the study's or ``spectrum``, and every option of it."""
        return encoder_values(self.encoder)

    @property
    def schema_(self) -> Schema:
        """The columns of the study as a schema."""
        expressions = in_source_columns(parse_derived(self.data.derived))

        def column(name: str, role: Role) -> Column:
            section = self.columns.get(name, ColumnSection())
            return replace(section.column(name, role), expression=expressions.get(name))

        return Schema(
            targets=tuple(column(n, "target") for n in self.data.targets),
            context=tuple(column(n, "context") for n in self.data.context),
        )


def read_study(path: str | Path) -> tuple[Study, str]:
    """Read a study file; return the study and the text as it stands in the file.

    Raises
    ------
    StudyError
        If the file is missing or not TOML, or holds an unknown key or an impossible value. One message names
        all of them.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = nearest(path.name, beside) if beside else "; there is no .toml file in that folder"
        raise StudyError(f"Expected a study at {path}; found no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"Could not read the study {path}: {error}.") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path} is not valid TOML: {error}.") from error
    return parse_study(values, where=str(path)), text


def parse_study(values: Mapping[str, Any], *, where: str = "study") -> Study:
    """Return the study that nested values (as from TOML) describe.

    >>> study = parse_study({"data": {"source": "a.parquet", "targets": ["x"]}})
    >>> study.architecture
    'autoregressive-spline'
    >>> parse_study({"data": {"source": "a.parquet", "targets": ["x"], "contxt": ["c"]}})
    Traceback (most recent call last):
    fluvial.errors.StudyError: study: [data] contxt is not a known key; did you mean 'context'?
    """
    try:
        study = Study.model_validate(dict(values))
    except ValidationError as error:
        raise StudyError(_explain(error, Study, where)) from None
    used = study.data.targets + study.data.context
    for name in study.columns:
        if name not in used:
            raise StudyError(
                f"{where}: [columns.{name}] is neither a target nor a context column"
                f"{nearest(name, used)} Or is it the name under [data] that is misspelt?"
            )
    if study.data.weight in used:
        raise StudyError(
            f"{where}: [data] weight = {study.data.weight!r} is a target or context column; expected one of its own."
        )
    if study.check.truth in used:
        raise StudyError(
            f"{where}: [check] truth = {study.check.truth!r} is a target or context column; expected one "
            "of its own."
        )
    _check_options("flow", study.flow, study.architecture, options_model, where)
    _check_options("encoder", study.encoder, study.encoder.get("architecture", DEFAULT), encoder_model, where)
    try:
        _try(study)
    except StudyError as error:
        raise StudyError(f"{where}: {error}") from None
    return study


def _check_options(
    section: str,
    values: Mapping[str, Any],
    architecture: str,
    model_of: Callable[[str], type[BaseModel]],
    where: str,
) -> None:
    """Raise where an architecture is unknown, or an option is not one of it or cannot be."""
    try:
        model = model_of(architecture)
    except StudyError as error:
        raise StudyError(f"{where}: {error}") from None
    try:
        model(**{k: v for k, v in values.items() if k != "architecture"})
    except ValidationError as error:
        raise StudyError(_explain(error, model, where, prefix=(section,))) from None


def _try(study: Study) -> None:
    """Choose every transform and build the flow once: what cannot be is found before any data are read."""
    for column in study.schema_.columns:
        # Which context columns are arrays, and so have other transforms, is known when the table is opened.
        if not (column.role == "context" and column.transform in ARRAY_TRANSFORMS):
            choose_transform(column)
    targets, context = layout_of(study.schema_.targets), layout_of(study.schema_.context)
    if not targets.numbers and not set(study.flow) <= set(SHARED):
        raise StudyError(
            "[flow]: every target is an integer column, so no flow is left to choose; expected no keys but "
            f"{', '.join(SHARED)} of the networks behind their probabilities."
        )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        build_mixed_flow(study.architecture, **targets.arguments, context=context.width, **study.flow_options)


def options_model(architecture: str) -> type[BaseModel]:
    """Return a strict model of an architecture's keyword options, read off its signature.

    Raises :class:`~fluvial.errors.StudyError` if the architecture is not known.
    """
    fields: dict[str, Any] = dict(architecture_options(architecture))
    return create_model(architecture, __config__=Section.model_config, **fields)


def _explain(error: ValidationError, model: type[BaseModel], where: str, prefix: tuple[str, ...] = ()) -> str:
    lines = []
    for problem in error.errors():
        location = tuple(str(p) for p in problem["loc"])
        path = prefix + location
        if problem["type"] == "extra_forbidden":
            known = _keys_at(model, location[:-1])
            if prefix in (("flow",), ("encoder",)):
                known = ["architecture", *known]
            lines.append(f"{_key(path)} is not a known key{nearest(location[-1], known)}")
        elif problem["type"] == "missing":
            lines.append(f"{_key(path)} is missing")
        elif problem["type"] in ("model_type", "dict_type"):
            lines.append(f"{_key(path)}: expected a table of keys; found {problem['input']!r:.80}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if message.startswith("["):  # it names its key itself
                lines.append(message)
                continue
            found = "" if problem["type"] == "value_error" else f"; found {problem['input']!r:.80}"
            lines.append(f"{_key(path)}: {message[0].lower()}{message[1:]}{found}")
    return "\n".join(f"{where}: {line}" for line in lines)


def _key(path: tuple[str, ...]) -> str:
    """Return ``[section.sub] key``, or ``[section]`` alone for a section.

    >>> _key(("training", "epochs")), _key(("columns", "Z", "unit")), _key(("data",))
    ('[training] epochs', '[columns.Z] unit', '[data]')
    """
    depth = 2 if path[0] == "columns" else 1
    return f"[{'.'.join(path[:depth])}] {'.'.join(path[depth:])}".rstrip()


def _keys_at(model: Any, location: tuple[str, ...]) -> list[str]:
    """Return the keys that a (nested) model knows at a location."""
    for name in location:
        fields = getattr(model, "model_fields", None)
        annotation = fields[name].annotation if fields is not None and name in fields else model
        model = _model_in(annotation)
        if model is None:
            return []
    return list(getattr(model, "model_fields", ()))


def _model_in(annotation: Any) -> Any:
    """Return the model inside an annotation such as ``dict[str, Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (dict, list, Union, types.UnionType):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if found is not None:
                return found
    return None
