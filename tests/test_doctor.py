"""The pre-flight of a night: what `doctor` says of an accelerator, a first step, a machine."""

import json
import os

import pytest
from click.testing import CliRunner

from autoresearch_jax.agents import client_specs
from autoresearch_jax.cli import main
from autoresearch_jax.commands import doctor, doctor_lines
from autoresearch_jax.commands import run as run_command
from autoresearch_jax.jobs import environment
from autoresearch_jax.loop import config
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.sandbox.isolation import Chosen
from autoresearch_jax.system import battery, device_probe, locks, nvidia, visible_devices
from tests import harness
from tests.harness import Notes, Scripted, train_py

H100 = "0, 81559, 81004, 345, 1980, 33, 700.00, 0x0000000000000001\n"
UNDER_LOAD = "0, 81559, 20200, 1410, 1980, 86, 700.00, 0x0000000000000024\n"
HOLDER = "4711, 61002, /usr/bin/python3\n"
# The driver, as far as it is asked. An older one has another name for what holds the clock back.
DRIVER = """\
#!/bin/sh
case "$*" in
  *compute-apps*) cat holders ;;
  *clocks_event_reasons*) test ! -e old && cat gpus || exit 2 ;;
  *clocks_throttle_reasons*) cat gpus ;;
esac
"""
STEPS = """\
import os, pathlib, time
(pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"]) / "exported.bin").touch()
print("step 00001 (0.1%) | loss: 9.0112 | tok/s: 10,667 | mfu: n/a | left: 9s", flush=True)
time.sleep(120)
"""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of one's own: no variable, no battery and no connection of this one counts."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "SSH_CONNECTION", "TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(battery, "charge", lambda: None)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Sets what `nvidia-smi` answers; JAX computes on an H100."""
    folder = tmp_path / "driver"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text(DRIVER.replace("cat ", f"cat {folder}/").replace("-e old", f"-e {folder}/old"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    device = device_probe.Device(
        "gpu", "NVIDIA H100 80GB HBM3", 1, 81_000.0, "0.10.2", "0.10.2", "9.0"
    )
    monkeypatch.setattr(environment, "probe", lambda home: (device, Chosen("bwrap", "")))

    def answer(gpus, holders="", old=False):
        (folder / "gpus").write_text(gpus)
        (folder / "holders").write_text(holders)
        if old:
            (folder / "old").touch()

    return answer


def words(found, start):
    """The line of what doctor prints that begins so."""
    return next(line for line in doctor_lines.lines(found) if line.startswith(start))


def said(found, kind):
    return [one["problem"] for one in found[kind]]


@pytest.mark.parametrize("old", [False, True])
def test_a_gpu_is_described_as_its_driver_does(driver, tmp_path, old):
    driver(H100, old=old)
    found = doctor.report(tmp_path)
    assert words(found, "GPU 0") == (
        "GPU 0   79.1 of 79.6 GiB free, 345 of 1,980 MHz, 33 °C, at most 700 W"
    )
    assert found["memory_free_mb"] == 81004
    assert found["notes"] == []
    assert not any("GPU" in problem for problem in said(found, "problems"))
    json.dumps(found)


def test_a_gpu_that_is_held_and_slow_is_said(driver, tmp_path):
    driver(UNDER_LOAD, HOLDER)
    found = doctor.report(tmp_path)
    line = words(found, "GPU 0")
    assert line.endswith("at its power limit, slowed down because it is hot")
    assert (
        "GPU 0 has 19.7 GiB free, and a training takes up to 59.3: used by process 4711 "
        "(/usr/bin/python3, 61002 MiB)."
    ) in said(found, "problems")
    assert found["problems"][0]["command"] == "ps -fp 4711  # then: kill 4711"
    (note,) = said(found, "notes")
    assert "GPU 0 is at its power limit and slowed down because it is hot" in note
    assert not found["ready"]


@pytest.mark.parametrize(
    ("reasons", "slowed", "unusual"),
    [
        ("0x0000000000000001", 0, False),  # idle
        ("0x0000000000000004", 1, False),  # every full load
        ("0x0000000000000002", 1, False),
        ("0x0000000000000008", 1, True),
        ("0x00000000000000C0", 2, True),
        ("[N/A]", 0, False),
        ("Not Active", 0, False),
    ],
)
def test_what_holds_a_clock_back(driver, reasons, slowed, unusual):
    driver(H100.replace("0x0000000000000001", reasons))
    (gpu,) = nvidia.gpus()
    assert (len(gpu.slowed), gpu.unusual) == (slowed, unusual)


def test_what_a_driver_does_not_say_is_not_known(driver, tmp_path, monkeypatch):
    driver("0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n")
    found = doctor.report(tmp_path)
    assert words(found, "GPU 0") == "GPU 0   its driver reports nothing"
    assert found["memory_free_mb"] is None
    driver("NVIDIA-SMI has failed because it could not communicate with the driver\n")
    assert nvidia.gpus() == []
    driver(H100)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert nvidia.gpus() == []


@pytest.mark.parametrize(
    ("platform", "kind"), [("tpu", "TPU v5 lite"), ("gpu", "AMD Instinct MI300X"), ("cpu", "cpu")]
)
def test_what_nothing_tells_of_an_accelerator_is_said_not_to_be_known(
    tmp_path, monkeypatch, platform, kind
):
    monkeypatch.setattr(nvidia, "gpus", list)
    device = device_probe.Device(platform, kind, 1, 16_000.0, "0.10.2", "0.10.2")
    monkeypatch.setattr(environment, "probe", lambda home: (device, Chosen("bwrap", "")))
    found = doctor.report(tmp_path)
    line = words(found, "memory")
    if platform == "cpu":
        assert line.endswith(" GiB free")
        assert found["gpus"] == []
        return
    assert line == "memory  unknown: only nvidia-smi reports free memory and clocks"
    read = json.loads(json.dumps(found))
    assert (read["memory_free_mb"], read["gpus"]) == (None, None)


def test_who_holds_a_tpu_that_does_not_answer_is_named():
    held = {12: "process 12 (python3, /dev/accel0)"}
    (problem,) = doctor._in_use(None, [], held)
    assert (
        problem.problem == "the accelerator is not free: used by process 12 (python3, /dev/accel0)."
    )
    assert "ps -fp 12" in problem.command
    assert not list(doctor._in_use(None, [], {}))


# -------------------------------------------------------------------------------- the first step


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """One whose train.py does steps until it is ended."""
    monkeypatch.setattr(run_command, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "Tools", harness.tools)
    monkeypatch.setattr(doctor, "_data", lambda root: [])
    return Workspace.open(harness.make_repository(tmp_path / "w", STEPS))


def test_the_first_step_is_timed_and_the_gpu_looked_at_under_load(workspace, driver):
    driver(H100)
    found = doctor.report(workspace.root, Notes())
    first = found["first_step"]
    assert 0 < first["seconds"] < 60
    assert (first["source"], first["tokens_per_s"]) == ("now", 10667.0)
    assert words(found, "start").endswith(" s until the first step is done, then 10,667 tokens/s")
    seen = []
    run_command.begin(workspace, *harness.setup(), under_load=lambda: seen.append(nvidia.gpus()))
    assert len(seen) == 1
    assert not list((workspace.home / "runs").glob("measure-*"))


@pytest.mark.usefixtures("driver")
def test_a_train_py_that_does_not_come_to_a_step_is_a_problem(workspace):
    (workspace.root / "train.py").write_text("raise RuntimeError('no such device')\n")
    found = doctor.report(workspace.root, Notes())
    assert found["first_step"] is None
    assert found["problems"][-1] == {
        "problem": "train.py does not reach its first step: RuntimeError: no such device.",
        "command": "autoresearch-jax run",
    }


@pytest.mark.usefixtures("driver")
def test_a_train_py_with_lines_of_its_own_is_timed_too(workspace):
    (workspace.root / "train.py").write_text(train_py(1.0))
    first = doctor.report(workspace.root, Notes())["first_step"]
    assert first["seconds"] >= 0
    assert first["tokens_per_s"] is None


@pytest.mark.usefixtures("driver")
def test_a_device_at_work_is_left_alone(workspace):
    handles = locks.devices(
        visible_devices.device_names(), "autoresearch-jax loop in /elsewhere", Notes()
    )
    try:
        problem = doctor.report(workspace.root, Notes())["problems"][-1]
    finally:
        for handle in handles:
            os.close(handle)
    assert "is held by" in problem["problem"]
    assert problem["command"] == "autoresearch-jax doctor --first-step"


def test_without_it_the_last_baseline_tells(tmp_path, driver):
    driver(H100)
    root = harness.make_repository(tmp_path / "w")
    assert words(doctor.report(root), "start").startswith("start   not measured yet: ")
    harness.run_loop(Workspace.open(root), Scripted(), 0, tag="t")
    found = doctor.report(root)
    assert found["first_step"]["source"] == "autoresearch/t"
    assert "until the first step by the baseline of autoresearch/t; now: " in words(found, "start")


def test_the_command_starts_train_py_only_when_it_is_asked_to(workspace, driver):
    driver(H100)
    run = CliRunner()
    plain = run.invoke(main.main, ["-C", str(workspace.root), "doctor", "--json"])
    assert json.loads(plain.stdout)["first_step"] is None
    asked = run.invoke(main.main, ["-C", str(workspace.root), "doctor", "--first-step", "--json"])
    assert json.loads(asked.stdout)["first_step"]["source"] == "now"


# ----------------------------------------------------------------------------------- agents


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a client be installed; without a login."""
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    for one in client_specs.shipped().values():
        for name in (*one.login_env, "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
            monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name):
        (folder / name).symlink_to("/bin/true")

    add("uv")
    return add


def of_agent(root, agent):
    """The problems that doctor has with an agent."""
    settings = config.resolve(root, agent=agent)
    return [(one.problem, one.command) for one in doctor._unusable_agent(settings, agent)]


def test_an_agent_is_looked_at_before_program_md_names_it(install, tmp_path, monkeypatch):
    assert of_agent(tmp_path, None) == []
    npm = "npm install -g @anthropic-ai/claude-code"
    missing = f"claude is not in PATH. Install it: {npm}."
    assert of_agent(tmp_path, "claude") == [(f"--agent claude: {missing}", npm)]
    assert of_agent(tmp_path, "hybrid:claude")[0][1] == npm
    install("claude")
    login = "claude auth login, or export ANTHROPIC_API_KEY"
    (problem,) = of_agent(tmp_path, "claude:opus")
    assert problem == (
        f"--agent claude:opus: there is no login for claude:opus. Log in: {login}.",
        login,
    )
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    assert of_agent(tmp_path, "claude") == []
    ((problem, command),) = of_agent(tmp_path, "claud")
    assert problem.endswith("Did you mean claude?")
    assert command == "autoresearch-jax loop --agent tpe"


def test_the_flag_goes_before_program_md_and_knows_its_clients(install, tmp_path):
    described = "{command: [own], install: make own}"
    (tmp_path / "program.md").write_text(f"---\nagent: codex\nagents: {{o: {described}}}\n---\n")
    ((problem, command),) = of_agent(tmp_path, None)
    assert problem.startswith("program.md sets the agent codex: codex is not in PATH.")
    assert command == "npm install -g @openai/codex"
    assert of_agent(tmp_path, "tpe") == []
    assert of_agent(tmp_path, "o") == [
        ("--agent o: own is not in PATH. Install it: make own.", "make own")
    ]


def test_no_more_is_said_of_a_login_than_is_known(install, tmp_path, monkeypatch):
    for name in ("claude", "codex", "opencode"):
        install(name)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "expired long ago")
    found = {
        name: doctor_lines._agent_words(one) for name, one in doctor._agents(LoopConfig()).items()
    }
    assert found["claude"] == "installed; a login or key is there (not tried)"
    assert found["codex"].startswith("installed; no login or key is there: codex login, or ")
    assert found["opencode"] == "installed; its login cannot be seen"


def test_the_command_exits_with_1_where_its_agent_cannot_be_asked(
    install, workspace, driver, monkeypatch
):
    driver(H100)
    run, words = CliRunner(), ["-C", str(workspace.root), "doctor", "--agent", "claude"]
    lacking = run.invoke(main.main, words)
    assert lacking.exit_code == 1
    assert "\n- --agent claude: claude is not in PATH. Install it: npm" in lacking.stdout
    assert "\n  Next: npm install -g @anthropic-ai/claude-code\n" in lacking.stdout
    assert lacking.stdout.endswith("\nNot ready.\n")
    install("claude")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    monkeypatch.setattr(doctor, "_needed_gb", lambda root: 0.0)
    ready = run.invoke(main.main, words)
    assert ready.exit_code == 0, ready.stdout
    last = ready.stdout.splitlines()[-1]
    assert last == f"Ready: autoresearch-jax -C {workspace.root} loop --agent claude"
    assert json.loads(run.invoke(main.main, [*words, "--json"]).stdout)["agent"] == "claude"


# ------------------------------------------------------------------------------- the machine


def test_a_weak_sandbox_is_a_note(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not list(doctor._weak_sandbox(Chosen("bwrap", "")))
    (note,) = doctor._weak_sandbox(Chosen("landlock", "bwrap: bwrap is not in PATH"))
    assert note.command == "sudo apt install bubblewrap"
    (note,) = doctor._weak_sandbox(Chosen("none", "landlock: this kernel has no Landlock"))
    assert note.problem.startswith("no sandbox is active")


def test_what_may_take_the_machine_away_is_a_note(monkeypatch):
    assert not list(doctor._interruptions())
    monkeypatch.setattr(battery, "charge", lambda: (57.0, False))
    (note,) = doctor._interruptions()
    assert "on its battery, 57% full" in note.problem
    monkeypatch.setattr(battery, "charge", lambda: (57.0, True))
    (note,) = doctor._interruptions()
    assert note.command.endswith("autoresearch-jax loop")
    monkeypatch.setattr(battery, "charge", lambda: None)
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    (note,) = doctor._interruptions()
    assert (note.command, "connection" in note.problem) == ("tmux", True)
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    assert not list(doctor._interruptions())


def test_json_spells_commands_as_they_are_typed_like_the_text(driver, tmp_path, monkeypatch):
    driver(UNDER_LOAD)
    root = tmp_path / "a folder"
    root.mkdir()
    (root / "program.md").write_text("---\nagent: hybrid:nobody\n---\n")
    monkeypatch.setattr(battery, "charge", lambda: (57.0, True))
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    words = ["-C", str(root), "doctor"]
    text = CliRunner().invoke(main.main, words).stdout
    found = json.loads(CliRunner().invoke(main.main, [*words, "--json"]).stdout)
    for kind, mark in (("problems", "- "), ("notes", "Note: ")):
        for one in found[kind]:
            assert f"{mark}{one['problem']}\n  Next: {one['command']}\n" in text
    commands = [one["command"] for one in (*found["problems"], *found["notes"])]
    ours = [one for one in commands if "autoresearch-jax" in one]
    assert len(ours) >= 3
    for one in ours:
        assert "uv run" in one
        assert one.count(f" autoresearch-jax -C '{root}' ") == 1


def test_a_note_is_printed_and_keeps_nothing_from_being_ready(driver, tmp_path, monkeypatch):
    driver(H100)
    monkeypatch.setenv("SSH_CONNECTION", "x")
    printed = "\n".join(
        doctor_lines.lines(doctor.report(tmp_path) | {"ready": True, "problems": []})
    )
    assert printed.endswith(
        "\n\nNote: a loop in this shell stops when the connection is lost.\n  Next: tmux\n"
        "Ready: autoresearch-jax loop"
    )
