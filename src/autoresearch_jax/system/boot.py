"""What tells later why a process was killed: a restart of the machine, or a lack of memory."""

import contextlib
import platform
import re
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """Return the machine's name, the id of its start, and the processes ended for lack of memory.

    The id is "" and the number 0 where the system does not tell.
    """
    boot, killed = "", "0"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        killed = found[1] if found else killed
    return {"host": platform.node(), "boot": boot, "oom_kills": int(killed)}
