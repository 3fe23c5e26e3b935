"""How the last loop of a tag ended, as far as that can be known."""

import time

import psutil

from autoresearch_jax.common.text import clean
from autoresearch_jax.records.events import Began
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.system import boot

REASON_LIMIT = 500  # characters
STOPPED = {
    "max": "it reached --max",
    "max-hours": "it reached --max-hours",
    "max-usd": "it reached --max-usd",
    "interrupted": "it was stopped by Ctrl-C or a signal",
    "abandoned": "it was stopped by Ctrl-C or a signal, and its experiment was abandoned",
}


def words(experiments: Experiments, *, locked: bool = False) -> str:
    """Return how the last loop ended, given that it does not run here; "" if none did.

    `locked`: this process has the tag's lock, so it does not run anywhere else either.
    """
    began, ended = experiments.loop, experiments.ended
    if began is None or not (ended or began.host):  # an earlier version recorded no end
        return ""
    if ended is None and not locked and began.host != boot.facts()["host"]:
        return f"the loop began on {clean(began.host)}, and whether it runs is not seen from here"
    if ended is None:
        return f"the loop was killed after {_at(experiments.latest)}: {_cause(began)}"
    reason = STOPPED.get(ended.stopped, "")
    if ended.by:
        reason = reason.replace("Ctrl-C or a signal", clean(ended.by))
    reason = reason or clean(ended.reason, REASON_LIMIT)
    verb = "failed" if ended.stopped == "failed" else "ended"
    return f"the loop {verb} at {_at(ended.time)}: {reason}"


def failed(experiments: Experiments) -> bool:
    """Whether the last loop, given that it does not run, was killed or ended with an error."""
    began, ended = experiments.loop, experiments.ended
    if ended is not None:
        return ended.stopped == "failed"
    return began is not None and began.host != ""


def _cause(began: Began) -> str:
    """Return why the process of a loop was killed."""
    now = boot.facts()
    if began.host != now["host"] or not began.boot:
        return f"it ran on {clean(began.host)}, and its reason is not known here"
    if began.boot != now["boot"]:
        return f"the machine was restarted at {_at(psutil.boot_time())}"
    if (more := now["oom_kills"] - began.oom_kills) > 0:
        return f"memory ran out, and the kernel ended {more} processes, perhaps this one"
    return "it recorded no reason, as after `kill -9` or when its terminal or container is removed"


def _at(seconds: float) -> str:
    return time.strftime("%b %d %H:%M", time.localtime(seconds))
