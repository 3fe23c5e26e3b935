"""`loop --learn-from`: what another tag has found helps or misleads, and counts for no score."""

import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from autoresearch_jax.agents import outcomes, search
from autoresearch_jax.agents.constants import read
from autoresearch_jax.agents.outcomes import File, Learned, Result
from autoresearch_jax.agents.search import Search
from autoresearch_jax.agents.search_history import History
from autoresearch_jax.agents.search_space import GivenRange
from autoresearch_jax.cli.main import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import journal, lessons
from autoresearch_jax.records.experiment import Experiment
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import Notes, Scripted, run_loop


def train(score, lr=0.04, decay=0.2):
    constants = f"MATRIX_LR = {lr}\nWEIGHT_DECAY = {decay}\nprint(MATRIX_LR, WEIGHT_DECAY)"
    return harness.train_py(score, constants)


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(harness.make_repository(tmp_path / "w", train(1.0)))


@pytest.fixture
def first(workspace):
    """The tag `one`: two gains, a loss, a crash, lessons of its agent and of a person."""
    tried = train(0.9, 0.08), train(0.95, 0.16), "SCORE = (", train(0.8, 0.08, 0.1)
    agent = Scripted(*tried)
    agent.lessons = ("faster is better",)
    run_loop(workspace, agent, 4, tag="one", repairs=0)
    path = lessons.path_of(workspace.state_dir("one"))
    path.write_text(f"Leave the heads alone.\n{path.read_text()}")
    return workspace


def command(workspace, *words):
    found = CliRunner().invoke(main, ["-C", str(workspace.root), *words])
    return found.output


def test_a_tag_begins_with_what_another_has_found(first):
    notes, agent = Notes(), Scripted(train(0.9, 0.3), train(0.85, 0.08, 0.1))
    agent.slow = True  # it gets a prompt and a folder
    tag = run_loop(first, agent, 1, notes, learn_from="one", lookahead=False).tag
    assert tag != "one"
    assert "Learned from one: 5 results, 2 lessons." in notes.text
    found = outcomes.read_learned(first.state_dir(tag))
    rates = [(one.val_bpb, one.file.values.get("MATRIX_LR")) for one in found.results]
    assert rates == [(1.0, 0.04), (0.9, 0.08), (0.95, 0.16), (None, None), (0.8, 0.08)]
    tried = [(one.n, one.status) for one in found.tried]
    assert tried == [(1, "keep"), (4, "keep"), (3, "crash"), (2, "discard")]
    text = lessons.read(first.state_dir(tag))
    assert "- Leave the heads alone. (learned from one)\n" in text
    assert "- faster is better (learned from one: experiment 4, keep, -0.100000)\n" in text
    prompt = (first.run_dir(tag, 1) / "prompt.md").read_text()
    assert "What was kept under another tag (one)" in prompt
    assert "> Leave the heads alone. (learned from one)" in prompt
    # Nothing of it is a score here: what is worse than there is kept, and the same file is trained.
    run_loop(first, agent, 1, learn_from="one")
    kept = journal.read(first.state_dir(tag)).kept
    assert [e.val_bpb for e in kept] == [1.0, 0.9, 0.85]
    assert lessons.read(first.state_dir(tag)).count("Leave the heads alone") == 1
    assert "Learned from one: 5 results." in command(first, "results")


def test_what_was_learned_stays_without_its_source(first, tmp_path):
    """A copy of the workspace, as from another machine, that is gone later."""
    copy = shutil.copytree(first.root, tmp_path / "copy")
    second = Workspace.open(harness.make_repository(tmp_path / "second", train(1.0)))
    run_loop(second, Scripted(train(0.9)), 1, tag="two", learn_from=str(copy))
    shutil.rmtree(copy)
    agent = Scripted(train(0.8))
    run_loop(second, agent, 1, tag="two")
    assert agent.contexts[0].learned.tag == "one"
    assert len(agent.contexts[0].learned.results) == 5
    # Its own come first, then those of `one`, which `three` gets as well, still with their tag.
    run_loop(second, Scripted(train(0.9)), 1, tag="three", learn_from="two")
    text = lessons.read(second.state_dir("three"))
    assert "- faster is better (learned from one: experiment 4, keep, -0.100000)\n" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "neither",
            "'neither' is neither a tag of this workspace nor a folder. The tags",
        ),
        ("{empty}", "nothing has run in that workspace yet"),
        ("{folder}", "is not in a git repository"),
        ("one", "names one, the tag that goes on here"),
        ("{root}", "is this workspace. The tags here are one. Name one"),
        ("~nobody-has-this-name/x", "is neither a tag of this workspace nor a folder"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(first, tmp_path, name, words):
    empty = harness.make_repository(tmp_path / "empty")
    (tmp_path / "folder").mkdir()
    name = name.format(empty=empty, folder=tmp_path / "folder", root=first.root)
    before = harness.state(first.root)
    with pytest.raises(UserError, match="(?s)" + words.replace("(", r"\(")):
        run_loop(first, Scripted(train(0.9)), 1, tag="one", learn_from=name)
    assert harness.state(first.root) == before


def test_experiments_whose_commits_are_gone_are_left_out(first):
    refs = first.git("for-each-ref", "--format=%(refname)", "refs/autoresearch/one")
    for ref in [*refs.split(), "refs/heads/autoresearch/one"]:
        first.git("update-ref", "-d", ref)
    first.git("reflog", "expire", "--expire=now", "--all")
    first.git("gc", "--quiet", "--prune=now")
    notes = Notes()
    run_loop(first, Scripted(train(0.9)), 1, notes, tag="two", learn_from="one")
    assert "Learned from one: 1 result, 2 lessons." in notes.text  # the commit of the checkout


def test_the_tag_that_learned_from_one_goes_on_whichever_is_the_newest(first):
    tag = run_loop(first, Scripted(train(0.9)), 1, learn_from="one").tag
    run_loop(first, Scripted(train(0.85)), 1, tag="unrelated")
    run_loop(first, Scripted(train(0.75)), 1, tag="one")  # the source is the newest
    assert run_loop(first, Scripted(train(0.8)), 1, learn_from="one").tag == tag
    # None has learned from this one yet.
    assert run_loop(first, Scripted(train(0.8)), 1, learn_from="unrelated").tag not in (tag, "one")


def test_tags_of_one_name_are_two_sources(first, tmp_path):
    second = Workspace.open(harness.make_repository(tmp_path / "second", train(1.0)))
    agent = Scripted(train(0.9))
    agent.lessons = ("slower is better",)
    run_loop(second, agent, 1, tag="one")
    run_loop(first, Scripted(train(0.9)), 1, tag="two", learn_from="one")
    path = lessons.path_of(first.state_dir("two"))
    path.write_text(path.read_text().replace("- Leave the heads alone. (learned from one)\n", ""))
    run_loop(first, Scripted(train(0.8)), 1, tag="two", learn_from=str(second.root))
    run_loop(first, Scripted(train(0.7)), 1, tag="two", learn_from="one")
    text = path.read_text()
    assert "slower is better (learned from one: experiment 1" in text
    assert "Leave the heads alone" not in text  # the person had removed it


def test_what_cannot_be_read_is_said(first):
    run_loop(first, Scripted(train(0.9)), 1, tag="two", learn_from="one")
    (first.state_dir("two") / outcomes.NAME).write_text("{")
    notes = Notes()
    run_loop(first, Scripted(train(0.8)), 1, notes, tag="two")
    assert "learned.json cannot be read" in notes.text
    assert "Give --learn-from again" in notes.text


def test_hostile_files_and_lines_are_bounded(workspace):
    long = "x" * 5000
    source = f'NAME = "{long}"\nOTHER = "\\ud800"\n{train(0.9)}'
    agent = Scripted(source)
    run_loop(workspace, agent, 1, tag="one")
    path = lessons.path_of(workspace.state_dir("one"))
    path.write_text(f"{long}<!-- \n{'(learned from a: ' * 20_000}\n")
    run_loop(workspace, Scripted(train(0.8)), 1, tag="two", learn_from="one")
    last = outcomes.read_learned(workspace.state_dir("two")).results[-1]
    assert last.file.values.keys() & {"NAME", "OTHER", "MATRIX_LR"} == {"MATRIX_LR"}
    lines = lessons.read(workspace.state_dir("two")).splitlines()
    assert max(map(len, lines)) < 400


def faster(folder, learned, *later):
    """Of ten seeds, how many lead to a higher rate, after experiments with these decays."""
    files = [train(1.0), *(train(1.0, decay=decay) for decay, _ in later)]
    scores = [1.0, *(score for _, score in later)]
    history = [
        Experiment(n, str(n), "0" * (n > 0), "", "", status="discard", val_bpb=score)
        for n, score in enumerate(scores)
    ]
    found = 0
    for seed in range(10):
        (folder / "train.py").write_text(files[0])
        context = harness.simulated_context(
            folder,
            history,
            dict(zip("0123456789", files, strict=False)),
            seed=seed,
            learned=learned,
            search={"SCORE": GivenRange.model_validate(False)},
        )
        Search().propose(context)
        values = read((folder / "train.py").read_text()).values
        found += values["MATRIX_LR"] > 0.04
    return found


def test_the_search_follows_another_tag_where_it_is_alike_and_only_there(tmp_path):
    def result(score, decay, lr=0.04):
        return Result(File({"MATRIX_LR": lr, "WEIGHT_DECAY": decay}), score, 1.0, base=base)

    base = File({"MATRIX_LR": 0.04, "WEIGHT_DECAY": 0.2})

    decays, scores = (0.2, 0.4, 0.8, 0.1, 0.05), (1.0, 1.02, 1.04, 1.02, 1.04)
    results = [result(score, decay) for decay, score in zip(decays, scores, strict=True)]
    gains = zip((0.08, 0.12, 0.02, 0.01), (0.97, 0.95, 1.03, 1.06), strict=True)
    learned = Learned("one", [*results, *(result(score, 0.2, lr) for lr, score in gains)])
    alike = (0.4, 1.02), (0.8, 1.04), (0.1, 1.02), (0.05, 1.04)
    opposed = (0.4, 1.02), (0.8, 0.98), (0.1, 0.99), (0.05, 0.97)
    assert faster(tmp_path, learned, *alike) == 10
    assert faster(tmp_path, None, *alike) < 6
    assert faster(tmp_path, learned, *opposed) == faster(tmp_path, None, *opposed) < 8


def test_an_idea_that_is_not_in_the_library_counts_for_nothing(tmp_path):
    theirs, base = frozenset({"their-own-idea"}), File({"MATRIX_LR": 0.04})
    for file, before in ((replace(base, ideas=theirs), base), (base, replace(base, ideas=theirs))):
        learned = Learned("one", [Result(file, 0.9, 1.0, base=before)])
        assert faster(tmp_path, learned) == faster(tmp_path, None)


def test_values_outside_the_range_are_not_proposed(tmp_path):
    (tmp_path / "train.py").write_text(train(1.0))
    base = Experiment(0, "0", "", "", "", status="keep", val_bpb=1.0)
    files = [File({"MATRIX_LR": 50.0, "WEIGHT_DECAY": 0.1}), File({"MATRIX_LR": "fast"})]
    context = harness.simulated_context(
        tmp_path,
        [base],
        {"0": train(1.0)},
        seed=0,
        learned=Learned("one", [Result(file, 0.5, 1.0) for file in files]),
    )
    assert list(search.learned(History().known(context))) == [{"WEIGHT_DECAY": 0.1}]
