"""Runs as a table: one flat row a run, sorted and filtered by expressions."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fluvial.errors import RunError, StudyError, nearest
from fluvial.record import RunFolder

#: Columns shown when none are asked for.
SHOWN: tuple[str, ...] = (
    "name", "architecture", "status", "best_loss", "test_nll",
    "epochs", "minutes", "weights", "verdict", "started",
)  # fmt: skip


def flat_row(run: RunFolder) -> dict[str, Any]:
    """Return one run as flat names and values: losses in nats per row, times in minutes, every option.

    A run whose record cannot be read is still a row, with ``status`` "damaged": it hides no other.
    """
    try:
        record: dict[str, Any] = run.record()
    except RunError:
        record = {"status": "damaged"}
    study = record.get("study", {})
    training = record.get("training", {})
    row: dict[str, Any] = {**study.get("training", {}), **study.get("flow", {})}
    row.update(
        name=run.name,
        architecture=record.get("architecture"),
        status=record.get("status"),
        stopped=record.get("stopped"),
        best_loss=training.get("best_loss"),
        final_loss=training.get("final_loss"),
        best_epoch=training.get("best_epoch"),
        epochs=training.get("epochs"),
        minutes=_minutes(record.get("timings", {}).get("training")),
        rows_per_second=training.get("rows_per_second"),
        weights=record.get("weights"),
        rows=record.get("data", {}).get("rows_kept"),
        source=_text(study.get("data", {}).get("source")),
        started=record.get("started"),
        test_nll=record.get("checks", {}).get("test_nll"),
        kl=record.get("checks", {}).get("kl"),
        verdict=record.get("checks", {}).get("verdict"),
    )
    return row


def select(
    rows: Sequence[Mapping[str, Any]], where: str | None, sort: str | None, *, descending: bool = False
) -> list[Mapping[str, Any]]:
    """Return the rows for which an expression holds, in the order of a column; those without a value last.

    >>> rows = [{"architecture": "maf", "best_loss": 5.0}, {"architecture": "maf", "best_loss": 5.3}]
    >>> select(rows, 'architecture == "maf" and best_loss < 5.1', None)
    [{'architecture': 'maf', 'best_loss': 5.0}]

    Raises
    ------
    StudyError
        If the expression is not one (see :func:`compile_filter`).
    RunError
        If there is no column of the name to sort by.
    """
    out = list(rows)
    if not out:
        return out  # no rows, so no column names to hold the expression against
    if where:
        predicate = compile_filter(where, _names(rows))
        out = [row for row in out if predicate(row)]
    if sort:
        if sort not in _names(rows):
            raise RunError(f"Cannot sort by {sort!r}: no such column{nearest(sort, _names(rows))}")
        known = [r for r in out if r.get(sort) is not None]
        known.sort(key=lambda r: (isinstance(r[sort], str), r[sort]), reverse=descending)
        out = known + [r for r in out if r.get(sort) is None]
    return out


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def compile_filter(expression: str, names: Sequence[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Return a predicate from an expression of names, numbers, texts, comparisons, and, or, not.

    It is parsed, never executed as code. A comparison with a value that a row lacks is false.

    >>> fast = compile_filter("1 < epochs <= 30 and not minutes > 5", ["epochs", "minutes"])
    >>> fast({"epochs": 20, "minutes": 3.2}), fast({"epochs": None, "minutes": 3.2})
    (True, False)

    Raises
    ------
    StudyError
        If the expression does not parse, uses anything else, or names an unknown column; from the predicate,
        if it compares a text with a number.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or error
        raise StudyError(f"Filter {expression!r:.200} does not parse: {reason}.") from None
    _validate(tree, expression, names)
    return lambda row: bool(_evaluate(tree, row))


def _validate(node: ast.AST, expression: str, names: Sequence[str]) -> None:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id not in names:
            raise StudyError(f"Filter {expression!r}: {part.id!r} is not a column{nearest(part.id, names)}")
        allowed = (
            ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Name, ast.Load,
            ast.Constant, ast.Tuple, ast.List, ast.cmpop,
        )  # fmt: skip
        if not isinstance(part, allowed) or isinstance(part, (ast.Is, ast.IsNot)):
            raise StudyError(
                f"Filter {expression!r}: expected names, numbers, texts, comparisons, 'and', 'or', 'not'; "
                f"found {type(part).__name__}."
            )


def _evaluate(node: ast.AST, row: Mapping[str, Any]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_evaluate(v, row) for v in values)
        case ast.BoolOp(values=values):
            return any(_evaluate(v, row) for v in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand, row)
        case ast.UnaryOp(operand=operand):
            value = _evaluate(operand, row)
            if isinstance(value, (str, list)):
                raise StudyError(f"Filter: expected a number after the minus sign; found {value!r}.")
            return None if value is None else -value
        case ast.Name(id=name):
            return row.get(name)
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_evaluate(i, row) for i in items]
        case ast.Compare(left=first, ops=ops, comparators=others):
            values = [_evaluate(n, row) for n in (first, *others)]
            return all(_compare(op, a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
    raise StudyError(f"Filter: {ast.dump(node)} cannot be evaluated.")


def _compare(op: ast.cmpop, a: Any, b: Any) -> bool:
    if a is None or b is None:
        return False
    try:
        if isinstance(op, (ast.Eq, ast.NotEq)) and isinstance(a, str) != isinstance(b, str):
            raise TypeError  # Python would say "not equal", and a forgotten quote would hide every row
        return _COMPARE[type(op)](a, b)
    except TypeError:
        raise StudyError(
            f"Filter: cannot compare {a!r} with {b!r}; text goes in quotes, numbers without."
        ) from None


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row})


def _text(value: str | list[str] | None) -> str | None:
    return ", ".join(value) if isinstance(value, list) else value


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60
