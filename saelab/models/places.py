"""Where in its source a document stands: what its name says, and how a place in it is shown.

    json/decoder.py             a file
    json/decoder.py:120         a piece of it that begins at line 120
    data.jsonl row 32           a row of a table, from 1
    data.jsonl row 32:7         a piece of its text that begins at line 7
    data.jsonl row 32:7:4801    a piece that begins within that line, at character 4801

Stores and databases keep names; those made before rows were named so say `data.jsonl:32`, and are read as they were
meant. What is in a document is not looked at here.
"""

import re
from dataclasses import dataclass

FILES = (".txt", ".md", ".py")
"""Files that are one document each, and have lines of their own."""
_NAME = re.compile(r"(.*?)(?: row (\d{1,15}))?(?::(\d{1,9})(?::(\d{1,9}))?)?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where a document, or a piece of one, begins."""

    source: str
    """File or data set."""
    row: int | None = None
    """Of a table, from 1."""
    line: int = 1
    """Of the file or of the row's text, from 1."""
    column: int = 1
    """Character of that line, from 1."""

    @classmethod
    def of(cls, name: str) -> "Place":
        """The place that a document's name says."""
        match = _NAME.fullmatch(name)
        assert match is not None
        source, row, line, column = match.groups()
        if row is None and line is not None and not source.lower().endswith(FILES):
            row, line, column = line, column, None  # as rows were named before
        return cls(source, None if row is None else int(row), int(line or 1), int(column or 1))

    def behind(self, text: str) -> "Place":
        """The place behind a text that begins here."""
        breaks = text.count("\n")
        column = len(text) - text.rfind("\n") if breaks else self.column + len(text)
        return Place(self.source, self.row, self.line + breaks, column)

    def name(self) -> str:
        """The name of a piece that begins here."""
        column = f":{self.column}" if self.column > 1 else ""
        return f"{self.document()}:{self.line}{column}"

    def document(self) -> str:
        """The name of the whole document."""
        return self.source if self.row is None else f"{self.source} row {self.row}"

    def shown(self, line: int, has_lines: bool) -> str:
        """A line of the document, for people: `file:line`, and of a row that has several lines row and line."""
        if self.row is None:
            return f"{self.source}:{line}" if self.source else ""
        return f"{self.document()}, line {line}" if has_lines else self.document()
