"""The notebook runs from top to bottom on a CPU, and is committed without what it printed."""

import re

import pytest

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


@pytest.mark.nightly
@pytest.mark.timeout(900)  # a busy machine is not a defect
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    home = {"HOME": "", "AUTORESEARCH_HOME": "data", "IPYTHONDIR": "ipython"}
    home |= {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_CONFIG_DIR": "config"}
    for name, folder in home.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = read()
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",  # of the Python that runs this
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = {name: "".join(one.get("text", "") for one in found) for name, found in outputs.items()}
    assert "2 trainings of 10 s" in said["choose"]
    assert said["install"] == ""  # all is there
    assert re.search("^2 experiments, ", said["results"], re.MULTILINE)
    assert "image/png" in outputs["picture"][0].data
    assert said["sample"].startswith("The function returns")
    assert len(said["sample"]) > len("The function returns") + 20
    assert (tmp_path / "research" / "results.tsv").is_file()
