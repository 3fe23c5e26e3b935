"""A laptop's battery."""

import sys
from pathlib import Path

import psutil


def charge() -> tuple[float, bool] | None:
    """Return a laptop's charge in percent and whether it is plugged in; None for other machines."""
    if sys.platform == "linux" and not list(Path("/sys/class/power_supply").glob("BAT*")):
        return None  # a wireless mouse has a battery, too
    found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if found is None else (found.percent, found.power_plugged is not False)
