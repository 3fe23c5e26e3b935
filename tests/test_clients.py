"""Real clients from their npm packages, with a scripted API on loopback.

    mkdir -p "$AUTORESEARCH_CLIENTS"
    npm install --no-fund --no-audit --prefix "$AUTORESEARCH_CLIENTS" \\
        @anthropic-ai/claude-code@2.1.197 @openai/codex@0.169.0 \\
        @google/gemini-cli@0.61.0 opencode-ai@1.18.33
    uv run pytest --nightly tests/test_clients.py

AUTORESEARCH_CLIENTS names the folder, which must not be in /tmp, because a sandbox has its own.
Without it, the clients in PATH are used. No test reaches beyond loopback or reads the user's login.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from autoresearch_jax.agents import client_specs
from autoresearch_jax.agents.agent import AgentError, Context
from autoresearch_jax.agents.client import ClientAgent
from autoresearch_jax.records import journal
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.sandbox import isolation
from autoresearch_jax.sandbox.isolation import Sandbox
from autoresearch_jax.views import transcript
from tests import harness
from tests.harness import git, lines, run_loop
from tests.levels import STRONGEST, at
from tests.scripted_api import LEADING, Call, Fail, Hang, Say, serve

pytestmark = pytest.mark.nightly

FOLDER = os.environ.get("AUTORESEARCH_CLIENTS", "")
PATH = os.pathsep.join(filter(None, [FOLDER and f"{FOLDER}/node_modules/.bin", os.environ["PATH"]]))
NAMES = ("claude", "codex", "gemini", "opencode")
# These clients would otherwise ask for a model first.
MODELS = {"gemini": "gemini-2.5-pro", "opencode": "anthropic/claude-sonnet-4-5"}
DONE = Say("I halved it.\n\nDESCRIPTION: halve the score\nEXPECTED: -0.5")


def installed(*names):
    """Return clients as parameters; those that are not installed are skipped."""
    found = []
    for name in names:
        program = client_specs.shipped()[name].program
        reason = f"{program} is not installed, see {Path(__file__).name}"
        absent = shutil.which(program, path=PATH) is None
        found.append(pytest.param(name, marks=pytest.mark.skipif(absent, reason=reason)))
    return found


def patch(old, new):
    """Return a tool call of codex: JavaScript that applies a patch."""
    lines = f"*** Begin Patch\n*** Update File: train.py\n@@\n-{old}\n+{new}\n*** End Patch\n"
    return Call("exec", f"text(await tools.apply_patch({json.dumps(lines)}))")


def shell(command):
    """Return a tool call of codex that runs a command."""
    return Call("exec", f"text(await tools.exec_command({json.dumps({'cmd': command})}))")


EDITS = {  # tool calls that write SCORE = 0.5
    "claude": [
        Call("Read", {"file_path": "train.py"}),
        Call("Edit", {"file_path": "train.py", "old_string": "= 1.0", "new_string": "= 0.5"}),
    ],
    "codex": [patch("SCORE = 1.0", "SCORE = 0.5"), shell("cat train.py")],
    "gemini": [
        Call("read_file", {"file_path": "train.py"}),
        Call(
            "replace",
            {
                "file_path": "train.py",
                "old_string": "= 1.0",
                "new_string": "= 0.5",
                "instruction": "Halve it.",
            },
        ),
    ],
    "opencode": [
        Call("read", {"filePath": "train.py"}),
        Call("edit", {"filePath": "train.py", "oldString": "= 1.0", "newString": "= 0.5"}),
    ],
}
EDITS["codex-sandboxed"] = EDITS["codex"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home folder without any login, with the clients in PATH."""
    for name in [name for name in os.environ if name.startswith(LEADING)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", PATH)
    # In a home below the folder for temporary files, codex does not create its sandbox's helper.
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch" / "tmp"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def login(home, monkeypatch):
    """Return a function that points all clients to an API, with a key."""

    def lead(api):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
        monkeypatch.setenv("CLAUDE_CODE_MAX_RETRIES", "0")
        monkeypatch.setenv("CODEX_API_KEY", "key")
        (home / ".codex").mkdir(exist_ok=True)
        (home / ".codex" / "config.toml").write_text(
            'model_provider = "scripted"\n[model_providers.scripted]\nname = "scripted"\n'
            f'base_url = "{api.url}/v1"\nwire_api = "responses"\nenv_key = "CODEX_API_KEY"\n'
            "request_max_retries = 0\nstream_max_retries = 0\n"
        )
        monkeypatch.setenv("GEMINI_API_KEY", "key")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", api.url)
        (home / ".gemini").mkdir(exist_ok=True)
        (home / ".gemini" / "settings.json").write_text(
            json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}})
        )
        provider = {"anthropic": {"options": {"baseURL": f"{api.url}/v1"}}}
        monkeypatch.setenv("OPENCODE_CONFIG_CONTENT", json.dumps({"provider": provider}))

    return lead


@pytest.fixture
def context(tmp_path):
    """Return a function that makes a worktree and a sandbox of a level for it."""
    worktree = harness.make_repository(tmp_path / "worktree")
    prompt = tmp_path / "prompt.md"
    prompt.write_text("Halve the score in train.py.")
    (tmp_path / "run").mkdir()

    def make(level="none"):
        sandbox = Sandbox(
            isolation.fresh(tmp_path / "scratch"),
            readable=(prompt,),
            writable=(worktree,),
            everything=True,
            network=True,
        )
        return Context(
            worktree=worktree, n=1, seed=0, history=(), sources_of=list,
            prompt=prompt.read_text(), prompt_path=prompt, run_dir=tmp_path / "run",
            level=level, sandbox=sandbox,
        )  # fmt: skip

    return make


def agent(name, **changes):
    """Return the client NAME with a time limit for tests."""
    one = client_specs.shipped()[name].model_copy(update={"limit_s": 60.0, **changes})
    return ClientAgent(one, MODELS.get(name, ""))


def trouble(name, context, login, *steps, **changes):
    """Return the AgentError of a client whose API gives these answers."""
    with serve(*steps) as api:
        login(api)
        with pytest.raises(AgentError) as caught:
            agent(name, **changes).propose(context())
    return caught.value


# ------------------------------------------------------------------------------ edits


CASES = [
    pytest.param(*name.values, *level.values, marks=(*name.marks, *level.marks))
    for name in installed("claude", "codex", "codex-sandboxed", "gemini", "opencode")
    for level in at("none", "landlock", "bwrap")
    # Gemini and opencode take seconds; claude shows that the other sandboxes work.
    if level.values == (STRONGEST,) or name.values[0] not in ("gemini", "opencode")
]


@pytest.mark.parametrize(("name", "level"), CASES)
def test_a_client_edits_train_py_and_reports_the_cost(login, context, name, level):
    if level == "bwrap" and Path(FOLDER).resolve().is_relative_to("/tmp"):
        pytest.skip(f"AUTORESEARCH_CLIENTS={FOLDER} is in /tmp, but a sandbox has its own /tmp")
    one, here = agent(name), context(level)
    with serve(*EDITS[name], DONE) as api:
        login(api)
        one.check()
        if cannot_nest(name, level) or (name == "codex-sandboxed" and level == "none"):
            with pytest.raises(AgentError, match="our sandbox") as caught:
                one.propose(here)
            assert caught.value.kind == "missing"
            return
        proposal = one.propose(here)
    assert (here.worktree / "train.py").read_text().startswith("SCORE = 0.5\n")
    assert (proposal.description, proposal.expected) == ("halve the score", "-0.5")
    said = transcript.read(here.run_dir / "agent.out")
    assert "I halved it." in said.splitlines()
    assert "train.py" in said  # its tool calls
    assert not any(line.startswith("{") for line in said.splitlines())
    assert proposal.usage.tokens >= 330  # three answers, and further requests
    assert (proposal.usage.usd or 0) > 0 or not one.priced
    assert one.priced == (name in ("claude", "opencode"))
    assert "Halve the score in train.py." in json.dumps(api.requests)
    assert not git(here.worktree, "status", "--porcelain").replace("M train.py", "").strip()


def cannot_nest(name, level):
    """Return whether codex cannot start its own sandbox at this level."""
    return name == "codex" and (level == "landlock" or (level == "bwrap" and os.geteuid() == 0))


def forbidden(name, place, api):
    """Return tool calls that no client may execute: a shell, and edits of other files."""
    address = "/dev/tcp/127.0.0.1/" + api.url.rpartition(":")[2]
    return {
        "claude": [
            Call("Bash", {"command": "touch forbidden"}),
            Call("Write", {"file_path": str(place), "content": "x"}),
        ],
        # Its shell runs in its own sandbox.
        "codex": [shell(f"touch {place}"), shell(f"exec 3<>{address} && touch forbidden")],
        "codex-sandboxed": [shell(f"touch {place}")],
        "gemini": [
            Call("run_shell_command", {"command": "touch forbidden"}),
            Call("write_file", {"file_path": str(place), "content": "x"}),
        ],
        "opencode": [
            Call("bash", {"command": "touch forbidden", "description": "x"}),
            Call("write", {"filePath": str(place), "content": "x"}),
        ],
    }[name]


@pytest.mark.parametrize("name", installed(*NAMES, "codex-sandboxed"))
def test_a_client_writes_nowhere_else(login, context, name):
    # Without our sandbox, except for the client that needs it; not in /tmp, where codex may write.
    level = STRONGEST if name == "codex-sandboxed" else "none"
    if level == "none" and name == "codex-sandboxed":
        pytest.skip("there is no sandbox")
    place = Path(FOLDER or Path(__file__).parent) / f"written-by-{name}-{os.getpid()}"
    here = context(level)
    with serve(DONE) as api:
        login(api)
        asked = forbidden(name, place, api)
        api.script = [*asked, DONE]
        agent(name).propose(here)
    try:
        assert api.results == len(asked)  # all tool calls were requested
        assert not place.exists()
        assert not (here.worktree / "forbidden").exists()
    finally:
        place.unlink(missing_ok=True)


@pytest.mark.parametrize("name", installed("claude"))
def test_the_loop_keeps_or_discards_an_edit(login, tmp_path, monkeypatch, name):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "data"))
    workspace = Workspace.open(harness.make_repository(tmp_path / "workspace"))
    with serve(*EDITS[name], DONE) as api:
        login(api)
        run_loop(workspace, agent(name), 1, tag="t", level=STRONGEST)
        api.script = [
            Call("Read", {"file_path": "train.py"}),
            Call("Edit", {"file_path": "train.py", "old_string": "= 0.5", "new_string": "= 0.7"}),
            DONE,
        ]
        run_loop(workspace, agent(name), 1, tag="t", level=STRONGEST)
    kept, discarded = list(journal.read(workspace.state_dir("t")))[1:]
    assert (kept.status, kept.val_bpb, kept.agent) == ("keep", 0.5, "claude")
    assert (kept.description, kept.expected) == ("halve the score", "-0.5")
    assert (discarded.status, discarded.val_bpb) == ("discard", 0.7)
    asked = [r for r in lines(workspace.state_dir("t")) if r["step"] == "asked"]
    assert all(r["usd"] > 0 and r["tokens"] >= 330 for r in asked)


# ------------------------------------------------------------------------------ failures

HOURS = 2 * 3600
KEY = "Incorrect API key provided"


@pytest.mark.parametrize("name", installed(*NAMES))
def test_a_refused_key_is_a_login_failure(context, login, name):
    assert trouble(name, context, login, Fail(401, KEY)).kind == "login"


@pytest.mark.parametrize("name", installed("claude"))
def test_claude_reports_when_a_subscription_resets(context, login, monkeypatch, name):
    resets = time.time() + HOURS
    headers = {
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": str(int(resets)),
        "anthropic-ratelimit-unified-representative-claim": "five_hour",
    }
    with serve(Fail(429, "This would exceed your account's rate limit.", headers)) as api:
        login(api)
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-x")
        with pytest.raises(AgentError, match="hit your session limit") as caught:
            agent(name).propose(context())
    assert caught.value.kind == "limit"
    assert abs(caught.value.again - resets) < 1800  # it may round to half an hour


@pytest.mark.parametrize("name", installed("codex"))
def test_codex_reports_when_a_subscription_resets(context, login, name):
    resets = int(time.time()) + HOURS
    more = {"type": "usage_limit_reached", "plan_type": "plus", "resets_at": resets}
    error = trouble(name, context, login, Fail(429, "The usage limit has been reached", more=more))
    assert error.kind == "limit"
    assert abs(error.again - resets) < 120


@pytest.mark.parametrize("name", installed("claude"))
def test_a_refusal_is_recognised_with_its_cost(context, login, name):
    error = trouble(name, context, login, Say("", why="refusal"))
    assert error.kind == "refused"
    assert error.usage.usd > 0
    assert error.usage.tokens >= 110


@pytest.mark.parametrize("name", installed("claude"))
def test_the_limit_of_turns_is_recognised(context, login, name):
    command = (*client_specs.shipped()[name].command, "--max-turns", "1")
    error = trouble(name, context, login, *EDITS[name], DONE, command=command)
    assert error.kind == "stopped"
    assert "maximum number of turns (1)" in str(error)
    assert error.usage.usd > 0


@pytest.mark.parametrize("name", installed("claude", "codex"))
def test_an_api_that_does_not_answer_ends_at_the_limit(context, login, name):
    begun = time.monotonic()
    error = trouble(name, context, login, Hang(), limit_s=2.0)
    assert error.kind == "hang"
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", installed("claude", "gemini"))
def test_a_missing_login_is_recognised_in_the_answer(home, context, name):
    with pytest.raises(AgentError) as caught:
        agent(name).propose(context())
    assert caught.value.kind == "login"
