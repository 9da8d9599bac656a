"""Expressions over columns: row filters such as ``Mass_0 < 100 and Z > 0.001``, and columns made of others.

=============  ==========================================================================================
numbers        ``1``, ``2.5``, ``1e-3``; columns by name; ``flux[17]``; ``+ - * / **``
functions      log, log10, exp, sqrt, abs, sin, cos, tan, arctan, arctan2, minimum, maximum, where
conditions     ``< <= > >= == !=``, chained too; ``x in [1, 2]``, ``not in``; isfinite; ``and``, ``or``, ``not``
=============  ==========================================================================================

A column whose name is no word of Python stands in backquotes. An expression is parsed, never executed as
code, and evaluated on whole arrays by numpy. Arithmetic is in float64. A bare column is compared with a number in
the column's own type, so that ``Z == 0.001`` holds where Z was stored as the float32 nearest to 0.001. Every
comparison with a missing value (NaN) is false, but for ``!=``; a division by zero gives infinity or NaN.
"""

from __future__ import annotations

import ast
import copy
import functools
import keyword
import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

from fluvial.errors import DataError, StudyError, nearest

Kind = Literal["number", "condition"]

#: Name: number of arguments, and what computes it.
FUNCTIONS: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
    "log": (1, np.log),
    "log10": (1, np.log10),
    "exp": (1, np.exp),
    "sqrt": (1, np.sqrt),
    "abs": (1, np.abs),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "tan": (1, np.tan),
    "arctan": (1, np.arctan),
    "arctan2": (2, np.arctan2),
    "minimum": (2, np.minimum),
    "maximum": (2, np.maximum),
    "isfinite": (1, np.isfinite),
    "where": (3, np.where),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_INSTEAD: dict[type[ast.AST], str] = {
    ast.BitAnd: "write 'and' instead of '&'",
    ast.BitOr: "write 'or' instead of '|'",
    ast.BitXor: "write '**' for a power",
    ast.Invert: "write 'not' instead of '~'",
    ast.IfExp: "write where(condition, a, b)",
    ast.Attribute: "a name with a dot stands in backquotes",
    ast.Is: "write '=='",
    ast.IsNot: "write '!='",
}
_STAND_IN = "ꙮ"  # a letter, for what stands in backquotes: the places of all else stay as they are
_LARGEST = 2000  # nodes of a tree


@dataclass(frozen=True)
class Expression:
    """A parsed expression: its text, the columns that it names, and whether it is a number or a condition."""

    text: str
    what: str
    kind: Kind
    columns: tuple[str, ...]
    tree: ast.expr

    def __call__(self, table: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return float64 ``[n]`` of a number, bool ``[n]`` of a condition, for columns ``[n]``.

        >>> parse_expression("log10(m) in [1, 2]")({"m": np.array([1.0, 10.0, 100.0])})
        array([False,  True,  True])
        """
        with np.errstate(all="ignore"):
            return _evaluate(self.tree, table)

    def require(self, known: Iterable[str], where: str) -> None:
        """Raise :class:`~fluvial.errors.DataError` where a column that the expression names is not known."""
        known = list(known)
        for node in _column_nodes(self.tree):
            name = _name(node)
            base = name if isinstance(node, ast.Name) else name.rpartition("[")[0]
            if name not in known and base not in known:
                hint = nearest(base, known)
                raise DataError(f"{self.what}: {where} has no column {base!r}{hint}{_caret(self.text, node)}")

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Return closed intervals outside which of a column the condition cannot hold.

        >>> parse_expression("0 < m <= 100 and Z in [0.001, 0.02] and log(x) > 3").bounds()
        {'m': (0.0, 100.0), 'Z': (0.001, 0.02)}
        """
        out: dict[str, tuple[float, float]] = {}
        for name, low, high in _limits(self.tree):
            a, b = out.get(name, (-math.inf, math.inf))
            out[name] = (max(a, low), min(b, high))
        return out


def parse_expression(text: str, what: str = "expression", kind: Kind | None = None) -> Expression:
    """Return the expression that a text holds; ``what`` names it in messages.

    Raises :class:`~fluvial.errors.StudyError`, with a caret under the place, where the text does not parse, uses
    anything but what is listed above, is not of the ``kind`` that is asked for, or names no column.

    >>> parse_expression("Jet_pt / GenJet_pt").columns
    ('Jet_pt', 'GenJet_pt')
    >>> parse_expression("Mass_0 < 100 & Z > 0", "[data] where")
    Traceback (most recent call last):
    fluvial.errors.StudyError: [data] where: write 'and' instead of '&'
        Mass_0 < 100 & Z > 0
                 ^^^^^^^
    """
    text = " ".join(text.split())
    if not text:
        raise StudyError(f"{what}: expected an expression over columns; found an empty text")
    plain = re.sub(r"`[^`]+`", lambda match: _STAND_IN * len(match[0]), text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about its own style: 1in [2], "\\ "
            tree = _restored(ast.parse(plain, mode="eval").body, text)
        if sum(1 for _ in ast.walk(tree)) > _LARGEST:
            raise StudyError(f"{what}: the expression has more than {_LARGEST} parts; make it shorter")
        found = _Grammar(text, what).kind(tree)
    except StudyError:
        raise
    except SyntaxError as error:
        column = min(error.offset - 1, len(text)) if error.offset else len(text)
        raise StudyError(f"{what}: {_syntax(text, error)}{_mark(text, column, 1)}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise StudyError(f"{what}: {text!r:.200} cannot be read as an expression ({error})") from None
    if kind is not None and found != kind:
        wanted = (
            "a condition, such as x < 100 (of yes and no: x == 1)"
            if kind == "condition"
            else "a number, such as x / y"
        )
        raise StudyError(f"{what}: expected {wanted}; found a {found}{_caret(text, tree)}")
    columns = tuple(dict.fromkeys(map(_name, _column_nodes(tree))))
    if not columns:
        raise StudyError(f"{what}: expected an expression that names a column{_caret(text, tree)}")
    return Expression(text, what, found, columns, tree)


def substituted(expression: Expression, definitions: Mapping[str, Expression]) -> Expression:
    """Return an expression with every column that has a definition replaced by it.

    >>> ratio = parse_expression("a / b")
    >>> substituted(parse_expression("log(r) + a"), {"r": ratio}).text
    'log(a / b) + a'
    """

    class Replace(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return definitions[_name(node)].tree if _name(node) in definitions else node

        def visit_Call(self, node: ast.Call) -> ast.AST:  # the name of a function is no column
            return ast.Call(node.func, [self.visit(a) for a in node.args], [])

    tree = Replace().visit(copy.deepcopy(expression.tree))
    return parse_expression(ast.unparse(tree), expression.what)


def quoted(name: str) -> str:
    """Return a column's name as it stands in an expression.

    >>> quoted("Mass_0"), quoted("data[3]"), quoted("jets/pt")
    ('Mass_0', 'data[3]', '`jets/pt`')
    """
    base, bracket, element = name.partition("[")
    plain = base.isidentifier() and not keyword.iskeyword(base)
    return name if plain and re.fullmatch(r"(\[\d+\])?", bracket + element) else f"`{name}`"


class _Grammar:
    """What an expression may hold: walks a tree once, and returns whether each part is a number or a condition."""

    def __init__(self, text: str, what: str) -> None:
        self._text, self._what = text, what

    def kind(self, node: ast.AST) -> Kind:
        match node:
            case ast.Constant():
                literal = _literal(node)
                if literal is None:
                    self._refuse(node, "only numbers and columns stand in an expression")
                if not abs(literal) <= sys.float_info.max:
                    self._refuse(node, "this number is beyond float64")
                return "number"
            case ast.Name() | ast.Subscript(value=ast.Name(), slice=ast.Constant(value=int())):
                return "number"
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return self._each([operand], "number")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self._each([operand], "condition")
            case ast.BoolOp(values=values):
                return self._each(values, "condition")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return self._each([left, right], "number")
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._call(node)
        operation = getattr(node, "op", node)
        self._refuse(node, _INSTEAD.get(type(operation), "this is no part of an expression over columns"))

    def _each(self, nodes: Iterable[ast.expr], kind: Kind) -> Kind:
        for node in nodes:
            if self.kind(node) != kind:
                hint = (
                    "a condition, such as x < 100 (of yes and no: x == 1)"
                    if kind == "condition"
                    else "a number"
                )
                self._refuse(node, f"expected {hint}")
        return kind

    def _comparison(self, node: ast.Compare) -> Kind:
        self._each([node.left], "number")
        for op, other in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                if not isinstance(other, (ast.List, ast.Tuple, ast.Set)) or not other.elts:
                    self._refuse(other, "expected a list of numbers, such as [1, 2]")
                for item in other.elts:
                    if _literal(item) is None:
                        self._refuse(item, "expected a number")
            elif type(op) in _COMPARE:
                self._each([other], "number")
            else:
                self._refuse(node, _INSTEAD[type(op)])
        return "condition"

    def _call(self, node: ast.Call) -> Kind:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            self._refuse(node.func, f"no function {name!r}{nearest(name, FUNCTIONS)}")
        count, _ = FUNCTIONS[name]
        if len(node.args) != count or node.keywords:
            self._refuse(node, f"{name} takes {count} argument{'s' * (count > 1)}")
        condition, numbers = (node.args[:1], node.args[1:]) if name == "where" else ([], node.args)
        self._each(condition, "condition")
        self._each(numbers, "number")
        return "condition" if name == "isfinite" else "number"

    def _refuse(self, node: ast.AST, why: str) -> NoReturn:
        raise StudyError(f"{self._what}: {why}{_caret(self._text, node)}")


def _evaluate(node: ast.AST, table: Mapping[str, np.ndarray]) -> Any:
    """Return an array: float64 of a number, bool of a condition."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_evaluate(operand, table)
        case ast.UnaryOp(op=op, operand=operand):
            value = _evaluate(operand, table)
            return -value if isinstance(op, ast.USub) else value
        case ast.BoolOp(op=op, values=values):
            parts = [_evaluate(v, table) for v in values]
            return functools.reduce(np.logical_and if isinstance(op, ast.And) else np.logical_or, parts)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_evaluate(left, table), _evaluate(right, table))
        case ast.Compare(left=first, ops=ops, comparators=others):
            sides = [first, *others]
            parts = [_compare(op, a, b, table) for op, a, b in zip(ops, sides, others, strict=False)]
            return functools.reduce(np.logical_and, parts)
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name][1](*(_evaluate(a, table) for a in args))
        case ast.Constant():
            return np.float64(_literal(node) or 0)
    return table[_name(node)].astype(np.float64, copy=False)


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, table: Mapping[str, np.ndarray]) -> Any:
    a = _side(left, table)
    if isinstance(op, (ast.In, ast.NotIn)):
        items = right.elts if isinstance(right, (ast.List, ast.Tuple, ast.Set)) else []
        found = functools.reduce(np.logical_or, [a == _literal(item) for item in items])
        return found if isinstance(op, ast.In) else ~found
    return _COMPARE[type(op)](a, _side(right, table))


def _side(node: ast.expr, table: Mapping[str, np.ndarray]) -> Any:
    """Return one side of a comparison: a bare column in its own type, a bare number as Python's."""
    literal = _literal(node)
    if literal is not None:
        return literal
    return table[_name(node)] if isinstance(node, (ast.Name, ast.Subscript)) else _evaluate(node, table)


def _literal(node: ast.AST) -> int | float | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return None if isinstance(node.value, bool) else node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand)
        return -value if value is not None and isinstance(node.op, ast.USub) else value
    return None


_MIRRORED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def _limits(node: ast.AST) -> Iterator[tuple[str, float, float]]:
    """Yield what a condition, where it holds, says of single columns."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for value in node.values:
            yield from _limits(value)
    if not isinstance(node, ast.Compare):
        return
    sides = [node.left, *node.comparators]
    for op, left, right in zip(node.ops, sides, node.comparators, strict=False):
        kind: type[ast.cmpop] = type(op)
        if _literal(left) is not None:
            left, right, kind = right, left, _MIRRORED.get(kind, kind)
        if not isinstance(left, (ast.Name, ast.Subscript)):
            continue
        if kind is ast.In and isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            items = [value for item in right.elts if (value := _literal(item)) is not None]
            yield _name(left), float(min(items)), float(max(items))
        value = _literal(right)
        if value is not None and kind in (ast.Eq, ast.Lt, ast.LtE):
            yield _name(left), -math.inf, float(value)
        if value is not None and kind in (ast.Eq, ast.Gt, ast.GtE):
            yield _name(left), float(value), math.inf


def _column_nodes(node: ast.AST) -> Iterator[ast.Name | ast.Subscript]:
    """Yield the nodes that name columns, from left to right."""
    if isinstance(node, (ast.Name, ast.Subscript)):
        yield node
        return
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    for child in children:
        yield from _column_nodes(child)


def _name(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name):
            return name.strip("`")
        case ast.Subscript(value=value, slice=ast.Constant(value=element)):
            return f"{_name(value)}[{element}]"
    raise TypeError(f"no column: {ast.dump(node)}")  # the grammar lets nothing else through


def _restored(tree: ast.expr, text: str) -> ast.expr:
    """Return the tree with the names in backquotes put back (with them, so that it can be written again)."""
    line = re.sub(r"`[^`]+`", lambda match: _STAND_IN * len(match[0]), text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id.startswith(_STAND_IN):
            start = len(line.encode()[: node.col_offset].decode())
            node.id = text[start : start + len(node.id)]
    return tree


def _syntax(text: str, error: SyntaxError) -> str:
    if "&&" in text or "||" in text:
        return "write 'and' and 'or' instead of '&&' and '||'"
    if re.search(r"[^=!<>]=[^=]", text):
        return "write '==' to compare"
    return f"this does not parse: {error.msg}"


def _caret(text: str, node: ast.AST) -> str:
    """Return the expression with carets under a part of it, to stand below a message."""
    line = re.sub(r"`[^`]+`", lambda match: _STAND_IN * len(match[0]), text).encode()
    start, stop = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", None)
    before = len(line[:start].decode())
    return _mark(text, before, max(len(line[:stop].decode()) - before, 1))


def _mark(text: str, start: int, width: int) -> str:
    begin = max(min(start - 50, len(text) - 100), 0)  # of a long text, what is around the place
    return f"\n    {text[begin : begin + 100]}\n    {' ' * (start - begin)}{'^' * min(width, begin + 100 - start)}"
