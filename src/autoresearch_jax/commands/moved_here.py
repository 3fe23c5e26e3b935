"""Whether a moved tag goes on on this machine; if not, how another one begins that knows it.

Scores of another kind of device, of other data or of other code do not compare. So the new tag
measures its own baseline: the best train.py of the moved one, or the one of a new workspace.
"""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from autoresearch_jax.agents.factory import is_command
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
from autoresearch_jax.system import device_probe, interrupts
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
    root, experiments = workspace.root, journal.read(workspace.state_dir(found.tag))
    # Otherwise the tag was added to a workspace of something else, whose files stay as they are.
    is_own = git.run(root, "merge-base", "--is-ancestor", found.head, "HEAD").status == 0
    _warn_of_settings(root, view)
    if foreign := foreign_code(root) if is_own else []:
        view.say(
            f"Its data is not prepared, because that would run code that is not part of "
            f"autoresearch-jax {setup.VERSION}: {_some(foreign)}. Read it, then prepare it "
            f"yourself: cd {shlex.quote(str(root))} && {_command(found.data)}"
        )
        return False
    if is_own and _is_begun(root, found.tag):
        view.say(f"A new tag that learns from {found.tag} was begun here before.")
        setup.resize(root, sizes, view)
        _prepared(root, found.data, text, view, other=True)
        return True
    device, other = _compared(root, experiments, sizes, view)
    if other and is_own:
        _begin_other(workspace, found.tag, experiments, device, sizes, view)
    if is_own or not other:
        ready = _prepared(root, found.data, text, view, other=bool(other))
        wanted = experiments.first and experiments.first.fingerprint.get("data")
        if not other and ready.fingerprint != wanted:
            why = _why_other(found.data, ready)
            other = f"text ({wanted or 'unknown'}, now {ready.fingerprint}: {why})"
            if is_own:
                _begin_other(workspace, found.tag, experiments, None, sizes, view)
    if not other:
        _forget_absent(workspace, view)
    _say(root, found, experiments, other, view)
    return True


def _compared(
    root: Path, experiments: Experiments, sizes: Sizes, view: View
) -> tuple[Device | None, str]:
    """Return this machine's device if it is another one, and all that is another, in words.

    The data is compared once it is prepared, and the number of cores depends on `--workers`.
    """
    assert experiments.first is not None
    device, known = _probe(view), dict(experiments.first.fingerprint)
    if device is not None and (unused := device_probe.unused_accelerator(device)):
        name, extra = unused
        raise UserError(
            f"this machine has {name}, but JAX sees only the CPU, so whether the tag can go on is "
            f"not known. Run the same command with `uv run --extra {extra} autoresearch-jax`, or "
            "confirm that the CPU is intended: export JAX_PLATFORMS=cpu"
        )
    here = present(root, device)
    names = [*here] if device is None else {*known, *here} - {"data", "number of cores"}
    other = tags.differences({name: known[name] for name in names if name in known}, here)
    if not other and str(sizes):
        other = f"choice of sizes ({sizes})"
    same = all(known.get(name) == here.get(name) for name in ("device", "device count"))
    return None if same else device, other


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


def present(root: Path, device: Device | None) -> dict[str, Any]:
    """Return the fingerprint of scores here, as far as it is known, without the data."""
    code = {
        "frozen files": manifest.frozen_fingerprint(root),
        "scorer": scoring.code_sha256()[:16],
    }
    if device is None:
        return code
    return code | {
        "device": device.device_kind,
        "device count": device.device_count,
        "JAX": device.jax_version,
    }


# ------------------------------------------------------------------------------------ data


def _prepared(
    root: Path, known: Text | None, given: dict[str, Any], view: View, *, other: bool
) -> manifest.Manifest:
    """Prepare the text of the tag, or what the user wants instead; return the data.

    For `other` tags, what the workspace has prepared is as good. Raises UserError.
    """
    given, ready = {name: one for name, one in given.items() if one is not None}, setup.data(root)
    if "source" not in given and known is not None:
        if ready is None or not (other or ready.fingerprint == known.fingerprint):
            with contextlib.suppress(manifest.DataError):  # this machine may have it already
                ready = manifest.load(root, fingerprint=known.fingerprint)
                manifest.write(root, ready)
        if ready is None or not (other or ready.fingerprint == known.fingerprint):
            given = msgspec.structs.asdict(known.choice) | given
            _refuse_absent(known, given)
    elif "source" not in given and ready is None:
        raise UserError(
            "the file does not say on which text its scores rest, because that was not on the "
            "machine any more. Run the same command with --source, such as --source fineweb-edu"
        )
    setup.prepare(root, view, **given)
    return manifest.load(root)


def _refuse_absent(known: Text, given: dict[str, Any]) -> None:
    """Raise UserError if the text is a folder or a file that is not on this machine."""
    for path in (given["source"], given["validation"]):
        if path is not None and path.startswith("/") and not Path(path).exists():
            validation = " --validation FILE" if given["validation"] else ""
            raise UserError(
                f"the text of the tag was in {clean(path)} "
                f"({_some([name for name, *_ in known.shards])}), and nothing is there on this "
                "machine. Copy it there, or run the same command "
                f"with --source DIR{validation} where it is."
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(map(clean, names[:SHOWN]))}{more}"


def _why_other(known: Text | None, ready: manifest.Manifest) -> str:
    """Return in which files the text differs."""
    before = {(name, sha256, split) for name, sha256, split in known.shards} if known else set()
    now = {(one.name, one.sha256, one.split) for one in ready.shards}
    names = sorted({name for name, _, _ in before ^ now})
    if not before or not names:
        return "it is packed otherwise"
    return f"{_some(names)} differ"


def _command(known: Text | None) -> str:
    words = [] if known is None else known.choice.options  # of the file, which anyone may have made
    return shlex.join(["uv", "run", "prepare.py", *map(clean, words)])


# --------------------------------------------------------------------------------- another


def _begin_other(
    workspace: Workspace,
    tag: str,
    experiments: Experiments,
    device: Device | None,
    sizes: Sizes,
    view: View,
) -> None:
    """Commit what a new tag begins with. `device` is another one; None: it is the same."""
    root = workspace.root
    setup.check_branch(root)
    train, constants, words = _start(workspace, experiments, device, sizes)
    path = root / PROGRAM
    program = learning(path.read_bytes() if path.exists() else b"", tag)
    names = ("train.py", "constants.py", PROGRAM)
    with interrupts.held_back():
        for name, content in zip(names, (train, constants, program), strict=True):
            files.write_bytes(root / name, content)
        git.output(root, "add", "--", *names)
        setup.commit(root, f"Start from what {tag} has found", *names)
    view.say(f"Committed {words}, and `learn_from: {tag}` in {PROGRAM}.")


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


def _learns_from(root: Path) -> str | None:
    """Return the tag that program.md names to learn from."""
    try:
        return config.resolve(root).learn_from
    except UserError:  # a loop says what is wrong with it
        return None


def _is_begun(root: Path, tag: str) -> bool:
    """Whether another tag has begun, or could have: a killed command may have written no commit."""
    committed = git.run(root, "cat-file", "--filters", f"HEAD:{PROGRAM}")
    with contextlib.suppress(UserError):
        return not committed.status and config.from_program(committed.text).learn_from == tag
    return False


def _forget_absent(workspace: Workspace, view: View) -> None:
    """Let no loop look for a tag to learn from that was not moved: this one knows it already."""
    path, name = workspace.root / PROGRAM, _learns_from(workspace.root)
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
        constants = git.output(workspace.root, "cat-file", "--filters", "HEAD:constants.py")
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


def _warn_of_settings(root: Path, view: View) -> None:
    """Name the settings of program.md that run a program, which someone else may have written."""
    try:
        found = config.resolve(root)
    except UserError as error:
        view.say(f"Warning: {error}")
        return
    names = [name for name in ("agents", "notify") if getattr(found, name)]
    names += ["agent"] if is_command(found.agent) else []
    if names:
        view.say(
            f"Warning: {PROGRAM} sets {', '.join(names)}, which a loop runs. Read it before you "
            "start one if it is not yours."
        )


def _say(root: Path, found: About, experiments: Experiments, other: str, view: View) -> None:
    """Say what a loop will do here."""
    here = packages()
    changed = [
        f"{clean(f'{name} {was}')}, here {here.get(name, 'none')}"
        for name, was in found.packages.items()
        if here.get(name) != was
    ]
    if changed:
        view.say(f"Packages of other versions: {'; '.join(changed)}.")
    if other:
        learns = f"learns from {found.tag}"
        if _learns_from(root) != found.tag:
            learns += f" with this option: autoresearch-jax loop --learn-from {found.tag}"
        view.say(
            f"Tag {found.tag} does not go on here, because its scores would not compare with new "
            f"ones: another {other}. A loop begins a new tag, which measures its own baseline and "
            f"{learns}."
        )
        return
    best = experiments.best
    score = "none was kept yet"
    if best is not None and best.val_bpb is not None:
        score = f"the best is experiment {best.n} with val_bpb {best.val_bpb:.6f}"
    number = min([e.n for e in experiments.undecided], default=len(experiments))
    view.say(
        f"Tag {found.tag} goes on here with experiment {number}: {score}. A loop that "
        "goes on where the file was written makes other experiments."
    )
