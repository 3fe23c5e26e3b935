"""The memory that a server, its loops and their git commands share with shim.c."""

import struct
from pathlib import Path

SIZE = 2048
FAIL_ONCE, FAIL_FROM_THEN_ON, KILL_ALL, KILL_THE_LOOP = range(4)
_WORDS = struct.Struct("=8q960s1024s")  # `struct control` of shim.c
_ARMED, _COUNT, _FIRED = 0, 8, 48


class Control:
    """Sets the call at which the shim acts; without the shim it has no effect."""

    def __init__(self, memory):
        self._memory = memory

    def arm(self, folder: Path, loop: int, *, at: int = 0, action: int = 0, error: int = 0):
        """From now on, count the calls below `folder`, and act at call number `at`."""
        words = (1, 0, at, action, error, loop, 0, 0, str(folder).encode(), b"")
        self._memory[: _WORDS.size] = _WORDS.pack(*words)

    def pause(self):
        self._memory[_ARMED : _ARMED + 8] = bytes(8)

    def go_on(self):
        self._memory[_ARMED : _ARMED + 8] = (1).to_bytes(8, "little")

    @property
    def count(self) -> int:
        return self._number(_COUNT)

    @property
    def fired(self) -> int:
        return self._number(_FIRED)

    @property
    def what(self) -> str:
        return bytes(self._memory[1024:2048]).split(b"\0")[0].decode(errors="replace")

    def _number(self, at: int) -> int:
        return int.from_bytes(self._memory[at : at + 8], "little")
