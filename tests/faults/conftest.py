"""Fixtures of the fault tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.lab import Lab


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """Return the path of shim.c, compiled."""
    if sys.platform != "linux":
        pytest.skip("only Linux preloads a library as shim.c needs it")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler is installed, so no write can be made to fail")
    path = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, source, "-ldl"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab without the shim, for tests that need no failing write."""
    made = Lab(tmp_path_factory.mktemp("lab"), None)
    yield made
    made.close()


@pytest.fixture(scope="module")
def faulty_lab(tmp_path_factory, shim):
    made = Lab(tmp_path_factory.mktemp("lab"), shim)
    yield made
    made.close()


@pytest.fixture(scope="session")
def sample(nightly):
    """By day every `step`-th of some points, always the same ones; nightly all of them.

    Points often come in pairs, such as before and after an effect: an odd step takes both kinds.
    """

    def sample(points, step):
        return list(points) if nightly else list(points)[::step]

    return sample


@pytest.fixture
def verdict(record_property):
    """Count the points of a matrix for the summary, and fail with the complaints."""

    def judge(kind, points, complaints):
        wrong = [complaint for complaint in complaints if complaint]
        record_property("faults", [kind, points, len(wrong)])
        assert not wrong, f"{len(wrong)} of {points} points:\n" + "\n".join(wrong[:5])
        assert points

    return judge
