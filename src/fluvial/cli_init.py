"""The verb ``fluvial init``. Heavy imports wait until it is used."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def init(
    table: Annotated[str, typer.Argument(help="A table: a file, a glob or a folder.", show_default=False)],
    targets: Annotated[
        list[str] | None,
        typer.Option("--targets", "-t", help="Columns that the density is over: a,b, or once a column."),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", help="Columns that it is conditioned on: a,b, or once a column."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The study to write.")] = Path("study.toml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Even if it is there.")] = False,
) -> None:
    """Write a first study for a table, its columns described by what they hold. Without --targets: show the columns."""
    from fluvial.data.readers import open_table
    from fluvial.report.console import table_lines
    from fluvial.workflow.first_study import describe, first_study, write_study

    chosen, given = _names(targets), _names(context)
    if not chosen:
        reader = open_table(table)
        kinds = reader.columns()
        rows = [
            [f.name, kinds[f.name], f"{f.missing:,}" if f.missing else "", f.said]
            for f in describe(reader, list(kinds))
        ]
        sys.stdout.write("\n".join(table_lines(rows, ["column", "type", "NaN", "looks like"])) + "\n")
        sys.stdout.write(
            f"{reader.rows():,} rows. Next: fluvial init {table} --targets … --context … -o {out}\n"
        )
        return
    write_study(out, first_study(_beside(table, out), chosen, given, folder=out.parent), overwrite=overwrite)
    sys.stdout.write(f"{out}\nNext: read it, correct it, then: fluvial fit {out}\n")


def _names(values: list[str] | None) -> list[str]:
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()]


def _beside(table: str, out: Path) -> str:
    """Return a path as a study in another folder means it."""
    if "://" in table or os.path.isabs(table):
        return table
    return os.path.relpath(table, out.parent)
