"""What `doctor` reports about an accelerator, a first step, agents and the machine."""

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
from autoresearch_jax.system import device_probe, locks, nvidia, visible_devices
from tests import harness
from tests.harness import Notes, Scripted, train_py

H100 = "0, 81559, 81004, 345, 1980, 33, 700.00, 0x0000000000000001\n"
UNDER_LOAD = "0, 81559, 20200, 1410, 1980, 86, 700.00, 0x0000000000000024\n"
USER = "4711, 61002, /usr/bin/python3\n"
# The queries of doctor. An older driver has another name for the reasons of a slow clock.
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
    """A neutral machine: variables, battery and connection of the real one do not count."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "SSH_CONNECTION", "TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "_battery_charge", lambda: None)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "uv").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(programs), prepend=":")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Return a function that sets the answers of `nvidia-smi`; JAX computes on an H100."""
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
    """Return the line of the report that begins so."""
    return next(line for line in doctor_lines.lines(found) if line.startswith(start))


def problems_of(found, kind):
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
    assert not any("GPU" in problem for problem in problems_of(found, "problems"))
    json.dumps(found)


def test_a_gpu_that_is_used_and_slow_is_reported(driver, tmp_path):
    driver(UNDER_LOAD, USER)
    found = doctor.report(tmp_path)
    line = words(found, "GPU 0")
    assert line.endswith("at its power limit, slowed down because it is hot")
    assert (
        "GPU 0 has 19.7 GiB free, and a training takes up to 59.3: used by process 4711 "
        "(/usr/bin/python3, 61002 MiB)."
    ) in problems_of(found, "notes")
    assert found["notes"][0]["command"] == "ps -fp 4711  # then: kill 4711"
    assert (
        "GPU 0 is at its power limit and slowed down because it is hot"
        in problems_of(found, "notes")[-1]
    )


@pytest.mark.parametrize(
    ("reasons", "slowed", "unusual"),
    [
        ("0x0000000000000001", 0, False),  # idle
        ("0x0000000000000004", 1, False),  # every full load
        ("0x00000000000000C0", 2, True),
        ("Not Active", 0, False),
    ],
)
def test_reasons_for_a_slow_clock(driver, reasons, slowed, unusual):
    driver(H100.replace("0x0000000000000001", reasons))
    (gpu,) = nvidia.gpus()
    assert (len(gpu.slowed), gpu.unusual) == (slowed, unusual)


def test_values_that_a_driver_does_not_report_are_unknown(driver, tmp_path, monkeypatch):
    driver("0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]\n")
    found = doctor.report(tmp_path)
    assert words(found, "GPU 0") == "GPU 0   its driver reports nothing"
    assert found["memory_free_mb"] is None
    driver("NVIDIA-SMI has failed because it could not communicate with the driver\n")
    assert nvidia.gpus() == []
    driver(H100)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert nvidia.gpus() == []


@pytest.mark.parametrize(("platform", "kind"), [("tpu", "TPU v5 lite"), ("cpu", "cpu")])
def test_the_free_memory_of_an_accelerator_without_nvidia_smi_is_unknown(
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


def test_the_process_that_uses_a_tpu_is_named():
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
    """A workspace whose train.py prints steps until it is ended."""
    monkeypatch.setattr(run_command, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(doctor, "Tools", harness.tools)
    monkeypatch.setattr(doctor, "_data", lambda *_: [])
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
def test_a_train_py_that_fails_before_its_first_step_is_a_problem(workspace):
    (workspace.root / "train.py").write_text("raise RuntimeError('no such device')\n")
    found = doctor.report(workspace.root, Notes())
    assert found["first_step"] is None
    assert found["problems"][-1] == {
        "problem": "train.py does not reach its first step: RuntimeError: no such device.",
        "command": "autoresearch-jax run",
    }


@pytest.mark.usefixtures("driver")
def test_a_train_py_that_prints_no_steps_is_timed_too(workspace):
    (workspace.root / "train.py").write_text(train_py(1.0))
    first = doctor.report(workspace.root, Notes())["first_step"]
    assert first["seconds"] >= 0
    assert first["tokens_per_s"] is None


@pytest.mark.usefixtures("driver")
def test_a_device_in_use_is_left_alone(workspace):
    handles = locks.devices(
        visible_devices.device_names(), "autoresearch-jax loop in /elsewhere", Notes()
    )
    try:
        problem = doctor.report(workspace.root, Notes())["problems"][-1]
    finally:
        for handle in handles:
            os.close(handle)
    assert "is held by" in problem["problem"]
    assert problem["command"] == "autoresearch-jax doctor"


def test_without_first_step_the_last_baseline_is_reported(tmp_path, driver):
    driver(H100)
    root = harness.make_repository(tmp_path / "w")
    assert words(doctor.report(root), "start").startswith("start   not measured yet: ")
    harness.run_loop(Workspace.open(root), Scripted(), 0, tag="t")
    found = doctor.report(root)
    assert found["first_step"]["source"] == "autoresearch/t"
    assert "until the first step by the baseline of autoresearch/t; now: " in words(found, "start")


def test_train_py_starts_only_with_first_step(workspace, driver):
    driver(H100)
    run = CliRunner()
    plain = run.invoke(main.main, ["-C", str(workspace.root), "doctor", "--json"])
    assert json.loads(plain.stdout)["first_step"] is None
    asked = run.invoke(main.main, ["-C", str(workspace.root), "doctor", "--first-step", "--json"])
    assert json.loads(asked.stdout)["first_step"]["source"] == "now"


# ----------------------------------------------------------------------------------- agents


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a client, without a login."""
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
    """Return the problems of an agent, with their commands."""
    settings = config.resolve(root, agent=agent)
    return [(one.problem, one.command) for one in doctor._unusable_agent(settings, agent)]


def test_an_agent_is_checked_before_program_md_names_it(install, tmp_path, monkeypatch):
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
    assert command == "autoresearch-jax loop --agent search"


def test_the_flag_precedes_program_md_and_knows_its_clients(install, tmp_path):
    described = "{command: [own], install: make own}"
    (tmp_path / "program.md").write_text(f"---\nagent: codex\nagents: {{o: {described}}}\n---\n")
    ((problem, command),) = of_agent(tmp_path, None)
    assert problem.startswith("program.md sets the agent codex: codex is not in PATH.")
    assert command == "npm install -g @openai/codex"
    assert of_agent(tmp_path, "tpe") == []
    assert of_agent(tmp_path, "o") == [
        ("--agent o: own is not in PATH. Install it: make own.", "make own")
    ]


def test_a_login_is_reported_only_as_far_as_it_is_known(install, tmp_path, monkeypatch):
    for name in ("claude", "codex", "opencode"):
        install(name)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "expired long ago")
    found = {
        name: doctor_lines._agent_words(one) for name, one in doctor._agents(LoopConfig()).items()
    }
    assert found["claude"] == "installed; a login or key exists (not tried)"
    assert found["codex"].startswith("installed; there is no login or key: codex login, or ")
    assert found["opencode"] == "installed; its login is unknown"


def test_the_exit_code_is_1_if_the_agent_cannot_be_used(install, workspace, driver, monkeypatch):
    driver(H100)
    run, words = CliRunner(), ["-C", str(workspace.root), "doctor", "--agent", "claude"]
    lacking = run.invoke(main.main, words)
    assert lacking.exit_code == 1
    assert "\n- --agent claude: claude is not in PATH. Install it: npm" in lacking.stdout
    assert "\n  Next: npm install -g @anthropic-ai/claude-code\n" in lacking.stdout
    assert lacking.stdout.endswith("\nNot ready.\n")
    install("claude")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    ready = run.invoke(main.main, words)
    assert ready.exit_code == 0, ready.stdout
    last = ready.stdout.splitlines()[-1]
    assert last == f"Ready: autoresearch-jax -C {workspace.root} loop --agent claude"
    assert json.loads(run.invoke(main.main, [*words, "--json"]).stdout)["agent"] == "claude"


# ------------------------------------------------------------------------------- the machine


def test_a_weak_sandbox_is_a_note(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not list(doctor.weak_sandbox(Chosen("bwrap", "")))
    (note,) = doctor.weak_sandbox(Chosen("landlock", "bwrap: bwrap is not in PATH"))
    assert note.command == "sudo apt install bubblewrap"
    (note,) = doctor.weak_sandbox(Chosen("none", "landlock: this kernel has no Landlock"))
    assert note.problem.startswith("no sandbox is active")


def test_a_battery_and_a_connection_are_notes(monkeypatch):
    assert not list(doctor._interruptions())
    monkeypatch.setattr(doctor, "_battery_charge", lambda: (57.0, False))
    (note,) = doctor._interruptions()
    assert "on its battery, 57% full" in note.problem
    monkeypatch.setattr(doctor, "_battery_charge", lambda: (57.0, True))
    (note,) = doctor._interruptions()
    assert note.command.endswith("autoresearch-jax loop")
    monkeypatch.setattr(doctor, "_battery_charge", lambda: None)
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 1 192.0.2.2 22")
    (note,) = doctor._interruptions()
    assert (note.command, "connection" in note.problem) == ("tmux", True)
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    assert not list(doctor._interruptions())


def test_json_and_text_spell_commands_alike(driver, tmp_path, monkeypatch):
    driver(UNDER_LOAD)
    root = tmp_path / "a folder"
    root.mkdir()
    (root / "program.md").write_text("---\nagent: hybrid:nobody\n---\n")
    monkeypatch.setattr(doctor, "_battery_charge", lambda: (57.0, True))
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


def test_a_note_does_not_prevent_ready(driver, tmp_path, monkeypatch):
    driver(H100)
    monkeypatch.setenv("SSH_CONNECTION", "x")
    printed = "\n".join(
        doctor_lines.lines(doctor.report(tmp_path) | {"ready": True, "problems": []})
    )
    assert printed.endswith(
        "\n\nNote: a loop in this shell stops when the connection is lost.\n  Next: tmux\n"
        "Ready: autoresearch-jax loop"
    )
