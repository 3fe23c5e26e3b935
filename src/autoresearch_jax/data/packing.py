"""Pack documents into rows of one length without padding: the original's best-fit packing."""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

BUFFER_SIZE = 1000  # documents that the packer chooses from, at least
REFILL = 128  # documents that enter the buffer at a time
VERSION = 1  # of the rows that the same documents give


class _Buffer:
    """Documents by length; of equal ones the earliest first. Every step is O(log n)."""

    def __init__(self) -> None:
        self._lengths: list[int] = []  # sorted, without repetition
        self._documents: dict[int, deque[np.ndarray]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, document: np.ndarray) -> None:
        if len(document) not in self._documents:
            self._documents[len(document)] = deque()
            insort(self._lengths, len(document))
        self._documents[len(document)].append(document)
        self._count += 1

    def pop(self, room: int) -> np.ndarray:
        """Remove and return the longest document of at most `room` tokens, or else the shortest."""
        place = max(bisect_right(self._lengths, room) - 1, 0)
        length = self._lengths[place]
        document = self._documents[length].popleft()
        if not self._documents[length]:
            del self._documents[length], self._lengths[place]
        self._count -= 1
        return document


def pack(groups: Iterable[list[np.ndarray]], row_tokens: int) -> Iterator[np.ndarray]:
    """Yield uint16 rows [row_tokens] by best-fit packing with cropping.

    A row takes the longest document that fits. If none fits, the shortest is cropped to fill the
    row, and its rest is dropped. A group of documents enters the buffer whenever that contains
    fewer than BUFFER_SIZE. The last documents are dropped if they do not fill a row.
    """
    buffer = _Buffer()
    groups = iter(groups)
    while True:
        row = np.empty(row_tokens, np.uint16)
        filled = 0
        while filled < row_tokens:
            while len(buffer) < BUFFER_SIZE and (group := next(groups, None)) is not None:
                for document in group:
                    buffer.add(document)
            if not len(buffer):
                return
            piece = buffer.pop(row_tokens - filled)[: row_tokens - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
        yield row
