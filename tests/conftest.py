"""Fixtures that several test files share, and the two tiers: by day and nightly.

`uv run pytest` runs what a contributor waits for. `uv run pytest --nightly` also runs the tests
marked `nightly`, tries every fault instead of a sample, and lets hypothesis search for longer.
"""

import itertools
import signal

import hypothesis
import pytest

from tests import data_helpers, sharing

# By day a run is reproducible, so that nobody fails on a case that has nothing to do with their
# change. No example is timed, because a busy machine is not a defect.
hypothesis.settings.register_profile("day", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=300, print_blob=True)


def pytest_addoption(parser):
    parser.addoption(
        "--nightly", action="store_true", help="run the tests marked nightly, and every fault"
    )


def pytest_configure(config):
    hypothesis.settings.load_profile("nightly" if config.option.nightly else "day")
    # A shell starts what runs in its background with SIGINT ignored, nohup with SIGHUP ignored, and
    # children inherit that: the tests of signals would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def pytest_collection_modifyitems(config, items):
    if config.option.nightly:
        return
    later = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=later)
    items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.fixture(scope="session")
def nightly(request):
    """Whether the tests run with --nightly."""
    return request.config.option.nightly


@pytest.fixture(autouse=True)
def typed_without_uv(monkeypatch):
    """Spell commands in messages without `uv run`, also under `uv run pytest`."""
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    """Do not wait for a loop of the user that has locked the devices."""
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(workspace, home) with tiny data: rows of 64 tokens, vocabulary 512. Only read it."""

    def make(folder):
        root = data_helpers.make_workspace(folder / "workspace")
        shards = data_helpers.make_shards(folder / "shards")
        done = data_helpers.run_prepare(root, folder / "home", "--source", str(shards))
        assert done.returncode == 0, done.stderr

    folder = sharing.make_once(tmp_path_factory, "prepared", make)
    return folder / "workspace", folder / "home"


@pytest.fixture
def prepared_home(prepared, monkeypatch):
    """`prepared`, with AUTORESEARCH_HOME set to its home in this process."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(prepared[1]))
    return prepared


def pytest_terminal_summary(terminalreporter, config):
    """Say which tier ran, and how many faults tests/faults injected.

    The counts are added up here because several processes inject faults and one reports.
    """
    if not config.option.nightly:
        terminalreporter.write_line("Nightly tests did not run: uv run pytest --nightly")
    counts, lost = {}, 0
    ended = (terminalreporter.stats.get(name, []) for name in ("passed", "failed"))
    for report in itertools.chain(*ended):
        for name, value in report.user_properties:
            if name == "faults":
                kind, points, wrong = value
                counts[kind] = counts.get(kind, 0) + points
                lost += wrong
    if counts:
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        words = f"{sum(counts.values())} faults injected ({parts}), {lost} ended in another state"
        terminalreporter.write_line(words)
