"""Descriptions of clients, requests to them, and their answers, without real clients."""

import dataclasses
import json
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import pytest

from autoresearch_jax.agents import client_specs, replies
from autoresearch_jax.agents.agent import AgentError, Context, Proposal, Trouble, Usage
from autoresearch_jax.agents.client import ClientAgent, CommandAgent
from autoresearch_jax.agents.factory import make_agent
from autoresearch_jax.commands import doctor, doctor_lines
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import config
from tests.scripted_api import LEADING

DESCRIBED = {"command": ["my-client", "--quiet"]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home folder without any login; an empty folder comes first in PATH."""
    for name in [name for name in os.environ if name.startswith(LEADING)]:
        monkeypatch.delenv(name)
    for name in ("home", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "home"


@pytest.fixture
def program(home, tmp_path):
    """Return a function that writes a program in PATH."""

    def write(name, source):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def context(tmp_path):
    for name in ("worktree", "run"):
        (tmp_path / name).mkdir()
    prompt = tmp_path / "prompt.md"
    prompt.write_text("Make {model} 'better'.\n$HOME")
    return Context(
        worktree=tmp_path / "worktree", n=1, seed=0, history=(), sources_of=list,
        prompt=prompt.read_text(), prompt_path=prompt, run_dir=tmp_path / "run",
    )  # fmt: skip


def described(**fields):
    return client_specs.parse("mine", {**DESCRIBED, **fields})


# --------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"command": "my-client"},
            "sets agents.mine.command to 'my-client', and it should be a list",
        ),
        ({"command": []}, "sets agents.mine.command to [], and it should not be empty"),
        (
            {"colour": "red"},
            "sets 'agents.mine.colour', which is not a key of agents. Expected one of: like",
        ),
        (
            {"like": "clod"},
            "sets agents.mine.like to 'clod', which is not a client. Did you mean",
        ),
        (
            {"model": ["--model"]},
            "to ['--model'], and it should have a word with {model}",
        ),
        ({"output": "xml"}, "'xml', and it should be 'text', 'json' or 'json-lines'"),
        ({"output": "json", "usd": "cost["}, "agents.mine.usd to 'cost[', and it should be a JMES"),
        ({"usd": "cost"}, "sets agents.mine.usd, which needs output: json"),
        ({"troubles": {"limit": "("}}, "agents.mine.troubles.limit to '(', and it should be a reg"),
        (
            {"needs_sandbox": "yes"},
            "agents.mine.needs_sandbox to 'yes', and it should be true or false",
        ),
        ({"limit_s": 0}, "agents.mine.limit_s to 0, and it should be greater than 0"),
    ],
)
def test_a_mistake_in_a_description_is_named(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        described(**fields)


@pytest.mark.parametrize("name", ["search", "tpe", "a b", "-x"])
def test_a_name_is_valid_and_not_reserved(name):
    with pytest.raises(ValueError, match="names an agent"):
        client_specs.parse(name, DESCRIBED)


@pytest.mark.parametrize("value", ["my-client", {"env": {}}])
def test_a_client_without_a_command_is_refused(value):
    with pytest.raises(ValueError, match=r"agents\.mine"):
        client_specs.parse("mine", value)


def test_a_client_takes_missing_keys_from_another():
    one = client_specs.parse(
        "short", {"like": "claude", "limit_s": 60, "tokens": "usage.output_tokens"}
    )
    claude = client_specs.shipped()["claude"]
    assert one.expressions == {**claude.expressions, "tokens": "usage.output_tokens"}
    same = {"name": "claude", "tokens": claude.tokens, "limit_s": 1800.0}
    assert one.model_copy(update=same) == claude


def test_the_built_in_clients_are_complete_and_skip_no_permissions():
    assert set(client_specs.shipped()) == {
        "claude",
        "codex",
        "codex-sandboxed",
        "gemini",
        "opencode",
    }
    for one in client_specs.shipped().values():
        assert one.install
        assert one.login
        assert one.writes
        assert not any("dangerously" in word or "yolo" in word for word in one.command)


# ------------------------------------------------------------------------------------ names


def test_names_make_clients():
    mine = {"mine": DESCRIBED, "claude": {"like": "claude", "limit_s": 5}}
    make = make_agent
    assert make("codex").name == "codex"
    assert make("claude:opus").name == "claude:opus"
    assert make("opencode:some/model:free").model == "some/model:free"
    assert make("mine", (), mine).client.command == ("my-client", "--quiet")
    assert make("claude", (), mine).client.limit_s == 5  # the user's takes precedence
    for command in ("claude -p", "claude: x", "./claude", "true"):
        assert isinstance(make(command), CommandAgent)
    with pytest.raises(UserError, match="--agent mine:x selects the model 'x'"):
        make("mine:x", (), mine)


def test_clients_with_a_price():
    found = {name: make_agent(name).priced for name in client_specs.shipped()}
    assert [name for name, priced in found.items() if priced] == ["claude", "opencode"]
    assert not CommandAgent("x").priced


# ---------------------------------------------------------------------------------- checks


def test_the_error_for_a_missing_program_names_the_command_that_installs_it(home):
    with pytest.raises(
        AgentError, match=r"claude is not in PATH\. Install it: npm install"
    ) as caught:
        make_agent("claude").check()
    assert caught.value.kind == "missing"


def test_an_unknown_word_is_not_run_as_a_command(home):
    with pytest.raises(UserError, match=r"--agent 'cluade' is unknown"):
        make_agent("cluade")
    with pytest.raises(UserError, match=r"sandboxed, gemini, opencode, mine; .* mean mine\?$"):
        make_agent("mien", (), {"mine": DESCRIBED})
    for command in ("ls", "cd x && cluade", "exit; true", "./agent.sh"):
        make_agent(command).check()


@pytest.mark.parametrize("evidence", ["variable", "file", "elsewhere", "settings", None])
def test_a_login_is_searched_in_variables_and_files(home, program, monkeypatch, evidence):
    program("codex", "")
    one = make_agent("codex")
    if evidence == "variable":
        monkeypatch.setenv("CODEX_API_KEY", "x")
    elif evidence == "file":
        (home / ".codex").mkdir()
        (home / ".codex" / "auth.json").touch()
    elif evidence == "elsewhere":
        monkeypatch.setenv("CODEX_HOME", str(home))
        (home / "auth.json").touch()
    elif evidence == "settings":  # which may contain a login
        (home / ".codex").mkdir()
        (home / ".codex" / "config.toml").touch()
    if evidence:
        one.check()
        assert one.client.logged_in() is (None if evidence == "settings" else True)
    else:
        said = r"^there is no login for codex\. Log in: codex login, or export CODEX_API_KEY$"
        with pytest.raises(AgentError, match=said) as caught:
            one.check()
        assert caught.value.kind == "login"


def test_a_client_without_known_login_files_needs_no_login(home, program):
    program("opencode", "")
    make_agent("opencode").check()
    assert make_agent("opencode").client.logged_in() is None


def doctors(tmp_path, program):
    """Return the lines of `doctor` about the clients for a program.md, and its problems."""
    (tmp_path / "program.md").write_text(program)
    try:
        settings = config.resolve(tmp_path)
    except UserError as error:
        return {}, [doctor.Problem(str(error), "")]
    lines = {name: doctor_lines._agent_words(one) for name, one in doctor._agents(settings).items()}
    return lines, list(doctor._unusable_agent(settings, None))


def test_doctor_lists_the_clients(home, program, tmp_path, monkeypatch):
    for name in ("claude", "codex", "opencode"):
        program(name, "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    own = "---\nagents:\n  mine: {command: [my-client]}\n  yours: {like: codex}\n---\n"
    lines, problems = doctors(tmp_path, own)
    assert lines["claude"] == "installed; a login or key exists (not tried)"
    assert lines["codex"].startswith("installed; there is no login or key: codex login")
    assert lines["yours"] == lines["codex-sandboxed"] == lines["codex"]
    assert lines["gemini"] == "not installed: npm install -g @google/gemini-cli"
    assert lines["opencode"] == "installed; its login is unknown"
    assert lines["mine"] == "not installed: my-client is not in PATH"
    assert not problems  # none of them is chosen


def test_doctor_checks_the_chosen_agent(home, program, tmp_path):
    [problem] = doctors(tmp_path, "---\nagent: claude\n---\n")[1]
    assert "program.md sets the agent claude: claude is not in PATH. Install" in problem.problem
    program("claude", "")
    [problem] = doctors(tmp_path, "---\nagent: claude\n---\n")[1]
    assert "there is no login for claude" in problem.problem
    [problem] = doctors(tmp_path, "---\nagents: {mine: {}}\n---\n")[1]
    assert "does not set agents.mine.command" in problem.problem
    assert not doctors(tmp_path, "---\nagent: tpe\n---\n")[1]


# --------------------------------------------------------------------------------------- requests

REPORT = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "in": sys.stdin.read(), "where": os.environ["PWD"],
                  "quiet": os.environ.get("QUIET"), "file": os.environ["AUTORESEARCH_PROMPT"]}))
"""


@pytest.mark.parametrize(
    ("command", "arguments", "read"),
    [
        (["my-client", "-C", "{worktree}"], ["-C", "WORKTREE"], True),
        (["my-client", "-p", "{prompt}"], ["-p", "PROMPT"], False),
        (["my-client", "--file={prompt_file}"], ["--file=FILE"], False),
    ],
)
def test_a_prompt_is_passed_as_described(program, context, command, arguments, read):
    program("my-client", REPORT)
    one = described(command=command, model=["-m", "{model}"], env={"QUIET": "1"}, output="json")
    ClientAgent(one, "opus").propose(context)
    received = json.loads((context.run_dir / "agent.out").read_text())
    values = {"WORKTREE": context.worktree, "PROMPT": context.prompt, "FILE": context.prompt_path}
    for name, value in values.items():
        arguments = [word.replace(name, str(value)) for word in arguments]
    assert received == {
        "arguments": [*arguments, "-m", "opus"],
        "in": context.prompt if read else "",
        "where": str(context.worktree),
        "quiet": "1",
        "file": str(context.prompt_path),
    }


def test_nothing_is_replaced_in_a_shell_command(context):
    CommandAgent("echo '{prompt} {worktree}'; cat").propose(context)
    assert (
        context.run_dir / "agent.out"
    ).read_text() == f"{{prompt}} {{worktree}}\n{context.prompt}"


@pytest.mark.parametrize(
    ("answer", "committed", "description", "expected"),
    [
        ("Done.\n\nDESCRIPTION: halve it\nEXPECTED: -0.002\n", "", "halve it", "-0.002"),
        ("**EXPECTED**: a bit\n**DESCRIPTION:** halve it\nBye.", "mine", "halve it", "a bit"),
        ("> description : a: b", "", "a: b", ""),
        ("DESCRIPTION: first\nDESCRIPTION: second", "", "second", ""),
        ("I halve it.\nEXPECTED: -1\n```\n\n", "", "I halve it.", "-1"),
        ("I halve it.\n", "its commit", "its commit", ""),
        ("", "", "", ""),
    ],
)
def test_description_and_expectation_are_read_from_an_answer(
    context, answer, committed, description, expected
):
    (context.worktree / "words").write_text(answer)
    context = dataclasses.replace(context, committed=lambda: committed)
    proposal = CommandAgent("cat words").propose(context)
    assert (proposal.description, proposal.expected) == (description, expected)


def printing(program, text, code=0):
    program("my-client", f"import sys\nprint({text!r})\nsys.exit({code})")


JSON = {"output": "json", "reply": "answer", "usd": "cost", "tokens": "sum(used)", "error": "bad"}


def test_description_and_cost_are_read_from_an_object(program, context):
    printing(program, json.dumps({"answer": "a\nDESCRIPTION: b", "cost": 0.5, "used": [1, 2]}))
    proposal = ClientAgent(described(**JSON)).propose(context)
    assert proposal.description == "b"
    assert proposal.usage == Usage(0.5, 3)


def test_description_and_cost_are_read_from_events(program, context):
    events = [{"say": "a"}, {"say": "DESCRIPTION: b", "cost": 1}, {"cost": 2}]
    printing(program, "starting ...\n" + "\n".join(map(json.dumps, events)) + '\n{"torn')
    fields = {"output": "json-lines", "reply": "[*].say | [-1]", "usd": "sum([*].cost)"}
    proposal = ClientAgent(described(**fields)).propose(context)
    assert (proposal.description, proposal.usage) == ("b", Usage(3.0, None))


@pytest.mark.parametrize("cost", ["much", True, -1, float("nan"), 10**400])
def test_an_invalid_cost_is_ignored(program, context, cost):
    printing(program, json.dumps({"answer": "b", "cost": cost, "used": ["x", cost]}))
    assert ClientAgent(described(**JSON)).propose(context).usage == Usage()


DEBRIS = ["[1]", "[" * 100_000, "", "usage: my-client\nDESCRIPTION: one line"]


@pytest.mark.parametrize("text", DEBRIS)
def test_output_without_json_is_not_an_answer(program, context, text):
    printing(program, text)
    with pytest.raises(AgentError, match=r"`mine` failed \(exit code 0, no JSON\): ") as caught:
        ClientAgent(described(**JSON)).propose(context)
    assert caught.value.kind == "failed"


def test_a_failure_is_recognised_in_output_without_json(program, context):
    printing(program, "Not logged in. Run my-client login")
    with pytest.raises(AgentError, match=r"no JSON.*Not logged in") as caught:
        ClientAgent(described(**JSON)).propose(context)
    assert caught.value.kind == "login"


@pytest.mark.parametrize("text", [*DEBRIS, '{"answer": 5}'])
def test_an_edit_counts_whatever_was_printed(program, context, text):
    program("my-client", f"open('train.py', 'w').write('x')\nprint({text!r})")
    assert ClientAgent(described(**JSON)).propose(context) == Proposal()


def test_a_reported_error_counts_whatever_the_exit_code(program, context):
    printing(program, json.dumps({"bad": "429: try again in 2 hours", "cost": 0.5}))
    with pytest.raises(AgentError, match=r"`mine` failed \(exit code 0\): 429: try") as caught:
        ClientAgent(described(**JSON)).propose(context)
    assert (caught.value.kind, caught.value.usage.usd) == ("limit", 0.5)
    assert abs(caught.value.again - time.time() - 7200) < 60


def test_an_error_is_also_read_from_standard_error(program, context):
    program(
        "my-client", 'import sys; print(\'hm\\n{\\n "bad": "Unauthorized"\\n}\', file=sys.stderr)'
    )
    with pytest.raises(AgentError, match=r"Unauthorized; its log.*Try: my-client login") as caught:
        ClientAgent(described(**JSON, login="my-client login")).propose(context)
    assert caught.value.kind == "login"


def test_the_cost_of_a_hanging_client_is_counted(program, context):
    program("my-client", "import time; print('{\"cost\": 2}', flush=True); time.sleep(60)")
    with pytest.raises(AgentError, match="took longer than 1 s") as caught:
        ClientAgent(described(**JSON, limit_s=0.9)).propose(context)
    assert (caught.value.kind, caught.value.usage.usd) == ("hang", 2.0)


def test_a_client_that_cannot_be_started_is_missing(home, context):
    with pytest.raises(AgentError, match="needs my-client, which is not there") as caught:
        ClientAgent(described()).propose(context)
    assert caught.value.kind == "missing"


def test_a_client_that_needs_our_sandbox_is_not_started_without_it(program, context):
    program("my-client", "")
    with pytest.raises(AgentError, match="needs our sandbox, but isolation is none") as caught:
        ClientAgent(described(needs_sandbox=True)).propose(context)
    assert caught.value.kind == "missing"
    assert not (context.run_dir / "agent.out").exists()


def test_a_client_whose_own_sandbox_cannot_start_gets_no_request(program, context):
    program("my-client", "print('asked')")
    program("my-trial", "import os, sys; sys.exit(os.path.exists('broken') and 'no namespaces')")
    one = ClientAgent(described(trial=["my-trial"], trial_advice="Take another."))
    (context.worktree / "broken").touch()
    with pytest.raises(AgentError, match=r"says: no namespaces\. Take another\.") as caught:
        one.propose(context)
    assert caught.value.kind == "missing"
    assert not (context.run_dir / "agent.out").exists()
    (context.worktree / "broken").unlink()
    assert one.propose(context).description == "asked"


# ------------------------------------------------------------------------------- answers

# Messages of the clients; the first of each kind is from the version that test_clients.py names.
SAID = {
    "login": [
        "Not logged in · Please run /login",
        "Invalid API key · Fix external API key",
        "Failed to authenticate. API Error: 401 OAuth token has expired.",
        "unexpected status 401 Unauthorized: Incorrect API key provided: sk-x.",
        "Missing environment variable: `CODEX_API_KEY`.",
        "Please set an Auth method in your settings.json or specify one of the following",
        "When using Gemini API, you must specify the GEMINI_API_KEY environment variable.",
        '{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}',
        "ProviderAuthError  Google Generative AI API key is missing.",
    ],
    "limit": [
        "You've hit your session limit · resets 6:55pm (UTC)",
        "You've hit your weekly limit · resets Nov 28, 12:29am (UTC)",
        "API Error: Request rejected (429) · This request would exceed your rate limit",
        "API Error: 529 Overloaded. This is a server-side issue, usually temporary",
        "Credit balance is too low",
        "exceeded retry limit, last status: 429 Too Many Requests",
        "You’ve hit your usage limit. Upgrade to Pro or try again at 6:55 PM.",
        "Quota exceeded. Check your plan and billing details.",
        "Resource has been exhausted (e.g. check quota).",
    ],
    "stopped": [
        "Reached maximum number of turns (1)",
        "API Error: Claude's response exceeded the 64000 output token maximum.",
        "Prompt is too long",
    ],
    "refused": [
        "API Error: Claude Code is unable to respond to this request, which appears to violate our "
        "Usage Policy (see the terms). Try rephrasing the request in a new session.",
        "ContentFilterError  The response was blocked by the provider's content filter",
    ],
    "missing": ["bwrap: execvp codex: No such file or directory"],
    "failed": [
        "Segmentation fault",
        "",
        "API Error: 400 no",
        "429th line of 401kb",
        'File "agent.py", line 401, in <module>',
        "line 429",
        "Disk quota exceeded",
    ],
}


@pytest.mark.parametrize("kind", SAID)
def test_a_failure_is_recognised_by_its_words(kind):
    assert kind in get_args(Trouble)
    assert {text: replies.kind_of(text, {}) for text in SAID[kind]} == dict.fromkeys(
        SAID[kind], kind
    )


def test_the_patterns_of_a_client_take_precedence():
    assert replies.kind_of("401: come back later", {"limit": "come back"}) == "limit"


NOW = datetime(2026, 11, 25, 17, 30, tzinfo=ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("resets 6:55pm (UTC)", 85 * 60),
        ("resets 18:00 (Europe/Berlin)", 23.5 * 3600),  # it is 18:30 there
        ("resets at 12am (UTC)", 6.5 * 3600),
        ("resets Nov 28, 12:29am (UTC)", (2 * 24 + 6) * 3600 + 59 * 60),
        ("try again at Nov 28th, 2026 12:29 AM (UTC).", (2 * 24 + 6) * 3600 + 59 * 60),
        ("resets Jan 2, 3am (UTC)", 7 * 86400),  # more than the longest wait
        ("Please try again in 20s.", 20),
        ("Your quota will reset after 1h2m3s.", 3723),
        (f"usage limit reached|{int(NOW.timestamp()) + 60}", 60),
        (f'{{"resets_at": {int(NOW.timestamp()) + 60}}}', 60),
        (f"resets_at: {int(NOW.timestamp()) - 60}", None),
        ("resets Nov 24, 3am (UTC)", None),
        ("resets 99:99", None),
        ("try again later", None),
    ],
)
def test_the_time_of_the_next_request_is_read_from_a_message(text, seconds):
    found = replies.again(text, NOW.timestamp())
    assert found == (None if seconds is None else pytest.approx(NOW.timestamp() + seconds))


def test_a_time_without_a_zone_is_local(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:  # it is 12:30 there
        assert replies.again("try again at 1:00 PM.", NOW.timestamp()) == NOW.timestamp() + 1800
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["9" * 4000, "again in " + "1 " * 2000, "resets " * 600])
def test_no_text_takes_long_to_search(text):
    begun = time.process_time()
    replies.again(text, NOW.timestamp())
    replies.kind_of(text, {})
    replies.labels(text)
    replies.idea(text)
    assert time.process_time() - begun < 30  # minutes, where a search is quadratic


@pytest.mark.parametrize("words", ["DESCRIPTION: " + " " * 8_000_000 + "x", "hit your " * 900_000])
def test_a_large_answer_costs_little(tmp_path, words):
    (tmp_path / "out").write_text(json.dumps({"said": words}))
    begun = time.process_time()
    reply = replies.read("json", {"reply": "said", "error": "said"}, tmp_path / "out", tmp_path)
    replies.labels(reply.text)
    replies.kind_of(reply.error, {})
    assert time.process_time() - begun < 60


# ------------------------------------------------------------------------------- files


def test_a_client_may_write_where_its_login_is(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "other"))
    one = make_agent("codex", [Path("notes")])
    assert one.writes == (Path("notes").absolute(), home / ".codex", tmp_path / "other")


def test_a_command_that_runs_a_client_keeps_its_login(home):
    claude = (home / ".claude", home / ".claude.json")
    assert CommandAgent("cd x && /usr/bin/claude -p --tools 'Read,Edit'").writes == claude
    assert CommandAgent("python my_agent.py").writes == ()
    own = {"mine": {**DESCRIBED, "writes": ["~/.mine"]}}
    assert make_agent("my-client -p", (), own).writes == (home / ".mine",)


@pytest.mark.parametrize("words", ["resets 3am (Nowhere/Land)"])
def test_a_time_with_an_unknown_zone_is_local(words):
    assert replies.again(words, NOW.timestamp()) is not None


@pytest.mark.parametrize(
    "command",
    [
        "my --api-key sk-1234 --fast",
        "curl -H 'Authorization: Bearer sk-1234' here",
        'K="a\\"sk-1234" my',
    ],
)
def test_the_name_of_a_command_contains_no_keys(command):
    name = CommandAgent(command).name
    assert "sk-1234" not in name
    assert "…" in name


@pytest.mark.parametrize(("name", "meant"), [("cluade:opus", "claude"), ("nosuch:model", "")])
def test_a_mistyped_name_with_a_model_is_not_run_as_a_command(name, meant):
    with pytest.raises(UserError, match="is unknown") as caught:
        make_agent(name)
    assert str(caught.value).endswith(f"Did you mean {meant}?" if meant else "the clients")


def test_json_with_a_line_end_in_a_string_is_read(tmp_path):
    (tmp_path / "out").write_text('{"result": "a\nb", "cost": 0.5}')
    fields = {"reply": "result", "usd": "cost"}
    reply = replies.read("json", fields, tmp_path / "out", tmp_path / "err")
    assert (reply.text, reply.usage.usd) == ("a\nb", 0.5)
