"""The environment of a loop, examined with real data, at each available level of isolation."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec import structs

from autoresearch_jax.commands import doctor
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs import environment, scoring
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.sandbox import isolation, landlock, profiles, seccomp
from autoresearch_jax.system import device_probe, installed, visible_devices
from tests import data_helpers, harness, levels


@pytest.fixture(scope="module")
def root(prepared, tmp_path_factory):
    """The prepared workspace as a repository: data is found by the bytes of its frozen files."""
    root = tmp_path_factory.mktemp("environment") / "workspace"
    shutil.copytree(prepared[0], root)
    (root / "train.py").write_text("")
    harness.git(root, "init", "-q", "-b", "main")
    harness.git(root, "add", ".")
    harness.git(root, "commit", "-q", "-m", "Start")
    return root


@pytest.fixture
def workspace(root, prepared_home, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return Workspace.open(root)


@pytest.fixture
def from_pydocs(monkeypatch):
    """The manifest names the documentation of the installed packages as the source."""
    load = manifest.load

    def loaded(*arguments, **options):
        return structs.replace(load(*arguments, **options), source="pydocs")

    monkeypatch.setattr(manifest, "load", loaded)


@pytest.mark.parametrize("level", levels.EVERY)
def test_an_environment_has_a_fingerprint_and_provenance(workspace, level):
    found = environment.examine(workspace, level)
    data = manifest.load(workspace.root)
    assert found.level == level
    assert found.watched is (level == "none")
    assert found.data_fingerprint == data.fingerprint
    assert bool(found.warning) is (level == "none" or (level == "landlock" and landlock.abi() < 6))
    assert found.fingerprint == {
        "frozen files": manifest.frozen_fingerprint(workspace.root),
        "scorer": scoring.code_sha256()[:16],
        "data": data.fingerprint,
        "device": "cpu",
        "device count": 1,
        "JAX": __import__("jax").__version__,
    }
    kept = found.provenance
    assert sorted(kept) == [
        "JAX",
        "XLA",
        "device",
        "device count",
        "frozen",
        "isolation",
        "sandbox",
        "shards",
        "system calls",
        "tokenizer",
    ]
    assert kept["system calls"] == seccomp.described()
    assert (kept["isolation"], kept["sandbox"]) == (level, level)
    assert kept["frozen"] == {
        **manifest.frozen_hashes(workspace.root),
        "autoresearch_jax": scoring.code_sha256(),
    }
    assert kept["tokenizer"] == data.tokenizer.sha256
    assert list(workspace.home.glob("trial-*")) == []


@pytest.mark.parametrize("level", levels.BOXES)
def test_no_sandbox_hides_text_that_can_be_made_again(workspace, from_pydocs, level):
    found = environment.examine(workspace, level)
    assert found.level == level  # the sandbox is there all the same
    assert (found.provenance["isolation"], found.provenance["sandbox"]) == ("none", level)
    with pytest.raises(UserError, match=r"--require-isolation landlock: the text of pydocs can be"):
        environment.examine(workspace, level, "landlock")
    assert environment.examine(workspace, level, "none").level == level


def test_a_required_isolation_is_reached_or_refused(workspace, monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(isolation.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"isolation by landlock or better is required.*bwrap does"):
        environment.examine(workspace, "auto", "landlock")
    with pytest.raises(UserError, match="landlock does not work here"):
        environment.examine(workspace, "landlock")
    found = environment.examine(workspace)
    assert (found.level, found.watched) == ("none", True)
    assert "bwrap is not in PATH" in found.warning


@levels.boxed
def test_a_sandbox_that_hides_the_accelerator_is_not_used(workspace, monkeypatch):
    found, probe = [], device_probe.probe
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(visible_devices, "accelerator_present", lambda: "nvidia")

    def outside_on_a_gpu(**options):
        device = probe(
            **{**options, "environment": lambda given: {**given, "JAX_PLATFORMS": "cpu"}}
        )
        found.append("wrap" in options)
        kind = {} if found[-1] else {"platform": "gpu", "device_kind": "NVIDIA H100"}
        return dataclasses.replace(device, **kind)

    monkeypatch.setattr(device_probe, "probe", outside_on_a_gpu)
    device, chosen = environment.probe(workspace.home)
    assert (device.platform, chosen.level) == ("gpu", "none")
    assert "in its sandbox JAX does not find the NVIDIA H100" in chosen.warning
    # If JAX finds no GPU outside either, the sandbox is not at fault, and there is one warning.
    monkeypatch.setattr(device_probe, "probe", probe)
    found = environment.examine(workspace)
    assert found.level == levels.STRONGEST
    assert "this machine has an NVIDIA GPU, but JAX sees only the CPU" in found.warning


@levels.boxed
def test_a_sandbox_that_hides_nothing_is_not_used(workspace, monkeypatch):
    monkeypatch.setattr(isolation, "wrap", lambda level, argv, sandbox: list(argv))
    with pytest.raises(UserError, match="its sandbox shows files that it should hide and"):
        environment.examine(workspace, "auto", "landlock")
    assert environment.examine(workspace).level == "none"


def test_data_that_was_altered_is_refused(workspace, prepared, tmp_path, monkeypatch):
    home = data_helpers.copy_data(prepared[1], tmp_path / "home")
    monkeypatch.setenv("AUTORESEARCH_HOME", str(home))
    workspace = Workspace.open(workspace.root)
    path = manifest.load(workspace.root).split_path("train")
    changed = bytearray(path.read_bytes())
    changed[0] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UserError, match=f"{path.name} was altered"):
        environment.examine(workspace, "none")


def test_missing_data_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    root = data_helpers.make_workspace(tmp_path / "workspace")
    (root / "train.py").write_text("")
    harness.git(root, "init", "-q", "-b", "main")
    with pytest.raises(UserError, match="no data is prepared for"):
        environment.examine(Workspace.open(root))


# ----------------------------------------------------------------------- other names of the text


@pytest.fixture
def downloaded(workspace, tmp_path, monkeypatch):
    """Return data whose held-out text is in a hub's cache, and further copies of that text."""
    hub = tmp_path / "person" / "hub" / "datasets--org--name"
    shard = hub / "snapshots" / "new" / "data" / "shard.parquet"
    copies = [hub / "blobs" / "old", tmp_path / "person" / "xet" / "chunk"]
    for path in (shard, *copies):
        path.parent.mkdir(parents=True)
        path.write_text("held out")
    monkeypatch.setattr("huggingface_hub.constants.HF_XET_CACHE", str(copies[1].parent))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "person" / "datasets"))
    data = manifest.load(workspace.root)
    shards = (structs.replace(data.shards[0], path=str(shard), split="val"),)
    return structs.replace(data, source="hf:org/name", shards=shards), copies


@pytest.mark.parametrize("level", levels.BOXES)
def test_an_agent_cannot_read_copies_of_a_downloaded_text(workspace, downloaded, tmp_path, level):
    data, copies = downloaded
    (prompt := tmp_path / "person" / "prompt").write_text("readable")
    sandbox = profiles.agent(
        workspace, data, scratch=isolation.fresh(tmp_path / "scratch"), prompt=prompt, writable=()
    )
    command = ["cat", prompt, data.shards[0].path, *copies]
    done = subprocess.run(
        isolation.wrap(level, [str(word) for word in command], sandbox),
        cwd=sandbox.scratch,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "readable"


def test_hard_links_of_the_held_out_text_are_reported(workspace, downloaded, tmp_path, monkeypatch):
    data, _ = downloaded
    monkeypatch.setattr(manifest, "load", lambda *_, **__: data)
    assert "hard links" not in environment.examine(workspace, "none").warning
    shard = Path(data.shards[0].path)
    os.link(shard, tmp_path / "another name")
    assert f"find / -samefile {shard}" in environment.examine(workspace, "none").warning
    links, public = doctor.readable_text(workspace.root, LoopConfig(agent="claude"))
    assert links.command == f"find / -samefile {shard}"
    assert "claude can download" in public.problem
    assert len([*doctor.readable_text(workspace.root, LoopConfig())]) == 1  # tpe downloads nothing


def test_the_version_of_a_package_is_that_of_the_one_that_is_imported(monkeypatch, tmp_path):
    (tmp_path / "torn-1.0.dist-info").mkdir()  # as an interrupted installation leaves it
    other = tmp_path / "optax-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Name: optax\nVersion: 0.0.1\n")
    before = installed.versions.__wrapped__()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed.versions.__wrapped__() == before | {"optax": "0.0.1"}
