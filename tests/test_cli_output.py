"""--quiet and --verbose, shell completion, and docs/cli.md."""

import re
import shutil
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.commands import loop
from autoresearch_jax.commands.loop import LoopResult
from autoresearch_jax.common import console, paths
from autoresearch_jax.loop import open_session
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import Notes

CLI = (paths.template() / "docs" / "cli.md").read_text()


# --------------------------------------------------------------------------- quiet, verbose


@pytest.fixture
def talking(tmp_path, monkeypatch):
    """Return a function that runs `loop` with a fake loop that prints."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(console, "PROGRESS_SECONDS", 0.0)
    root = harness.make_repository(tmp_path / "w")
    harness.run_loop(Workspace.open(root), harness.Scripted(), 0, tag="t")

    def run_loop(workspace, config, tools):
        tools.view.say("a permanent line")
        tools.view.say("Warning: no sandbox.")
        for _ in range(2):
            tools.view.live("a progress line")
        tools.view.live("")
        return LoopResult("t", 1, None, "max")

    monkeypatch.setattr(loop, "run_loop", run_loop)

    def talk(*words):
        done = CliRunner().invoke(main.main, ["-C", str(root), *words])
        assert "\x1b" not in done.output
        return done

    return talk


def test_without_a_terminal_only_permanent_lines_are_printed(talking):
    lines = talking("loop").stdout.splitlines()
    assert lines[:2] == ["a permanent line", "Warning: no sandbox."]
    assert lines[2].startswith("1 experiment, 0 improvements, 0 crashes")


def test_quiet_prints_results_and_warnings(talking):
    done = talking("--quiet", "loop")
    assert done.stdout.startswith("1 experiment, 0 improvements, 0 crashes")
    assert done.stderr == "Warning: no sandbox.\n"


def test_quiet_prints_one_line_of_a_proposal(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(open_session, "Tools", harness.tools)
    root = harness.make_repository(tmp_path / "w")
    for source, code, printed, error in (
        (harness.train_py(0.9), 0, "1\tkeep\t0.900000\n", ""),
        (harness.train_py(0.95), 0, "2\tdiscard\t0.950000\n", ""),
        ("width = (", 1, "3\tcrash\tn/a\n", "Error: no val_bpb: SyntaxError"),
    ):
        (root / "train.py").write_text(source)
        done = CliRunner().invoke(main.main, ["-C", str(root), "-q", "run", "-m", "an idea"])
        assert (done.exit_code, done.stdout) == (code, printed)
        assert done.stderr.startswith(error)
        assert bool(done.stderr) is bool(error)


def test_verbose_prints_the_time_and_progress(talking):
    lines = talking("-v", "loop").stdout.splitlines()
    said = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line)[1] for line in lines[:3]]
    assert said == ["a permanent line", "Warning: no sandbox.", "  a progress line"]
    assert lines[3].startswith("1 experiment")


def test_quiet_and_verbose_exclude_each_other(talking):
    done = talking("-q", "-v", "loop")
    assert done.exit_code == 2
    assert "Choose one of --quiet and --verbose." in done.output


def test_on_a_terminal_progress_stays_in_its_line():
    notes = Notes()
    stamped = console.StampedView(notes, all_lines=False)
    stamped.live("passes")
    stamped.say("stays")
    assert notes.shown == ["passes"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d stays", notes.text)


def test_frequent_progress_is_printed_every_five_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    notes = Notes()
    stamped = console.StampedView(notes, all_lines=True)
    for second in range(12):
        now[0] = float(second)
        stamped.live(f"step {second}")
    assert [line.split()[-1] for line in notes.said] == ["0", "5", "10"]


# -------------------------------------------------------------------------------- completion


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_options(tmp_path):
    program = tmp_path / "autoresearch-jax"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m autoresearch_jax "$@"\n')
    program.chmod(0o755)
    line = re.search(r"^eval .*$", CLI, re.MULTILINE)[0]
    script = (
        f'PATH={tmp_path}:$PATH\n{line}\nfunction="$(complete -p autoresearch-jax)"\n'
        f"COMP_WORDS=(autoresearch-jax loop --notify) COMP_CWORD=2\n"
        '[[ $function =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}" autoresearch-jax\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["--notify", "--notify-on", "--notify-digest"]


# --------------------------------------------------------------------------------- documents


def test_cli_md_has_every_command():
    table = CLI.split("## Commands")[1].split("\n\n`doctor`")[0]
    rows = re.findall(r"^\| `([a-z]+)", table, re.MULTILINE)
    assert rows == [one.name for listed in main.SECTIONS.values() for one in listed]


def test_cli_md_has_every_global_option():
    table = CLI.split("## What every command takes")[1].split("## Exit codes")[0]
    for parameter in main.main.params:
        if isinstance(parameter, click.Option):
            for flag in parameter.opts:
                assert f"`{flag}" in table


def test_the_documents_have_every_variable():
    source = paths.template() / "src" / "autoresearch_jax"
    text = "".join(path.read_text() for path in source.rglob("*.py"))
    read = set(re.findall(r"[\"'](AUTORESEARCH_[A-Z_]+[A-Z])[\"']", text))
    architecture = (paths.template() / "docs" / "architecture.md").read_text()
    assert {name for name in read if f"`{name}" not in CLI + architecture} == set()
