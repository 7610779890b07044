"""Which characters of a Python file are what, from Python's own `tokenize` and `ast`.

A mark is a yes for some characters, by name: "comment", "in a loop", "attribute". What stands inside an f-string is
string and nothing else, because Python below 3.12 does not say where its parts are. What the marks are good for is in
`python_labels.py`.
"""

# Shape letters: C characters of a file.

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from functools import cache

import numpy as np

LAYOUT = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
FSTRING_START, FSTRING_END = (getattr(tokenize, f"FSTRING_{end}", -1) for end in ("START", "END"))
SOFT_KEYWORDS = frozenset({"match", "case", "type", "_"})
Function = ast.FunctionDef | ast.AsyncFunctionDef
Block = Function | ast.ClassDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

WHOLES: dict[str, type | tuple[type, ...]] = {
    "lambda": ast.Lambda, "comprehension": (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    "assert": ast.Assert, "raise": ast.Raise, "return": ast.Return, "import": (ast.Import, ast.ImportFrom),
    "dict": ast.Dict, "list": ast.List, "tuple": ast.Tuple, "boolean": ast.BoolOp, "comparison": ast.Compare,
    "arithmetic": ast.BinOp, "assignment": (ast.Assign, ast.AnnAssign), "augmented": ast.AugAssign,
    "class": ast.ClassDef, "call": ast.Call,
}  # fmt: skip
"""Marks of nodes from end to end."""
PARTS: dict[str, list[tuple[type | tuple[type, ...], str]]] = {
    "loop": [((ast.For, ast.AsyncFor, ast.While), "body")], "while": [(ast.While, "body")],
    "except": [(ast.ExceptHandler, "body")], "try": [(ast.Try, "body")], "finally": [(ast.Try, "finalbody")],
    "with": [((ast.With, ast.AsyncWith), "body")], "if": [(ast.If, "body")], "class body": [(ast.ClassDef, "body")],
    "function": [((ast.FunctionDef, ast.AsyncFunctionDef), "body")], "async": [(ast.AsyncFunctionDef, "body")],
    "condition": [((ast.If, ast.While, ast.IfExp), "test")], "index": [(ast.Subscript, "slice")],
    "arguments": [(ast.Call, "args")], "keyword value": [(ast.keyword, "value")], "iterated": [(ast.For, "iter")],
    "annotation": [((ast.arg, ast.AnnAssign), "annotation"), ((ast.FunctionDef, ast.AsyncFunctionDef), "returns")],
    "default": [(ast.arguments, "defaults"), (ast.arguments, "kw_defaults")], "bases": [(ast.ClassDef, "bases")],
    "decorator": [((ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef), "decorator_list")],
}  # fmt: skip
"""Marks of what hangs below nodes: a node, or a list of them from the first to the last."""


class SourcePlaces:
    """Places in a text: characters from lines and columns; `ast` counts columns in bytes, `tokenize` in characters."""

    def __init__(self, source: str):
        self.lines = source.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)

    def character(self, line: int, column: int) -> int:
        """The character at a line (from 1) and a column in characters."""
        return self.starts[line - 1] + column

    def of_bytes(self, line: int, column: int) -> int:
        """The character at a line (from 1) and a column in bytes of UTF-8."""
        text = self.lines[line - 1]
        return self.character(line, column if text.isascii() else len(text.encode()[:column].decode()))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First character of a node and the one behind its last; decorators belong to what they decorate."""
        first = min([node, *getattr(node, "decorator_list", [])], key=lambda one: (one.lineno, one.col_offset))
        end = self.of_bytes(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        return self.of_bytes(first.lineno, first.col_offset), end


class Marks:
    """The marks of a file.

    Attributes:
        depth: how many blocks are open at each character of code, [C].
        brackets: how many brackets are open, [C].

    Raises:
        SyntaxError, ValueError: for text that is no Python.
    """

    def __init__(self, source: str):
        self.source, self.places = source, SourcePlaces(source)
        self.tree = ast.parse(source)
        self._marks: dict[str, np.ndarray] = {}
        self._known: dict[ast.AST, frozenset[str]] = {}
        self.depth, self.brackets = np.zeros(len(source), np.int16), np.zeros(len(source), np.int16)
        self.parents: dict[ast.AST, ast.AST] = {}
        self.nodes: list[ast.AST] = [self.tree]
        for node in self.nodes:  # which grows
            children = list(ast.iter_child_nodes(node))
            self.nodes += children
            self.parents |= dict.fromkeys(children, node)
        self._read_tokens()
        self._read_tree()

    def __getitem__(self, name: str) -> np.ndarray:
        """The characters with a mark, [C] bool."""
        return self._marks[name] if name in self._marks else np.zeros(len(self.source), bool)

    def mark(self, name: str, start: int, end: int) -> None:
        """Say yes to the characters from start to end - 1."""
        if name not in self._marks:
            self._marks[name] = np.zeros(len(self.source), bool)
        self._marks[name][start:end] = True

    # ---- tokens ----

    def _read_tokens(self) -> None:
        level = bracket = 0
        begins, before = True, ""
        fstrings: list[int] = []
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            start, end = (self.places.character(*place) for place in (token.start, token.end))
            level += {tokenize.INDENT: 1, tokenize.DEDENT: -1}.get(token.type, 0)
            begins = begins or token.type == tokenize.NEWLINE
            if token.type == FSTRING_END:
                self.mark("f-string", fstrings.pop(), end)
            if token.type == FSTRING_START:
                fstrings.append(start)
            if token.type in LAYOUT or token.type in (FSTRING_START, FSTRING_END) or fstrings:
                continue
            if token.type == tokenize.COMMENT:
                self._comment(token, start, end)
                continue
            bracket += token.type == tokenize.OP and token.string in "([{"
            self.depth[start:end], self.brackets[start:end] = level, bracket
            bracket -= token.type == tokenize.OP and token.string in ")]}"
            if token.type == tokenize.STRING:
                self._string(token, start, end)
            else:
                self._code(token, start, end, before, begins)
            begins, before = False, token.string

    def _comment(self, token: tokenize.TokenInfo, start: int, end: int) -> None:
        self.mark("comment", start, end)
        if token.line[: token.start[1]].strip():
            self.mark("comment after code", start, end)

    def _string(self, token: tokenize.TokenInfo, start: int, end: int) -> None:
        prefix = re.match("[a-zA-Z]*", token.string)[0].lower()  # type: ignore[index]
        self.mark("f-string" if "f" in prefix else "string", start, end)
        for letter, name in (("b", "bytes"), ("r", "raw")):
            if letter in prefix:
                self.mark(name, start, end)
        if token.string[len(prefix) :][:3] in ('"""', "'''"):
            self.mark("triple", start, end)

    def _code(self, token: tokenize.TokenInfo, start: int, end: int, before: str, begins: bool) -> None:
        self.mark("code", start, end)
        if begins:
            self.mark("first", start, end)
        if token.type == tokenize.NUMBER:
            self.mark("number", start, end)
        elif token.type == tokenize.OP:
            self.mark("operator", start, end)
        elif keyword.iskeyword(token.string):
            self.mark("keyword", start, end)
        elif token.type == tokenize.NAME and not (begins and token.string in SOFT_KEYWORDS):
            self.mark("name", start, end)
            if before in ("def", "class"):
                self.mark(f"after {before}", start, end)

    # ---- tree ----

    def _read_tree(self) -> None:
        nodes = self.nodes
        quoted = {inner for node in nodes if isinstance(node, ast.JoinedStr) for inner in ast.walk(node)}
        imports = (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
        self.imported = {(one.asname or one.name).partition(".")[0] for node in imports for one in node.names}
        for node in nodes:
            if node not in quoted:
                self._wholes_and_parts(node)
                self._docstring(node)
                self._name(node)
            if isinstance(node, Function):
                self._function(node)
            if isinstance(node, ast.If) and node.orelse and not self._is_elif(node):
                self._block("else", node.orelse)

    def _wholes_and_parts(self, node: ast.AST) -> None:
        wholes, parts = _marks_of(type(node).__name__)
        if wholes:
            span = self.places.span(node)
            for name in wholes:
                self.mark(name, *span)
        for name, field in parts:
            self._block(name, getattr(node, field))

    def _block(self, name: str, below: ast.AST | list[ast.AST] | list[ast.stmt] | None) -> None:
        nodes = [one for one in (below if isinstance(below, list) else [below]) if one is not None]
        if nodes and name in ("default", "decorator"):  # these have others between them
            for node in nodes:
                self.mark(name, *self.places.span(node))
        elif nodes:
            self.mark(name, self.places.span(nodes[0])[0], self.places.span(nodes[-1])[1])

    def _is_elif(self, node: ast.If) -> bool:
        start = self.places.span(node.orelse[0])[0]
        return isinstance(node.orelse[0], ast.If) and self.source.startswith("elif", start)

    def _docstring(self, node: ast.AST) -> None:
        if isinstance(node, ast.Module | Function | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
            for name in ("docstring", f"docstring of a {kind}"):
                self.mark(name, *self.places.span(node.body[0]))

    def _function(self, node: Function) -> None:
        around = next((one for one in self.above(node) if isinstance(one, Function | ast.ClassDef)), None)
        if isinstance(around, ast.ClassDef):
            self._block("method", node.body)
        elif around:
            self._block("nested function", node.body)
        if node.name.startswith("test"):
            self._block("test", node.body)
        if any(isinstance(one, ast.Yield | ast.YieldFrom) for one in self._own(node)):
            self._block("generator", node.body)
        if node.decorator_list:
            self._block("decorated", node.body)

    def _own(self, function: Function) -> Iterator[ast.AST]:
        """What belongs to a function and not to one inside it."""
        waiting: list[ast.AST] = list(function.body)
        while waiting:
            node = waiting.pop()
            yield node
            if not isinstance(node, Block):
                waiting += ast.iter_child_nodes(node)

    def _name(self, node: ast.AST) -> None:
        above = self.parents.get(node)
        called = isinstance(above, ast.Call) and above.func is node
        if isinstance(node, ast.Name):
            start, end = self.places.span(node)
            for name, holds in (
                ("stored", isinstance(node.ctx, ast.Store)),
                ("called", called),
                ("imported", node.id in self.imported),
                ("parameter used", node.id in self._parameters_around(node)),
            ):
                if holds:
                    self.mark(name, start, end)
        elif isinstance(node, ast.Attribute):
            end = self.places.span(node)[1]
            for name, holds in (("attribute", True), ("called", called), ("called attribute", called)):
                if holds:
                    self.mark(name, end - len(node.attr), end)
        elif isinstance(node, ast.arg):
            start = self.places.span(node)[0]
            self.mark("parameter", start, start + len(node.arg))
        elif isinstance(node, ast.keyword) and node.arg:
            start = self.places.span(node)[0]
            self.mark("keyword name", start, start + len(node.arg))

    def _parameters_around(self, node: ast.AST) -> frozenset[str]:
        """Names of the parameters of all functions around a node."""
        around = next((one for one in self.above(node) if isinstance(one, Function | ast.Lambda)), None)
        if around is None:
            return frozenset()
        if around not in self._known:
            self._known[around] = self._parameters_around(around) | _parameters(around)
        return self._known[around]

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around a node, from the nearest outwards."""
        while node in self.parents:
            node = self.parents[node]
            yield node


@cache
def _marks_of(name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Of nodes of a class: marks of the whole, and marks with the field that they are for."""
    kind = getattr(ast, name)
    wholes = [name for name, kinds in WHOLES.items() if issubclass(kind, kinds)]
    parts = [(name, field) for name, some in PARTS.items() for kinds, field in some if issubclass(kind, kinds)]
    return wholes, parts


def _parameters(node: ast.Lambda | Function) -> set[str]:
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {one.arg for one in every if one}
