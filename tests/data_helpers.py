"""A tiny workspace with data, prepared for real: text in parquet shards, `prepare.py` run on it."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
CONSTANTS = "TIME_BUDGET = 5\nMAX_SEQ_LEN = 64\nEVAL_TOKENS = 3072\nVOCAB_SIZE = 512\n"
SYLLABLES = [
    "ri",
    "ver",
    "sto",
    "ne",
    "li",
    "ght",
    "ba",
    "ko",
    "mu",
    "ten",
    "sa",
    "lo",
    "qui",
    "fe",
]
WORDS = ["12", "2024", "—", "naïve", "über", "你好", "quickly;", "(again)"]
WORDS += [a + b + c for a in SYLLABLES for b in SYLLABLES for c in ("", "n", "ing")]


def texts(count: int, seed: int) -> list[str]:
    """Documents of 1 to 80 words, reproducible."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 80))) for _ in range(count)]


def write_shard(path: Path, documents: list[str] | list[str | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(documents, pa.string())}), path)
    return path


def make_shards(folder: Path, count: int = 4, documents: int = 400) -> Path:
    for index in range(count):
        write_shard(folder / f"shard_{index:05d}.parquet", texts(documents, index))
    return folder


def make_workspace(root: Path, constants: str = CONSTANTS) -> Path:
    """The frozen files alone: all that preparation needs of a workspace."""
    root.mkdir(parents=True)
    shutil.copy(ROOT / "prepare.py", root / "prepare.py")
    (root / "constants.py").write_text(constants)
    return root


def copy_data(home: Path, to: Path) -> Path:
    """Copy what preparation made, and no more: in a shared home, other tests make folders and
    remove them meanwhile."""
    for kind in ("packed", "prepared", "repeated", "tokenizers"):
        shutil.copytree(home / kind, to / kind)
    return to


def environment(home: Path, **more: str) -> dict[str, str]:
    """For a child process: data in `home`, no network beyond loopback, one CPU device."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "AUTORESEARCH_HOME": str(home),
        "HF_HOME": str(home / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing answers there
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "JAX_PLATFORMS": "cpu",
        "NO_PROXY": "127.0.0.1",
        "COLUMNS": "300",
        # Within one second, tests replace constants.py by another of the same size.
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def run_prepare(root: Path, home: Path, *options: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "prepare.py", *options],
        cwd=root,
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=100,
    )


def import_prepare(root: Path) -> ModuleType:
    """The workspace's own `prepare`, with its own constants, beside any other that is loaded."""
    shadowed = sys.modules.pop("constants", None)
    try:
        sys.modules["constants"] = _load("constants", root / "constants.py")
        return _load(f"prepare_of_{root.name}", root / "prepare.py")
    finally:
        del sys.modules["constants"]
        if shadowed is not None:
            sys.modules["constants"] = shadowed


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
