"""Ridge regression towards no change: (X'X + k I)^-1 X'E, from batches of rows X and errors E, float64.

Where there is a first axis besides, each of its problems is solved on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def sums(examples: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sum X'X and X'E over batches, of which there is one at least."""
    rows, error = next(examples)
    gram, cross = rows.mT @ rows, rows.mT @ error
    for rows, error in examples:
        gram += rows.mT @ rows
        cross += rows.mT @ error
    return gram, cross


def solve(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """Solve for a strength, in shares of the inputs' mean square."""
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    damped = gram + strength * size * torch.eye(gram.shape[-1], dtype=gram.dtype)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(damped))


def solve_few(examples: Iterator[tuple[Tensor, Tensor]], strength: float) -> Tensor:
    """Solve from fewer rows than inputs: the same by way of X X', which is the smaller matrix then."""
    rows, error = (torch.cat(parts) for parts in zip(*examples, strict=True))
    kernel = rows @ rows.T
    kernel += strength * kernel.trace() / rows.shape[1] * torch.eye(len(rows), dtype=rows.dtype)
    return rows.T @ torch.cholesky_solve(error, torch.linalg.cholesky(kernel))


def gains(changes: Mapping[float, Tensor], gram: Tensor, cross: Tensor) -> dict[float, float]:
    """How much each change of the weights lowers the summed squared error."""
    return {value: float((change * (2 * cross - gram @ change)).sum()) for value, change in changes.items()}
