"""Bytecode that trainings and scorings share: it is used, and never an outdated one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch_jax.system import bytecode

FEW = 3  # modules that cannot be imported to their end, since a package of theirs is missing
COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import module
from autoresearch_jax.system import bytecode
bytecode.IMPORTED = ()
bytecode.compile_imported(bytecode.Path(sys.argv[2]))
"""
SHOW = "import sys; sys.path.insert(0, sys.argv[1]); import module; print(module.NAME)"


def python(*arguments, **env):
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | env,
    )
    return done.stdout, done.stderr


def test_a_training_and_a_scoring_compile_no_package():
    bytecode.prepare()
    modules = "import autoresearch_jax.scorer.__main__, flax.linen, optax, orbax.checkpoint"
    _, said = python(*bytecode.options(), "-I", "-v", "-c", modules)
    used = said.count(f" matches {sys.prefix}")
    compiled = [line for line in said.splitlines() if line.startswith("# code object from /")]
    assert used > 900
    assert len(compiled) <= FEW, compiled


def test_outdated_bytecode_is_not_used(tmp_path):
    """Also if size and time of the source are the same, as of two wheels of one archive."""
    module, made = tmp_path / "module.py", tmp_path / "made"
    module.write_text("NAME = 'old'\n")
    os.utime(module, (1e9, 1e9))
    python("-B", "-c", COMPILE, str(tmp_path), str(made))
    (compiled,) = made.rglob("module.*.pyc")
    show = ("-B", "-X", f"pycache_prefix={made}", "-c", SHOW, str(tmp_path))
    assert python(*show)[0] == "old\n"
    module.write_text("NAME = 'new'\n")
    os.utime(module, (1e9, 1e9))
    assert compiled.exists()
    assert python(*show)[0] == "new\n"


def test_another_environment_has_a_folder_of_its_own(tmp_path, monkeypatch):
    before = bytecode.folder()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "jax-9.9.9.dist-info").mkdir()
    assert bytecode.folder() != before
    assert bytecode.folder().parent == before.parent


def test_without_a_place_to_write_nothing_is_made_and_nothing_fails(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "closed").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "closed"))
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "file"))
    bytecode.prepare()
    assert bytecode.folder().is_relative_to(tmp_path / "file")
    assert python(*bytecode.options(), "-c", "print(1)") == ("1\n", "")


def test_the_least_recently_used_are_deleted(tmp_path, monkeypatch):
    (tmp_path / "closed").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "closed"))
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path))
    monkeypatch.setattr(bytecode, "LIMIT_SECONDS", 0.0)  # it is interrupted at once
    old = [tmp_path / "bytecode" / f"{n}" for n in range(bytecode.KEPT + 1)]
    for at, folder in enumerate(old):
        folder.mkdir(parents=True)
        os.utime(folder, (at, at))
    bytecode.prepare()
    assert sorted(old[0].parent.iterdir()) == old[1:]


@pytest.mark.parametrize("level", ["-I", "-P"])
def test_no_process_writes_bytecode(tmp_path, level):
    (tmp_path / "module.py").write_text("NAME = 1\n")
    before = {*Path(bytecode.folder()).rglob("module.*")}
    python(*bytecode.options(), level, "-c", SHOW, str(tmp_path), PYTHONDONTWRITEBYTECODE="")
    assert {*Path(bytecode.folder()).rglob("module.*")} == before
    assert not list(tmp_path.glob("__pycache__"))


FULL_DISK = """
import resource, signal, sys
from autoresearch_jax.system import bytecode
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
bytecode.compile_imported(bytecode.Path(sys.argv[1]))
"""


def test_bytecode_that_a_full_disk_has_cut_is_not_shared(tmp_path):
    """Python would not import it, nor read the source in its place."""
    command = [sys.executable, "-B", "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Error" in done.stderr


def test_what_a_killed_process_has_left_is_deleted_later(tmp_path, monkeypatch):
    (tmp_path / "closed").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "closed"))
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path))
    monkeypatch.setattr(bytecode, "LIMIT_SECONDS", 0.0)
    old = tmp_path / "bytecode" / f"{bytecode.PARTIAL}old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    bytecode.prepare()
    assert not old.exists()
