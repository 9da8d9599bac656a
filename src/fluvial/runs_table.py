"""Runs as a table: one flat row a run, sorted and filtered by expressions; as text, Markdown or LaTeX."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from fluvial.errors import RunError, StudyError, nearest
from fluvial.record import RunFolder

Form = Literal["text", "markdown", "latex"]

#: Columns shown when none are asked for.
SHOWN: tuple[str, ...] = (
    "name", "architecture", "status", "best_loss", "test_nll",
    "epochs", "minutes", "weights", "verdict", "started",
)  # fmt: skip


#: Columns of the table of results: what was reached, how fast the loss fell, how long it took.
RESULTS: tuple[str, ...] = (
    "name", "architecture", "learning_rate", "best_loss", "test_nll", "gain_per_minute", "minutes", "rows_per_second",
)  # fmt: skip
#: Of these, the best value of a column is its smallest, or its largest.
_SMALLEST, _LARGEST = ("best_loss", "test_nll", "minutes"), ("gain_per_minute", "rows_per_second")


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
        conditioning=training.get("conditioning"),
        learning_rate=training.get("learning_rate", row.get("learning_rate")),
        processes=training.get("processes"),
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


def result_row(run: RunFolder) -> dict[str, Any]:
    """Return :func:`flat_row` with ``gain_per_minute``: how fast the validation loss fell, in nats a minute.

    That is its fall from the first epoch to the best, over the time between them.
    """
    row = flat_row(run)
    try:
        metrics = [m for m in run.metrics() if m["validation_loss"] is not None]
    except RunError:
        metrics = []
    row["gain_per_minute"] = None
    if metrics:
        best = min(metrics, key=lambda m: m["validation_loss"])
        seconds = best["seconds"] - metrics[0]["seconds"]
        if seconds > 0:
            fall = metrics[0]["validation_loss"] - best["validation_loss"]
            row["gain_per_minute"] = 60 * fall / seconds
    return row


def formatted(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: str, *, mark: bool = False
) -> str:
    r"""Return rows as a table; with ``mark``, the best loss, rate and runtime stand out.

    >>> print(formatted([{"name": "a_1", "best_loss": 5.0}], ["name", "best_loss"], "latex"))
    \begin{tabular}{lr}
    \hline
    name & best loss \\
    \hline
    a\_1 & 5.000 \\
    \hline
    \end{tabular}

    Raises :class:`~fluvial.errors.RunError` if the form is not text, markdown or latex.
    """
    if form not in get_args(Form):
        raise RunError(f"--format {form!r} is not known{nearest(form, get_args(Form))}")
    best = _best(rows) if mark else {}
    marks = {"text": "{} *", "markdown": "**{}**", "latex": r"\textbf{{{}}}"}
    cells = []
    for row in rows:
        texts = [shown(row.get(c)) for c in columns]
        if form == "latex":
            texts = [_escaped(t) for t in texts]
        best_here = [row.get(c) is not None and row.get(c) == best.get(c) for c in columns]
        cells.append([marks[form].format(t) if b else t for t, b in zip(texts, best_here, strict=True)])
    right = [all(isinstance(r.get(c), (int, float, type(None))) for r in rows) for c in columns]
    if form == "markdown":
        head = [
            "| " + " | ".join(columns) + " |",
            "|" + "|".join("---:" if r else "---" for r in right) + "|",
        ]
        return "\n".join([*head, *("| " + " | ".join(c) + " |" for c in cells)])
    if form == "latex":
        head = r"\begin{tabular}{" + "".join("r" if r else "l" for r in right) + "}"
        names = " & ".join(c.replace("_", " ") for c in columns)
        body = [" & ".join(c) + r" \\" for c in cells]
        return "\n".join([head, r"\hline", names + r" \\", r"\hline", *body, r"\hline", r"\end{tabular}"])
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    lines = [list(columns), ["─" * w for w in widths], *cells]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shown(value: Any) -> str:
    """Return a value as a cell.

    >>> shown(None), shown(0.00123), shown(5.0), shown(12)
    ('–', '0.00123', '5.000', '12')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-2 or abs(value) >= 1e4 else f"{value:.3f}"
    return str(value)


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "_%&#$" else c for c in text).replace("–", "--")


def _best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out = {}
    for names, choose in ((_SMALLEST, min), (_LARGEST, max)):
        for name in names:
            known = [r[name] for r in rows if r.get(name) is not None]
            if len(known) > 1:
                out[name] = choose(known)
    return out


def differences(a: RunFolder, b: RunFolder) -> list[dict[str, Any]]:
    """Return what differs in the studies of two runs, and what came of it: rows of ``option`` and each run's value.

    Raises :class:`~fluvial.errors.RunError` if a record is damaged.
    """
    pair = []
    for run in (a, b):
        record = run.record()
        options = flat_options(record.get("study", {}))
        options["data SHA-256"] = record.get("data", {}).get("fingerprint", {}).get("sha256", "")[:12]
        pair.append((options, result_row(run)))
    (ours, our_row), (theirs, their_row) = pair
    names = [a.name, b.name] if a.name != b.name else [str(a.path), str(b.path)]
    rows = [
        {"option": name, names[0]: ours.get(name), names[1]: theirs.get(name)}
        for name in [*ours, *(n for n in theirs if n not in ours)]
        if ours.get(name) != theirs.get(name)
    ]
    came = (
        "status",
        "epochs",
        "best_epoch",
        "best_loss",
        "test_nll",
        "kl",
        "conditioning",
        "gain_per_minute",
    )
    for name in (*came, "minutes", "weights"):
        rows.append({"option": name, names[0]: our_row.get(name), names[1]: their_row.get(name)})
    return rows


def flat_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options under dotted names.

    >>> flat_options({"training": {"epochs": 3}, "flow": {}})
    {'training.epochs': 3}
    """
    out: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            out |= flat_options(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


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
