"""`prune`: take kept changes out of the best that do not matter any more."""

from autoresearch_jax.commands import loop
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import stages, statistics
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_session
from autoresearch_jax.loop.scheduler import run_alone
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system.interrupts import Abandoned


def prune(workspace: Workspace, config: LoopConfig, tools: Tools) -> list[str]:
    """Prune the best of a tag, and return what was found, as lines.

    The same command continues what was interrupted. Raises UserError.
    """
    with open_session(workspace, config, tools, "prune", begun=True) as (session, _):
        session.check()
        experiments = session.experiments
        if experiments.best is None or experiments.best == experiments.baseline:
            raise UserError(
                f"nothing but the baseline is kept under {session.tag}, so there is nothing to "
                "take out. To search: autoresearch-jax loop"
            )
        session.begin("prune", workers=len(session.pool))
        try:
            for left in session.settle():
                if session.interrupts.stopping():
                    raise Abandoned
                run_alone(session, left)
            found = stages.prune(session)
        except Abandoned:
            found = None
        if found is None:
            raise UserError("Stopped before the end. To continue: autoresearch-jax prune")
        *_, picture = loop.summary(workspace.root, session.tag)
        session.view.say(picture)
        return statistics.pruned_lines(found, experiments)
