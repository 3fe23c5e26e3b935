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
from collections.abc import Iterator
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

COPIED = ("train.py", "prepare.py", "constants.py", "program.md")
SIZED = ("train.py", "constants.py")  # what a preset rewrites
IGNORED = """__pycache__/
.venv/
uv.lock
run.log
progress.png
report/
"""
PYPROJECT = """[project]
name = "{name}"
version = "0"
description = "Autonomous pretraining research with autoresearch-jax."
requires-python = ">=3.11"
dependencies = ["autoresearch-jax{version}"]

[project.optional-dependencies]
cuda12 = ["autoresearch-jax[cuda12]"]
cuda13 = ["autoresearch-jax[cuda13]"]
tpu = ["autoresearch-jax[tpu]"]

[tool.uv]
package = false
conflicts = [[{{ extra = "cuda12" }}, {{ extra = "cuda13" }}, {{ extra = "tpu" }}]]
"""
SOURCE = """
[tool.uv.sources]
autoresearch-jax = {{ path = "{path}", editable = true }}
"""


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
    """Makes `target` a workspace where it is not one, sizes it and prepares its data.

    Returns:
        The workspace's folder.

    Raises:
        UserError: `target` holds something else, has changes that would be overwritten, or its
            data could not be prepared. Nothing of the person's is lost.
    """
    chosen = presets.get(preset) if preset else None
    if source is not None:
        from autoresearch_jax.data import sources  # importing pyarrow takes a while

        source = sources.resolve(source)
    target = target.absolute()
    if is_workspace(target):
        view.say(f"{target} is a workspace already.")
        resize(target, chosen, seq_len, view)
    else:
        check_free(target)
        # Like the source they are checked before anything is made: a slip leaves nothing behind.
        presets.apply(*_template_texts(), chosen, seq_len)
        make(target)
        view.say(f"Made a workspace in {target}.")
        resize(target, chosen, seq_len, view)
    if not skip_data:
        prepare(target, view, source=source, num_shards=num_shards)
    return target


def fitting_preset(view: View) -> str | None:
    """The preset that fits this machine best; None where its accelerator cannot be probed."""
    view.live("probing the accelerator")
    try:
        found = device_probe.probe()
    except UserError as error:
        view.say(f"{error} So the sizes stay those of an H100. For other sizes: --preset NAME.")
        return None
    fitting = presets.suggest(
        found.platform,
        found.device_kind,
        found.device_count,
        found.memory_mb,
        found.compute_capability,
    )
    verb = "comes nearest to" if fitting.why else "fits"
    view.say(f"Preset {fitting.name} {verb} this machine ({fitting.words}).")
    return fitting.name


def is_workspace(target: Path) -> bool:
    """Whether `target` itself is the top of a git repository with the files of a workspace."""
    return (target / ".git").exists() and all((target / name).is_file() for name in COPIED[:3])


def check_free(target: Path) -> None:
    """Raises UserError unless a new workspace may be made at `target`."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a new folder, `autoresearch-jax setup DIR`.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(
            f"{target} is not empty and no workspace; nothing in it was changed. Name a new "
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
                f"{target} lies in the git repository {outer.text}, and a workspace is "
                "a repository of its own: choose a folder outside of it, or name this one in its "
                ".gitignore."
            )


def make(target: Path) -> None:
    """A new workspace with its first commit; it appears whole or not at all."""
    template = paths.template()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In a folder that is there: it may be a mount, or its parent may belong to another user.
        with _scratch(target if target.is_dir() else target.parent) as folder:
            for name in COPIED:
                shutil.copyfile(template / name, folder / name)
            (folder / "results.tsv").write_text(results_tsv.HEADER)
            (folder / ".gitignore").write_text(IGNORED)
            (folder / "pyproject.toml").write_text(pyproject(target))
            git.output(folder, "init", "--quiet", "--initial-branch=main")
            git.output(folder, "add", "--all")
            commit(folder, f"Start from autoresearch-jax {version()}")
            _move(folder, target)
    except OSError as error:
        raise UserError(f"{target} cannot be made: {error}.") from error


def resize(root: Path, preset: Preset | None, seq_len: int | None, view: View) -> None:
    """Writes a preset and a row length into train.py and constants.py, and commits that.

    Raises:
        UserError: the sizes do not fit the files, or there are uncommitted changes in them.
    """
    if preset is None and seq_len is None:
        return
    texts = [(root / name).read_bytes().decode() for name in SIZED]
    sized = presets.apply(texts[0], texts[1], preset, seq_len)
    changed = [name for name, old, new in zip(SIZED, texts, sized, strict=True) if old != new]
    words = " and ".join(
        ([f"preset {preset.name}"] if preset else [])
        + ([f"rows of {seq_len} tokens"] if seq_len else [])
    )
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
    """Runs the workspace's prepare.py; it shows its own progress.

    Raises:
        UserError: it failed, and has said why.
    """
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
            f"the data is not prepared (prepare.py exited with {done.returncode}); the workspace "
            f"stands. What is done is kept: go on with `cd {shlex.quote(str(root))} && {again}`."
        )


def data(root: Path) -> manifest.Manifest | None:
    """The data prepared for a workspace, if it is whole."""
    with contextlib.suppress(manifest.DataError):
        return manifest.load(root)
    return None


def pyproject(target: Path) -> str:
    """The text of a workspace's pyproject.toml: it depends on the autoresearch-jax that made it."""
    name = re.sub("[^a-z0-9]+", "-", target.name.lower()).strip("-") or "my"
    name += "-workspace"  # a project named as something that it depends on cannot be resolved
    template = paths.template()
    if not (template / "pyproject.toml").is_file():
        return PYPROJECT.format(name=name, version=f"=={version()}")
    inside = target.is_relative_to(template)
    path = os.path.relpath(template, target) if inside else str(template)
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return PYPROJECT.format(name=name, version="") + SOURCE.format(path=escaped)


def version() -> str:
    return importlib.metadata.version("autoresearch-jax")


def commit(folder: Path, message: str, *names: str) -> None:
    """Commits, also where no identity is configured, without the person's hooks and signing."""
    nobody = git.run(folder, "var", "GIT_AUTHOR_IDENT").status != 0
    identity = ["-c", "user.name=autoresearch-jax", "-c", "user.email=autoresearch-jax@localhost"]
    git.output(
        folder,
        *(identity if nobody else []),
        *("-c", "commit.gpgsign=false"),
        *("commit", "--quiet", "-m", message),
        *(["--", *names] if names else []),
    )


def _check_branch(root: Path) -> None:
    branch = git.run(root, "symbolic-ref", "--quiet", "--short", "HEAD").text
    if not branch:
        raise UserError(
            f"{root} has a detached HEAD: `git switch main` (or `-c NAME`), then again."
        )
    if branch.startswith("autoresearch/"):
        raise UserError(
            f"{root} has {branch} checked out, which only experiments move: `git switch main`, "
            "then again."
        )


def _template_texts() -> tuple[str, str]:
    train, constants = ((paths.template() / name).read_bytes().decode() for name in SIZED)
    return train, constants


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".autoresearch-new-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    # It may be where the person's shell stands, so it must stay the same folder.
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == ".git"):
        entry.rename(target / entry.name)
