"""Where values lie in one piece of memory, so that what is alive at the same time does not overlap."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 4  # bytes


@dataclass(frozen=True)
class Block:
    """Memory that a value needs.

    Attributes
    ----------
    size : int
        Bytes.
    first, last : int
        The steps in which it is written first and read last.
    """

    size: int
    first: int
    last: int


def place(blocks: list[Block]) -> tuple[list[int], int]:
    """Give blocks their places, the largest first, each the lowest that is free while it is alive.

    Returns
    -------
    offsets : list of int
        In bytes, multiples of 4.
    size : int
        Bytes of all together.
    """
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for number in sorted(range(len(blocks)), key=lambda number: -blocks[number].size):
        own = blocks[number]
        others = [one for one in placed if blocks[one].first <= own.last and own.first <= blocks[one].last]
        for one in sorted(others, key=lambda one: offsets[one]):
            if offsets[number] + own.size <= offsets[one]:
                break
            behind = -(-(offsets[one] + blocks[one].size) // ALIGNMENT) * ALIGNMENT
            offsets[number] = max(offsets[number], behind)
        placed.append(number)
    return offsets, max((offset + block.size for offset, block in zip(offsets, blocks, strict=True)), default=0)
