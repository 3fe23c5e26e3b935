"""Fixtures that several test files share."""

import itertools

import hypothesis
import pytest

from tests import data_helpers

# No test is timed: a busy machine is not a defect.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def typed_without_uv(monkeypatch):
    """`uv run pytest` too: commands in messages are spelled without `uv run`."""
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    """Tests train on devices that a loop of the person may hold."""
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(workspace, home) with tiny data: rows of 64 tokens, vocabulary 512. Do not change it."""
    folder = tmp_path_factory.mktemp("prepared")
    root, home = data_helpers.make_workspace(folder / "workspace"), folder / "home"
    shards = data_helpers.make_shards(folder / "shards")
    done = data_helpers.run_prepare(root, home, "--source", str(shards))
    assert done.returncode == 0, done.stderr
    return root, home


@pytest.fixture
def prepared_home(prepared, monkeypatch):
    """`prepared`, with AUTORESEARCH_HOME set to its home in this process."""
    monkeypatch.setenv("AUTORESEARCH_HOME", str(prepared[1]))
    return prepared


def pytest_collection_modifyitems(config, items):
    if "soak" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: uv run pytest -m soak"))


def pytest_terminal_summary(terminalreporter):
    """How many faults tests/faults injected; here, since of several processes one reports."""
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
