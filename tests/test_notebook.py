"""The notebook runs from top to bottom on a CPU, and is committed without what it printed."""

import re
import shutil

import pytest

import autoresearch_jax
from autoresearch_jax.common import paths

nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel are not installed")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = paths.template() / "notebooks" / "colab_demo.ipynb"
BYTES = 20_000


def read():
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def test_it_is_committed_valid_small_and_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    assert NOTEBOOK.stat().st_size < BYTES


def test_it_names_what_it_has_not_been_run_on():
    first = read().cells[0].source
    for machine in ("T4, L4, A100", "TPU"):
        row = next(line for line in first.splitlines() if line.startswith(f"| {machine}"))
        assert row.endswith("| **no** |")


INTERRUPT = """
import signal
import threading


def trains(n):
    run = autoresearch_jax.open(WORKSPACE)
    return len(run) > n and run.log(n)


def interrupt():
    while not trains(3):
        time.sleep(0.1)
    os.killpg(os.getpgrp(), signal.SIGINT)  # as the stop button does


import autoresearch_jax
threading.Thread(target=interrupt).start()
EXPERIMENTS = 50
"""


def executed(notebook):
    """Run a notebook in a kernel; return the outputs and the printed text of each cell."""
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",  # of the Python that runs this
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = {name: "".join(one.get("text", "") for one in found) for name, found in outputs.items()}
    return outputs, said


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine as on Colab, and its Drive; both are folders."""
    home = {"HOME": "machine", "AUTORESEARCH_HOME": "machine/data", "AUTORESEARCH_DRIVE": "drive"}
    home |= {"IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "runtime"}
    for name, folder in {**home, "JUPYTER_CONFIG_DIR": "config"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (tmp_path / "machine").mkdir()
    return tmp_path / "machine"


@pytest.mark.nightly
@pytest.mark.timeout(1500)  # a busy machine is not a defect
def test_it_runs_from_top_to_bottom_and_goes_on_from_drive(machine):
    outputs, said = executed(read())
    assert "3 trainings of 10 s" in said["choose"]
    assert said["install"] == ""  # all is there
    assert re.search("^2 experiments, ", said["loop"], re.MULTILINE)
    (drawn,) = [one for one in outputs["loop"] if one.output_type == "display_data"]
    assert "image/png" in drawn.data  # one picture, which was drawn again and again
    assert "rates fall over the last 60% of the budget" in said["own"]
    assert "WARMDOWN_RATIO" in said["own"]
    assert said["sample"].startswith("The function returns")
    assert len(said["sample"]) > len("The function returns") + 20
    assert "best val_bpb" in said["results"]
    table = outputs["results"][-1].data["text/html"]
    assert table.count("<tr") == 1 + 3
    before = autoresearch_jax.open(machine / "research")

    shutil.rmtree(machine)  # the session is over
    machine.mkdir()
    packed = max((machine.parent / "drive").iterdir(), key=lambda one: one.stat().st_mtime)
    packed.with_name("research-0.tgz").write_bytes(packed.read_bytes()[:-99])  # was cut off
    notebook = read()
    at = [cell.id for cell in notebook.cells].index("loop")
    notebook.cells[at + 1 :] = []
    notebook.cells.insert(at, nbformat.v4.new_code_cell(INTERRUPT))
    _, said = executed(notebook)
    assert "research-0.tgz is not complete" in said["drive"]
    assert f"Continuing with {packed.name}" in said["drive"]
    assert "The current experiment is finished." in said["loop"]
    after = autoresearch_jax.open(machine / "research")
    assert after.tag == before.tag
    assert [e.commit for e in after][:3] == [e.commit for e in before]
    assert [e.n for e in after] == [0, 1, 2, 3]
    # It was finished. A training that was disturbed counts as none, and is done again later.
    assert after[3].outcome is not None or after[3].interruptions
