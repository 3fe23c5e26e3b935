"""What a search has read of the experiments' files is kept, and is only a cache."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.agents import files_read
from autoresearch_jax.agents.constants import Reading
from autoresearch_jax.agents.files_read import Files
from autoresearch_jax.agents.outcomes import File
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.tpe import Tpe
from autoresearch_jax.common import literals
from autoresearch_jax.ideas import fit, library
from autoresearch_jax.records.experiment import Experiment
from tests import data_helpers, harness

TRAIN = (data_helpers.ROOT / "train.py").read_text()
IDEAS = library.load()
# Constants that JSON holds, and some that it does not.
STRANGE = 'ONE = 1\nONE_POINT = 1.0\nSMALL = -1e-300\nHUGE = 2**200\nTEXT = "ä"\nHALF = "\\ud800"\n'


def recorded() -> tuple[list[Experiment], dict[str, str]]:
    """Experiments that change numbers, take ideas, combine, and one that is not Python."""
    dice, history, sources = random.Random(0), [], {}

    def add(source: str, base: int | None, **fields) -> None:
        n = len(history)
        before = "" if base is None else f"{base:040x}"
        status = "keep" if base is None else "discard"
        score = 1.0 + dice.random() / 100
        history.append(
            Experiment(n, f"{n:040x}", before, "x", "y", status=status, val_bpb=score, **fields)
        )
        sources[f"{n:040x}"] = source

    add(TRAIN, None)
    for n in range(1, 9):
        add(literals.rewrite(TRAIN, {"MATRIX_LR": 0.04 + n / 1000, "DEPTH": 8 + n % 2}), 0)
    taken = [one for one in IDEAS.values() if one.patch]
    found = (fit.fit(one, TRAIN, IDEAS) for one in taken)
    ready = [one.source for one in found if one.state is fit.State.READY][:3]
    for source in ready:
        add(source, 0, combines=(1, 2))
    add(literals.rewrite(ready[0], {"DEPTH": 8.5}), 9)
    add(literals.rewrite(TRAIN, {"DEPTH": 8.0}), 0)
    add(f"{TRAIN}\nNEW = 1\nprint(NEW)\n", 0)
    add("width = (", 0)
    add(STRANGE, 0)
    add(STRANGE.replace("SMALL = -1e-300", "SMALL = 2"), len(history) - 1)
    return history, sources


HISTORY, SOURCES = recorded()


class Asked:
    """The files of experiments, and which of them were asked for."""

    def __init__(self) -> None:
        self.commits: list[str] = []

    def __call__(self, commits):
        self.commits += commits
        return [SOURCES[one] for one in commits]


def all_read(path=None, history=HISTORY):
    """What is read of all files, and of how many from their text."""
    asked, found = Asked(), Files(IDEAS, cache=path)
    found.read(history, asked)
    return (found.readings, found.files), len(asked.commits)


EXPECTED = all_read()[0]


def exactly(known: tuple[dict[str, Reading], dict[str, File]]) -> list[str]:
    """What is known, with the type and the place of each constant."""
    return [repr((*known[0].items(), *known[1].items()))]


def test_a_file_is_read_once_also_after_a_restart(tmp_path):
    path = tmp_path / files_read.NAME
    assert all_read(path, HISTORY[:5])[1] == 5
    known, count = all_read(path)
    assert count == len(HISTORY) - 5
    assert exactly(known) == exactly(EXPECTED)
    known, count = all_read(path)
    assert count == 2  # those with constants that JSON does not hold
    assert exactly(known) == exactly(EXPECTED)


@pytest.mark.parametrize("agent", [Search, Tpe])
def test_a_proposal_does_not_depend_on_it(tmp_path, agent):
    path, proposals = tmp_path / files_read.NAME, []
    for kept in (None, path, path):
        (tmp_path / "train.py").write_text(TRAIN)
        more = {"seed": 3, "ideas": IDEAS, "files_read": kept}
        agent().propose(harness.simulated_context(tmp_path, HISTORY, SOURCES, **more))
        proposals.append((tmp_path / "train.py").read_text())
    assert path.is_file()
    assert len({*proposals}) == 1
    assert proposals[0] != TRAIN


def test_it_is_made_anew_for_other_ideas_and_by_other_code(tmp_path, monkeypatch):
    path = tmp_path / files_read.NAME
    all_read(path)
    before = path.read_bytes()
    monkeypatch.setattr(files_read, "READERS", files_read.READERS[:-1])
    assert all_read(path)[1] == len(HISTORY)
    assert path.read_bytes() != before
    Files({}, cache=path).read(HISTORY, asked := Asked())
    assert len(asked.commits) == len(HISTORY)


@given(st.data())
def test_whatever_becomes_of_it_the_same_is_known_and_it_is_made_anew(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cache") / files_read.NAME
    all_read(path)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good)))
    torn = good[:at] + data.draw(st.sampled_from([b"", b"\0" * 20, b"\n", b"[1]\n", b'"']))
    path.write_bytes(torn)
    known, _ = all_read(path)
    assert exactly(known) == exactly(EXPECTED)
    for _ in range(2):  # a line may have been added after a torn one
        known, count = all_read(path)
        assert exactly(known) == exactly(EXPECTED)
    assert count == 2


def test_a_search_goes_on_where_nothing_can_be_written(tmp_path):
    path = tmp_path / "a folder"
    path.mkdir()
    assert exactly(all_read(path)[0]) == exactly(EXPECTED)
