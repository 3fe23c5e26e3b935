"""Devices of a machine: which there are, which processes use them, which preset suits them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from autoresearch_jax.commands import doctor, presets
from autoresearch_jax.common import literals
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.open_session import Tools, open_devices
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import device_probe, device_use, nvidia, tpu_slice, visible_devices
from tests.data_helpers import ROOT
from tests.harness import Notes, git

TRAIN = (ROOT / "train.py").read_text()
CONSTANTS = (ROOT / "constants.py").read_text()


def numbers(source):
    return {name: one.value for name, one in literals.read(source).items()}


def test_probe_names_the_device():
    device = device_probe.probe()
    assert device.platform in ("cpu", "gpu", "tpu")
    assert device.device_count >= 1
    assert device.memory_mb > 100
    assert device.jax_version.count(".") >= 2


def test_a_probe_that_hangs_or_fails_is_reported(monkeypatch):
    monkeypatch.setattr(device_probe, "PROBE", "import time; time.sleep(60)")
    with pytest.raises(UserError, match="another process may use"):
        device_probe.probe(timeout=0.5)
    monkeypatch.setattr(device_probe, "PROBE", "raise SystemExit('no such device')")
    with pytest.raises(UserError, match="no such device"):
        device_probe.probe()


def test_one_of_several_hosts_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    tpu_slice.refuse_several_hosts()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t1v-0,t1v-1,t1v-2,t1v-3")
    with pytest.raises(UserError, match=r"one of the 4 hosts .*export TPU_WORKER_HOSTNAMES=local"):
        tpu_slice.refuse_several_hosts()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    tpu_slice.refuse_several_hosts()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    with pytest.raises(UserError, match="unset JAX_COORDINATOR_ADDRESS"):
        tpu_slice.refuse_several_hosts()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    tpu_slice.refuse_several_hosts()


@contextlib.contextmanager
def metadata(monkeypatch, **attributes):
    """Run the metadata server of a Google Cloud machine with a TPU."""

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            found = attributes.get(self.path.rpartition("/attributes/")[2].replace("-", "_"))
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    for name in ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(visible_devices, "accelerator_present", lambda: "tpu")
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_a_slice_that_only_its_metadata_names_is_refused(monkeypatch):
    names = "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3"
    refusal = pytest.raises(UserError, match="one of the 2 hosts")
    with metadata(monkeypatch, worker_network_endpoints=names), refusal:
        tpu_slice.refuse_several_hosts()
    tpu_slice.refuse_several_hosts()  # nothing answers: not a cloud machine


def test_a_sandbox_without_a_network_describes_the_slice_to_libtpu(monkeypatch):
    with metadata(monkeypatch, accelerator_type="v5litepod-8"):
        variables = tpu_slice.slice_variables()
        assert variables["TPU_ACCELERATOR_TYPE"] == "v5litepod-8"
        assert variables["TPU_SKIP_MDS_QUERY"] == "1"
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v6e-8")  # the user's choice counts
        assert tpu_slice.slice_variables() == {}
    with metadata(monkeypatch):
        assert tpu_slice.slice_variables() == {}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert tpu_slice.slice_variables() == {}


def test_a_loop_on_several_hosts_is_refused(prepared_home, tmp_path, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setattr(device_probe, "probe", lambda: pytest.fail("it would wait for the others"))
    root, _ = prepared_home
    git(tmp_path, "init", "-q")
    found = open_devices(Workspace(tmp_path, tmp_path), LoopConfig(), Tools(Notes()), "loop")
    with pytest.raises(UserError, match="one of the 2 hosts"), found:
        pass
    problems = [one["problem"] for one in doctor.report(root)["problems"]]
    assert any("one of the 2 hosts" in problem for problem in problems)


def test_doctor_reports_what_is_missing(prepared_home, tmp_path):
    root = shutil.copytree(prepared_home[0], tmp_path / "workspace")
    shutil.copy(ROOT / "train.py", root)
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Start"]):
        git(root, *arguments)
    found = doctor.report(root)
    assert found["data_ready"] is True
    assert found["python_ok"] is True
    assert found["preset"] in presets.PRESETS
    assert found["ready"] is (not found["problems"])
    json.dumps(found)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = doctor.report(tmp_path / "elsewhere")
    assert elsewhere["data_ready"] is False
    assert elsewhere["ready"] is False
    assert elsewhere["problems"][-1]["command"]


def test_a_gpu_that_jax_does_not_see_is_reported(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 535.104.05\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_devices.accelerator_present() == "nvidia"
    cpu = device_probe.Device("cpu", "cpu", 1, 1000.0, "0.10.2", "0.10.2")
    (problem,) = doctor._unused_accelerator(cpu)
    assert problem.command == "uv run --extra cuda12 autoresearch-jax doctor"
    for said, extra in {
        "580.65.06": "cuda13",
        "580.65.06, 7.5": "cuda13",
        "580.65.06, 7.0": "cuda12",  # CUDA 13 has left Volta behind
        "595.10, 12.0": "cuda13",
        "570.1, 9.0": "cuda12",
    }.items():
        tool.write_text(f"#!/bin/sh\necho {said}\n")
        assert nvidia.cuda_extra() == extra
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not list(doctor._unused_accelerator(cpu))


@pytest.fixture
def accelerated(monkeypatch):
    """Remove the variables that would hide an accelerator."""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize(
    ("nodes", "variables", "names"),
    [
        (("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"), {}, ["nvidia-2", "nvidia-10"]),
        (
            ("nvidia0",),
            {"CUDA_VISIBLE_DEVICES": "GPU-8932,0,-1,2"},
            ["nvidia-GPU-8932", "nvidia-0"],
        ),
        (("nvidia0",), {"JAX_PLATFORMS": "cpu"}, None),
        (("nvidia0",), {"JAX_PLATFORMS": "cuda,cpu"}, ["nvidia-0"]),
        (("dxg",), {}, ["nvidia-0"]),
        (("accel0", "accel1"), {"TPU_VISIBLE_CHIPS": "1"}, ["tpu-1"]),
        (("vfio/vfio", "vfio/0", "vfio/1"), {"TPU_VISIBLE_DEVICES": "0"}, ["tpu-0"]),
        (("null",), {"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_the_devices_of_a_training_are_named_without_jax(
    nodes, variables, names, tmp_path, monkeypatch
):
    for node in nodes:
        (tmp_path / node).parent.mkdir(exist_ok=True)
        (tmp_path / node).touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cores = [f"cpu-{core}" for core in sorted(os.sched_getaffinity(0))]
    assert visible_devices.device_names(tmp_path) == (names or cores)


@pytest.fixture
def nvidia_smi(accelerated, tmp_path, monkeypatch):
    """Set the lines that `nvidia-smi` prints; it writes its arguments to the file `arguments`."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho $* > {tmp_path}/arguments\ncat {tmp_path}/rows\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lambda rows: (tmp_path / "rows").write_text(rows)


def test_a_gpu_is_waited_for(nvidia_smi, tmp_path):
    nvidia_smi("")
    device_use.wait_until_free(seconds=0, nodes=())
    nvidia_smi("4711, 61002, /usr/bin/python3, or so\n12, [N/A], Xorg\n")
    assert device_use.holders(nodes=()) == {
        4711: "process 4711 (/usr/bin/python3, or so, 61002 MiB)",
        12: "process 12 (Xorg, [N/A] MiB)",
    }
    assert "--id" not in (tmp_path / "arguments").read_text()
    device_use.wait_until_free(known={12, 4711}, nodes=())
    started = time.monotonic()
    with pytest.raises(UserError, match=r"used by process 4711 \(.*`ps -fp 4711`.*`kill 4711`"):
        device_use.wait_until_free(known={12}, seconds=0.3, nodes=())
    assert time.monotonic() - started >= 0.3
    threading.Timer(0.3, nvidia_smi, ["12, 300, Xorg\n"]).start()
    device_use.wait_until_free(known={12}, nodes=())


def test_only_the_visible_gpus_count(nvidia_smi, tmp_path, monkeypatch):
    nvidia_smi("4711, 61002, python3\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-8932")
    assert device_use.holders(nodes=())
    assert (tmp_path / "arguments").read_text().split()[-1] == "--id=0,GPU-8932"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not device_use.holders(nodes=())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not device_use.holders(nodes=())
    monkeypatch.delenv("JAX_PLATFORMS")
    nvidia_smi("NVIDIA-SMI has failed because it could not communicate with the driver\n")
    assert not device_use.holders(nodes=())


def test_a_tpu_is_waited_for(accelerated, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    node = tmp_path / "accel0"
    nodes = (f"{tmp_path}/accel[0-9]*",)
    assert not device_use.holders(nodes=nodes)
    node.touch()
    assert not device_use.holders(nodes=nodes)
    code = f"file = open({str(node)!r}); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        holder.stdout.readline()
        device_use.wait_until_free(known={holder.pid}, seconds=0, nodes=nodes)
        with pytest.raises(UserError, match=rf"used by process {holder.pid} \(python.*accel0\)"):
            device_use.wait_until_free(seconds=0.2, nodes=nodes)
        holder.communicate(b"\n")
    device_use.wait_until_free(seconds=5, nodes=nodes)


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (("gpu", "NVIDIA H100 80GB HBM3", 8, 81_000), "h100"),
        (("gpu", "NVIDIA A100-SXM4-40GB", 1, 40_300), "a100-40gb"),
        (("gpu", "NVIDIA GeForce RTX 4090", 1, 24_100), "24gb"),
        (("tpu", "TPU v4", 4, 32_000), "v4-8"),
        (("tpu", "TPU v5 lite", 1, 16_000), "v5e-1"),
        (("tpu", "TPU v5p", 4, 95_000), "v5p-8"),
        (("tpu", "TPU v6e", 8, 32_000), "v6e-8"),
        (("cpu", "cpu", 1, 16_000), "cpu"),
    ],
)
def test_suggested_presets(machine, name):
    device = device_probe.Device(*machine, "", "")
    preset, why = presets.suggest(device)
    assert (preset.name, why) == (name, "")


@pytest.mark.parametrize("seq_len", [None, 64, 1024])
def test_every_preset_fits_the_files_and_itself(seq_len):
    for name, preset in presets.PRESETS.items():
        train, frozen = map(numbers, presets.apply(TRAIN, CONSTANTS, preset, seq_len))
        tokens = train["DEVICE_BATCH_SIZE"] * frozen["MAX_SEQ_LEN"]
        # v4 and v5p slices are named by cores, two to a chip.
        devices = {"v4-8": 4, "v5p-8": 4, "v5e-8": 8, "v6e-8": 8}.get(name, 1)
        assert train["TOTAL_BATCH_SIZE"] % (tokens * devices) == 0, name
        assert frozen["EVAL_TOKENS"] % frozen["MAX_SEQ_LEN"] == 0, name
        if seq_len:
            assert frozen["MAX_SEQ_LEN"] == seq_len, name
            before = numbers(presets.apply(TRAIN, CONSTANTS, preset, None)[1])
            rows = frozen["EVAL_TOKENS"] // seq_len
            assert rows == before["EVAL_TOKENS"] // before["MAX_SEQ_LEN"], name


@pytest.mark.parametrize("seq_len", [0, 32, 1000])
def test_bad_row_lengths_are_refused(seq_len):
    with pytest.raises(UserError, match="power of two"):
        presets.apply(TRAIN, CONSTANTS, None, seq_len)


def test_a_row_that_is_longer_than_a_step_is_refused():
    with pytest.raises(UserError, match=r"--seq-len 16384: .* longer than the 8192 tokens"):
        presets.apply(TRAIN, CONSTANTS, presets.PRESETS["cpu"], 16384)


def test_a_train_py_without_the_constants_of_a_preset_is_refused():
    with pytest.raises(UserError, match=r"train\.py sets no .*DEPTH"):
        presets.apply("x = 1\n", CONSTANTS, presets.PRESETS["cpu"], None)
    with pytest.raises(UserError, match="line 1 is not Python"):
        presets.apply("x = = 1\n", CONSTANTS, presets.PRESETS["cpu"], None)
