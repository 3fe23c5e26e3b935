"""Write one experiment as a bundle."""

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from autoresearch_jax.bundles import agreement, evidence, git_objects, reading
from autoresearch_jax.bundles.format import (
    BASE,
    BASE_COMMIT,
    BASE_TREE,
    COMMIT,
    DIGEST,
    MANIFEST,
    RECORDS,
    TEXTS,
    TRAIN,
    TREE,
    Data,
    Manifest,
    Part,
    Refused,
)
from autoresearch_jax.common import archive, files, scored_files
from autoresearch_jax.common.archive import Member
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import amount
from autoresearch_jax.data import manifest as data_manifest
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs import environment, scoring
from autoresearch_jax.records import journal
from autoresearch_jax.records.experiment import Experiment, refuse_without_parameters
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace


@dataclass(frozen=True)
class Made:
    """A bundle that was written."""

    path: Path
    manifest: Manifest
    digest: str  # of its manifest
    bytes: int
    authors: tuple[str, ...]  # people whom it names


def write(
    workspace: Workspace,
    tag: str,
    experiments: Experiments,
    e: Experiment,
    path: Path,
    folder: Path,
    report: Callable[[str], object] = lambda _: None,
) -> Made:
    """Write a bundle of an experiment to `path` in one step; `folder` is for temporary files.

    It is read again and checked before it gets its name. Raises UserError if its parameters or its
    data are gone, OSError if it cannot be written.
    """
    artifacts = workspace.run_dir(tag, e.n) / "artifacts"
    refuse_without_parameters(e, artifacts)
    if e.val_bpb is None:
        raise UserError(f"experiment {e.n} has no score: autoresearch-jax show {e.n}")
    if scoring.seal(artifacts) != e.left:
        raise UserError(
            f"the files in {artifacts} are not those that were scored any more, so they prove "
            "nothing. Choose an experiment that was kept later: autoresearch-jax results "
            "--kept-only"
        )
    candidates = Candidates(workspace, tag)
    texts = _texts(workspace, tag, experiments, e)
    data = _data(candidates, experiments, e, folder)
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        if len(content) > TEXTS[name]:
            most = TEXTS[name]
            raise UserError(
                f"{name} of experiment {e.n} has {len(content)} bytes, more than the {most} that "
                "a bundle may have of it. Choose another experiment: autoresearch-jax results "
                "--kept-only"
            )
    scored = [one for one, status in scored_files.scored(artifacts)]
    parts = [
        *archive.members(folder, texts),
        *(one for one in archive.members(artifacts, scored) if one.size is not None),
    ]
    report("hashing")
    listed = tuple(
        Part(name=one.name, bytes=one.size or 0, sha256=data_manifest.file_sha256(one.path))
        for one in parts
    )
    manifest = Manifest(
        program=importlib.metadata.version("autoresearch-jax"),
        made=time.time(),
        tag=tag,
        n=e.n,
        commit=e.commit,
        base=e.base,
        val_bpb=e.val_bpb,
        data=data,
        files=listed,
    )
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    (folder / MANIFEST).write_bytes(content)
    digest = data_manifest.file_sha256(folder / MANIFEST)
    (folder / DIGEST).write_bytes(reading.digest_line(digest))
    parts = [*archive.members(folder, (MANIFEST, DIGEST)), *parts]
    size = _write(path, parts, report)
    authors = [texts[name] for name in (COMMIT, BASE_COMMIT) if name in texts]
    named = dict.fromkeys(map(git_objects.author, authors))
    people = tuple(one for one in named if one and "autoresearch-jax@localhost" not in one)
    return Made(path, manifest, digest, size, people)


def _texts(
    workspace: Workspace, tag: str, experiments: Experiments, e: Experiment
) -> dict[str, bytes]:
    """Return the texts of a bundle by name. Raises GitError if a commit is gone."""
    texts = dict(_of_commit(workspace, e.commit, (TRAIN, COMMIT, TREE)))
    if e.base:
        texts |= dict(_of_commit(workspace, e.base, (BASE, BASE_COMMIT, BASE_TREE)))
    lines = journal.path_of(workspace.state_dir(tag)).read_bytes().split(b"\n")[:-1]
    return {**texts, RECORDS: b"".join(evidence.taken(lines, experiments, e))}


def _of_commit(
    workspace: Workspace, commit: str, names: tuple[str, str, str]
) -> Iterator[tuple[str, bytes]]:
    kinds = (("blob", f"{commit}:train.py"), ("commit", commit), ("tree", f"{commit}^{{tree}}"))
    for name, (kind, what) in zip(names, kinds, strict=True):
        yield name, workspace.git_bytes("cat-file", kind, what)


def _data(candidates: Candidates, experiments: Experiments, e: Experiment, folder: Path) -> Data:
    """Return the hashes of the data that an experiment was scored on. Raises UserError."""
    frozen = folder / "frozen"
    frozen.mkdir()
    for name in FROZEN:
        (frozen / name).write_bytes(candidates.blob(e.commit, name))
    pinned = experiments.first.fingerprint.get("data") if experiments.first else None
    found = environment.data_of(candidates.workspace, frozen, pinned, e)
    own = Path(found.source).is_absolute()  # a folder, whose name is nobody's business
    return Data(
        fingerprint=found.fingerprint,
        source="" if own else found.source,
        num_shards=None if own else found.num_shards,
        column=found.column,
        validation=None if own else found.validation,
        constants=found.constants,
        frozen=found.frozen,
        tokenizer=found.tokenizer.sha256,
        token_bytes=found.token_bytes.sha256,
        splits={name: file.sha256 for name, file in found.splits.items()},
    )


def _write(path: Path, parts: list[Member], report: Callable[[str], object]) -> int:
    """Write the archive in one step, and return its size."""
    total = archive.stream_bytes(parts)

    def progress(done: int) -> None:
        report(f"writing {amount(done, total)}")

    temporary = path.with_name(f".{path.name}.partial")
    try:
        files.remove(temporary)
        archive.write(temporary, parts, progress)
        try:
            agreement.check(reading.read(temporary))
        except Refused as error:
            raise UserError(
                f"a bundle of this experiment would be refused ({error}), so none was written. "
                "Choose another experiment: autoresearch-jax results --kept-only"
            ) from None
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    files.sync_folder(path.parent)
    return total
