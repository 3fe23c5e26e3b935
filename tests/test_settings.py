"""The front matter of program.md: what it settles, and that flags override it."""

import pytest
from click.testing import CliRunner

from autoresearch_jax import cli, loop, settings
from autoresearch_jax.errors import UserError
from autoresearch_jax.ledger import Plan
from tests import harness

FULL = """---
agent: claude
max: 100
max_hours: 8
max_usd: 20.5
max_memory_gb: 40
repairs: 2
lookahead: false
fallback: false
search:
  MATRIX_LR: [0.01, 0.1]
agents:
  mine:
    command: [mine, --prompt]
---
# Goal
"""


def test_every_setting_is_read():
    found = settings.read(FULL)
    assert (found.agent, found.max, found.max_hours, found.max_usd) == ("claude", 100, 8.0, 20.5)
    assert (found.repairs, found.lookahead, found.fallback) == (2, False, False)
    assert found.search == {"MATRIX_LR": [0.01, 0.1]}
    assert list(found.agents) == ["mine"]


def test_flags_override_settings_and_settings_the_defaults():
    found = settings.read(FULL)
    nothing = dict.fromkeys(("max", "max_hours", "max_usd", "repairs", "lookahead", "fallback"))
    assert settings.plan(found, nothing) == Plan(
        max=100,
        max_hours=8.0,
        max_usd=20.5,
        repairs=2,
        lookahead=False,
        fallback=False,
        search=found.search,
    )
    flags = nothing | {"max": 0, "repairs": 0, "lookahead": True}
    plan = settings.plan(found, flags, desc="words", seed=3)
    assert (plan.max, plan.repairs, plan.lookahead, plan.fallback) == (0, 0, True, False)
    assert (plan.desc, plan.seed) == ("words", 3)
    assert settings.plan(settings.Settings(), nothing) == Plan()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max: 1.5", "sets max to 1.5, and it must be a whole number, 0 or more"),
        ("max: -1", "must be a whole number"),
        ("max: true", "must be a whole number"),
        ("repairs: many", "sets repairs to 'many'"),
        ("lookahead: 1", "sets lookahead to 1, and it must be true or false"),
        ("max_hours: 0", "must be a number above 0"),
        ("agent: 3", "sets agent to 3, and it must be a name or a command"),
        ("agent: ' '", "must be a name or a command"),
        ("search: [MATRIX_LR]", "must be names with something for each"),
        ("agents: {1: {}}", "must be names with something for each"),
        ("search: {MATRIX_LR: [3, 1]}", "MATRIX_LR"),
        ("agents: {mine: {no: command}}", "mine"),
    ],
)
def test_a_setting_that_is_wrong_is_named(line, says):
    with pytest.raises(UserError, match=r"^The front matter of program\.md") as caught:
        settings.read(f"---\n{line}\n---\n")
    assert says in str(caught.value)
    assert "Correct it in an editor" in str(caught.value)


def test_what_follows_the_front_matter_is_the_program():
    assert settings.split(FULL)[1] == "# Goal\n"
    assert settings.split("\ufeff# Goal\n") == ("", "# Goal\n")


def test_the_loop_takes_what_program_md_says(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "workspace")
    (root / "program.md").write_text("---\nagent: echo hello\nmax: 7\nmax_hours: 2\n---\nGo.\n")
    asked = []

    def stop(workspace, setup, *, agent, plan):
        asked.append((agent.name, plan))
        raise UserError("enough")

    monkeypatch.setattr(loop, "run_loop", stop)
    runner = CliRunner()
    for words in (["loop"], ["loop", "--agent", "tpe", "--max", "3", "--no-fallback"]):
        assert runner.invoke(cli.main, ["-C", str(root), *words]).exit_code == 1
    assert [name for name, _ in asked] == ["echo hello", "tpe"]
    assert asked[0][1] == Plan(max=7, max_hours=2.0)
    assert asked[1][1] == Plan(max=3, max_hours=2.0, fallback=False)
