"""`move` and `setup --from`: a tag goes on elsewhere, whatever happens on the way."""

from pathlib import Path

import pytest
from msgspec import structs

from autoresearch_jax.commands import move, moved_here, setup, setup_from
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import BySeries, Notes, git, rows, run_loop, train_py

SERIES = (train_py(0.9), train_py(0.95), "width = (", train_py(0.8), train_py(0.85), train_py(0.7))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


def moved(workspace, tag="t", **options):
    """The file of a tag."""
    file = workspace.root.parent / f"{tag}.tar"
    move.move(workspace, tag, file, Notes(), **options)
    return file


def decided(workspace, tag="t"):
    found = journal.read(workspace.state_dir(tag)).decided
    return [(e.n, e.status, e.val_bpb, e.description, e.reason) for e in found]


def test_a_moved_tag_goes_on_as_it_would_have_here(workspace, tmp_path):
    run_loop(workspace, BySeries(*SERIES), 3, tag="t")
    (workspace.root / "program.md").write_text("Be bold.\n")
    file = moved(workspace)
    there, _ = setup_from.restore(file, tmp_path / "there", Notes())
    assert decided(there) == decided(workspace)
    assert rows(there.root) == rows(workspace.root)
    assert (there.root / "program.md").read_text() == "Be bold.\n"
    refs = ("for-each-ref", "refs/autoresearch", "refs/heads/autoresearch")
    assert git(there.root, *refs) == git(workspace.root, *refs)
    for one in (workspace, there):
        run_loop(one, BySeries(*SERIES), 3, tag="t")
    assert decided(there) == decided(workspace)
    assert len(decided(there)) == 7
    assert git(there.root, "fsck", "--strict") == ""
