"""Helpers of the tests of moved tags: files, also forged ones."""

import json

from autoresearch_jax.commands import move, moved_tag, setup_from
from autoresearch_jax.common import archive
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import BySeries, Notes, git, run_loop, train_py

SERIES = (train_py(0.9), train_py(0.95), "width = (", train_py(0.8), train_py(0.85), train_py(0.7))
REFS = ("for-each-ref", "refs/autoresearch", "refs/heads/autoresearch")


def a_workspace(folder, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(folder / "home"))
    return Workspace.open(harness.make_repository(folder / "workspace"))


def sent(folder, patch):
    """A workspace in which four experiments ran under the tag t, and the file of the tag."""
    patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    workspace = a_workspace(folder, patch)
    patch.setenv("AUTORESEARCH_LOCK_DIR", str(folder / "locks"))
    run_loop(workspace, BySeries(*SERIES), 4, tag="t")
    return workspace, moved(workspace)


def moved(workspace, tag="t", **options):
    """The file of a tag."""
    file = workspace.root.parent / f"{tag}.tar"
    move.move(workspace, tag, file, Notes(), **options)
    return file


def restored(file, folder, view=None):
    return setup_from.restore(file, folder, view or Notes())[0]


def decided(workspace, tag="t"):
    found = journal.read(workspace.state_dir(tag)).decided
    return [(e.n, e.status, e.val_bpb, e.description, e.reason) for e in found]


def files(folder):
    """What is in a folder, and the content of its files."""
    found = {path.relative_to(folder): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def packed(folder, file, about=None, **fields):
    """A file of what is in a folder, with hashes that fit, as a forger makes it."""
    about = about or json.loads((folder / "about.json").read_text())
    members = [one for one in archive.members(folder) if one.name != "about.json"]
    about["files"] = moved_tag.sums(members, lambda _: None)
    about["bytes"] = sum(one.size or 0 for one in members)
    (folder / "about.json").write_text(json.dumps(about | fields))
    first = archive.members(folder, ["about.json"])
    file.write_bytes(b"".join(archive.chunks([*first, *members])))
    return file


def unpacked(file, folder):
    folder.mkdir()
    archive.unpack([file.read_bytes()], {"": folder}, 1 << 30)
    return folder


def bundled(folder, change):
    """Change the repository that is in the bundle of an unpacked file."""
    with_head = git(folder, "bundle", "list-heads", "git.bundle")
    repository = folder.parent / "repository"
    git(folder.parent, "init", "-q", str(repository))
    git(repository, "fetch", "-q", str(folder / "git.bundle"), "+refs/*:refs/*", "+HEAD:refs/head")
    assert with_head
    git(repository, "checkout", "-q", "--detach", "refs/head")
    change(repository)
    git(repository, "update-ref", "-d", "refs/head")
    (folder / "git.bundle").unlink()
    git(repository, "bundle", "create", str(folder / "git.bundle"), "--all", "HEAD")


def relined(folder, change):
    """Change the lines of a journal, and seal them again."""
    path = folder / "tag" / "journal.jsonl"
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in found:
        line.pop("crc")
        change(line)
    path.write_bytes(b"".join(journal.seal(harness.event(**line)) for line in found))


def head_of(folder):
    return git(folder.parent / "repository", "rev-parse", "HEAD")
