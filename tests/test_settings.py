"""The front matter of program.md, and the flags that override it."""

import pytest
from click import Context, FloatRange, IntRange
from click.testing import CliRunner

from autoresearch_jax.cli import main
from autoresearch_jax.cli.options import Setting
from autoresearch_jax.commands import doctor, loop
from autoresearch_jax.common import front_matter
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop import config
from autoresearch_jax.loop.config import LoopConfig
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
    found = config.from_program(FULL)
    assert (found.agent, found.max, found.max_hours, found.max_usd) == ("claude", 100, 8.0, 20.5)
    assert (found.repairs, found.lookahead, found.fallback) == (2, False, False)
    assert (found.search["MATRIX_LR"].low, found.search["MATRIX_LR"].high) == (0.01, 0.1)
    assert list(found.agents) == ["mine"]


def test_flags_override_settings_and_settings_the_defaults():
    nothing = dict.fromkeys(("max", "max_hours", "repairs", "lookahead", "seed"))
    found = config.from_program(FULL, **nothing)
    assert found == config.from_program(FULL)
    flags = {"max": 0, "repairs": 0, "lookahead": True, "desc": "words", "seed": 3}
    chosen = config.from_program(FULL, **nothing | flags)
    assert (chosen.max, chosen.repairs, chosen.lookahead, chosen.fallback) == (0, 0, True, False)
    assert (chosen.max_hours, chosen.desc, chosen.seed) == (8.0, "words", 3)
    assert config.from_program("", **nothing) == LoopConfig()


def test_a_policy_that_confirms_ends_with_an_audit():
    assert [LoopConfig(policy=name).audit for name in ("strict", "confirm")] == [0, 3]
    assert LoopConfig(policy="confirm", audit=0).audit == 0
    assert config.from_program("---\npolicy: confirm\n---\n", policy="strict").audit == 0


def test_every_setting_is_explained_and_has_a_flag():
    assert all(field.description for field in LoopConfig.model_fields.values())
    loop_command = main.main.commands["loop"]
    flags = {one.name for one in loop_command.get_params(Context(loop_command))}
    assert {*LoopConfig.model_fields} - flags == {"less_code", "search", "agents"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max: -1", "sets max to -1, and it should be greater than or equal to 0"),
        ("max: true", "sets max to True, and it should be a valid integer"),
        ("max: 99999999999", "should be less than 2147483648"),
        ("max_hour: 1", "sets 'max_hour', which is not a setting. Did you mean max_hours?"),
        ("banana: 1", "sets 'banana', which is not a setting. Expected one of: agent, max"),
        ("seed: 1", "sets 'seed', which is not a setting"),
        ("lookahead: 1", "sets lookahead to 1, and it should be true or false"),
        ("max_hours: 0", "sets max_hours to 0, and it should be greater than 0"),
        ("max_hours: .nan", "sets max_hours to nan, and it should be a finite number"),
        ("agent: 3", "sets agent to 3, and it should be text"),
        ("agent: ' '", "sets agent to ' ', and it should not be empty"),
        ("search: [MATRIX_LR]", "sets search to ['MATRIX_LR'], and it should be lines"),
        ("agents: {1: {}}", "sets agents.1 to 1, and it should be text"),
        ("search: {MATRIX_LR: [3, 1]}", "MATRIX_LR"),
        ("agents: {mine: {no: command}}", "mine"),
    ],
)
def test_a_setting_that_is_wrong_is_named(line, says):
    with pytest.raises(UserError, match=r"^The front matter of program\.md") as caught:
        config.from_program(f"---\n{line}\n---\n")
    assert says in str(caught.value)
    assert str(caught.value).endswith(" Correct it: $EDITOR program.md")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max", "ten"], "'--max': 'ten' should be a valid integer"),
        (["--max-hours", "nan"], "'--max-hours': 'nan' should be a finite number"),
        (["--audit", "1"], "'--audit': '1' should be 0, or 2 or more"),
        (["--policy", "luck"], "'luck' is not one of 'strict', 'confirm'"),
        (["--max-hour", "1"], "--max-hours"),
    ],
)
def test_a_flag_that_is_wrong_is_a_usage_error(words, says):
    done = CliRunner().invoke(main.main, ["loop", *words])
    assert (done.exit_code, says in done.output) == (2, True), done.output


NO_NUMBERS = ("nan", "inf", "-inf", "ten", "", "-1", "1e999", "9" * 30, "9" * 5000, "1,5", "0x10")


def numeric_flags():
    """Return every option of every command that takes a number."""
    for name, command in main.main.commands.items():
        for one in command.get_params(Context(command)):
            is_setting = isinstance(one.type, Setting) and one.name in NUMBERS
            if is_setting or isinstance(one.type, IntRange | FloatRange):
                yield name, one.opts[0]


NUMBERS = ("max", "max_hours", "max_usd", "max_memory_gb", "repairs", "audit", "workers", "seed")


@pytest.mark.parametrize(("command", "flag"), list(numeric_flags()))
def test_a_number_that_is_none_is_one_message(tmp_path, monkeypatch, command, flag):
    monkeypatch.chdir(tmp_path)
    for value in NO_NUMBERS:
        done = CliRunner().invoke(main.main, [command, f"{flag}={value}"])
        assert isinstance(done.exception, SystemExit), (value, done.exception)
        assert done.exit_code == 2, value
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert flag in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["max_hours", "max_usd", "max_memory_gb", "max", "repairs"])
def test_a_number_that_is_none_in_program_md_is_one_message(name):
    for value in (".nan", ".inf", "-.inf", "ten", "''", "-1", "1e999", "9" * 30, "[1]", "true"):
        with pytest.raises(UserError, match=f"sets {name} to .*, and it should be"):
            config.from_program(f"---\n{name}: {value}\n---\n")


@pytest.mark.parametrize("search", ["[.nan, 1]", "[0.1, .inf]", "[-.inf, 1]", "[1, ten]"])
def test_a_range_that_is_none_is_one_message(search):
    with pytest.raises(UserError, match=r"search\.A_RATE"):
        config.from_program(f"---\nsearch: {{A_RATE: {search}}}\n---\n")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("max: 1\nagent: tpe\nmax: 2", "sets 'max' twice, in line 2 and in line 4"),
        ("search:\n  A: [1, 2]\n  A: [2, 3]", "sets 'A' twice, in line 3 and in line 4"),
        ("max: 1\nagent: [", "is not YAML: while parsing a flow node expected the node content"),
        ("search: {A_LR: [3, 1]}", "sets search.A_LR to [3, 1], and it should have a low below"),
    ],
)
def test_a_message_names_the_file_and_the_lines(tmp_path, lines, says):
    root = harness.make_repository(tmp_path / "work space")
    (root / "program.md").write_text(f"---\n{lines}\n---\n")
    with pytest.raises(UserError) as caught:
        config.resolve(root)
    assert str(caught.value).startswith(f"The front matter of {root}/program.md {says}")
    assert str(caught.value).endswith(f"$EDITOR '{root}/program.md'")


def test_a_range_without_its_constant_is_a_warning_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    train = harness.train_py(1.0, "DEPTH = 4\nMATRIX_LR = 0.1")
    root = harness.make_repository(tmp_path / "w", train)
    search = {"DEPTH": [2, 8], "MATRX_LR": [0.01, 0.1], "GONE": False, "MATRIX_LR": ["L", "S"]}
    view = Notes()
    harness.run_loop(Workspace.open(root), harness.Scripted(), 0, view, tag="t", search=search)
    said = "fit no constant of train.py: MATRX_LR (did you mean MATRIX_LR?), GONE, MATRIX_LR (which"
    assert [said in line for line in view.said if line.startswith("Warning")] == [True]
    assert "0 experiments after the baseline. Ctrl-C" in view.text
    (root / "program.md").write_text("---\nsearch: {MATRX_LR: [0.01, 0.1]}\n---\n")
    assert "MATRX_LR (did" in doctor._unused_ranges(root, config.resolve(root))
    (root / "program.md").write_text("---\nsearch: {MATRIX_LR: [0.01, 0.1]}\n---\n")
    assert doctor._unused_ranges(root, config.resolve(root)) == ""


def test_what_follows_the_front_matter_is_the_program():
    assert front_matter.split(FULL)[1] == "# Goal\n"
    assert front_matter.split("\ufeff# Goal\n") == ("", "# Goal\n")


def test_the_loop_takes_what_program_md_says(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "workspace")
    (root / "program.md").write_text("---\nagent: echo hello\nmax: 7\nmax_hours: 2\n---\nGo.\n")
    asked = []

    def stop(workspace, config, tools):
        asked.append(config)
        raise UserError("enough")

    monkeypatch.setattr(loop, "run_loop", stop)
    runner = CliRunner()
    for words in (["loop"], ["loop", "--agent", "tpe", "--max", "3", "--no-fallback"]):
        assert runner.invoke(main.main, ["-C", str(root), *words]).exit_code == 1
    assert asked[0] == LoopConfig(agent="echo hello", max=7, max_hours=2.0)
    assert asked[1] == LoopConfig(agent="tpe", max=3, max_hours=2.0, fallback=False)
