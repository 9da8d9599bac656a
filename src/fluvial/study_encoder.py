"""The ``[encoder]`` section of a study: the network that compresses an array-valued context, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, create_model

from fluvial.nets.encoders import DEFAULT, encoder_options
from fluvial.study_columns import Section


def encoder_model(architecture: str) -> type[BaseModel]:
    """Return a strict model of an encoder's keyword options, read off its signature.

    Raises :class:`~fluvial.errors.StudyError` if the encoder is not known.
    """
    fields: dict[str, Any] = dict(encoder_options(architecture))
    return create_model(architecture, __config__=Section.model_config, **fields)


def encoder_values(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``architecture`` and every option of an ``[encoder]`` section, the defaults filled in.

    >>> encoder_values({"features": 32})["architecture"]
    'spectrum'

    Raises :class:`~fluvial.errors.StudyError` for an unknown encoder, and pydantic's ``ValidationError`` for its options.
    """
    architecture = section.get("architecture", DEFAULT)
    options = {key: value for key, value in section.items() if key != "architecture"}
    return {"architecture": architecture, **encoder_model(architecture)(**options).model_dump()}
