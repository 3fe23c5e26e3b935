"""Trainings on several hosts, for tests: each is a thread or a node of Ray on this machine."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from autoresearch_jax.common import archive
from autoresearch_jax.data import manifest
from autoresearch_jax.data.manifest import FROZEN
from autoresearch_jax.jobs.job import Limits, TrainJob
from autoresearch_jax.jobs.ray import machine, transfer
from autoresearch_jax.jobs.ray.messages import (
    Machine,
    Requirements,
    Reserved,
    Resources,
    TrainTask,
)
from tests import data_helpers
from tests.attacks import lab

STEPS = 6
DEVICES = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
LIMITS = Limits(overrun_s=60.0)
AWAY = Path("/nowhere")  # a path of the coordinator, which a machine replaces
SIZES = {
    "DEPTH": 1,
    "ASPECT_RATIO": 32,
    "HEAD_DIM": 32,
    "ACTIVATION_DTYPE": '"float32"',
    "TOTAL_BATCH_SIZE": 1024,
    "DEVICE_BATCH_SIZE": 16,
    # Larger rates make the last bits of a sum, which depend on its order, matter after few steps.
    "EMBEDDING_LR": 0.1,
    "UNEMBEDDING_LR": 0.002,
    "MATRIX_LR": 0.01,
    "SCALAR_LR": 0.1,
}
EXACT = {'muon_dtype: str = "bfloat16"': 'muon_dtype: str = "float32"', "eps=1e-10": "eps=1e-6"}
# In a small train.py that is not the real one: every process joins, and then they train together.
JOIN = "from autoresearch_jax import kit\nkit.initialize_distributed()\nrank = jax.process_index()"
TOGETHER = """
note(pid=os.getpid(), rank=rank)
for _ in range({steps}):
    kit.same_on_all_processes(1.0)
    time.sleep(0.1)
"""


def real_train_py() -> str:
    """The real train.py, tiny: so many STEPS whatever the time, and it prints each loss."""
    text = (data_helpers.ROOT / "train.py").read_text()
    for name, value in SIZES.items():
        text, found = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value}", text)
        assert found == 1, name
    for old, new in (
        ("    value = float(loss)\n", '    value = float(loss)\n    print("LOSS", step, value)\n'),
        ("if begins >= budget:", f"if step >= {STEPS}:"),
        ("schedule_at(begins / budget,", f"schedule_at(step / {STEPS},"),
        *EXACT.items(),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def losses_of_one_process(ground: lab.Ground, folder: Path) -> list[float]:
    """The losses of `real_train_py` on one device."""
    for name in FROZEN:
        (folder / name).write_bytes((ground.root / name).read_bytes())
    (folder / "train.py").write_text(real_train_py())
    (folder / "left").mkdir()
    variables = {
        "AUTORESEARCH_RUN_DIR": str(folder / "left"),
        "AUTORESEARCH_SCORED_LATER": "1",
        "XLA_FLAGS": DEVICES.replace("count=2", "count=1"),
    }
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env=data_helpers.environment(ground.home, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return losses(done.stdout)


def losses(log: str) -> list[float]:
    """The losses that a log of `real_train_py` has."""
    found = re.findall(r"(?m)^LOSS (\d+) (\S+)$", log)
    assert [int(step) for step, _ in found] == list(range(STEPS)), log
    return [float(loss) for _, loss in found]


def small_train_py(*, first: str = "", steps: int = 5, together: str = TOGETHER, **more) -> str:
    """A train.py that counts pairs of tokens, in a process of each host."""
    begun = together.format(steps=steps)
    return lab.train_py(first=f"{JOIN}\n{first}", begun=begun, **more)


def requirements(ground: lab.Ground, hosts: int = 1) -> Requirements:
    data = manifest.load(ground.root)
    return Requirements(
        Resources("CPU", 1, hosts=hosts),
        b"".join(archive.chunks(archive.members(ground.root, FROZEN))),
        data.choice,
        data.fingerprint,
        "auto",
        None,
        str(ground.workspace.common_dir),
    )


def train_task(wanted: Requirements, ground: lab.Ground, train_py: str, **more) -> TrainTask:
    job = TrainJob(AWAY, AWAY, AWAY, "one", 1.0, LIMITS, **{"scored_next": True, **more})
    folder = Path(tempfile.mkdtemp(dir=ground.root.parent))
    (folder / "train.py").write_text(train_py)
    for frozen in FROZEN:
        (folder / frozen).write_bytes((ground.root / frozen).read_bytes())
    return TrainTask(wanted, job, transfer.of_folder(folder, "train"), max_memory_gb=None)


class Direct:
    """In place of a cluster: each task runs in the thread that follows it, on a core of its own."""

    def refusing(self) -> list[str]:
        return []

    def run(self, what, task, options, stop):
        if what == "reserve":
            hosts = [(at, Machine(str(at), {}, {}, "127.0.0.1")) for at in range(task.hosts)]
            yield Reserved("group", hosts)
            return
        running = machine.TASKS[what](task)
        for event in running:
            yield event
            if stop():
                running.close()
                return
