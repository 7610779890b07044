"""A matrix of weights that stays in its file: its rows are read, turned, scaled and rounded some at a time.

What is done to weights on the way from one library's form to another's is a factor a row or a column, the other
orientation, another precision, or several tensors on top of each other; none of it needs the whole matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from saelab.core.files import spans


class Matrix:
    """Tensors on top of each other as one matrix; what a tensor has beyond its first axis is one row, side by side.

    Args:
        pieces: of any floating-point precision; those with narrower rows have zeros before them.
        factor: what it is multiplied by: [rows, 1] or [1, columns].
        forget: called before rows are read, to let go of what was read before.
        dtype: of what is read; by default float64 where a piece is, else float32.
        right: [columns, columns], what it is multiplied by from the right in the end.
    """

    def __init__(
        self,
        pieces: Sequence[Tensor],
        factor: Tensor | None = None,
        forget: Callable[[], None] = lambda: None,
        dtype: torch.dtype | None = None,
        right: Tensor | None = None,
    ):
        self.pieces, self.factor, self.forget, self.right = list(pieces), factor, forget, right
        is_double = any(piece.dtype == torch.float64 for piece in pieces)
        self.dtype = dtype or (torch.float64 if is_double else torch.float32)
        self.shape = torch.Size((sum(map(len, pieces)), max(prod(piece.shape[1:]) for piece in pieces)))

    def rows(self, first: int, last: int) -> Tensor:
        """The rows first <= i < last, [n, columns]."""
        self.forget()
        parts, start = [], 0
        for piece in self.pieces:
            part = piece[max(first - start, 0) : max(last - start, 0)].flatten(1)
            start += len(piece)
            if len(part):
                left = self.shape[1] - part.shape[1]
                parts.append(torch.nn.functional.pad(part, (left, 0)) if left else part)
        found = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.factor is not None:
            found = found.double() * (self.factor[first:last] if len(self.factor) > 1 else self.factor)
        if self.right is not None:
            found = found.double() @ self.right.double()
        return found.to(self.dtype)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time: which they are, and they."""
        for first, last in spans(self):
            yield slice(first, last), self.rows(first, last)

    def whole(self) -> Tensor:
        """All of it."""
        return torch.cat([block for _, block in self.blocks()])

    def times(self, factor: Tensor) -> "Matrix":
        """This one, multiplied by a factor a row [rows, 1] or a column [1, columns]."""
        assert self.right is None or len(factor) > 1
        factor = factor.double() if self.factor is None else self.factor * factor.double()
        return Matrix(self.pieces, factor, self.forget, self.dtype, self.right)

    def through(self, right: Tensor) -> "Matrix":
        """This one times a matrix [columns, columns]."""
        return Matrix(self.pieces, self.factor, self.forget, self.dtype, right)

    def to(self, dtype: torch.dtype) -> "Matrix":
        """This one in another precision."""
        return Matrix(self.pieces, self.factor, self.forget, dtype, self.right)

    @property
    def is_as_stored(self) -> bool:
        """Whether its entries are those of the file, in a precision that holds them all."""
        widest = max(piece.itemsize for piece in self.pieces)
        return self.factor is None and self.right is None and self.dtype.itemsize >= widest

    @property
    def T(self) -> "Matrix":
        """Rows as columns; what is not one tensor with two axes is put together for that."""
        if self.right is not None or len(self.pieces) > 1 or self.pieces[0].ndim > 2:
            return Matrix([self.whole().T], dtype=self.dtype)
        (piece,) = self.pieces
        factor = None if self.factor is None else self.factor.T
        return Matrix([piece.T], factor, self.forget, self.dtype)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Of its rows, float64."""
        return torch.cat([block.double().norm(dim=1) for _, block in self.blocks()])

    @torch.no_grad()
    def product(self, vector: Tensor) -> Tensor:
        """With a vector [columns] or columns side by side, float64."""
        return torch.cat([block.double() @ vector.double() for _, block in self.blocks()])
