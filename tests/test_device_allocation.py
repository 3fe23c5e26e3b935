"""The division of a machine's devices among workers."""

import re

import pytest

from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import device_allocation
from autoresearch_jax.jobs.device_allocation import WHOLE, DeviceAllocation, split
from autoresearch_jax.system import nvidia


@pytest.fixture(autouse=True)
def alike(monkeypatch):
    monkeypatch.setattr(nvidia, "kinds", lambda: ["NVIDIA H100"])


def names(kind, count):
    return [f"{kind}-{number}" for number in range(count)]


@pytest.mark.parametrize("devices", [["cpu"], names("nvidia", 8)])
def test_one_worker_has_all(devices):
    assert split(1, devices) == [WHOLE]
    assert (WHOLE.variables, WHOLE.cores, WHOLE.fingerprint) == ({}, frozenset(), {})


def test_cores_are_divided_equally():
    found = split(2, ["cpu-0", "cpu-2", "cpu-3", "cpu-5", "cpu-7"])
    assert found == [
        DeviceAllocation(cores=frozenset({0, 2})),
        DeviceAllocation(cores=frozenset({3, 5})),
    ]
    # Scores of as many cores compare, on whichever.
    assert [one.fingerprint for one in found] == [{"number of cores": 2}] * 2


def test_gpus_are_divided_as_they_are_visible_here():
    found = split(2, ["nvidia-1", "nvidia-4", "nvidia-5", "nvidia-7"])
    assert found == [
        DeviceAllocation({"CUDA_VISIBLE_DEVICES": "1,4"}),
        DeviceAllocation({"CUDA_VISIBLE_DEVICES": "5,7"}),
    ]
    assert [one.fingerprint for one in found] == [{}, {}]  # JAX tells how many there are
    assert len(split(8, names("nvidia", 8))) == 8


def test_gpus_of_several_kinds_are_refused(monkeypatch):
    monkeypatch.setattr(nvidia, "kinds", lambda: ["NVIDIA A100", "NVIDIA H100"])
    message = (
        "the GPUs are of several kinds (NVIDIA A100, NVIDIA H100), so their scores do not compare. "
        "Choose some that are alike: export CUDA_VISIBLE_DEVICES=0,1"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        split(2, names("nvidia", 2))
    assert split(1, names("nvidia", 2)) == [WHOLE]


@pytest.mark.parametrize(
    ("workers", "chips", "bounds"),
    [(4, ["0", "1", "2", "3"], "1,1,1"), (2, ["0,1", "2,3"], "1,2,1")],
)
def test_a_process_gets_its_chips_and_their_arrangement(workers, chips, bounds):
    found = split(workers, names("tpu", 4))
    assert [one.variables["TPU_VISIBLE_CHIPS"] for one in found] == chips
    given = [{k: v for k, v in one.variables.items() if k != "TPU_VISIBLE_CHIPS"} for one in found]
    asked = {"TPU_CHIPS_PER_PROCESS_BOUNDS": bounds, "TPU_PROCESS_BOUNDS": "1,1,1"}
    assert given == [asked] * workers


def test_a_number_of_chips_that_no_process_can_have_is_refused():
    message = "gives each 3 of the 6 chips, and a process can have 1, 2 or 4. Try --workers 6"
    with pytest.raises(UserError, match=message):
        split(2, names("tpu", 6))
    assert split(2, names("tpu", 8))[1].variables["TPU_VISIBLE_CHIPS"] == "4,5,6,7"


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (names("cpu", 2), "each needs a core of its own, and there are 2. Try --workers 2"),
        (names("nvidia", 1), "each needs a GPU of its own, and there is one. Try --workers 1"),
    ],
)
def test_too_many_workers_are_refused_with_the_number_that_fits(devices, message):
    with pytest.raises(UserError, match=f"^--workers 3: {message}$"):
        split(3, devices)


def test_a_system_that_cannot_restrict_a_process_to_cores_has_one_worker():
    with pytest.raises(UserError, match="Go on without --workers"):
        split(2, ["cpu"])


def test_an_allocation_without_cores_binds_nothing(monkeypatch):
    bound = []
    # Not every system has it.
    monkeypatch.setattr(
        device_allocation.os, "sched_setaffinity", lambda *given: bound.append(given), raising=False
    )
    DeviceAllocation({"CUDA_VISIBLE_DEVICES": "0"}).bind_thread()
    assert bound == []
    DeviceAllocation(cores=frozenset({1})).bind_thread()
    assert bound == [(0, frozenset({1}))]
