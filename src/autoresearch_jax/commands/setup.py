"""New workspaces, their sizes and their data: what `setup` and `demo` do."""

import contextlib
import fcntl
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from autoresearch_jax.commands import own_wheel, presets
from autoresearch_jax.commands.presets import Preset
from autoresearch_jax.common import files, paths
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.records import results_tsv
from autoresearch_jax.repo import git
from autoresearch_jax.system import device_probe, interrupts

VERSION = importlib.metadata.version("autoresearch-jax")
COPIED = ("train.py", "prepare.py", "constants.py", "program.md")
SIZED = ("train.py", "constants.py")  # what a preset rewrites
NEW = ".autoresearch-new-"  # begins the name of a workspace until it is complete
AUTHOR = "autoresearch-jax"  # of commits, where git knows no user
# The user's settings are not for our commits: hooks, templates, filters, ignored files, signatures.
OWN = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_COUNT": "0",
    "GIT_CONFIG_PARAMETERS": "",
    "GIT_DEFAULT_HASH": "sha1",
    "GIT_DEFAULT_REF_FORMAT": "files",
}
# Files are compared byte for byte, so no git may convert them, whatever the user has set.
ATTRIBUTES = "* -text -filter -ident !working-tree-encoding\n"
IGNORED = ("__pycache__/", ".venv/", "uv.lock", "run.log", "progress.png", "report/")


def setup(
    target: Path,
    view: View,
    *,
    preset: str | None = None,
    seq_len: int | None = None,
    vocab_size: int | None = None,
    budget: int | None = None,
    skip_data: bool = False,
    fit: bool = False,
    **text: Any,
) -> Path:
    """Make `target` a workspace if it is not one, size it, prepare its data; return its full path.

    `text` has the arguments of `prepare`. If `fit`, a new workspace without a preset gets the one
    that fits this machine.

    Raises:
        UserError: `target` contains something else, has changes that would be overwritten, or its
            data could not be prepared. No file of the user is lost.
    """
    chosen = None if preset is None else presets.get(preset)
    sizes = Sizes(chosen, seq_len, vocab_size, budget)
    text = resolved(text)
    target = target.absolute()
    if is_workspace(target):
        view.say(f"{target} is a workspace already.")
        if (ready := data(target)) and not manifest.record(target):
            manifest.write(target, ready)  # its source must be known after its sizes have changed
    else:
        check_free(target)
        # As for the source, a mistake in the sizes is found before anything is made.
        sizes.apply(*_files(paths.template()))
        if fit and preset is None and (fitting := fitting_preset(view)):
            sizes = replace(sizes, preset=presets.get(fitting))
            sizes.apply(*_files(paths.template()))
        make(target)
        view.say(f"Made a workspace in {target}.")
    resize(target, sizes, view)
    if not skip_data:
        prepare(target, view, **text)
    return target


@dataclass(frozen=True)
class Sizes:
    """What `setup` writes into train.py and constants.py."""

    preset: Preset | None = None
    seq_len: int | None = None  # tokens of a row
    vocab_size: int | None = None  # tokens
    budget_s: int | None = None

    def apply(self, train: bytes, constants: bytes) -> tuple[bytes, bytes]:
        """Return the files with these sizes. Raises UserError as `presets.apply` does."""
        others = {"VOCAB_SIZE": self.vocab_size, "TIME_BUDGET": self.budget_s}
        given = {name: value for name, value in others.items() if value is not None}
        return presets.apply(train, constants, self.preset, self.seq_len, given)

    def __str__(self) -> str:
        words = (
            self.preset and f"preset {self.preset.name}",
            self.seq_len and f"rows of {self.seq_len} tokens",
            self.vocab_size and f"a vocabulary of {self.vocab_size}",
            self.budget_s and f"a budget of {self.budget_s} s",
        )
        return " and ".join(one for one in words if one)


def fitting_preset(view: View) -> str | None:
    """Return the preset that fits this machine best; None if its accelerator cannot be probed."""
    view.live("probing the accelerator")
    try:
        preset, why = presets.suggest(device_probe.probe())
    except UserError as error:
        view.say(f"{error} So the sizes stay those of an H100. For other sizes: --preset NAME.")
        return None
    verb, reason = ("comes nearest to", f". {why}") if why else ("fits", "")
    view.say(f"Preset {preset.name} {verb} this machine ({preset.description}{reason}).")
    return preset.name


def is_workspace(target: Path) -> bool:
    """Return whether `target` is the top of a git repository with the files of a workspace."""
    return (target / ".git").exists() and all((target / name).is_file() for name in COPIED[:3])


def check_free(target: Path) -> None:
    """Raise UserError unless a new workspace may be made at `target`."""
    if os.path.lexists(target) and not target.is_dir():
        raise UserError(f"{target} is not a folder: name a new one, `autoresearch-jax setup DIR`.")
    if target.is_dir() and not all(entry.name.startswith(NEW) for entry in target.iterdir()):
        raise UserError(
            f"{target} is not empty and not a workspace; nothing in it was changed. Name a new "
            "folder: `autoresearch-jax setup DIR`."
        )
    existing = target
    while not existing.is_dir():
        existing = existing.parent
    # Also of another user, and without a checkout.
    of_any = "-c", "safe.directory=*"
    outer = git.run(existing, *of_any, "rev-parse", "--absolute-git-dir")
    if outer.status == 0:
        top = git.run(existing, *of_any, "rev-parse", "--show-toplevel").text or outer.text
        ask = "check-ignore", "--quiet", "--no-index"
        ignored = git.run(existing, *of_any, *ask, f"{target}/")
        if ignored.status:
            raise UserError(
                f"{target} is in the git repository {top}, and a workspace is a "
                "repository of its own: choose a folder outside of it, or add this one to its "
                ".gitignore."
            )


def make(target: Path) -> None:
    """Make a new workspace with its first commit; it appears complete or not at all."""
    template = paths.template()
    with appearing(target) as folder:
        for file in COPIED:
            shutil.copyfile(template / file, folder / file)
        (folder / "results.tsv").write_text(results_tsv.HEADER)
        (folder / ".gitignore").write_text("\n".join((*IGNORED, "")))
        (folder / ".gitattributes").write_text(ATTRIBUTES)  # for clones
        (folder / "pyproject.toml").write_text(pyproject(target, folder))
        make_repository(folder)
        git.output(folder, "add", "--all", "--force", env=OWN)
        commit(folder, f"Start from autoresearch-jax {VERSION}")


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Yield an empty folder, which is `target` afterwards: with all that was put there, or not.

    Raises UserError if it cannot be made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # An existing folder may be a mount, or its parent may belong to another user.
        beside = target if target.is_dir() else target.parent
        with _alone_in(beside), tempfile.TemporaryDirectory(prefix=NEW, dir=beside) as name:
            folder = Path(name)
            folder.chmod(0o755)
            yield folder
            if target.exists():
                _move_into(folder, target)
            else:
                folder.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be made: {error}.") from error


def make_repository(folder: Path, object_format: str = "sha1") -> None:
    """Make `folder` a git repository without commits, whatever the user has set."""
    folder.mkdir(exist_ok=True)
    branch, hashes = "--initial-branch=main", f"--object-format={object_format}"
    git.output(folder, "init", "--quiet", branch, hashes, "--template=", env=OWN)
    attributes = folder / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text(ATTRIBUTES)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other setups in a folder, and remove what killed ones left, if it may be read."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(f"{NEW}*"):
            with contextlib.suppress(PermissionError):  # another user's, in a shared folder
                files.remove(left)
        yield
    finally:
        os.close(handle)


def _move_into(folder: Path, target: Path) -> None:
    """Move all files, or none. The user's shell may be in the target, so it stays the same one."""
    moved = []
    try:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == ".git"):
            entry.rename(target / entry.name)
            moved.append(entry)
    except BaseException:
        for entry in moved:
            (target / entry.name).rename(entry)
        raise


def resize(root: Path, sizes: Sizes, view: View) -> None:
    """Write sizes into train.py and constants.py, and commit that; if it fails, undo it.

    Raises:
        UserError: the sizes do not fit the files, or there are uncommitted changes in them.
    """
    if not str(sizes):
        return
    before = _files(root)
    after = sizes.apply(*before)
    dirty = git.text(git.output(root, "status", "--porcelain", "--", *SIZED))
    with contextlib.suppress(UserError):  # nothing is committed, or something else
        committed = _committed(root)
        sized = sizes.apply(*committed)
        if all(one in both for one, *both in zip(before, committed, sized, strict=True)):
            before, after, dirty = committed, sized, ""  # as a killed setup leaves them
    changed = [name for name, old, new in zip(SIZED, before, after, strict=True) if old != new]
    if not changed:
        view.say(f"Its sizes are those of {sizes} already.")
        return
    if dirty:
        raise UserError(
            f"{', '.join(changed)} would be rewritten, and there are uncommitted changes: "
            f"{' '.join(dirty.split())}. Keep them with `git commit -am ...` or drop them with "
            f"`git checkout {' '.join(changed)}`, then try again."
        )
    check_branch(root)
    head = git.run(root, "rev-parse", "HEAD").text
    with interrupts.held_back():
        try:
            for name, content in zip(SIZED, after, strict=True):
                if name in changed:
                    files.write_bytes(root / name, content)
            git.output(root, "add", "--", *changed)
            commit(root, f"Apply {sizes}", *changed)
        except BaseException:
            if git.run(root, "rev-parse", "HEAD").text == head:
                for name, content in zip(SIZED, before, strict=True):
                    if name in changed:
                        files.write_bytes(root / name, content)
                git.run(root, "reset", "--quiet", "--", *changed)
            raise
    view.say(f"Applied and committed {sizes}: {', '.join(changed)}.")


def prepare(root: Path, view: View, **text: Any) -> None:
    """Run the workspace's prepare.py, which shows its own progress.

    `text` has fields of `manifest.Choice`; what is not given stays as it was prepared last. Raises
    UserError.
    """
    ready, before = data(root), manifest.latest(root)
    given = {name: value for name, value in text.items() if value is not None}
    if ready and not given:
        view.say(f"Its data is ready: {before.source if before else ready.source}.")
        return
    if before is not None and "source" not in given:  # an earlier prepare.py does not know it
        given = msgspec.structs.asdict(before.choice) | given
    command = shlex.split(prepare_command(given))[2:]
    view.say(f"Preparing its data: {shlex.join(command)}")
    sys.stdout.flush()
    # Without bytecode: it is as old as its source to the second, and `setup` may write that again.
    done = subprocess.run([sys.executable, "-B", *command], cwd=root, check=False)
    if done.returncode:
        raise UserError(
            f"the data is not prepared (prepare.py exited with {done.returncode}). The workspace "
            "and the finished parts are kept: continue with "
            f"`cd {shlex.quote(str(root))} && {prepare_command(given)}`."
        )


def prepare_command(text: dict[str, Any]) -> str:
    """Return the command that does in a workspace what `prepare` does with these arguments."""
    given = {name: value for name, value in text.items() if value is not None}
    return manifest.Choice(**({"source": ""} | given)).command


def resolved(text: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `prepare` with full paths. Raises UserError."""
    given = {name: value for name, value in text.items() if value is not None}
    if not given:
        return text
    with interrupts.held_back():  # its threads would take a signal that `resize` holds back
        from autoresearch_jax.data import preparation, sources  # importing pyarrow takes a while

    found = sources.resolve(manifest.Choice(**({"source": preparation.DEFAULT} | given)))
    return text | {name: getattr(found, name) for name in given}


def data(root: Path) -> manifest.Manifest | None:
    """Return the data that a workspace has prepared, if it is complete."""
    with contextlib.suppress(manifest.DataError):
        return manifest.load(root) if manifest.latest(root) else None
    return None


def pyproject(target: Path, folder: Path) -> str:
    """Return a workspace's pyproject.toml, which depends on the autoresearch-jax that made it.

    From a checkout that is the checkout, else a wheel that is written into `folder`, where the
    files of the workspace are at first.
    """
    from jinja2 import Template

    name = re.sub("[^a-z0-9]+", "-", target.name.lower()).strip("-") or "my"
    source = paths.template()
    editable = (source / "pyproject.toml").is_file()  # a checkout, and not an installed wheel
    if not editable:
        path = str(own_wheel.write(folder / "wheels").relative_to(folder))
    else:
        inside = target.is_relative_to(source)
        path = os.path.relpath(source, target) if inside else str(source)
    text = Path(__file__).with_name("workspace.toml.j2").read_text()
    template = Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template.render(name=name, path=path, editable=editable)


def commit(folder: Path, message: str, *names: str) -> None:
    """Commit as the user, or as autoresearch-jax, without any other setting of the user's."""
    ident = git.run(folder, "var", "GIT_AUTHOR_IDENT")
    found = re.fullmatch(r"(.*) <(.*)> \S+ \S+", ident.text) if ident.status == 0 else None
    name, email = found.groups() if found else (AUTHOR, f"{AUTHOR}@localhost")
    idents = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", name), ("EMAIL", email))
    }
    git.output(
        folder,
        *("-c", f"safe.directory={folder}", "-c", "commit.gpgsign=false"),
        *("commit", "--quiet", "-m", message),
        *(["--", *names] if names else []),
        env=OWN | idents,
    )


def check_branch(root: Path) -> None:
    """Raise UserError unless a branch of the user is checked out."""
    branch = git.run(root, "symbolic-ref", "--quiet", "--short", "HEAD").text
    if not branch:
        raise UserError(
            f"{root} has a detached HEAD: run `git switch main` (or `-c NAME`), then try again."
        )
    if branch.startswith("autoresearch/"):
        raise UserError(
            f"{root} has {branch} checked out, which only experiments move: run `git switch main`, "
            "then try again."
        )


def _files(root: Path) -> tuple[bytes, bytes]:
    train, constants = ((root / name).read_bytes() for name in SIZED)
    return train, constants


def _committed(root: Path) -> tuple[bytes, bytes]:
    train, constants = (git.output(root, "cat-file", "--filters", f"HEAD:{n}") for n in SIZED)
    return train, constants
