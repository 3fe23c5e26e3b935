"""Clients as data, without any real one: how they are described, asked, and understood."""

import dataclasses
import json
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from autoresearch_jax import agents
from autoresearch_jax.agents import (
    TROUBLES,
    AgentError,
    Context,
    Proposal,
    Usage,
    client,
    replies,
)
from autoresearch_jax.agents.client import ClientAgent, CommandAgent
from autoresearch_jax.commands import doctor, doctor_lines
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import config
from tests.scripted_api import LEADING

DESCRIBED = {"command": ["my-client", "--quiet"]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without any login, and an empty folder in front of PATH."""
    for name in [name for name in os.environ if name.startswith(LEADING)]:
        monkeypatch.delenv(name)
    for name in ("home", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "home"


@pytest.fixture
def program(home, tmp_path):
    """Writes a program in PATH."""

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
        worktree=tmp_path / "worktree", n=1, seed=0, history=(), source_of=str, base=None,
        prompt=prompt.read_text(), prompt_path=prompt, run_dir=tmp_path / "run",
    )  # fmt: skip


def described(**fields):
    return client.parse("mine", {**DESCRIBED, **fields})


# --------------------------------------------------------------------------- as they are described


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"command": "my-client"},
            "sets agents.mine.command to 'my-client', and it should be a list",
        ),
        ({"command": []}, "agents.mine.command"),
        ({"command": ["a", 5]}, "agents.mine.command"),
        (
            {"colour": "red"},
            "sets 'agents.mine.colour', which is not a key of agents. There are: like",
        ),
        (
            {"like": "clod"},
            "sets agents.mine.like to 'clod', which is not a client. Did you mean",
        ),
        (
            {"model": ["--model"]},
            "to ['--model'], and it should have a word with {model}",
        ),
        ({"env": {"A": 1}}, "agents.mine.env"),
        ({"output": "xml"}, "'xml', and it should be 'text', 'json' or 'json-lines'"),
        ({"output": "json", "usd": "cost["}, "agents.mine.usd to 'cost[', and it should be a JMES"),
        ({"usd": "cost"}, "sets agents.mine.usd, which needs output: json"),
        ({"troubles": {"tired": "x"}}, "agents.mine.troubles"),
        ({"troubles": {"limit": "("}}, "agents.mine.troubles.limit to '(', and it should be a reg"),
        ({"needs_box": "yes"}, "agents.mine.needs_box to 'yes', and it should be true or false"),
        ({"limit_s": 0}, "agents.mine.limit_s to 0, and it should be greater than 0"),
    ],
)
def test_what_is_wrong_in_a_description_is_said(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        described(**fields)


@pytest.mark.parametrize("name", ["tpe", "hybrid", "person", "a b", "", "-x", "a:b"])
def test_a_name_is_one_that_can_be_typed_and_is_free(name):
    with pytest.raises(ValueError, match="names an agent"):
        client.parse(name, DESCRIBED)


@pytest.mark.parametrize("value", [None, 5, "my-client", [], {"env": {}}])
def test_a_client_has_a_command(value):
    with pytest.raises(ValueError, match=r"agents\.mine"):
        client.parse("mine", value)


def test_the_front_matter_says_what_is_wrong_in_it():
    with pytest.raises(UserError, match=r"program.md sets agents.mine.output to 'xml', and it"):
        config.from_program("---\nagents:\n  mine: {command: [x], output: xml}\n---\n")


def test_a_client_like_another_differs_in_what_it_says():
    one = client.parse("short", {"like": "claude", "limit_s": 60, "tokens": "usage.output_tokens"})
    claude = client.shipped()["claude"]
    assert one.expressions == {**claude.expressions, "tokens": "usage.output_tokens"}
    same = {"name": "claude", "tokens": claude.tokens, "limit_s": 1800.0}
    assert one.model_copy(update=same) == claude


def test_the_shipped_ones_are_described_as_a_persons_are():
    assert set(client.shipped()) == {"claude", "codex", "codex-boxed", "gemini", "opencode"}
    for one in client.shipped().values():
        assert one.install
        assert one.login
        assert one.writes
        assert not any("dangerously" in word or "yolo" in word for word in one.command)


# ------------------------------------------------------------------------------------ their names


def test_names_make_clients():
    mine = {"mine": DESCRIBED, "claude": {"like": "claude", "limit_s": 5}}
    make = agents.make_agent
    assert make("codex").name == "codex"
    assert make("claude:opus").name == "claude:opus"
    assert make("opencode:some/model:free").model == "some/model:free"
    assert make("mine", (), mine).client.command == ("my-client", "--quiet")
    assert make("claude", (), mine).client.limit_s == 5  # the person's goes before ours
    for command in ("mine", "claude -p", "claude: x", "./claude", "a:b", "claude:"):
        assert isinstance(make(command), CommandAgent)
    with pytest.raises(UserError, match="--agent mine:x selects the model 'x'"):
        make("mine:x", (), mine)
    with pytest.raises(UserError, match=r"agents\.mine"):
        make("tea", (), {"mine": {}})


def test_who_tells_a_price():
    found = {name: agents.make_agent(name).priced for name in client.shipped()}
    assert [name for name, priced in found.items() if priced] == ["claude", "opencode"]
    assert not CommandAgent("x").priced


# ---------------------------------------------------------------------------------- before a night


def test_a_missing_program_is_said_with_what_installs_it(home):
    with pytest.raises(
        AgentError, match=r"claude is not in PATH\. Install it: npm install"
    ) as caught:
        agents.make_agent("claude").check()
    assert caught.value.kind == "missing"


def test_one_word_that_is_nothing_is_no_command(home):
    with pytest.raises(AgentError, match=r"--agent 'cluade' is unknown") as caught:
        agents.make_agent("cluade").check()
    assert caught.value.kind == "missing"
    with pytest.raises(AgentError, match=r"boxed, gemini, opencode, mine; .* mean mine\?$"):
        agents.make_agent("mien", (), {"mine": DESCRIBED}).check()
    for command in ("ls", "cd x && cluade", "exit; true", "./agent.sh"):
        agents.make_agent(command).check()


@pytest.mark.parametrize("evidence", ["variable", "file", "elsewhere", "settings", None])
def test_a_login_is_looked_for_in_variables_and_files(home, program, monkeypatch, evidence):
    program("codex", "")
    one = agents.make_agent("codex")
    if evidence == "variable":
        monkeypatch.setenv("CODEX_API_KEY", "x")
    elif evidence == "file":
        (home / ".codex").mkdir()
        (home / ".codex" / "auth.json").touch()
    elif evidence == "elsewhere":
        monkeypatch.setenv("CODEX_HOME", str(home))
        (home / "auth.json").touch()
    elif evidence == "settings":  # which may name a login, and are none
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


def test_where_nothing_tells_of_a_login_it_is_not_asked_for(home, program):
    program("opencode", "")
    agents.make_agent("opencode").check()
    assert agents.make_agent("opencode").client.logged_in() is None


def doctors(tmp_path, program):
    """What doctor says of the clients for a program.md: its lines, and the problems."""
    (tmp_path / "program.md").write_text(program)
    try:
        settings = config.resolve(tmp_path)
    except UserError as error:
        return {}, [doctor.Problem(str(error), "")]
    found, problems = doctor._agents(settings, None)
    return {name: doctor_lines._agent_words(one) for name, one in found.items()}, problems


def test_doctor_lists_the_clients(home, program, tmp_path, monkeypatch):
    for name in ("claude", "codex", "opencode"):
        program(name, "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    own = "---\nagents:\n  mine: {command: [my-client]}\n  yours: {like: codex}\n---\n"
    lines, problems = doctors(tmp_path, own)
    assert lines["claude"] == "installed; a login or key is there (not tried)"
    assert lines["codex"].startswith("installed; no login or key is there: codex login")
    assert lines["yours"] == lines["codex-boxed"] == lines["codex"]
    assert lines["gemini"] == "not installed: npm install -g @google/gemini-cli"
    assert lines["opencode"] == "installed; its login cannot be seen"
    assert lines["mine"] == "not installed: my-client is not in PATH"
    assert not problems  # none of them is chosen


def test_doctor_looks_at_the_chosen_agent(home, program, tmp_path):
    [problem] = doctors(tmp_path, "---\nagent: claude\n---\n")[1]
    assert "program.md sets the agent claude: claude is not in PATH. Install" in problem.problem
    program("claude", "")
    [problem] = doctors(tmp_path, "---\nagent: claude\n---\n")[1]
    assert "there is no login for claude" in problem.problem
    [problem] = doctors(tmp_path, "---\nagents: {mine: {}}\n---\n")[1]
    assert "does not set agents.mine.command" in problem.problem
    assert not doctors(tmp_path, "---\nagent: tpe\n---\n")[1]


# --------------------------------------------------------------------------------------- asking

TOLD = """
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
def test_a_prompt_goes_in_as_it_is_described(program, context, command, arguments, read):
    program("my-client", TOLD)
    one = described(command=command, model=["-m", "{model}"], env={"QUIET": "1"}, output="json")
    ClientAgent(one, "opus").propose(context)
    told = json.loads((context.run_dir / "agent.out").read_text())
    values = {"WORKTREE": context.worktree, "PROMPT": context.prompt, "FILE": context.prompt_path}
    for name, value in values.items():
        arguments = [word.replace(name, str(value)) for word in arguments]
    assert told == {
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
        ("- **Description: halve it**", "", "halve it", ""),
        ("> description : a: b", "", "a: b", ""),
        ("DESCRIPTION: first\nDESCRIPTION: second", "", "second", ""),
        ("I halve it.\nEXPECTED: -1\n```\n\n", "", "I halve it.", "-1"),
        ("I halve it.\n", "its commit", "its commit", ""),
        ("DESCRIPTION:\nEXPECTED:\n", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_its_words(context, answer, committed, description, expected):
    (context.worktree / "words").write_text(answer)
    context = dataclasses.replace(context, committed=lambda: committed)
    proposal = CommandAgent("cat words").propose(context)
    assert (proposal.description, proposal.expected) == (description, expected)


def printing(program, text, code=0):
    program("my-client", f"import sys\nprint({text!r})\nsys.exit({code})")


JSON = {"output": "json", "reply": "answer", "usd": "cost", "tokens": "sum(used)", "error": "bad"}


def test_words_and_cost_are_read_from_an_object(program, context):
    printing(program, json.dumps({"answer": "a\nDESCRIPTION: b", "cost": 0.5, "used": [1, 2]}))
    proposal = ClientAgent(described(**JSON)).propose(context)
    assert proposal.description == "b"
    assert proposal.usage == Usage(0.5, 3)


def test_words_and_cost_are_read_from_events(program, context):
    events = [{"say": "a"}, {"say": "DESCRIPTION: b", "cost": 1}, {"cost": 2}]
    printing(program, "starting ...\n" + "\n".join(map(json.dumps, events)) + '\n{"torn')
    fields = {"output": "json-lines", "reply": "[*].say | [-1]", "usd": "sum([*].cost)"}
    proposal = ClientAgent(described(**fields)).propose(context)
    assert (proposal.description, proposal.usage) == ("b", Usage(3.0, None))


@pytest.mark.parametrize("cost", ["much", None, True, -1, float("nan"), float("inf"), [1]])
def test_a_cost_that_is_no_number_is_none(program, context, cost):
    printing(program, json.dumps({"answer": "b", "cost": cost, "used": ["x", cost]}))
    assert ClientAgent(described(**JSON)).propose(context).usage == Usage()


DEBRIS = ["[1]", "5", "{", "[" * 100_000, "", "usage: my-client\nDESCRIPTION: one line"]


@pytest.mark.parametrize("text", DEBRIS)
def test_what_is_no_json_is_no_answer(program, context, text):
    printing(program, text)
    with pytest.raises(AgentError, match=r"`mine` failed \(exit code 0, no JSON\): ") as caught:
        ClientAgent(described(**JSON)).propose(context)
    assert caught.value.kind == "failed"


def test_what_is_no_json_may_tell_of_a_trouble(program, context):
    printing(program, "Not logged in. Run my-client login")
    with pytest.raises(AgentError, match=r"no JSON.*Not logged in") as caught:
        ClientAgent(described(**JSON)).propose(context)
    assert caught.value.kind == "login"


@pytest.mark.parametrize("text", [*DEBRIS, '{"answer": 5}'])
def test_an_edit_counts_whatever_was_printed_and_debris_is_not_its_words(program, context, text):
    program("my-client", f"open('train.py', 'w').write('x')\nprint({text!r})")
    assert ClientAgent(described(**JSON)).propose(context) == Proposal()


def test_an_error_is_one_whatever_the_exit_code_and_costs_what_it_says(program, context):
    printing(program, json.dumps({"bad": "429: try again in 2 hours", "cost": 0.5}))
    with pytest.raises(AgentError, match=r"`mine` failed \(exit code 0\): 429: try") as caught:
        ClientAgent(described(**JSON)).propose(context)
    assert (caught.value.kind, caught.value.usage.usd) == ("limit", 0.5)
    assert abs(caught.value.again - time.time() - 7200) < 60


def test_an_error_may_be_an_object_on_the_other_stream(program, context):
    program(
        "my-client", 'import sys; print(\'hm\\n{\\n "bad": "Unauthorized"\\n}\', file=sys.stderr)'
    )
    with pytest.raises(AgentError, match=r"Unauthorized; its log.*Try: my-client login") as caught:
        ClientAgent(described(**JSON, login="my-client login")).propose(context)
    assert caught.value.kind == "login"


def test_what_a_hanging_client_spent_is_counted(program, context):
    program("my-client", "import time; print('{\"cost\": 2}', flush=True); time.sleep(60)")
    with pytest.raises(AgentError, match="took longer than 1 s") as caught:
        ClientAgent(described(**JSON, limit_s=0.9)).propose(context)
    assert (caught.value.kind, caught.value.usage.usd) == ("hang", 2.0)


def test_a_client_that_is_not_there_is_missing(home, context):
    with pytest.raises(AgentError, match="my-client cannot be started") as caught:
        ClientAgent(described()).propose(context)
    assert caught.value.kind == "missing"


def test_a_client_that_only_our_box_holds_is_not_started_without(program, context):
    program("my-client", "")
    with pytest.raises(AgentError, match="needs our sandbox, but isolation is none") as caught:
        ClientAgent(described(needs_box=True)).propose(context)
    assert caught.value.kind == "missing"
    assert not (context.run_dir / "agent.out").exists()


def test_a_client_whose_own_sandbox_does_not_start_is_not_asked(program, context):
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


# ------------------------------------------------------------------------------- understanding

# As the clients print them, the first of each seen with the version that test_clients.py names.
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
    "failed": ["Segmentation fault", "", "API Error: 400 no", "429th line of 401kb"],
}


@pytest.mark.parametrize(
    ("kind", "text"), [(k, text) for k, texts in SAID.items() for text in texts]
)
def test_a_trouble_is_known_by_its_words(kind, text):
    assert replies.kind_of(text, {}) == kind
    assert kind in TROUBLES


def test_a_clients_own_patterns_go_first():
    assert replies.kind_of("401: come back later", {"limit": "come back"}) == "limit"


NOW = datetime(2026, 11, 25, 17, 30, tzinfo=ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("resets 6:55pm (UTC)", 85 * 60),
        ("resets 5pm (UTC)", 23.5 * 3600),
        ("resets 18:00 (Europe/Berlin)", 23.5 * 3600),  # it is 18:30 there
        ("resets at 12am (UTC)", 6.5 * 3600),
        ("resets Nov 28, 12:29am (UTC)", (2 * 24 + 6) * 3600 + 59 * 60),
        ("try again at Nov 28th, 2026 12:29 AM (UTC).", (2 * 24 + 6) * 3600 + 59 * 60),
        ("resets Jan 2, 3am (UTC)", 7 * 86400),  # further away than is waited
        ("Please try again in 20s.", 20),
        ("try again in 1 hour 3 minutes", 3780),
        ("Your quota will reset after 1h2m3s.", 3723),
        ("retry-after: 3600", 3600),
        ("try again in 90 days", 7 * 86400),
        (f"usage limit reached|{int(NOW.timestamp()) + 60}", 60),
        (f'{{"resets_at": {int(NOW.timestamp()) + 60}}}', 60),
        (f"resets_at: {int(NOW.timestamp()) - 60}", None),
        ("resets Nov 24, 3am (UTC)", None),
        ("resets Foo 24, 3am (UTC)", None),
        ("resets 99:99", None),
        ("try again later", None),
        ("", None),
    ],
)
def test_when_it_may_be_asked_again(text, seconds):
    found = replies.again(text, NOW.timestamp())
    assert found == (None if seconds is None else pytest.approx(NOW.timestamp() + seconds))


def test_a_time_without_a_zone_is_this_machines(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:  # it is 12:30 there
        assert replies.again("try again at 1:00 PM.", NOW.timestamp()) == NOW.timestamp() + 1800
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["9" * 4000, "again in " + "1 " * 2000, "resets " * 600])
def test_no_text_takes_long(text):
    begun = time.monotonic()
    replies.again(text, NOW.timestamp())
    replies.kind_of(text, {})
    replies.labels(text)
    assert time.monotonic() - begun < 1


# ------------------------------------------------------------------------------- what they touch


def test_a_client_may_write_where_its_login_lies(home, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "other"))
    one = agents.make_agent("codex", [Path("notes")])
    assert one.writes == (Path("notes").absolute(), home / ".codex", tmp_path / "other")


def test_a_client_that_is_typed_as_a_command_keeps_its_login(home):
    claude = (home / ".claude", home / ".claude.json")
    assert CommandAgent("cd x && /usr/bin/claude -p --tools 'Read,Edit'").writes == claude
    assert CommandAgent("python my_agent.py").writes == ()
    own = {"mine": {**DESCRIBED, "writes": ["~/.mine"]}}
    assert agents.make_agent("my-client -p", (), own).writes == (home / ".mine",)


@pytest.mark.parametrize("words", ["resets 3am (PST)", "resets 3am (Nowhere/Land)"])
def test_a_zone_that_is_not_known_is_this_machines(words):
    assert replies.again(words, NOW.timestamp()) is not None


@pytest.mark.parametrize(
    "text", ['File "agent.py", line 401, in <module>', "line 429", "Disk quota exceeded"]
)
def test_numbers_of_lines_are_no_troubles(text):
    assert replies.kind_of(text, {}) == "failed"


@pytest.mark.parametrize(
    "command",
    [
        "my --api-key sk-1234 --fast",
        "my --token=sk-1234",
        "curl -H 'Authorization: Bearer sk-1234' here",
        'K="a\\"sk-1234" my',
        "K=sk-1234 my",
    ],
)
def test_keys_are_not_in_the_name_of_a_command(command):
    name = client.CommandAgent(command).name
    assert "sk-1234" not in name
    assert "…" in name


def test_a_cost_that_no_number_holds_is_none():
    assert replies._number(10**400) is None
    assert replies._number(float("nan")) is None
    assert replies._number(2) == 2.0


@pytest.mark.parametrize(
    ("name", "meant"), [("cluade:opus", "claude"), ("tpe:opus", "tpe"), ("nosuch:model", "")]
)
def test_a_mistyped_name_with_a_model_is_no_command(name, meant):
    with pytest.raises(AgentError, match="is unknown") as caught:
        client.make_client(name, (), {}).check()
    assert caught.value.kind == "missing"
    assert str(caught.value).endswith(f"Did you mean {meant}?" if meant else "the clients")


def test_a_line_end_in_the_words_of_json_is_read(tmp_path):
    (tmp_path / "out").write_text('{"result": "a\nb", "cost": 0.5}')
    fields = {"reply": "result", "usd": "cost"}
    reply = replies.read("json", fields, tmp_path / "out", tmp_path / "err")
    assert (reply.text, reply.usage.usd) == ("a\nb", 0.5)
