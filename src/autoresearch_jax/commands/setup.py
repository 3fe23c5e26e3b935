"""New workspaces, their sizes and their data: what `setup` and `demo` do."""

import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from autoresearch_jax.commands import presets
from autoresearch_jax.commands.presets import Preset
from autoresearch_jax.common import files, paths
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.records import results_tsv
from autoresearch_jax.repo import git
from autoresearch_jax.system import device_probe

VERSION = importlib.metadata.version("autoresearch-jax")
COPIED = ("train.py", "prepare.py", "constants.py", "program.md")
SIZED = ("train.py", "constants.py")  # what a preset rewrites
IGNORED = ("__pycache__/", ".venv/", "uv.lock", "run.log", "progress.png", "report/")


def setup(
    target: Path,
    view: View,
    *,
    preset: str | None = None,
    seq_len: int | None = None,
    source: str | None = None,
    num_shards: int | None = None,
    skip_data: bool = False,
) -> Path:
    """Make `target` a workspace if it is not one, size it, prepare its data; return its full path.

    Raises:
        UserError: `target` contains something else, has changes that would be overwritten, or its
            data could not be prepared. No file of the user is lost.
    """
    chosen = presets.get(preset) if preset else None
    if source is not None:
        from autoresearch_jax.data import sources  # importing pyarrow takes a while

        source = sources.resolve(source)
    target = target.absolute()
    if is_workspace(target):
        view.say(f"{target} is a workspace already.")
    else:
        check_free(target)
        # As for the source, a mistake in the sizes is found before anything is made.
        presets.apply(*_texts(paths.template()), chosen, seq_len)
        make(target)
        view.say(f"Made a workspace in {target}.")
    resize(target, chosen, seq_len, view)
    if not skip_data:
        prepare(target, view, source=source, num_shards=num_shards)
    return target


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
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a new folder, `autoresearch-jax setup DIR`.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(
            f"{target} is not empty and not a workspace; nothing in it was changed. Name a new "
            "folder: `autoresearch-jax setup DIR`."
        )
    existing = target
    while not existing.is_dir():
        existing = existing.parent
    outer = git.run(existing, "rev-parse", "--show-toplevel")
    if outer.status == 0:
        ignored = git.run(existing, "check-ignore", "--quiet", "--no-index", f"{target}/")
        if ignored.status:
            raise UserError(
                f"{target} is in the git repository {outer.text}, and a workspace is a "
                "repository of its own: choose a folder outside of it, or add this one to its "
                ".gitignore."
            )


def make(target: Path) -> None:
    """Make a new workspace with its first commit; it appears complete or not at all."""
    template = paths.template()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # An existing folder may be a mount, or its parent may belong to another user.
        beside = target if target.is_dir() else target.parent
        with tempfile.TemporaryDirectory(prefix=".autoresearch-new-", dir=beside) as name:
            folder = Path(name)
            folder.chmod(0o755)
            for file in COPIED:
                shutil.copyfile(template / file, folder / file)
            (folder / "results.tsv").write_text(results_tsv.HEADER)
            (folder / ".gitignore").write_text("\n".join((*IGNORED, "")))
            (folder / "pyproject.toml").write_text(pyproject(target))
            git.output(folder, "init", "--quiet", "--initial-branch=main")
            git.output(folder, "add", "--all")
            commit(folder, f"Start from autoresearch-jax {VERSION}")
            if not target.exists():
                folder.rename(target)
                return
            # The user's shell may be in the target, so it must stay the same folder.
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == ".git"):
                entry.rename(target / entry.name)
    except OSError as error:
        raise UserError(f"{target} cannot be made: {error}.") from error


def resize(root: Path, preset: Preset | None, seq_len: int | None, view: View) -> None:
    """Write a preset and a row length into train.py and constants.py, and commit that.

    Raises:
        UserError: the sizes do not fit the files, or there are uncommitted changes in them.
    """
    if preset is None and seq_len is None:
        return
    texts = _texts(root)
    sized = presets.apply(*texts, preset, seq_len)
    changed = [name for name, old, new in zip(SIZED, texts, sized, strict=True) if old != new]
    names = preset and f"preset {preset.name}", seq_len and f"rows of {seq_len} tokens"
    words = " and ".join(name for name in names if name)
    if not changed:
        view.say(f"Its sizes are those of {words} already.")
        return
    if dirty := git.text(git.output(root, "status", "--porcelain", "--", *changed)):
        raise UserError(
            f"{', '.join(changed)} would be rewritten, and there are uncommitted changes: "
            f"{' '.join(dirty.split())}. Keep them with `git commit -am ...` or drop them with "
            f"`git checkout {' '.join(changed)}`, then try again."
        )
    _check_branch(root)
    for name, text in zip(SIZED, sized, strict=True):
        if name in changed:
            files.write_text(root / name, text)
    git.output(root, "add", "--", *changed)
    commit(root, f"Apply {words}", *changed)
    view.say(f"Applied and committed {words}: {', '.join(changed)}.")


def prepare(
    root: Path, view: View, *, source: str | None = None, num_shards: int | None = None
) -> None:
    """Run the workspace's prepare.py, which shows its own progress. Raises UserError."""
    ready = data(root)
    if ready and source is None and num_shards is None:
        view.say(f"Its data is ready: {ready.source}.")
        return
    options: list[str] = []
    if source is not None:
        options += ["--source", source]
    if num_shards is not None:
        options += ["--num-shards", str(num_shards)]
    view.say(f"Preparing its data: prepare.py {shlex.join(options)}".rstrip())
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "prepare.py", *options], cwd=root, check=False)
    if done.returncode:
        again = shlex.join(["uv", "run", "prepare.py", *options])
        raise UserError(
            f"the data is not prepared (prepare.py exited with {done.returncode}). The workspace "
            "and the finished parts are kept: continue with "
            f"`cd {shlex.quote(str(root))} && {again}`."
        )


def data(root: Path) -> manifest.Manifest | None:
    """Return the data prepared for a workspace, if it is complete."""
    with contextlib.suppress(manifest.DataError):
        return manifest.load(root)
    return None


def pyproject(target: Path) -> str:
    """Return a workspace's pyproject.toml, which depends on the autoresearch-jax that made it."""
    from jinja2 import Template

    name = re.sub("[^a-z0-9]+", "-", target.name.lower()).strip("-") or "my"
    source = paths.template()
    path: str | None = None
    if (source / "pyproject.toml").is_file():  # a checkout, and not an installed wheel
        inside = target.is_relative_to(source)
        path = os.path.relpath(source, target) if inside else str(source)
    text = Path(__file__).with_name("workspace.toml.j2").read_text()
    template = Template(text, trim_blocks=True, keep_trailing_newline=True)
    return template.render(name=name, version=VERSION, path=path)


def commit(folder: Path, message: str, *names: str) -> None:
    """Commit, also without a configured identity, and without the user's hooks and signing."""
    anonymous = git.run(folder, "var", "GIT_AUTHOR_IDENT").status != 0
    identity = ["-c", "user.name=autoresearch-jax", "-c", "user.email=autoresearch-jax@localhost"]
    git.output(
        folder,
        *(identity if anonymous else []),
        *("-c", "commit.gpgsign=false"),
        *("commit", "--quiet", "-m", message),
        *(["--", *names] if names else []),
    )


def _check_branch(root: Path) -> None:
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


def _texts(root: Path) -> tuple[str, str]:
    train, constants = ((root / name).read_bytes().decode() for name in SIZED)
    return train, constants
