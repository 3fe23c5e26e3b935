"""Tells the person elsewhere what happened: an address gets JSON, a command gets the text.

It happens in a thread beside the loop, which it never delays or ends: what fails is said once.
"""

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.text import clean
from autoresearch_jax.system import process

if TYPE_CHECKING:
    from autoresearch_jax.loop.config import LoopConfig
    from autoresearch_jax.loop.session import Session

COMMAND_SECONDS = 30.0
ANSWER_SECONDS = 10.0  # that an address may keep silent
HURRY_SECONDS = 10.0  # after a loop's end until only its last text is still sent
CLOSE_SECONDS = 75.0  # that the end waits: these, the command that runs then, and the last one
TICK_SECONDS = 0.2  # how soon it is noticed that nobody wants to wait any more
WAITING = 20  # texts that may wait; of more the oldest is dropped
TEXT_LIMIT = 600  # characters


class Unsent(Exception):
    """A text did not arrive; the message says why."""


# ------------------------------------------------------------------------------------ telling


@contextlib.contextmanager
def telling(session: "Session", config: "LoopConfig") -> "Iterator[Teller]":
    """Tells of a loop, also of the error that ends it."""
    teller = Teller(session, config)
    try:
        yield teller
    except Exception as error:
        teller.tell("paused", f"the loop has stopped: {error}")
        raise
    finally:
        teller.close()


class Teller:
    """Tells what a loop's person wants to know, if anything."""

    def __init__(self, session: "Session", config: "LoopConfig") -> None:
        self._session = session
        self._config = config
        self._seen = len(session.experiments.decided)
        self._wanted = {one.partition("=")[0] for one in config.notify_on}
        self._crashes = config.crashes
        self._told: set[bool] = set()  # whether it was said that it is slow, and that it failed
        self._texts: deque[tuple[str, str]] = deque(maxlen=WAITING)
        self._changed = threading.Condition()  # guards the texts, and when it was closed
        self._closed: float | None = None
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        if config.notify:
            self._thread.start()

    def decided(self) -> None:
        """Looks at the experiments that were decided since the last time."""
        found = self._session.experiments.decided
        for at in range(self._seen, len(found)):
            e, before = found[at], found[:at]
            best = next((b.val_bpb for b in reversed(before) if b.status == "keep"), None)
            if e.status == "keep" and best is not None and e.val_bpb is not None:
                self.tell(
                    "best",
                    f"experiment {e.n} is the best so far, val_bpb {e.val_bpb:.6f} "
                    f"({e.val_bpb - best:+.6f}): {e.description}",
                )
            many = self._crashes
            last = [one.status for one in found[max(0, at - many) : at + 1]]
            crashes = last[-many:] == ["crash"] * many
            if crashes and (len(last) == many or last[0] != "crash"):
                said = f"{many} experiments in a row crashed, the last"
                said = said if many > 1 else f"experiment {e.n} crashed"
                self.tell("crashes", f"{said}: {e.reason}")
        self._seen = len(found)

    def ended(self, stopped: str) -> None:
        """The loop is over; `stopped` as in a LoopResult."""
        self.decided()
        best = self._session.experiments.best
        if stopped != "abandoned":  # whoever does that is at its terminal, and waits for it
            known = best is not None and best.val_bpb is not None
            score = f", best val_bpb {best.val_bpb:.6f}" if best and known else ""
            self.tell("done", f"done ({stopped}): {self._seen} experiments{score}")

    def tell(self, event: str, text: str) -> None:
        """Sends it, if it is wanted, some time soon."""
        if self._config.notify and event in self._wanted:
            words = clean(f"autoresearch/{self._session.tag}: {text}", TEXT_LIMIT)
            with self._changed:
                full = len(self._texts) == WAITING
                self._texts.append((event, words))
                self._changed.notify()
            if full:
                self._say_once(f"more than {WAITING} texts wait, the oldest is left out", slow=True)

    def close(self) -> None:
        """Waits for what is still to be sent, but not for ever: the last matters most."""
        if not self._thread.is_alive():
            return
        self._session.view.live("telling --notify of the end")
        with self._changed:
            self._closed = time.monotonic()
            self._changed.notify()
        while self._thread.is_alive() and time.monotonic() - self._closed < CLOSE_SECONDS:
            self._thread.join(TICK_SECONDS)
            if self._session.interrupts.abandoned():
                return

    def _work(self) -> None:
        while (found := self._next()) is not None:
            try:
                send(self._config.notify, *found)
            except Unsent as error:
                self._say_once(str(error))

    def _next(self) -> tuple[str, str] | None:
        """Waits for a text; None: there will be none."""
        with self._changed:
            while not self._texts and self._closed is None:
                self._changed.wait()
            if not self._texts:
                return None
            closed = self._closed
            if closed is None or time.monotonic() - closed < HURRY_SECONDS:
                return self._texts.popleft()
            last, older = self._texts.pop(), len(self._texts)
            self._texts.clear()
        if older:
            self._say_once("of the texts that wait only the last is sent", slow=True)
        return last

    def _say_once(self, why: str, slow: bool = False) -> None:
        """That it failed, or that it is slow."""
        if slow not in self._told:
            self._told.add(slow)
            why = f"it is slow: {why}" if slow else why
            self._session.view.say(f"     --notify: {why}. This is said once; the loop goes on.")


# ------------------------------------------------------------------------------------ sending


def send(to: str, event: str, text: str) -> None:
    """Sends a text, and waits until it has arrived. Raises Unsent."""
    if re.match("https?://", to, re.IGNORECASE):
        _post(to, text)
    else:
        _command(to, event, text)


def _post(address: str, text: str) -> None:
    """The body is what Slack and its like take. An address is as good as a key, and not said."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(
        address,
        data=json.dumps({"text": text}).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "autoresearch-jax"},
    )
    host = urlsplit(address).hostname
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise Unsent(f"{host} answers {error.code}") from None
    except Exception as error:  # an answer that is no HTTP has many names
        why = getattr(error, "reason", error)
        said = clean(str(why)) or type(why).__name__
        raise Unsent(f"{host} does not take it ({said})") from None


def _command(command: str, event: str, text: str) -> None:
    """The text is its standard input and a variable, and no part of what the shell reads."""
    with tempfile.TemporaryDirectory(prefix="autoresearch-notify-") as folder:
        words, said = Path(folder) / "text", Path(folder) / "said"
        words.write_text(f"{text}\n", encoding="utf-8")
        try:
            ended = process.run(
                ["/bin/sh", "-c", command],
                cwd=Path.cwd(),
                env={**os.environ, "AUTORESEARCH_EVENT": event, "AUTORESEARCH_TEXT": text},
                stdin=words,
                stdout=said,
                limit_s=COMMAND_SECONDS,
            )
        except (UserError, OSError) as error:
            raise Unsent(str(error).rstrip(".")) from None
        if ended.why == "limit":
            raise Unsent(f"the command took more than {COMMAND_SECONDS:.0f} s")
        if ended.returncode:
            last = said.read_text(errors="replace").strip().splitlines()[-1:]
            why = f": {clean(last[0])}" if last else ""
            raise Unsent(f"the command ended with {ended.returncode}{why}")
