"""Files of moved tags that are torn, altered or forged."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from autoresearch_jax.commands import moved_tag
from autoresearch_jax.common import archive
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import requests
from tests import moving_helpers
from tests.harness import git
from tests.moving_helpers import (
    bundled,
    decided,
    files,
    head_of,
    packed,
    relined,
    restored,
    unpacked,
)


@pytest.fixture(autouse=True)
def _own_git(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A workspace in which four experiments ran under the tag t, and the file of the tag."""
    with pytest.MonkeyPatch.context() as patch:
        yield moving_helpers.sent(tmp_path_factory.mktemp("sent"), patch)


def an_option(line):
    if line["step"] == "proposed" and line["n"] == 2:
        line["commit"] = "--output=/tmp/x"


def another_commit(line):
    if line["step"] == "proposed" and line["n"] == 2:
        line["commit"] = "1" * 40


def a_gap(line):
    if line["step"] == "proposed" and line["n"] == 2:
        line["n"] = 20


def an_impossible_line(line):
    if line["step"] == "decided":
        other = {"n": 99, "request": "r", "by": "b", "asked": 0.0}
        line.clear()
        line.update(step="taken back", **other)


def another_file(repository):
    """Let experiment 2, which no other changes, change prepare.py as well."""
    git(repository, "checkout", "-q", "refs/autoresearch/t/2")
    (repository / "prepare.py").write_text("print('mine')\n")
    git(repository, "commit", "-qam", "x")
    git(repository, "update-ref", "refs/autoresearch/t/2", "HEAD")
    git(repository, "checkout", "-q", "--detach", "refs/head")


def a_link(repository):
    (repository / "notes").symlink_to("/etc/passwd")
    git(repository, "add", "notes")
    git(repository, "commit", "-qm", "x")


def test_what_is_torn_or_altered_is_refused(sent, tmp_path):
    _, file = sent
    data = file.read_bytes()
    for name, content in {
        "torn": data[: len(data) // 2],
        "without its end": data[:-1024],
        "altered": data.replace(b'"step": "decided"', b'"step": "decidex"', 1),
        "with more": data + b"x" * 1024,
        "empty": b"",
        "text": b"not a tar archive\n" * 100,
        "zeros": bytes(1 << 16),
    }.items():
        broken = tmp_path / f"{name}.tar"
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged|SHA-256|not a moved tag"):
            restored(broken, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(UserError, match="does not exist"):
        restored(tmp_path / "none.tar", tmp_path / "there")
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (tmp_path, tmp_path / "pipe.tar"):
        with pytest.raises(UserError, match="is no plain file"):
            restored(path, tmp_path / "there")


CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "repeat"]), st.binary()),
    min_size=1,
    max_size=4,
)


@hypothesis.given(changes=CHANGES)
def test_an_altered_file_is_refused_or_has_the_same_content(sent, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("altered")
    data = sent[1].read_bytes()
    for where, kind, more in changes:
        at = int(where * (len(data) - 1))
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + 1 + len(more) :]
        else:
            data = data[:at] + (more if kind == "insert" else data[at : at + 512]) + data[at:]
        data = data or b"x"
    (folder / "t.tar").write_bytes(data)
    for name in ("here", "same"):
        (folder / name).mkdir()
    try:
        moved_tag.unpack(folder / "t.tar", folder / "here", lambda _: None)
    except UserError:
        assert {path.name for path in folder.iterdir()} == {"here", "same", "t.tar"}
    else:
        moved_tag.unpack(sent[1], folder / "same", lambda _: None)
        assert files(folder / "here") == files(folder / "same")
    shutil.rmtree(folder)


NAMES = st.text(st.sampled_from("ab./-\\\0\n\u202e") | st.characters(), max_size=12)


@hypothesis.given(
    name=st.lists(st.sampled_from(["tag", "runs", "ideas"]) | NAMES, max_size=5).map("/".join)
)
def test_no_name_leads_elsewhere(sent, tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("named")
    (folder / "x").write_text("x")
    (folder / "there").mkdir()
    about = msgspec.to_builtins(moved_tag.about(sent[1]))
    about |= {"files": {name: hashlib.sha256(b"x").hexdigest()}, "bytes": 1}
    (folder / "about").write_text(json.dumps(about))
    members = [
        archive.Member(one, folder / at, (folder / at).stat().st_size)
        for one, at in (("about.json", "about"), (name, "x"))
    ]
    (folder / "t.tar").write_bytes(b"".join(archive.chunks(members)))
    with contextlib.suppress(UserError):
        moved_tag.unpack(folder / "t.tar", folder / "there", lambda _: None)
        assert [path.name for path in (folder / "there").rglob("*") if path.is_file()]
    assert {path.name for path in folder.iterdir()} == {"about", "there", "t.tar", "x"}
    shutil.rmtree(folder)


FORGED = {
    "no tag": (lambda folder: None, {"tag": "../x"}, "is no tag"),
    "a later version": (lambda folder: None, {"version": 2}, "a later version wrote it"),
    "a name outside": (
        lambda folder: (folder / "evil").write_text("x"), {}, "'evil', which no moved tag has"
    ),
    "a lock": (
        lambda folder: (folder / "tag" / "lock").write_text("1"), {}, "'tag/lock', which no moved"
    ),
    "a folder in place of a file": (
        lambda folder: (folder / "program.md").unlink() or (folder / "program.md").mkdir(),
        {},
        "'program.md', which no moved",
    ),
    "no journal": (
        lambda folder: (folder / "tag" / "journal.jsonl").unlink(), {}, "no experiments"
    ),
    "a line without its seal": (
        lambda folder: (folder / "tag" / "journal.jsonl").write_text("{}\n"), {}, "is damaged"
    ),
    "an option of git": (lambda folder: relined(folder, an_option), {}, "is no commit"),
    "an option of git in a request": (
        lambda folder: requests.post(
            folder / "tag", requests.new(requests.Kind.TRY, source=b"", base="--output=x")
        ),
        {},
        "is no commit",
    ),
    "a head that is an option": (lambda folder: None, {"head": "--all"}, "git refuses|no commit"),
    "another commit": (lambda folder: relined(folder, another_commit), {}, "experiment 2 is not"),
    "a gap": (lambda folder: relined(folder, a_gap), {}, "or misses some"),
    "an impossible time": (
        lambda folder: relined(folder, lambda line: line.update(time=1e300)),
        {},
        "its journal has a time of 1e\\+300",
    ),
    "a size that is none": (lambda folder: None, {"bytes": -5}, "is not a moved tag"),
    "an impossible line": (lambda folder: relined(folder, an_impossible_line), {}, "impossible"),
    "another file": (
        lambda folder: bundled(folder, another_file), {}, "experiment 2 is not the one"
    ),
    "a branch of the user": (
        lambda folder: bundled(folder, lambda where: git(where, "branch", "main", "HEAD")),
        {},
        "it has 'refs/heads/main'",
    ),
    "a moved branch": (
        lambda folder: bundled(
            folder, lambda where: git(where, "update-ref", "refs/heads/autoresearch/t", "HEAD~0")
        ),
        {},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_what_does_not_fit_together_is_refused(sent, tmp_path, kind):
    change, fields, expected = FORGED[kind]
    folder = unpacked(sent[1], tmp_path / "unpacked")
    change(folder)
    file = packed(folder, tmp_path / "forged.tar", **fields)
    (tmp_path / "beside").mkdir()
    if expected is None:  # the baseline: as after a drop
        assert decided(restored(file, tmp_path / "beside" / "there"))
        return
    with pytest.raises(UserError, match=expected):
        restored(file, tmp_path / "beside" / "there")
    assert not list((tmp_path / "beside").iterdir())


def test_a_candidate_that_changes_more_than_train_py_is_refused(sent, tmp_path):
    folder = unpacked(sent[1], tmp_path / "unpacked")
    bundled(folder, another_file)
    commit = git(tmp_path / "repository", "rev-parse", "refs/autoresearch/t/2")

    def fits(line):
        if line["step"] == "proposed" and line["n"] == 2:
            line["commit"] = commit

    relined(folder, fits)
    with pytest.raises(UserError, match=r"a candidate changes 'prepare.py'"):
        restored(packed(folder, tmp_path / "forged.tar"), tmp_path / "there")


def test_a_workspace_with_links_is_refused(sent, tmp_path):
    folder = unpacked(sent[1], tmp_path / "unpacked")
    bundled(folder, a_link)
    file = packed(folder, tmp_path / "forged.tar", head=head_of(folder))
    with pytest.raises(UserError, match=r"'notes' in commit .* is a link"):
        restored(file, tmp_path / "there")


def test_a_train_py_that_expands_is_refused(sent, tmp_path):
    def expand(repository):
        (repository / "train.py").write_bytes(b"#" * (1 << 22))
        git(repository, "commit", "-qam", "x")

    folder = unpacked(sent[1], tmp_path / "unpacked")
    bundled(folder, expand)
    file = packed(folder, tmp_path / "forged.tar", head=head_of(folder))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"the train.py of commit \w+ is blob 4194304"):
        restored(file, tmp_path / "there")


@pytest.mark.parametrize("kind", ["link", "hard link", "device", "outside", "absolute", "twice"])
def test_no_member_leads_elsewhere(sent, tmp_path, kind):
    about = json.dumps(
        msgspec.to_builtins(moved_tag.about(sent[1])) | {"files": {"program.md": "0" * 64}}
    ).encode()
    member = tarfile.TarInfo("program.md")
    names = {"outside": "../program.md", "absolute": "/tmp/program.md", "twice": "about.json"}
    member.name = names.get(kind, member.name)
    member.type = {
        "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE
    }.get(kind, tarfile.REGTYPE)  # fmt: skip
    member.linkname = "/etc/passwd"
    first = tarfile.TarInfo("about.json")
    first.size = len(about)
    file = tmp_path / "forged.tar"
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(first, io.BytesIO(about))
        tar.addfile(member)
    with pytest.raises(UserError, match="is damaged"):
        restored(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forged.tar"]
