import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from autoresearch_jax.cli import main
from autoresearch_jax.common import console
from autoresearch_jax.common.console import RichView
from autoresearch_jax.jobs import environment
from autoresearch_jax.system import device_probe
from tests import harness

COMMAND = [sys.executable, "-W", "error", "-m", "autoresearch_jax"]
NAMES = sorted(main.main.commands)
TOP = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_nothing_is_imported_from_the_current_folder(tmp_path):
    (tmp_path / "click.py").write_text("raise SystemExit('imported')")
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_user_without_an_account_gets_one_message(tmp_path):
    code = (
        "import os\nfrom autoresearch_jax.common import errors, paths\n"
        "from autoresearch_jax.agents import client_specs\n"
        "spec = client_specs.shipped()['claude']\n"
        "spec.logged_in(), paths.home()\n"  # what is imported late may be root's alone
        "os.environ.pop('HOME'); os.setuid(54321)\n"
        "print(spec.logged_in())\n"
        "try:\n    paths.home()\nexcept errors.UserError as error:\n    print(error)\n"
    )
    given = {
        k: v for k, v in os.environ.items() if not re.match("AUTORESEARCH|XDG|ANTHROPIC|CLAUDE", k)
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=given, capture_output=True, text=True
    )
    login, message = done.stdout.splitlines()
    assert (login, done.stderr) == ("False", "")
    assert "AUTORESEARCH_HOME" in message


# ----------------------------------------------------------------------------------- help


def test_every_command_is_in_a_section_of_the_help():
    text = CliRunner().invoke(main.main, ["--help"]).output
    listed = {one.name for commands in main.SECTIONS.values() for one in commands}
    assert listed == set(NAMES) - {"check-hardware"}
    for title, commands in main.SECTIONS.items():
        names = [one.name for one in commands]
        section = text.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines() if line[2] != " "] == names


def test_every_command_has_an_example_and_help_for_its_options():
    for name, command in main.main.commands.items():
        done = CliRunner().invoke(main.main, [name, "--help"])
        assert done.exit_code == 0
        example = done.output.split("Example:\n    ")[1].splitlines()[0].split()
        assert example[:2] == ["autoresearch-jax", name]
        for parameter in command.get_params(click.Context(command)):
            if isinstance(parameter, click.Option):
                assert parameter.help, parameter.name


def test_help_loads_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom autoresearch_jax.cli.main import main\n"
        "for words in (['--help'], ['loop', '--help'], ['demo', '--help']):\n"
        "    main(words, standalone_mode=False)\n"
        "heavy = {'jax', 'numpy', 'optuna', 'matplotlib', 'git', 'rich', 'pyarrow', 'psutil'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_no_command_imports_jax_into_its_own_process(tmp_path):
    """If the harness used the accelerator, a training could not."""
    commands = ("loop --max 1", "doctor", "sample", "results", "show 1", "run", "run -m x")
    root = harness.make_repository(tmp_path / "workspace")
    code = (
        "import sys\nfrom autoresearch_jax.loop import open_session\nfrom tests import harness\n"
        # The probe of the accelerator is a process of its own, and not the subject.
        "open_session.Tools = harness.tools\n"
        "from autoresearch_jax.cli.main import main\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n        main(command.split(), standalone_mode=False)\n"
        "    except (SystemExit, Exception) as error:\n        print(repr(error))\n"
        "    loaded = {'jax', 'jaxlib', 'flax', 'optax'} & set(sys.modules)\n"
        "    print('LOADED', *sorted(loaded), 'by', command)\n"
    )
    (root / "train.py").write_text(f"A_RATE = 0.5\nprint(A_RATE)\n{harness.train_py(1.0)}")
    harness.git(root, "commit", "-q", "-a", "-m", "A constant")
    (root / "train.py").write_text(f"A_RATE = 0.6\nprint(A_RATE)\n{harness.train_py(0.9)}")
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(TOP), "AUTORESEARCH_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert loaded == [f"LOADED by {command}" for command in commands]
    assert "Error" not in done.stdout, done.stdout


# --------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run"], 1, "is not in a git repository"),
        (["setup", "--preset", "h10", "w"], 1, "there is no preset 'h10'"),
        (["setup", "--seq-len", "1000", "w"], 1, "a power of two"),
        (["loop", "--max", "-1"], 2, "'-1' should be greater than or equal to 0"),
        (["verify", "--sealed", "--retrain"], 2, "--sealed and --retrain"),
    ],
)
def test_bad_input_is_one_message_without_a_traceback(tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.main, words)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cpu(monkeypatch):
    """The accelerator is not probed, which takes seconds."""
    found = device_probe.Device("cpu", "cpu", 1, 16_000.0, "0.10.2", "0.10.2")
    monkeypatch.setattr(device_probe, "probe", lambda: found)
    monkeypatch.setattr(environment, "probe", lambda home: (found, None))


@pytest.mark.usefixtures("cpu")
def test_check_hardware_prints_json_and_exits_with_1_when_something_is_missing(tmp_path):
    done = CliRunner().invoke(main.main, ["-C", str(tmp_path), "check-hardware"])
    assert done.exit_code == 1
    keys = (
        "platform device_kind device_count memory_mb jax_version python_ok uv_ok data_ready "
        "disk_free_gb preset ready"
    )
    assert set(keys.split()) <= set(json.loads(done.stdout))


# -------------------------------------------------------------------------------- results


def test_results_of_another_folder(tmp_path):
    (tmp_path / "results.tsv").write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
        "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\n"
        "d4e5f6g\t0.000000\t0.0\tcrash\tdouble model width (OOM)\n"
    )
    before = Path.cwd()
    done = CliRunner().invoke(main.main, ["-C", str(tmp_path), "results", "--grep", "width"])
    assert done.exit_code == 0
    assert "double model width (OOM)" in done.stdout
    assert "baseline" not in done.stdout
    assert "2 experiments, 0 improvements, 1 crash" in done.stdout
    assert Path.cwd() == before


@pytest.mark.usefixtures("cpu")
def test_setup_chooses_a_preset_and_prints_the_next_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.main, ["setup", "w", "--skip-data"])
    assert done.exit_code == 0, done.stderr
    assert "Preset cpu fits this machine" in done.stdout
    assert "MAX_SEQ_LEN = 256" in (tmp_path / "w" / "constants.py").read_text()
    assert "  cd w\n" in done.stdout


# ------------------------------------------------------------------------------------ run

SESSION = (Path(__file__).parent / "session_run.py").read_text()
SESSION = re.sub(r".*direct: .*\n", "", SESSION)  # a training sees no validation rows
OUTCOMES = {
    "score": (SESSION, 0),
    "failure": ("raise SystemExit('boom')", 1),
}


@pytest.fixture
def workspace(prepared, tmp_path, monkeypatch):
    """One with prepared data, and no commit."""
    root, home = prepared
    monkeypatch.setenv("AUTORESEARCH_HOME", str(home))
    for name in ("prepare.py", "constants.py"):
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w" / name).write_bytes((root / name).read_bytes())
    subprocess.run(["git", "init", "-q", tmp_path / "w"], check=True)
    return tmp_path / "w"


@pytest.mark.parametrize("kind", OUTCOMES)
def test_run_measures_and_exits_by_the_outcome(workspace, kind):
    code, expected = OUTCOMES[kind]
    (workspace / "train.py").write_text(code)
    done = run("run", "--log", "my.log", cwd=workspace)
    assert done.returncode == expected, done.stderr
    score, memory, seconds, log = done.stdout.rstrip("\n").split("\t")
    assert memory == ("123.4" if kind == "score" else "n/a")
    assert 1 < float(score) < 9 if kind == "score" else score == "n/a"
    assert float(seconds) >= 0
    assert Path(log) == workspace / "my.log"
    assert Path(log).is_file()
    assert kind == "score" or "no val_bpb" in done.stderr


# ------------------------------------------------------------------------------- terminal


def test_output_that_nobody_reads_does_not_change_the_exit_code(tmp_path):
    """A view swallows the error of the write, but Python would flush its buffer again at exit."""
    code = (
        "from autoresearch_jax.cli.main import main\nfrom autoresearch_jax.common import console\n"
        "@main.command()\ndef talk():\n    console.SteadyView(console.PlainView()).say('unread')\n"
        "main(['talk'])\n"
    )
    read, write = os.pipe()
    os.close(read)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=env,
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_progress_line_disappears():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, color_system=None, _environ={})
    view = RichView(console)
    view.live("step 1 of a line that is far too long for a terminal of forty columns")
    view.say("experiment [1] is kept")
    view.live("")
    view.live("step 2")
    view.close()
    text = file.getvalue()
    assert "experiment [1] is kept\n" in text
    assert "…" in text
    assert text.rstrip().endswith("\x1b[2K")  # it is erased at the end


def test_colour_only_on_a_terminal_without_no_color(tmp_path):
    """A real terminal has colour, unless NO_COLOR is set; a pipe has none."""
    (tmp_path / "results.tsv").write_text(
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\na1b2c3d\t0.9\t44.0\tkeep\tbaseline\n"
    )

    def seen(**env: str) -> bytes:
        master, slave = pty.openpty()
        base = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        process = subprocess.Popen(
            [*COMMAND, "results"], cwd=tmp_path, stdout=slave, env=base | {"TERM": "xterm"} | env
        )
        process.wait(timeout=60)
        os.close(slave)
        output = b""
        try:
            while chunk := os.read(master, 4096):
                output += chunk
        except OSError:  # Linux: the other end is closed
            pass
        finally:
            os.close(master)
        return output

    assert b"\x1b[32m" in seen()
    assert b"\x1b[32m" not in seen(NO_COLOR="1")
    assert "\x1b" not in run("results", cwd=tmp_path).stdout


def test_commands_are_spelled_as_the_user_types_them(monkeypatch):
    for text, under_uv in (
        ("Next: autoresearch-jax loop", "Next: uv run autoresearch-jax loop"),
        ("try `autoresearch-jax demo`.", "try `uv run autoresearch-jax demo`."),
        ("  autoresearch-jax -C d show 1", "  uv run autoresearch-jax -C d show 1"),
        ("`uv run --extra tpu autoresearch-jax x`", "`uv run --extra tpu autoresearch-jax x`"),
        ("autoresearch-jax 0.1.0", "autoresearch-jax 0.1.0"),
    ):
        monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
        assert console.typed(text) == text
        monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
        assert console.typed(text) == under_uv


def test_a_command_that_was_given_a_folder_names_it(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    harness.make_repository(tmp_path / "a folder")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.main, ["-C", "a folder", "results"])
    assert "To start: autoresearch-jax -C 'a folder' loop" in done.stderr
    monkeypatch.chdir("a folder")
    done = CliRunner().invoke(main.main, ["results"])
    assert "To start: autoresearch-jax loop" in done.stderr


def test_a_command_that_works_in_another_folder_names_it(tmp_path, monkeypatch):
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    monkeypatch.chdir(tmp_path)
    with click.Context(click.Command("demo")):
        console.spell_with("outer")  # -C outer
        console.spell_with("its demo")
        assert console.typed("Next: autoresearch-jax loop") == (
            "Next: autoresearch-jax -C 'outer/its demo' loop"
        )


def test_outside_of_a_project_commands_name_it(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "its project" / ".venv"))
    for name in ("its project", "below", "another"):
        (tmp_path / name).mkdir()
    (tmp_path / "its project" / "pyproject.toml").write_text('name = "autoresearch-jax"')
    named = f"uv run --project '{tmp_path}/its project' autoresearch-jax loop"
    monkeypatch.chdir(tmp_path / "below")
    assert console.typed("Next: autoresearch-jax loop") == f"Next: {named}"
    extra = named.replace(" autoresearch", " --extra tpu autoresearch")
    assert console.typed("Next: uv run --extra tpu autoresearch-jax loop") == f"Next: {extra}"
    (tmp_path / "another" / "pyproject.toml").write_text('name = "another"')
    monkeypatch.chdir(tmp_path / "another")
    assert console.typed("Next: autoresearch-jax loop") == f"Next: {named}"
    (tmp_path / "another" / "pyproject.toml").write_text('dependencies = ["autoresearch-jax"]')
    assert console.typed("Next: autoresearch-jax loop") == "Next: uv run autoresearch-jax loop"
