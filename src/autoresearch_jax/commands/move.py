"""Write a tag into a file, with which it goes on elsewhere: what `move` does."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from autoresearch_jax.commands import moved_tag, setup
from autoresearch_jax.commands.moved_tag import About, Text
from autoresearch_jax.common import archive, files, protocol, scored_files
from autoresearch_jax.common.archive import Member
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import GitError, UserError
from autoresearch_jax.common.text import amount
from autoresearch_jax.data import manifest
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.events import Status
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks

# Of these, another version may change a score or a proposal.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "optuna", "scipy")
SCRATCH = ".autoresearch-move"  # a folder beside the file until that is complete


def move(
    workspace: Workspace, name: str | None, target: Path, view: View, *, everything: bool = False
) -> About:
    """Write a tag (the newest by default) into the file `target`, which is complete or absent.

    It has the parameters of the baseline, the best and what is undecided; `everything`: of all
    experiments that have some. The tag stays here, too. Raises UserError.
    """
    tag = tags.existing(workspace, name)
    if tag is None:
        raise UserError("nothing has run here yet, so there is no tag to move.")
    if os.path.lexists(target):
        raise UserError(f"{target} exists already. Name another file, or remove it: rm {target}")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is no folder. Make it: mkdir -p {target.parent}")
    state_dir = workspace.state_dir(tag)
    if pid := tags.holder(state_dir):
        raise UserError(
            f"tag {tag} is in use by process {pid}, and what runs would be missing in the file. "
            f"Stop it first: autoresearch-jax stop --tag {tag}"
        )
    lock = tags.lock(state_dir / "lock", tag, view, what="move")
    scratch = target.parent / SCRATCH  # on the same disk, so that the file can be renamed
    try:
        with locks.own_folder(scratch, "file") as (folder, _):
            return _write(workspace, tag, lock, target, folder, view, everything)
    except (OSError, GitError) as error:
        raise UserError(
            f"{target} cannot be written: {error}. Nothing is there, and the tag is as it was. "
            "Free some space, or name a file on another disk: autoresearch-jax move -o FILE"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            scratch.rmdir()
        os.close(lock)


def _write(
    workspace: Workspace,
    tag: str,
    lock: int,
    target: Path,
    scratch: Path,
    view: View,
    everything: bool,
) -> About:
    experiments = journal.read(workspace.state_dir(tag))
    if experiments.first is None or not len(experiments):
        raise UserError(f"tag {tag} has no experiment yet. Go on here: autoresearch-jax loop")
    candidates = Candidates(workspace, tag)
    candidates.keep_fds = (lock,)
    for e in experiments.undecided:  # a killed loop may not have come so far
        candidates.keep_ref(e.n, e.commit)
        if e.was:
            candidates.keep_ref(e.n, e.was, e.repairs)
    head, refs = _head(workspace, experiments), [f"--glob=refs/autoresearch/{tag}/*"]
    if candidates.tip() is not None:
        refs.append(f"refs/heads/{candidates.branch}")
    refs += ["HEAD"] if head == workspace.head() else []
    view.live("collecting the commits")
    bundle = scratch / moved_tag.BUNDLE
    candidates.git("bundle", "create", "--quiet", str(bundle), *refs)
    members = [*_members(workspace, tag, bundle, experiments, everything)]
    size = sum(one.size or 0 for one in members)
    found = About(
        made_by=importlib.metadata.version("autoresearch-jax"),
        tag=tag,
        objects="sha256" if len(head) == 64 else "sha1",
        head=head,
        data=_text(workspace, experiments),
        packages=packages(),
        files=moved_tag.sums(members, partial(progress, view, "reading", size)),
        bytes=size,
    )
    about = scratch / moved_tag.ABOUT
    about.write_bytes(msgspec.json.encode(found))
    members.insert(0, Member(moved_tag.ABOUT, about, about.stat().st_size))
    written = scratch / "written"
    total = archive.stream_bytes(members)
    archive.write(written, members, partial(progress, view, "writing", total))
    _read_again(written, scratch / "read", view, size)
    written.rename(target)
    files.sync_folder(target.parent)
    view.live("")
    return found


def _read_again(written: Path, folder: Path, view: View, size: int) -> None:
    """Read a file as `setup --from` will: what that refuses is known while the tag is here."""
    folder.mkdir()
    report = partial(progress, view, "checking", size)
    found = moved_tag.unpack(written, folder, report, parameters=False)
    repository = folder / "repository"
    setup.make_repository(repository, found.objects)
    moved_tag.fetch(folder / moved_tag.BUNDLE, repository, found)
    moved_tag.check(folder, repository, found)


def progress(view: View, verb: str, size: int, done: int) -> None:
    """Show how many bytes of a file are done."""
    view.live(f"{verb} {amount(done, size)}")


def _head(workspace: Workspace, experiments: Experiments) -> str:
    """Return the checkout's commit if the tag could go on with its frozen files, else its first."""
    head, first = workspace.head(), (experiments.baseline or experiments[0]).commit
    names = [f"{commit}:{name}" for name in manifest.FROZEN for commit in (head, first)]
    blobs = workspace.git("rev-parse", *names).split()
    return head if blobs[::2] == blobs[1::2] else first


def _text(workspace: Workspace, experiments: Experiments) -> Text | None:
    """Return which data the tag's scores rest on; None if nothing is known of it any more."""
    assert experiments.first is not None
    wanted = experiments.first.fingerprint.get("data")
    if not isinstance(wanted, str):
        return None
    for one in manifest.manifests(workspace.root):
        if one.fingerprint == wanted:
            shards = tuple((shard.name, shard.sha256, shard.split) for shard in one.shards)
            choice = msgspec.structs.asdict(one.choice)
            return Text(**choice, fingerprint=wanted, shards=shards)
    for known in manifest.record(workspace.root):
        if known.data == wanted:
            return Text(**msgspec.structs.asdict(known.choice), fingerprint=wanted)
    return None


def packages() -> dict[str, str]:
    """Return the versions of the packages that a score or a proposal may depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _members(
    workspace: Workspace, tag: str, bundle: Path, experiments: Experiments, everything: bool
) -> Iterator[Member]:
    """Yield what is moved. Links and other special files are left out. Raises OSError."""
    yield Member(moved_tag.BUNDLE, bundle, bundle.stat().st_size)
    program, ideas = workspace.root / moved_tag.PROGRAM, workspace.root / moved_tag.IDEAS
    if program.is_file():
        yield Member(moved_tag.PROGRAM, program.resolve(), program.stat().st_size)
    found = archive.members(ideas, within=moved_tag.IDEAS) if ideas.is_dir() else []
    state_dir = workspace.state_dir(tag)
    names = [name for name in moved_tag.STATE if (state_dir / name).exists()]
    found += archive.members(state_dir, names, within=moved_tag.TAG)
    for name in names:
        if (state_dir / name).is_dir():
            within = f"{moved_tag.TAG}/{name}"
            listed = archive.members(state_dir / name, within=within)
            found += [one for one in listed if "artifacts" not in one.name.split("/")[3:4]]
    for e in experiments:
        if everything or _matters(e, experiments):
            folder = workspace.run_dir(tag, e.n) / "artifacts"
            names = [name for name, _ in scored_files.scored(folder)]
            names += [protocol.NATS] if (folder / protocol.NATS).is_file() else []
            inside = f"{moved_tag.TAG}/runs/{e.n}/artifacts"
            found += archive.members(folder, names, within=inside)
    yield from (one for one in found if moved_tag.is_name(one.name, folder=one.size is None))


def _matters(e: Experiment, experiments: Experiments) -> bool:
    """Whether a loop that goes on needs what an experiment's training left."""
    return e.status is None or (
        e.status == Status.KEEP and e in (experiments.baseline, experiments.best)
    )
