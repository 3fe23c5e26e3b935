"""Make a static page of the bundles in a folder whose scores are confirmed here."""

import contextlib
from pathlib import Path

import msgspec

from autoresearch_jax.bundles import agreement, reading
from autoresearch_jax.bundles.format import Refused
from autoresearch_jax.bundles.verdict import State, Verdict
from autoresearch_jax.commands import verify_bundle
from autoresearch_jax.common import files, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import scoring
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.disk_errors import disk_errors
from autoresearch_jax.views import leaderboard as view
from autoresearch_jax.views.leaderboard import Other, Standing

SUFFIX = ".tar"


def leaderboard(
    folder: Path,
    site: Path,
    workspace: Workspace | None,
    config: LoopConfig | None,
    tools: Tools,
) -> list[str]:
    """Check the bundles of a folder and write the page; return what to say. Raises UserError.

    What was found out about a bundle is kept, so that only new ones are scored the next time.
    """
    if not folder.is_dir():
        raise UserError(f"{folder.absolute()} is no folder. Put bundles into one, then name it.")
    found = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    if not found:
        raise UserError(
            f"{folder.absolute()} has no file that ends in {SUFFIX}. To make one: "
            f"autoresearch-jax bundle -o {folder / f'best{SUFFIX}'}"
        )
    index = site / view.INDEX
    if index.exists() and view.MADE_BY not in index.read_bytes():
        raise UserError(f"{index} is not a leaderboard. Name another folder for the page: -o DIR")
    if site.resolve() == folder.resolve():
        raise UserError(f"{site} has the bundles. Name another folder for the page: -o DIR")
    standings, others = list[Standing](), list[Other]()
    for path in found:
        tools.view.live(f"checking {path.name}")
        one = _checked(path, workspace, config, tools)
        if isinstance(one, Other):
            others.append(one)
        elif first := next((other for other in standings if other.is_of(one)), None):
            if first.bundle.digest != one.bundle.digest:
                why = f"it has the function and the arrays of {first.bundle.path.name}"
                others.append(Other(path.name, "a copy", why))
        else:
            standings.append(one)
    with disk_errors():
        index = view.write(site, standings, others)
    lines = [f"{index.absolute()}: {len(standings)} of {len(found)} files are on the board"]
    return [*lines, *(f"not on the board: {o.name} is {o.state}: {o.why}" for o in others)]


def _checked(
    path: Path, workspace: Workspace | None, config: LoopConfig | None, tools: Tools
) -> Standing | Other:
    try:
        bundle = reading.read(path, report=tools.view.live)
        evidence = agreement.check(bundle)
    except Refused as refused:
        return Other(path.name, f"refused, {refused.name}", refused.detail)
    except (OSError, UserError) as error:
        return Other(path.name, "not read", str(error))
    verdict = _known(bundle.digest)
    if verdict is None:
        # The file may be another one by now.
        again, records, verdict = verify_bundle.verify(path, workspace, config, tools)
        if again is not None and (verdict.confirmed or verdict.refused):
            _keep(again.digest, verdict)  # on another day the others may be scored
        bundle, evidence = again or bundle, records or evidence
    if verdict.refused:
        return Other(path.name, f"refused, {verdict.refused}", verdict.why)
    if not verdict.confirmed:
        why = next((o.text for o in verdict.findings if o.state is State.OPEN), "")
        return Other(path.name, "not confirmed", why)
    standing = Standing(bundle, evidence, verdict)
    try:
        view.page(standing, 1, 1)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return Other(path.name, "refused, altered-records", f"they cannot be shown: {error}")
    return standing


def _path(digest: str) -> Path:
    """Return the file of what was found out; it is not beside the bundle, where a sender writes."""
    return paths.home() / "bundles" / scoring.code_sha256()[:16] / f"{digest}.json"


def _known(digest: str) -> Verdict | None:
    with contextlib.suppress(OSError, ValueError):
        return msgspec.json.decode(_path(digest).read_bytes(), type=Verdict)
    return None


def _keep(digest: str, verdict: Verdict) -> None:
    with disk_errors():
        files.write_bytes(_path(digest), msgspec.json.encode(verdict))
