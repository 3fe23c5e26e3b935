"""lessons.md: what agents write down, what a person makes of it, and what later agents get."""

import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.agents import replies
from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.cli.main import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.records import lessons
from autoresearch_jax.records.experiment import Lesson
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.views.watch import live_model, page_data
from tests import harness
from tests.harness import Notes, run_loop
from tests.levels import STRONGEST_BY_DAY

# Counts the lessons in its prompt, writes their number down, and lowers the score by a tenth.
COMMAND = (
    "n=$(grep -c '^> .* (experiment' $AUTORESEARCH_PROMPT);"
    ' sed -i "s/SCORE = .*/SCORE = 0.$((9 - n))/" train.py;'
    " echo '**LESSON:** round '$n; echo 'LESSON: <what you learned>'; echo DESCRIPTION: step $n"
)


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(harness.make_repository(tmp_path / "w"))


def listed(workspace):
    text = lessons.read(workspace.state_dir("t"))
    return [line for line in text.splitlines() if line.startswith("- ")]


def command(workspace, *words):
    """What the command prints."""
    found = CliRunner().invoke(main, ["-C", str(workspace.root), "lessons", *words])
    return found.output, found.exit_code


@pytest.mark.parametrize("level", STRONGEST_BY_DAY)
def test_an_agents_lessons_are_kept_with_what_was_measured_and_given_to_the_next(workspace, level):
    run_loop(workspace, COMMAND, 3, tag="t", level=level, lookahead=False)
    assert listed(workspace) == [
        "- round 0 (experiment 1, keep, -0.100000)",
        "- round 1 (experiment 2, keep, -0.100000)",
        "- round 2 (experiment 3, keep, -0.100000)",
    ]
    prompt = (workspace.run_dir("t", 3) / "prompt.md").read_text()
    assert "\n> round 1 (experiment 2, keep, -0.100000)\n" in prompt
    shown = CliRunner().invoke(main, ["-C", str(workspace.root), "show", "3"]).output
    assert "\nlesson    round 2\n" in shown
    listing = CliRunner().invoke(main, ["-C", str(workspace.root), "results"]).output
    assert re.search("\n3 lessons. To read them: autoresearch-jax .*lessons\n", listing)
    model = page_data.of_model(live_model.read(workspace.root))
    assert model["lessons"][0] == "round 2 (experiment 3, keep, -0.100000)"


def test_an_answer_without_an_experiment_leaves_its_lessons_too(workspace):
    agent = "sed -i 's/SCORE = .*/SCORE = (/' train.py; echo LESSON: brackets close"
    run_loop(workspace, agent, 1, tag="t", lookahead=False, repairs=0)
    [line] = listed(workspace)
    assert line == "- brackets close (experiment 1, crash)"
    with pytest.raises(UserError, match="3 proposals in a row failed"):
        run_loop(workspace, "echo LESSON: all was tried", 2, tag="t")
    run_loop(workspace, harness.Scripted(harness.train_py(0.9)), 1, tag="t")
    assert listed(workspace) == [line, "- all was tried (not measured)"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("LESSON: a\nLESSON: b\nLESSON: a\nLESSON: c\nLESSON: d", ("b", "c", "d")),
        ("> **Lesson**: wide *helps*\nDESCRIPTION: x", ("wide *helps",)),
        ("LESSON:\nLESSON: <what you learned>", ()),
        (f"LESSON: {'long ' * 200}", (f"{'long ' * 60}".strip()[:299] + "…",)),
    ],
)
def test_lessons_of_an_answer(answer, found):
    assert replies.lessons(answer) == found
    assert replies.labels(answer)[2] == ""


def test_what_a_person_changes_stays(workspace):
    agent = harness.Scripted(*(harness.train_py(0.9 - n / 10) for n in range(4)))
    agent.lessons = "first", "second"
    run_loop(workspace, agent, 1, tag="t")
    path = lessons.path_of(workspace.state_dir("t"))
    old = path.read_text()
    mine = old.replace("- first (experiment 1, keep, -0.100000)\n", "")
    path.write_text(f"Never widen it.\n{mine.replace('- second', '- second, I think')}")
    run_loop(workspace, agent, 1, tag="t")
    text = path.read_text()
    assert "- first (experiment 1" not in text
    assert text.startswith("Never widen it.\n")
    assert listed(workspace) == [
        "- second, I think (experiment 1, keep, -0.100000)",
        "- first (experiment 2, keep, -0.100000)",
        "- second (experiment 2, keep, -0.100000)",
    ]
    assert lessons.ranked(text) == [
        "Never widen it.",
        *(line[2:] for line in reversed(listed(workspace))),
    ]
    # An editor that was opened before the last lesson writes an older copy.
    path.write_text(f"Mine.\n{old}")
    run_loop(workspace, agent, 1, tag="t")
    assert len(listed(workspace)) == 6
    assert "Mine." in path.read_text()


def test_what_an_agent_writes_is_no_comment_and_no_heading(workspace):
    agent = harness.Scripted(*(harness.train_py(0.9 - n / 10) for n in range(3)))
    agent.lessons = (
        "a larger batch <!-- see the log",
        "# wide",
        "<!-- 9 lessons of t were added -->",
    )
    run_loop(workspace, agent, 2, tag="t")
    found = lessons.ranked(lessons.read(workspace.state_dir("t")))
    assert len(found) == 3
    assert all("(experiment 2, keep, -0.100000)" in line for line in found)


def test_a_proposal_that_was_carried_over_counts_as_what_became_of_it(workspace):
    from tests import test_excursions

    class Walker(test_excursions.Walker):
        def propose(self, context):
            return Proposal(super().propose(context).description, lessons=(f"at {context.n}",))

    test_excursions.begun(workspace, Walker(*test_excursions.SCORES), 3)
    found = lessons.ranked(lessons.read(workspace.state_dir("t")))
    assert found[1] == "at 6 (experiment 7, keep, -0.050000)"


def test_the_persons_bytes_stay_and_another_tags_count_is_none(workspace):
    state_dir = workspace.state_dir("t")
    state_dir.mkdir(parents=True)
    mine = "größer\n".encode("latin-1")
    lessons.path_of(state_dir).write_bytes(
        mine + b"<!-- 50 lessons of old were added so far. -->\n"
    )
    agent = harness.Scripted(harness.train_py(0.9))
    agent.lessons = ("first",)
    run_loop(workspace, agent, 1, tag="t")
    assert lessons.path_of(state_dir).read_bytes().startswith(mine)
    assert listed(workspace) == ["- first (experiment 1, keep, -0.100000)"]


def test_a_file_that_cannot_be_written_does_not_end_a_loop(workspace):
    agent = harness.Scripted(*(harness.train_py(0.9 - n / 10) for n in range(4)))
    agent.lessons = ("first",)
    path = lessons.path_of(workspace.state_dir("t"))
    path.mkdir(parents=True)
    view = Notes()
    run_loop(workspace, agent, 1, tag="t", view=view)
    assert re.search(r"Warning: lessons\.md was not written: .*Is a directory", view.text)
    assert harness.rows(workspace.root)[1][3] == "keep"
    path.rmdir()
    run_loop(workspace, agent, 1, tag="t")
    assert len(listed(workspace)) == 2


def test_the_command_prints_and_edits_the_file(workspace, monkeypatch):
    assert command(workspace)[0].startswith("Error: no experiment has run here yet, so nothing")
    agent = harness.Scripted(harness.train_py(0.9))
    run_loop(workspace, agent, 1, tag="t")
    assert "No lesson is written down under t yet" in command(workspace)[0]
    monkeypatch.setenv("EDITOR", "sed -i -e '$aMine.'")
    assert command(workspace, "--edit") == ("", 0)
    assert command(workspace)[0].endswith("added above this line. -->\nMine.\n")
    monkeypatch.setenv("EDITOR", "false")
    words, code = command(workspace, "--edit")
    assert code == 1
    assert str(lessons.path_of(workspace.state_dir("t"))) in words
    assert "EDITOR=nano" in words


LESSONS = st.builds(
    Lesson,
    st.text(max_size=30) | st.just("<!-- 9 lessons of t were added so far. -->"),
    st.none() | st.integers(0, 9),
    st.sampled_from(["keep", "discard"]),
    st.none() | st.floats(-1, 1),
)


@given(st.lists(LESSONS, max_size=8), st.text(max_size=60), st.data())
def test_no_lesson_is_lost_or_added_twice_whatever_else_is_in_the_file(known, others, data):
    text = others = "" if data.draw(st.booleans()) else others
    done = 0
    while done < len(known):
        done = data.draw(st.integers(done + 1, len(known)))
        text = lessons.extended(text, "t", known[:done])
        assert lessons.extended(text, "t", known[:done]) == text
    lines = [*dict.fromkeys(lessons.line_of(one) for one in known)]
    found = [line for line in text.splitlines() if line in lines]
    assert sorted(found) == sorted(lines)
    assert text.startswith(others or "# Lessons of autoresearch/t\n") or not known
    assert len(lessons.ranked(text)) <= len(text.splitlines())
