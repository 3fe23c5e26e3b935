"""Whether a moved tag goes on on this machine; if not, how another one begins that knows it.

Scores of another kind of device, of other data or of other code do not compare. So the new tag
measures its own baseline: the best train.py of the moved one, or the one of a new workspace.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from autoresearch_jax.commands import presets, setup
from autoresearch_jax.commands.move import packages
from autoresearch_jax.commands.moved_tag import IDEAS, PROGRAM, About, Text, tree
from autoresearch_jax.commands.presets import Preset
from autoresearch_jax.commands.setup import Sizes
from autoresearch_jax.common import files, front_matter, literals, paths
from autoresearch_jax.common.console import View
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import environment, scoring
from autoresearch_jax.loop import config
from autoresearch_jax.records import journal, tags
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.repo import git
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import interrupts
from autoresearch_jax.system.device_probe import Device

# What a workspace may have at its top besides its frozen files. Anything else could be imported by
# prepare.py, or be read by uv.
KNOWN = {
    *("train.py", PROGRAM, "pyproject.toml", "results.tsv", ".gitignore", ".gitattributes"),
    *("README.md", "LICENSE", IDEAS, "wheels"),
}
SHOWN = 5  # files that a message names
CPU = "cpu"  # the kind of device that JAX reports of a CPU


def go_on(
    workspace: Workspace,
    found: About,
    view: View,
    *,
    preset: str | None = None,
    seq_len: int | None = None,
    vocab_size: int | None = None,
    budget: int | None = None,
    **text: Any,
) -> bool:
    """Prepare the data of a moved tag, and check whether it goes on here; if not, begin another.

    The arguments are those of `setup`; with other sizes or text another tag begins. Returns whether
    a loop can start. Raises UserError; the same command continues then.
    """
    chosen = None if preset is None else presets.get(preset)
    sizes, text = Sizes(chosen, seq_len, vocab_size, budget), setup.resolved(text)
    experiments = journal.read(workspace.state_dir(found.tag))
    assert experiments.first is not None
    _warn_of_settings(workspace, view)
    if foreign := foreign_code(workspace.root):
        view.say(
            f"Its data is not prepared, because that would run code that is not part of "
            f"autoresearch-jax {setup.VERSION}: {', '.join(foreign)}. Read it, then prepare it "
            f"yourself: cd {shlex.quote(str(workspace.root))} && {_command(found.data)}"
        )
        return False
    known = dict(experiments.first.fingerprint)
    data, _ = known.pop("data", None), known.pop("number of cores", None)
    device, other = _probe(view), f"sizes ({sizes})" if str(sizes) else ""
    if device is not None:
        present = _present(workspace.root, device)
        other = tags.differences(known, present) or other
        if all(known.get(name) == present[name] for name in ("device", "device count")):
            device = None
    if other:
        _begin_other(workspace, found, experiments, device, sizes, view)
    setup.prepare(workspace.root, view, **_choice(found.data, text, view))
    ready = manifest.load(workspace.root)
    if not other and data is not None and ready.fingerprint != data:
        other = f"data ({data}, now {ready.fingerprint}: {_why_other(found.data, ready)})"
        _begin_other(workspace, found, experiments, None, sizes, view)
    if not other:
        _forget_absent(workspace, view)
    _say(workspace, found, experiments, other, view)
    return True


def foreign_code(root: Path) -> list[str]:
    """Return what preparing data would run or read of a workspace that is not our own."""
    template = paths.template()
    found = sorted({name.partition("/")[0] for name in tree(root, "HEAD")} - KNOWN)
    found = [name for name in found if name not in manifest.FROZEN]
    prepare, constants = ((root / name).read_bytes() for name in reversed(manifest.FROZEN))
    if prepare != (template / "prepare.py").read_bytes():
        found.append("prepare.py")
    own = (template / "constants.py").read_bytes()
    try:
        values = {name: one.value for name, one in literals.read(constants).items()}
        same = literals.rewrite(own, values) == constants
    except (*literals.NOT_PYTHON, KeyError):
        same = False
    return found if same else [*found, "constants.py"]


def _probe(view: View) -> Device | None:
    view.live("probing the accelerator")
    try:
        return environment.probe(paths.home())[0]
    except UserError as error:
        view.say(f"Whether the device is of the same kind is not known: {error}")
        return None
    finally:
        view.live("")


def _present(root: Path, device: Device) -> dict[str, Any]:
    """Return the fingerprint of scores here, without the data."""
    return {
        "frozen files": manifest.frozen_fingerprint(root),
        "scorer": scoring.code_sha256()[:16],
        "device": device.device_kind,
        "device count": device.device_count,
        "JAX": device.jax_version,
    }


# ------------------------------------------------------------------------------------ data


def _choice(known: Text | None, given: dict[str, Any], view: View) -> dict[str, Any]:
    """Return which text is prepared: the tag's, or what the user wants. Raises UserError."""
    if given.get("source") is not None or known is None:
        return given
    choice = msgspec.structs.asdict(known.choice) | {
        k: v for k, v in given.items() if v is not None
    }
    source, validation = choice["source"], choice["validation"]
    local = [Path(one) for one in (source, validation) if one is not None and one.startswith("/")]
    for path in local:
        if not path.exists():
            names = [name for name, _, _ in known.shards]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise UserError(
                f"the text of the tag was in {path} ({', '.join(names[:SHOWN])}{more}), and "
                f"nothing is there on this machine. Copy it there, or name the folder where it is: "
                f"--source DIR{' --validation FILE' if validation else ''}"
            )
    return choice


def _why_other(known: Text | None, ready: manifest.Manifest) -> str:
    """Return in which files the text differs."""
    before = {(name, sha256, split) for name, sha256, split in known.shards} if known else set()
    now = {(one.name, one.sha256, one.split) for one in ready.shards}
    names = sorted({name for name, _, _ in before ^ now})
    if not before or not names:
        return "it is packed otherwise"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} differ"


def _command(known: Text | None) -> str:
    return "uv run prepare.py" if known is None else known.choice.command


# --------------------------------------------------------------------------------- another


def _begin_other(
    workspace: Workspace,
    found: About,
    experiments: Experiments,
    device: Device | None,
    sizes: Sizes,
    view: View,
) -> None:
    """Commit what a new tag begins with, unless the workspace is not the tag's own.

    `device` is of another kind or number; None: it is the same.
    """
    root = workspace.root
    if git.run(root, "merge-base", "--is-ancestor", found.head, "HEAD").status:
        return  # the tag was added to a workspace of something else
    before = (root / PROGRAM).read_bytes()
    program = learning(before, found.tag)
    if program == before:
        return  # an earlier call did it
    setup.check_branch(root)
    train, constants, words = _start(workspace, experiments, device, sizes)
    names = ("train.py", "constants.py", PROGRAM)
    with interrupts.held_back():
        # Its program.md comes last: it says that all is done.
        for name, content in zip(names, (train, constants, program), strict=True):
            files.write_bytes(root / name, content)
        git.output(root, "add", "--", *names)
        setup.commit(root, f"Start from what {found.tag} has found", *names)
    view.say(f"Committed {words}, and `learn_from: {found.tag}` in {PROGRAM}.")


def learning(program: bytes, tag: str | None) -> bytes:
    """Return a program.md whose front matter lets a loop learn from a tag; None: from no tag."""
    text = program.decode(errors="surrogateescape").removeprefix("\ufeff")
    line = f"learn_from: {tag}\n" if tag else ""
    front, _ = front_matter.split(text)
    kept = [one for one in front.splitlines(keepends=True) if not one.startswith("learn_from:")]
    fence = f"{front_matter.FENCE}\n"
    if text.startswith(front_matter.FENCE):
        after = text.split("\n", 1)[1].removeprefix(front)
    elif tag is None:
        return program
    else:
        after = f"{fence}\n{text}"
    return f"{fence}{''.join(kept)}{line}{after}".encode(errors="surrogateescape")


def _forget_absent(workspace: Workspace, view: View) -> None:
    """Let no loop look for a tag to learn from that was not moved: this one knows it already."""
    path = workspace.root / PROGRAM
    try:
        name = config.resolve(workspace.root).learn_from
    except UserError:
        return
    if name is None or name in workspace.tags() or Path(name).expanduser().is_dir():
        return
    files.write_bytes(path, learning(path.read_bytes(), None))
    view.say(f"Removed `learn_from: {clean(name)}` from {PROGRAM}: that tag is not here.")


def _start(
    workspace: Workspace, experiments: Experiments, device: Device | None, sizes: Sizes
) -> tuple[bytes, bytes, str]:
    """Return the train.py and the constants.py that a new tag begins with, and what they are."""
    best, first = experiments.best, experiments.first
    assert first is not None
    fitting, on_cpu = None, first.fingerprint.get("device") == CPU
    if device is not None and sizes.preset is None:
        fitting = presets.suggest(device)[0]
    alike = device is None or (device.platform == CPU) == on_cpu or sizes.preset is not None
    if best is not None and alike:
        source = git.output(workspace.root, "cat-file", "--filters", f"{best.commit}:train.py")
        constants = (workspace.root / "constants.py").read_bytes()
        words = f"the train.py of experiment {best.n}"
        try:
            if fitting is not None and _is_smaller(fitting, source):
                source, _ = presets.apply(source, b"", replace(fitting, constants={}), None)
                words += f" with the device batch of preset {fitting.name}"
            return *sizes.apply(source, constants), words
        except UserError:  # it lacks a constant by now, so its sizes cannot be chosen
            pass
    sizes = replace(sizes, preset=sizes.preset or fitting)
    shipped = [(paths.template() / name).read_bytes() for name in setup.SIZED]
    return *sizes.apply(*shipped), f"the train.py of a new workspace, with {sizes}"


def _is_smaller(preset: Preset, source: bytes) -> bool:
    """Whether a preset holds fewer rows on a device at once than a train.py. Raises UserError."""
    try:
        present = literals.read(source).get("DEVICE_BATCH_SIZE")
    except SyntaxError:
        present = None
    if present is None:
        raise UserError("train.py sets no DEVICE_BATCH_SIZE")
    return float(preset.train["DEVICE_BATCH_SIZE"]) < float(present.value)


# ---------------------------------------------------------------------------------- words


def _warn_of_settings(workspace: Workspace, view: View) -> None:
    """Name the settings of program.md that run a program, which someone else may have written."""
    try:
        found = config.resolve(workspace.root)
    except UserError as error:
        view.say(f"Warning: {error}")
        return
    names = [name for name in ("agents", "notify") if getattr(found, name)]
    names += ["agent"] if " " in found.agent or "/" in found.agent else []
    if names:
        view.say(
            f"Warning: {PROGRAM} sets {', '.join(names)}, which a loop runs. Read it before you "
            "start one if it is not yours."
        )


def _say(
    workspace: Workspace, found: About, experiments: Experiments, other: str, view: View
) -> None:
    """Say what a loop will do here."""
    here = packages()
    changed = [
        f"{name} {clean(was)}, here {here.get(name, 'none')}"
        for name, was in found.packages.items()
        if here.get(name) != was
    ]
    if changed:
        view.say(f"Packages of other versions: {'; '.join(changed)}.")
    if other:
        view.say(
            f"Tag {found.tag} does not go on here, because its scores would not compare with new "
            f"ones: another {other}. A loop begins a new tag, which measures its own baseline and "
            f"learns from {found.tag}."
        )
        return
    best = experiments.best
    score = "none was kept yet"
    if best is not None and best.val_bpb is not None:
        score = f"the best is experiment {best.n} with val_bpb {best.val_bpb:.6f}"
    view.say(
        f"Tag {found.tag} goes on here with experiment {len(experiments)}: {score}. A loop that "
        "goes on where the file was written makes other experiments."
    )
