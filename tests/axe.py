"""Accessibility of a page, by axe-core (https://github.com/dequelabs/axe-core)."""

import importlib.util
from pathlib import Path
from typing import Any

PACKAGE = "axe_playwright_python"  # it brings axe-core; its own code needs playwright
RUN = "axe.run(document, {resultTypes: ['violations']}).then(arguments[arguments.length - 1])"


def violations(driver: Any) -> list[str]:
    """Return what axe-core finds wrong with the page that a browser shows."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    # A script of the page itself would be refused by its Content-Security-Policy.
    driver.execute_script((Path(folder) / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script(RUN)["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
    ]
