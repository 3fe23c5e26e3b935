"""The front matter of program.md: what it settles, and that flags override it."""

import pytest
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.commands import doctor, loop
from autoresearch_jax.common import front_matter
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import settings
from autoresearch_jax.loop.plan import Plan
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import Notes

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
    assert str(caught.value).endswith(". Correct it: $EDITOR program.md")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("max: 1\nagent: tpe\nmax: 2", "sets 'max' twice, in line 2 and in line 4"),
        ("search:\n  A: [1, 2]\n  A: [2, 3]", "sets 'A' twice, in line 3 and in line 4"),
        ("search: {A: [1, 2], A: false}", "sets 'A' twice, in line 2 and in line 2"),
        ("max: 1\nagent: [", "is not YAML: while parsing a flow node expected the node content"),
        ("search: {A_LR: [3, 1]}", "gives A_LR the range [3, 1], and it must have a low below"),
    ],
)
def test_what_is_wrong_is_named_as_it_was_typed_with_its_place(tmp_path, lines, says):
    root = harness.make_repository(tmp_path / "work space")
    (root / "program.md").write_text(f"---\n{lines}\n---\n")
    with pytest.raises(UserError) as caught:
        settings.of(Workspace.open(root))
    assert str(caught.value).startswith(f"The front matter of {root}/program.md {says}")
    assert str(caught.value).endswith(f"$EDITOR '{root}/program.md'")


def test_a_range_without_its_constant_is_said_once_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    train = harness.train_py(1.0, "DEPTH = 4\nMATRIX_LR = 0.1")
    root = harness.make_repository(tmp_path / "w", train)
    search = {"DEPTH": [2, 8], "MATRX_LR": [0.01, 0.1], "GONE": False}
    view = Notes()
    harness.run_loop(Workspace.open(root), harness.Scripted(), 0, view, tag="t", search=search)
    said = "names what train.py does not set: MATRX_LR (did you mean MATRIX_LR?), GONE"
    assert [said in line for line in view.said if line.startswith("Warning")] == [True]
    assert "0 experiments after the baseline. Ctrl-C" in view.text
    (root / "program.md").write_text("---\nsearch: {MATRX_LR: [0.01, 0.1]}\n---\n")
    assert "MATRX_LR (did" in doctor._passed_over(root)
    (root / "program.md").write_text("---\nsearch: {MATRIX_LR: [0.01, 0.1]}\n---\n")
    assert doctor._passed_over(root) == ""


def test_what_follows_the_front_matter_is_the_program():
    assert front_matter.split(FULL)[1] == "# Goal\n"
    assert front_matter.split("\ufeff# Goal\n") == ("", "# Goal\n")


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
        assert runner.invoke(main.main, ["-C", str(root), *words]).exit_code == 1
    assert [name for name, _ in asked] == ["echo hello", "tpe"]
    assert asked[0][1] == Plan(max=7, max_hours=2.0)
    assert asked[1][1] == Plan(max=3, max_hours=2.0, fallback=False)
