"""Command-line clients as agents: they get a prompt, edit train.py and print an answer.

A client is described by data (client_specs.py): its arguments, where its output contains the answer
and the cost, which paths it must be able to write, and how to log in. Any shell command can be a
client, too.
"""

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoresearch_jax.agents import replies
from autoresearch_jax.agents.agent import Agent, AgentError, Context, Proposal
from autoresearch_jax.agents.client_specs import Client, places, shipped
from autoresearch_jax.agents.replies import Reply
from autoresearch_jax.agents.research import ANSWER
from autoresearch_jax.common import files
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.common.paths import expanded
from autoresearch_jax.common.text import clean
from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.system import process
from autoresearch_jax.system.disk_use import DiskUse
from autoresearch_jax.system.process import Ended

TRIAL_S = 60.0
# Prints which of its arguments are neither programs nor files that can be opened.
MISSING = (
    'for one; do case "$one" in */*) (: <"$one") ;; *) command -v "$one" >/dev/null ;; esac '
    '2>/dev/null || echo "$one"; done'
)
SCRIPTS = (".py", ".sh", ".bash", ".js", ".mjs", ".ts", ".rb", ".pl")
LINE_BYTES = 256  # of a script's first line, as the kernel reads it
TAIL = 4000  # characters of each output that are searched for a known failure
# The name appears in commits, which may be pushed, so a key in front of the command must not.
VALUE = re.compile(r"""\b([A-Za-z_]\w*)=(?:'[^']*'|"(?:\\.|[^"\\])*"|[^\s'";&|])+""")
# The same for a key among its arguments.
SECRET = re.compile(r"(?i)(-[\w-]*(?:key|token|secret|password)[\w-]*[ =]|bearer )[^\s'\"]+")


class ClientAgent(Agent):
    """Runs a client in the agent's worktree, in a sandbox."""

    slow = True
    repairs = True

    def __init__(self, client: Client, model: str = "", writes: Sequence[Path] = ()) -> None:
        """`writes` are files and folders that it may write, in addition to the client's own."""
        self.client = client
        self.model = model
        self.name = f"{client.name}:{model}" if model else client.name
        self.priced = client.usd is not None
        self._tried: set[str] = set()  # levels of isolation at which its trial succeeded
        self.writes = (*(expanded(str(path)).absolute() for path in writes), *places(client.writes))

    def check(self) -> None:
        """Raise AgentError if the program is missing, or if there is certainly no login."""
        client = self.client
        if client.installed() is None:
            how = f" Install it: {client.install}" if client.install else ""
            raise AgentError(f"{client.program} is not in PATH.{how}", "missing")
        if client.logged_in() is False:
            wanted = ", ".join([*client.login_env, *client.login_files])
            how = f"Log in: {client.login}" if client.login else f"None of {wanted} exists."
            raise AgentError(f"there is no login for {self.name}. {how}", "login")

    def propose(self, context: Context) -> Proposal:
        """Run the client on the prompt, which is also in the file named by AUTORESEARCH_PROMPT.

        The description is the line `DESCRIPTION: ...` of the answer, otherwise the subject of the
        client's commit, otherwise the last line of the answer. The output is kept in agent.out and
        agent.err in the run's folder, and the answer alone in answer.txt. Raises AgentError, also
        if the client printed no JSON although it should, and changed nothing.
        """
        self.try_out(context)
        before = _content(context.worktree / "train.py")
        out, err = context.run_dir / "agent.out", context.run_dir / "agent.err"
        argv, stdin = self._request(context)
        ended = self._start(context, argv, stdin, out, err, self.client.limit_s)
        reply = replies.read(self.client.output, self.client.expressions, out, err)
        if ended.why == "abandoned":
            raise AgentError("abandoned", "abandoned", usage=reply.usage)
        if ended.why == "limit":
            seconds = f"{self.client.limit_s:.0f} s"
            message = f"`{self.name}` took longer than {seconds}; its log: {err}"
            raise AgentError(message, "hang", usage=reply.usage)
        returncode = isolation.signal_of(context.level, ended.returncode)
        idle = not reply.understood and _content(context.worktree / "train.py") == before
        if returncode or reply.error or idle:
            raise self._failure(returncode, reply, out, err)
        (context.run_dir / ANSWER).write_text(reply.text, encoding="utf-8", errors="replace")
        description, expected, last = replies.labels(reply.text)
        description = description or context.committed() or last
        idea, lessons = replies.idea(reply.text), replies.lessons(reply.text)
        return Proposal(description, expected, usage=reply.usage, idea=idea, lessons=lessons)

    def _start(
        self,
        context: Context,
        argv: list[str],
        stdin: Path,
        out: Path,
        err: Path | None,
        limit_s: float,
    ) -> Ended:
        """Run one of its commands to its end. Raises AgentError if the program is missing."""
        if context.sandbox is not None:
            argv = isolation.wrap(context.level, argv, self._sandbox(context.sandbox))
        disk = DiskUse((context.worktree, *context.written))
        try:
            running = process.Running(
                argv,
                cwd=context.worktree,
                env=self._environment(context),
                stdin=stdin,
                stdout=out,
                stderr=err,
                keep_fds=context.keep_fds,
            )
            ended = running.wait(limit_s=limit_s, abandoned=context.abandoned, tick=disk.look)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            words = "the prompt is too long for an argument: use {prompt_file}, or standard input"
            raise AgentError(f"`{self.name}` cannot be started: {words}.", "missing") from None
        except UserError as error:
            if self.client.installed():  # not the client's fault, so the loop must handle it
                raise
            raise AgentError(str(error), "missing") from None
        if ended.why == "limit" and (full := disk.look()):
            raise AgentError(f"`{self.name}` was ended: {full}.")
        return ended

    def _request(self, context: Context) -> tuple[list[str], Path]:
        """Return the command, and the file on its standard input."""
        values = {
            "worktree": str(context.worktree),
            "prompt": context.prompt,
            "prompt_file": str(context.prompt_path),
        }
        # In one pass, because a prompt may contain braces.
        argv = [
            re.sub(r"\{(worktree|prompt|prompt_file)\}", lambda found: values[found[1]], word)
            for word in self.client.command
        ]
        argv += [word.replace("{model}", self.model) for word in self.client.model if self.model]
        given = any("{prompt" in word for word in self.client.command)
        return argv, Path(os.devnull) if given else context.prompt_path

    def _environment(self, context: Context) -> dict[str, str]:
        return {
            **os.environ,
            **self.client.env,
            **context.env,
            "AUTORESEARCH_PROMPT": str(context.prompt_path),
            "PWD": str(context.worktree),  # some programs trust it more than getcwd
        }

    def _sandbox(self, sandbox: Sandbox) -> Sandbox:
        """Return the sandbox with the paths that the client must be able to write."""
        for path in places([word for word in self.client.writes if word.endswith("/")]):
            with contextlib.suppress(OSError):  # the sandbox ignores missing paths
                path.mkdir(parents=True, exist_ok=True)
        return dataclasses.replace(sandbox, writable=(*sandbox.writable, *self.writes))

    def try_out(self, context: Context) -> None:
        """Raise AgentError if nothing would restrict it, or if it cannot start in its sandbox."""
        level, client = context.level, self.client
        if level in self._tried:
            return
        if client.needs_sandbox and level == "none":
            raise AgentError(
                f"{self.name} needs our sandbox, but isolation is none. Run `sudo apt install "
                "bubblewrap`, or choose another --agent",
                "missing",
            )
        missing, _ = self._said(context, ["/bin/sh", "-c", MISSING, "sh", *self._needed()])
        if missing:
            raise AgentError(
                f"{self.name} needs {missing}, which is not there where it runs (isolation "
                f"{level}): a sandbox has its own /tmp and hides the data, and its copy of the "
                "workspace has committed files only. Move it to another folder, and name its full "
                "path",
                "missing",
            )
        said, failed = self._said(context, client.trial) if client.trial else ("", 0)
        if failed:
            raise AgentError(
                f"{self.name} cannot work with isolation {level}: `{' '.join(client.trial)}` says: "
                f"{said or 'nothing'}. {client.trial_advice}",
                "missing",
            )
        self._tried.add(level)

    def _needed(self) -> list[str]:
        """Return the programs and files without which it cannot start."""
        return [self.client.program, *_interpreter(self.client.installed())]

    def _said(self, context: Context, argv: Sequence[str]) -> tuple[str, int]:
        """Return the words and the exit code of a short command where it will work."""
        log = context.run_dir / "agent.err"
        ended = self._start(context, list(argv), Path(os.devnull), log, None, TRIAL_S)
        if ended.why == "abandoned":
            raise AgentError("abandoned", "abandoned")
        return clean(replies.plain(log), 300).rstrip("."), ended.returncode

    def _words(self, path: Path) -> str:
        """Return what it printed besides events, which may quote anything: errors alone count."""
        text = replies.plain(path)
        return replies.without_events(text) if self.client.output == "json-lines" else text

    def _failure(self, returncode: int, reply: Reply, out: Path, err: Path) -> AgentError:
        """Return what went wrong, in the client's words if there are any."""
        tails = [self._words(path)[-TAIL:] for path in (err, out)]
        said = reply.error[-TAIL:] or "\n".join(tails)
        missing = returncode == 127  # a shell's exit code for a command that it does not find
        kind = "missing" if missing else replies.kind_of(said, self.client.troubles)
        lasts = (replies.last_line(tail) for tail in (reply.error, *tails))
        words = next(filter(None, lasts), "it printed nothing")
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        how += "" if returncode or reply.understood else ", no JSON"
        advice = {"login": self.client.login, "missing": self.client.install}.get(kind, "")
        log = err if tails[0].strip() else out
        return AgentError(
            f"`{self.name}` failed ({how}): {words.rstrip('.')}; its log: {log}"
            + (f". Try: {advice}" if advice else ""),
            kind,
            again=replies.again(said) if kind == "limit" else None,
            usage=reply.usage,
        )


def _interpreter(script: str | None) -> list[str]:
    """Return the programs that the first line of a script names; none for another file."""
    with contextlib.suppress(OSError):
        line = files.read_part(Path(script or "").resolve(), LINE_BYTES).partition(b"\n")[0]
        program, *arguments = line.decode(errors="replace").removeprefix("#!").split() or [""]
        if line.startswith(b"#!") and program:
            named = arguments[:1] if Path(program).name == "env" else []
            return [program, *(one for one in named if not one.startswith("-"))]
    return []


def _content(path: Path) -> bytes | None:
    """Return a file's content, or None for anything but a regular file of acceptable size."""
    with contextlib.suppress(OSError, ValueError):
        return files.plain_bytes(path, replies.READ_BYTES)
    return None


class CommandAgent(ClientAgent):
    """Any command line for /bin/sh. It is a program, so placeholders in it are not replaced."""

    def __init__(
        self, command: str, writes: Sequence[Path] = (), clients: Iterable[Client] | None = None
    ) -> None:
        """Clients that the command names, of `clients` or the built-in ones, keep their login."""
        words = {Path(word).name for word in re.split(r"[\s;&|]+", command)}
        clients = shipped().values() if clients is None else clients
        named = (path.rstrip("/") for one in clients if one.program in words for path in one.writes)
        client = Client(
            name="",
            command=("/bin/sh", "-c", command),
            writes=tuple(dict.fromkeys(named)),
            install="the full path of a script, not in /tmp: it runs in a copy of the workspace",
        )
        super().__init__(client, writes=writes)
        self.name = clean(SECRET.sub(r"\1…", VALUE.sub(r"\1=…", command)), 60)

    def _request(self, context: Context) -> tuple[list[str], Path]:
        return list(self.client.command), context.prompt_path

    def check(self) -> None:
        """Raise AgentError if its program is a file that cannot be started."""
        program = self._program()
        if program and not os.access(program, os.X_OK):
            raise AgentError(f"{program} is not executable. Type: chmod +x {program}", "missing")

    def _program(self) -> str:
        """Return the file that the command starts first; "" if it is not named by a path."""
        words = self.client.command[-1].split()
        first = next((word for word in words if not VALUE.match(word)), "")
        path = expanded(first)
        return str(path) if "/" in first and path.is_file() else ""

    def _needed(self) -> list[str]:
        """Return the programs and scripts among the files that the command names."""
        words = re.split(r"[\s;&|'\"()]+", self.client.command[-1])
        paths = [path for word in words if (path := expanded(word)).is_file()]
        started = [one for one in paths if one.suffix in SCRIPTS or os.access(one, os.X_OK)]
        names = [str(one) if one.is_absolute() else f"./{one}" for one in started]
        return names + _interpreter(self._program())
