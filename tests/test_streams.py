"""Terminals with another encoding, pipes without a reader, full disks, folders that are gone.

Every command must print all of its lines, or say why not in one, and never a traceback.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import harness, watch_helpers
from tests.tiers import cases

TOP = Path(__file__).parents[1]
# Some commands would train, which takes minutes.
QUICK = """
import sys
from autoresearch_jax.loop import open_session
from tests import harness
open_session.Tools = harness.tools
from autoresearch_jax.cli.main import main
main()
"""
COMMANDS = {
    "--help": 0,
    "--version": 0,
    "loop --help": 0,
    "results": 0,
    "results --json": 0,
    "results --csv": 0,
    "results --ledger": 0,
    "show 0": 0,
    "show 999": 1,
    "watch": 0,
    "report": 0,
    "loop --max 0 --agent tpe": 0,
    "loop --max ten": 2,
    "run --compile-only --device nothing": 1,
    "verify --sealed --retrain": 2,
    "verify none.tar": 1,
    "bundle -o new.tar": 1,
    "import none.tar --as lesson": 1,
    "leaderboard . -o new": 1,
    "setup --skip-data --preset nothing new": 1,
    "sample --temperature nan": 2,
    "demo --experiments 0": 2,
}
BY_DAY = ("--version", "results", "watch", "loop --max 0 --agent tpe", "show 999")
EMOJI = "wärmer 🔥 → mehr \u202e"
# A locale without UTF-8; Python would replace it by UTF-8 otherwise.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A workspace with three experiments, the last of which has a description with an emoji."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    found = watch_helpers.Recording(tmp_path / "w", 2)
    found.propose(EMOJI)
    found.decide(0.9)
    (tmp_path / "w" / "train.py").write_text(harness.train_py(1.0, "A_RATE = 0.5"))
    harness.git(tmp_path / "w", "commit", "-q", "-a", "-m", "A train.py that runs")
    return tmp_path / "w"


def run(words, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, code=QUICK, **env):
    given = {k: v for k, v in os.environ.items() if k not in ("PYTHONUNBUFFERED", "LC_ALL")}
    return subprocess.run(
        # -P: as for the installed command, the current folder is not on the path.
        [sys.executable, "-P", "-W", "error", "-c", code, *words.split()],
        cwd=cwd,
        env=given | {"PYTHONPATH": f"{TOP}:{TOP / 'src'}"} | env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        timeout=100,
        check=False,
    )


def complaint(done):
    """Return what is on standard error besides warnings that say what they are."""
    text = done.stderr.decode("latin-1")
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text
    return text


@pytest.mark.parametrize("words", cases(COMMANDS, by_day=BY_DAY))
@pytest.mark.parametrize(
    "env",
    [pytest.param({"PYTHONIOENCODING": "iso-8859-1"}, marks=pytest.mark.nightly), ASCII],
    ids=["iso-8859-1", "ascii"],
)
def test_no_line_is_lost_on_a_terminal_without_unicode(root, words, env):
    done = run(words, root, **env)
    complaint(done)
    assert done.returncode == COMMANDS[words]
    usual = run(words, root)
    lines = [one.stdout.count(b"\n") for one in (done, usual)]
    assert lines[0] == lines[1] or words.startswith("loop")
    if words in ("results", "watch", "show 2"):
        assert "rmer ? > mehr" in done.stdout.decode("latin-1")
        assert "wärmer 🔥 → mehr" in usual.stdout.decode()


@pytest.mark.parametrize("words", cases(COMMANDS, by_day=BY_DAY))
def test_a_pipe_without_a_reader_is_no_error(root, words):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = run(words, root, stdout=pipe)
    complaint(done)
    assert done.returncode in (COMMANDS[words], 1)


@pytest.mark.parametrize("unbuffered", [pytest.param("", marks=pytest.mark.nightly), "1"])
@pytest.mark.parametrize("words", cases(COMMANDS, by_day=BY_DAY))
def test_output_that_cannot_be_written_is_one_message(root, words, unbuffered):
    with Path("/dev/full").open("wb") as full:
        done = run(words, root, stdout=full, PYTHONUNBUFFERED=unbuffered)
        silent = run(words, root, stdout=full, stderr=full, PYTHONUNBUFFERED=unbuffered)
    text = complaint(done)
    if COMMANDS[words] == 0 and not (unbuffered and words.startswith("loop")):
        assert text.splitlines()[-1].endswith(" cannot be written: No space left on device.")
        assert text.count("Error: ") == 1
    assert done.returncode == COMMANDS[words] or 1
    assert silent.returncode != 0


@pytest.mark.parametrize("words", cases(COMMANDS, by_day=BY_DAY))
def test_closed_streams_are_no_error(root, words):
    closing = "import os, sys\nfor one in (0, 1, 2):\n    os.close(one)\n"
    start = (
        f"os.execv(sys.executable, [sys.executable, '-W', 'error', '-c', {QUICK!r}, *sys.argv[1:]])"
    )
    done = run(words, root, code=closing + start)
    assert done.returncode == COMMANDS[words]
    assert done.stdout == b""
    assert harness.git(root, "fsck", "--no-progress") is not None  # nothing was written into it


@pytest.mark.parametrize("words", cases(COMMANDS, by_day=BY_DAY))
def test_a_folder_that_is_gone_is_one_message(tmp_path, words):
    gone = "import os\nos.mkdir('gone'); os.chdir('gone'); os.rmdir(os.getcwd())\n"
    done = run(words, tmp_path, code=gone + QUICK)
    text = complaint(done)
    if words not in ("--help", "--version"):
        assert done.returncode != 0
        assert text.splitlines()[-1] == (
            "Error: the current folder was removed. Change into another one: cd ~"
        )


def test_another_folder_works_from_one_that_is_gone(root, tmp_path):
    gone = "import os\nos.mkdir('gone'); os.chdir('gone'); os.rmdir(os.getcwd())\n"
    done = run(f"-C {root} results", tmp_path, code=gone + QUICK)
    assert (done.returncode, complaint(done)) == (0, "")
