"""The loop on real repositories: its records, its refusals, and how it stops and resumes."""

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import structs

from autoresearch_jax.commands import doctor
from autoresearch_jax.commands import run as run_command
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.jobs.job import Limits
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.loop import worker
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.loop.session import Session
from autoresearch_jax.records import events, journal, results_tsv, tags
from autoresearch_jax.records.experiments import Experiments
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.repo.candidates import Candidates
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import locks
from autoresearch_jax.system.interrupts import Interrupts
from tests import data_helpers, harness
from tests.harness import DEVICE, BySeries, Notes, Scripted, git, rows, run_loop, state, train_py
from tests.levels import STRONGEST_BY_DAY

IDEAS = (train_py(0.9), train_py(0.95), "width = (", train_py(0.8))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return Workspace.open(harness.make_repository(tmp_path / "workspace"))


def tip(workspace, tag="t"):
    return Candidates(workspace, tag).tip()


def propose(workspace, description="by hand", **options):
    return run_command.propose(
        workspace,
        *harness.setup(**options),
        description=description,
        log_path=workspace.root / "run.log",
    )


# ------------------------------------------------------------------------------- the whole job


def test_a_loop_keeps_what_improves_and_records_the_rest(workspace):
    head, before = workspace.head(), state(workspace.root)
    view = Notes()
    result = run_loop(workspace, Scripted(*IDEAS), 4, view, tag="t", desc="think small")
    assert (result.tag, result.decided, result.stopped) == ("t", 5, "max")
    found = list(journal.read(workspace.state_dir("t")))
    assert [e.status for e in found] == ["keep", "keep", "discard", "crash", "keep"]
    assert [e.val_bpb for e in found] == [1.0, 0.9, 0.95, None, 0.8]
    assert rows(workspace.root) == [
        [head[:7], "1.000000", "2.0", "keep", "baseline"],
        [found[1].commit[:7], "0.900000", "2.0", "keep", "idea 1"],
        [found[2].commit[:7], "0.950000", "2.0", "discard", "idea 2"],
        [found[3].commit[:7], "crash", "—", "crash", "idea 3"],
        [found[4].commit[:7], "0.800000", "2.0", "keep", "idea 4"],
    ]
    # The branch is the chain of what was kept; everything else stays readable under its ref.
    chain = git(workspace.root, "rev-list", "--reverse", tip(workspace)).split()
    assert chain == [e.commit for e in found if e.status == "keep"]
    assert result.best == found[4]
    wheel = Candidates(workspace, "t")
    assert [wheel.show(f"refs/autoresearch/t/{n + 1}") for n in range(4)] == list(IDEAS)
    assert found[3].reason == "SyntaxError: '(' was never closed (train.py, line 1)"
    # The person's checkout is as it was, but for results.tsv.
    after = state(workspace.root)
    assert {k for k in after if after[k] != before.get(k)} == {"results.tsv"}
    assert workspace.head() == head
    # Artifacts are kept for what was kept only, logs for all that ran.
    runs = [workspace.run_dir("t", n) for n in range(5)]
    assert [(run / "artifacts").exists() for run in runs] == [True, True, False, False, True]
    assert [(run / "run.log").exists() for run in runs] == [True, True, True, False, True]
    assert "Make it better." in (runs[4] / "prompt.md").read_text()
    assert view.said[0] == (
        "Agent scripted, tag t (new: named by --tag), 4 experiments after the baseline. "
        "Ctrl-C finishes the running one."
    )
    git(workspace.root, "fsck", "--strict")


def test_the_work_for_an_experiment_does_not_grow_with_the_history(workspace, monkeypatch):
    gits, replayed, counts = [], [], []
    git_bytes, apply = Workspace.git_bytes, Experiments.apply
    monkeypatch.setattr(
        Workspace,
        "git_bytes",
        lambda self, *words, **options: gits.append(words) or git_bytes(self, *words, **options),
    )
    monkeypatch.setattr(
        Experiments, "apply", lambda self, step: replayed.append(step) or apply(self, step)
    )

    def score(job, *_, **__):
        counts.append((len(gits), len(replayed)))
        return harness.written_score(job)

    worse = [train_py(2.0 + n) for n in range(12)]
    run_loop(workspace, Scripted(*worse), len(worse), tag="t", scorer=score)
    # From the scoring of one to that of the next, the baseline's and the first left out.
    costs = {
        (after[0] - before[0], after[1] - before[1])
        for before, after in itertools.pairwise(counts[2:])
    }
    assert len(costs) == 1, costs
    assert max(costs)[1] == 6  # the records of an experiment


def test_a_training_sees_a_fresh_export_and_nothing_of_the_last_one(workspace):
    spoil = """
import os, pathlib
assert sorted(p.name for p in pathlib.Path().iterdir() if p.name != "__pycache__") == NAMES
assert os.listdir(os.environ["AUTORESEARCH_RUN_DIR"]) == []
pathlib.Path("prepare.py").write_text("spoiled")
pathlib.Path("stray.py").write_text("spoiled")
pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"], "aside").write_text("x")
"""
    names = [
        ".gitignore",
        "constants.py",
        "prepare.py",
        "program.md",
        "results.tsv",
        "train.py",
    ]
    ideas = [train_py(0.9 - n / 10, f"NAMES = {names}\n{spoil}") for n in range(3)]
    run_loop(workspace, Scripted(*ideas), 3, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep"] * 4
    artifacts = workspace.run_dir("t", 3) / "artifacts"
    assert [path.name for path in artifacts.iterdir()] == ["exported.bin"]  # what is scored


def test_a_training_that_fails_is_a_crash_and_never_the_best(workspace, monkeypatch):
    ideas = [
        "raise ValueError('no')",
        train_py("float('nan')"),
        "pass",
        train_py(0.1) + "raise SystemExit(1)",
        "import time\ntime.sleep(600)",
    ]
    monkeypatch.setattr(Limits, "after", lambda *_: Limits(startup_s=3.0))
    run_loop(workspace, Scripted(*ideas), 5, tag="t")
    found = list(journal.read(workspace.state_dir("t")))
    assert [e.status for e in found[1:]] == ["crash"] * 5
    assert [e.outcome for e in found[1:]] == ["crash", "ok", "ok", "crash", "timeout"]
    assert [e.scored for e in found[1:]] == [None, "refused", "refused", None, None]
    assert found[1].reason == "ValueError: no"
    assert found[3].reason == "missing: the training left no score"
    assert found[5].reason == "start-up took over 3 s (until prepare.begin)"
    assert tip(workspace) == workspace.head()
    assert {row[1] for row in rows(workspace.root)[1:]} == {"crash"}


def test_an_agent_knows_the_history_and_the_present_program(workspace):
    def change_mind(context):
        (workspace.root / "program.md").write_text("Now make it smaller.\n")
        (context.worktree / "train.py").write_text("raise ValueError('is odd')")
        return "odd"

    agent = Scripted(train_py(0.9), change_mind, train_py(0.8))
    run_loop(workspace, agent, 3, tag="t", desc="only widths", seed=5)
    _, second, third = agent.contexts
    assert [c.n for c in agent.contexts] == [1, 2, 3]
    assert [len(c.history) for c in agent.contexts] == [1, 2, 3]
    assert third.seed == 5
    assert [*third.sources_of([third.history[1].commit])] == [train_py(0.9)]
    assert "Make it better." in second.prompt
    assert "Now make it smaller." in third.prompt
    assert "only widths" in third.prompt
    assert "> ValueError: is odd" in third.prompt
    assert "The best:\n\n- 1 keep 0.900000" in third.prompt
    assert third.prompt_path.read_text() == third.prompt
    assert "only widths" in journal.path_of(workspace.state_dir("t")).read_text()


# ------------------------------------------------------------------------------- which tag


def test_the_newest_tag_continues_while_its_fingerprint_matches(workspace, monkeypatch):
    class Day(tags.date):
        @classmethod
        def today(cls):
            return cls(2026, 11, 24)

    monkeypatch.setattr(tags, "date", Day)
    view = Notes()
    assert run_loop(workspace, Scripted(train_py(0.9)), 1, view).tag == "nov24"
    assert "tag nov24 (new: the first one)" in view.text
    view = Notes()
    assert run_loop(workspace, Scripted(train_py(0.8)), 1, view).tag == "nov24"
    assert "tag nov24 (resumed: the newest, and its fingerprint matches)" in view.text
    assert len(rows(workspace.root)) == 3
    view = Notes()
    other = DEVICE | {"device": "TPU v5e"}
    result = run_loop(workspace, Scripted(train_py(0.7)), 1, view, fingerprint_of=lambda _: other)
    assert result.tag == "nov24-2"
    assert "nov24, was measured with another device (cpu, now TPU v5e)" in view.text
    assert len(rows(workspace.root)) == 2  # of the present tag
    with pytest.raises(UserError, match=r"tag nov24 was measured with another device.*nov24-2"):
        run_loop(workspace, Scripted(), 1, tag="nov24", fingerprint_of=lambda _: other)
    assert not list(workspace.root.glob("results-edited*"))
    # Damage of a tag that would not be used in any case is no obstacle.
    damaged = journal.path_of(workspace.state_dir("nov24-2"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9] + whole[-9:].replace(b'"', b"'"))
    third = DEVICE | {"device": "TPU v6e"}
    assert run_loop(workspace, Scripted(), 0, fingerprint_of=lambda _: third).tag == "nov24-3"
    damaged.write_bytes(whole)
    run_loop(workspace, Scripted(train_py(0.6)), 1, tag="nov24")  # both stay usable
    assert len(rows(workspace.root)) == 4
    assert workspace.tags() == ["nov24-3", "nov24-2", "nov24"]


def test_a_branch_of_the_user_is_not_used_as_a_tag(workspace):
    git(workspace.root, "branch", "autoresearch/mine")
    with pytest.raises(UserError, match=r"tag mine is in use: branch autoresearch/mine"):
        run_loop(workspace, Scripted(), 1, tag="mine")
    assert not workspace.state_dir("mine").exists()
    with pytest.raises(UserError, match="is not a valid tag"):
        run_loop(workspace, Scripted(), 1, tag="a/b")


def test_a_branch_in_the_way_of_all_tags_is_refused(workspace):
    git(workspace.root, "branch", "autoresearch")
    for tag in ("t", None):
        with pytest.raises(UserError, match=r"git branch -m autoresearch NEW-NAME"):
            run_loop(workspace, Scripted(), 0, tag=tag)
    git(workspace.root, "branch", "-m", "autoresearch", "mine")
    run_loop(workspace, Scripted(), 0, tag="t")


def test_a_repository_of_another_hash_works(workspace):
    root = workspace.root
    subprocess.run(["rm", "-rf", str(root / ".git")], check=True)
    git(root, "init", "-q", "--object-format=sha256")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "Start")
    run_loop(Workspace.open(root), Scripted(train_py(0.9)), 1, tag="t")
    assert [row[3] for row in rows(root)] == ["keep", "keep"]


def test_a_branch_checked_out_anywhere_is_refused(workspace, tmp_path):
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    git(workspace.root, "checkout", "-q", "--", "results.tsv")
    git(workspace.root, "switch", "-q", "autoresearch/t")
    before = state(workspace.root)
    with pytest.raises(UserError, match=r"autoresearch/t is checked out at .*switch --detach"):
        run_loop(workspace, Scripted(), 1, tag="t")
    assert state(workspace.root) == before
    git(workspace.root, "switch", "-q", "--detach")  # the remedy works; a detached HEAD is fine
    git(workspace.root, "worktree", "add", "-q", str(tmp_path / "other"), "autoresearch/t")
    with pytest.raises(UserError, match=f"checked out at {tmp_path / 'other'}"):
        run_loop(workspace, Scripted(), 1, tag="t")
    git(tmp_path / "other", "switch", "-q", "--detach")
    run_loop(workspace, Scripted(train_py(0.8)), 1, tag="t")


def test_an_agent_that_switches_to_the_branch_does_no_harm(workspace):
    def switch(context):
        git(context.worktree, "switch", "-q", "autoresearch/t")
        (context.worktree / "train.py").write_text(train_py(0.9))
        return "x"

    run_loop(workspace, Scripted(switch, train_py(0.8)), 2, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep"] * 3


def test_a_branch_moved_by_hand_stops_the_loop(workspace):
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    best = tip(workspace)
    git(workspace.root, "branch", "-f", "autoresearch/t", git(workspace.root, "rev-parse", "HEAD"))
    git(workspace.root, "commit", "-q", "--allow-empty", "-m", "x")
    git(workspace.root, "branch", "-f", "autoresearch/t", "HEAD")
    with pytest.raises(UserError, match=rf"moved by hand.*git update-ref.*{best}"):
        run_loop(workspace, Scripted(), 1, tag="t")
    git(workspace.root, "branch", "-D", "autoresearch/t")
    with pytest.raises(UserError, match=r"autoresearch/t is gone"):
        run_loop(workspace, Scripted(), 1, tag="t")
    git(workspace.root, "update-ref", "refs/heads/autoresearch/t", best)
    run_loop(workspace, Scripted(train_py(0.8)), 1, tag="t")


def test_a_branch_moved_while_training_is_not_overwritten(workspace):
    elsewhere = git(workspace.root, "commit-tree", "HEAD^{tree}", "-m", "x")
    move = f"git -C {workspace.root} update-ref refs/heads/autoresearch/t {elsewhere}"
    idea = train_py(0.9, f"import os\nos.system({move!r})")
    with pytest.raises(UserError, match="moved by hand"):
        run_loop(workspace, Scripted(idea), 1, tag="t")
    assert tip(workspace) == elsewhere
    assert journal.read(workspace.state_dir("t"))[1].status == "keep"


# ------------------------------------------------------------------------------- the checkout


def test_the_persons_files_are_not_touched_and_their_edits_not_used(workspace):
    (workspace.root / "train.py").write_text(train_py(0.1, "# mine"))
    (workspace.root / "program.md").write_text("dirty")
    (workspace.root / "notes.txt").write_text("untracked")
    git(workspace.root, "add", "program.md")
    before, index = state(workspace.root), (workspace.root / ".git" / "index").read_bytes()
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t")
    after = state(workspace.root)
    assert {k for k in after if after[k] != before.get(k)} == {"results.tsv"}
    assert (workspace.root / ".git" / "index").read_bytes() == index
    assert "train.py in the checkout has uncommitted edits: the committed one is used" in view.text
    assert rows(workspace.root)[0][1] == "1.000000"


def test_started_by_a_git_hook_it_does_not_touch_the_checkout_either(workspace, monkeypatch):
    before = state(workspace.root)
    index, head = workspace.root / ".git" / "index", workspace.root / ".git" / "HEAD"
    kept = index.read_bytes(), head.read_bytes()
    monkeypatch.setenv("GIT_DIR", str(workspace.root / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(index))
    run_loop(Workspace.open(workspace.root), Scripted(*IDEAS[:2]), 2, tag="t")
    assert (index.read_bytes(), head.read_bytes()) == kept
    after = state(workspace.root)
    assert {k for k in after if after[k] != before.get(k)} == {"results.tsv"}


def test_line_ends_do_not_count_as_an_edit(workspace):
    def with_carriage_returns(context):
        (context.worktree / "train.py").write_bytes(train_py(0.9).replace("\n", "\r\n").encode())
        return "x"

    git(workspace.root, "config", "core.autocrlf", "true")
    git(workspace.root, "config", "core.safecrlf", "true")
    view = Notes()
    run_loop(workspace, Scripted(with_carriage_returns), 1, view, tag="t")
    assert "uncommitted edits" not in view.text
    assert rows(workspace.root)[1][3] == "keep"


def test_a_path_where_no_file_can_be_written_is_reported(workspace, tmp_path):
    home = tmp_path / "home"
    home.write_text("a file")
    with pytest.raises(UserError, match=rf"{home}.*cannot be used"):
        run_loop(workspace, Scripted(), 1, tag="t")
    home.unlink()
    (workspace.root / "results.tsv").unlink()
    (workspace.root / "results.tsv").mkdir()
    with pytest.raises(UserError, match=r"results\.tsv"):
        run_loop(workspace, Scripted(), 1, tag="t")


def test_uncommitted_edits_of_frozen_files_are_refused(workspace):
    (workspace.root / "constants.py").write_text("TIME_BUDGET = 2\n")
    with pytest.raises(UserError, match=r"constants\.py in .* is not as committed.*git commit"):
        run_loop(workspace, Scripted(), 1, tag="t")
    assert tip(workspace) is None
    git(workspace.root, "commit", "-q", "-a", "-m", "Two seconds")
    run_loop(workspace, Scripted(), 0, tag="t")


def test_a_repository_without_a_commit_is_refused(workspace):
    subprocess.run(["rm", "-rf", str(workspace.root / ".git")], check=True)
    git(workspace.root, "init", "-q")
    with pytest.raises(UserError, match="no commit yet"):
        run_loop(Workspace.open(workspace.root), Scripted(), 1)
    assert not (workspace.root / ".git" / "autoresearch").exists()


def test_rows_that_the_user_wrote_are_copied_aside(workspace):
    path = workspace.root / "results.tsv"
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    path.write_text(path.read_text().replace("idea 1", "my own words"))
    (workspace.root / "results-edited-1.tsv").write_text("older")
    edited = path.read_text()
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.8)), 1, view, tag="t")
    assert (workspace.root / "results-edited-2.tsv").read_text() == edited
    assert "results-edited-2.tsv" in view.text
    assert [row[4] for row in rows(workspace.root)] == ["baseline", "idea 1", "idea 2"]
    path.unlink()
    run_loop(workspace, Scripted(train_py(0.7)), 1, tag="t")
    assert len(rows(workspace.root)) == 4


def test_loops_of_two_tags_write_one_results_tsv(workspace, monkeypatch):
    run_loop(workspace, Scripted(), 0, tag="t")
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="u")
    stop = Interrupts(Notes())
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.002))  # while the other one writes

    def write(tag):
        found = Environment(DEVICE)
        one = Session(
            workspace=workspace,
            tag=tag,
            config=LoopConfig(),
            environment=found,
            view=Notes(),
            interrupts=stop,
            limits=Limits(),
            executors=[LocalExecutor],
        )
        with contextlib.closing(one):
            for _ in range(30):
                (workspace.root / "results.tsv").write_text("")
                results_tsv.write(workspace, one.experiments, one.view)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(write, ("t", "u"))) == [None, None]


# ------------------------------------------------------------------------------- stopping


def test_a_baseline_that_crashes_stops_the_loop_and_is_measured_again_once_repaired(workspace):
    (workspace.root / "train.py").write_text("raise ValueError('broken')")
    git(workspace.root, "commit", "-q", "-a", "-m", "Break")
    with pytest.raises(UserError, match=r"baseline.*ValueError: broken.*run\.log"):
        run_loop(workspace, Scripted(), 1, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["crash"]
    assert tip(workspace) is None
    (workspace.root / "train.py").write_text(train_py(1.0))
    git(workspace.root, "commit", "-q", "-a", "-m", "Repair")
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    assert [row[3:] for row in rows(workspace.root)] == [
        ["crash", "baseline"],
        ["keep", "baseline"],
        ["keep", "idea 2"],
    ]


def test_an_agent_that_keeps_failing_stops_the_loop_and_costs_no_row(workspace):
    def nothing(context):
        return "nothing"

    agent = Scripted(nothing, nothing, train_py(0.9), nothing, nothing, nothing)
    with pytest.raises(UserError, match=r"3 proposals in a row failed.*was not changed"):
        run_loop(workspace, agent, 9, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep", "keep"]


def test_one_signal_finishes_the_running_experiment(workspace):
    idea = train_py(
        0.9, f"import os, time\nos.kill({os.getpid()}, {signal.SIGTERM})\ntime.sleep(0.5)"
    )
    view = Notes()
    result = run_loop(workspace, Scripted(idea, train_py(0.8)), 9, view, tag="t")
    assert (result.stopped, result.decided) == ("interrupted", 2)
    assert rows(workspace.root)[1][1] == "0.900000"
    assert "Finishing what runs" in view.text
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_abandons_and_the_same_command_trains_it_again(workspace, tmp_path):
    once = tmp_path / "once"
    idea = train_py(
        0.9,
        f"""
import os, pathlib, time
once = pathlib.Path({str(once)!r})
if not once.exists():
    once.write_text(str(os.getpid()))
    os.kill({os.getpid()}, {signal.SIGINT})
    time.sleep(0.5)
    os.kill({os.getpid()}, {signal.SIGINT})
    time.sleep(600)
""",
    )
    view = Notes()
    result = run_loop(workspace, Scripted(idea), 1, view, tag="t")
    assert (result.stopped, result.decided) == ("abandoned", 1)
    assert not harness.alive(int(once.read_text()))
    assert journal.read(workspace.state_dir("t"))[1].status is None
    result = run_loop(workspace, Scripted(), 1, tag="t")
    assert (result.stopped, result.decided) == ("max", 1)
    assert [row[1] for row in rows(workspace.root)] == ["1.000000", "0.900000"]


def interrupted(_):
    """A fingerprint whose probe gets the Ctrl-C as well."""
    os.kill(os.getpid(), signal.SIGINT)
    raise UserError("the probe was interrupted")


def test_ctrl_c_before_the_first_experiment_begins_none(workspace):
    with pytest.raises(UserError, match="Stopped before anything was begun"):
        run_loop(workspace, Scripted(), 1, tag="t", fingerprint_of=interrupted)
    assert not workspace.state_dir("t").exists()


def test_ctrl_c_while_run_m_measures_the_baseline_trains_no_proposal(workspace):
    stop = f"import os, signal\nos.kill({os.getpid()}, signal.SIGINT)"
    (workspace.root / "train.py").write_text(train_py(1.0, stop))
    git(workspace.root, "commit", "-q", "-a", "-m", "Stop")
    (workspace.root / "train.py").write_text(train_py(0.9))
    with pytest.raises(UserError, match="Run the same command to continue it"):
        propose(workspace, tag="t")
    assert [row[4] for row in rows(workspace.root)] == ["baseline"]
    assert propose(workspace, tag="t").status == "keep"


def test_an_unfinished_maximum_counts_on_and_a_finished_one_starts_again(workspace):
    def stop(context):
        os.kill(os.getpid(), signal.SIGINT)
        (context.worktree / "train.py").write_text(train_py(0.9))
        return "x"

    run_loop(workspace, Scripted(train_py(0.95), stop), 3, tag="t")
    view = Notes()
    assert run_loop(workspace, Scripted(train_py(0.8)), 3, view, tag="t").decided == 2
    assert "3 experiments, 2 of them started already" in view.text
    ideas = [train_py(0.7 - n / 10) for n in range(3)]
    assert run_loop(workspace, Scripted(*ideas), 3, tag="t").decided == 3


def test_a_training_that_ends_along_with_the_loop_is_not_a_crash(workspace, tmp_path):
    once = tmp_path / "once"
    idea = train_py(
        0.9,
        f"""
import os, pathlib, signal, time
once = pathlib.Path({str(once)!r})
if not once.exists():
    once.touch()
    for pid in (os.getppid(), {os.getpid()}, os.getpid()):
        os.kill(pid, signal.SIGTERM)
    time.sleep(600)
""",
    )
    assert run_loop(workspace, Scripted(idea), 1, tag="t").stopped == "abandoned"
    run_loop(workspace, Scripted(), 1, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep", "keep"]


def test_a_detached_head_is_a_place_to_start_from(workspace):
    git(workspace.root, "switch", "-q", "--detach")
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.9)), 1, view, tag="t")
    assert f"train.py of commit {workspace.head()[:7]} (a detached HEAD)" in view.text
    assert rows(workspace.root)[1][3] == "keep"


def test_a_second_loop_is_refused_at_once_and_names_the_holder(workspace):
    state_dir = workspace.state_dir("t")
    state_dir.mkdir(parents=True)
    script = "import fcntl, os, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, 2)\n"
    script += "f.write(str(os.getpid())); f.flush(); print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", script, str(state_dir / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        begun = time.monotonic()
        with pytest.raises(UserError, match=f"tag t is in use by process {holder.pid}"):
            run_loop(workspace, Scripted(), 1, tag="t")
        assert time.monotonic() - begun < 10
        holder.kill()
    run_loop(workspace, Scripted(), 0, tag="t")  # a lock dies with its holder


def test_a_full_disk_stops_with_a_clear_message_and_loses_nothing(workspace, monkeypatch):
    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t")
    append = Journal.append

    def full(self, event):
        if events.encode(event)["step"] == "decided":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(UserError, match=r"disk is full.*same command again"):
            run_loop(workspace, Scripted(train_py(0.8)), 1, tag="t")
    run_loop(workspace, BySeries("", train_py(0.8)), 1, tag="t")
    assert [row[1] for row in rows(workspace.root)] == ["1.000000", "0.900000", "0.800000"]
    assert [row[4] for row in rows(workspace.root)] == ["baseline", "idea 1", "idea 2"]


def test_a_training_that_fills_the_disk_is_a_crash_and_leaves_room(workspace, monkeypatch):
    full = workspace.run_dir("t", 1) / "artifacts" / "large"
    idea = train_py(0.9, "import os\nopen(os.environ['AUTORESEARCH_RUN_DIR'] + '/large', 'w')")
    usage = worker.shutil.disk_usage

    def left(folder):
        return usage(folder)._replace(free=0 if full.exists() else 1 << 40)

    monkeypatch.setattr(worker.shutil, "disk_usage", left)
    agent = Scripted(idea + "raise OSError('no space')", train_py(0.8))
    run_loop(workspace, agent, 2, tag="t")
    assert [row[3] for row in rows(workspace.root)] == ["keep", "crash", "keep"]
    assert "no space" in (workspace.run_dir("t", 1) / "run.log").read_text()


def test_a_disk_that_others_fill_is_not_a_crash(workspace, monkeypatch):
    started = workspace.run_dir("t", 1) / "run.log"
    usage = worker.shutil.disk_usage

    def left(folder):
        return usage(folder)._replace(free=0 if started.exists() else 1 << 40)

    monkeypatch.setattr(worker.shutil, "disk_usage", left)
    with pytest.raises(UserError, match="0 MiB left"):
        run_loop(workspace, Scripted("raise OSError('no space')"), 1, tag="t")
    assert journal.read(workspace.state_dir("t"))[1].status is None


def test_a_nearly_full_disk_starts_nothing(workspace, monkeypatch):
    monkeypatch.setattr(worker, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(UserError, match=r"MiB left, of the .* needed"):
        run_loop(workspace, Scripted(), 1, tag="t")
    assert len(journal.read(workspace.state_dir("t"))) == 0


# ------------------------------------------------------------------------------- run, run -m


def test_run_measures_the_checkout_and_decides_nothing(workspace, tmp_path):
    listed = "import os, pathlib\nprint(sorted(map(str, pathlib.Path().rglob('*.*'))), os.getcwd())"
    (workspace.root / "train.py").write_text(train_py(0.7, listed))
    (workspace.root / "part").mkdir()
    (workspace.root / "part" / "new.py").write_text("")
    (workspace.root / "link.py").symlink_to("train.py")
    (workspace.root / "program.md").unlink()
    before = state(workspace.root)
    log, runs = workspace.root / "run.log", tmp_path / "home" / "runs"
    (runs / "measure-killed" / "artifacts").mkdir(parents=True)
    lock = locks.hold(runs / "measure-alive" / "lock", "")  # of a `run` on another device
    result = run_command.measure(workspace, *harness.setup(), log_path=log)
    assert (result.trained.outcome, result.val_bpb, result.trained.log) == ("ok", 0.7, log)
    names = [".gitignore", "constants.py", "part/new.py", "prepare.py", "results.tsv", "train.py"]
    assert log.read_text().splitlines()[0].startswith(f"{names} {runs}/measure-")
    log.unlink()
    assert state(workspace.root) == before
    assert not (workspace.root / ".git" / "autoresearch").exists()
    assert [path.name for path in runs.iterdir()] == ["measure-alive"]
    os.close(lock)


@pytest.mark.parametrize("level", STRONGEST_BY_DAY)
def test_a_measured_train_py_changes_nothing_of_the_checkout(workspace, level):
    run_loop(workspace, Scripted(), 0, tag="t")
    record = journal.path_of(workspace.state_dir("t"))
    hostile = """
import contextlib, os, pathlib
for name in ("prepare.py", "constants.py", ".git/config"):
    with contextlib.suppress(OSError):
        pathlib.Path(name).write_text("spoiled")
"""
    if level != "none":  # where nothing keeps it from writing by the full path
        places = [workspace.root / "prepare.py", workspace.root / ".git" / "config", record]
        hostile += f"""
for name in {[str(path) for path in places]}:
    with contextlib.suppress(OSError):
        pathlib.Path(name).write_text("spoiled")
"""
    (workspace.root / "train.py").write_text(train_py(0.7, hostile))
    git_files = [path for path in (workspace.root / ".git").rglob("*") if path.is_file()]
    before = state(workspace.root), {path: path.read_bytes() for path in git_files}
    seen = []

    def score(job, *_, **__):
        seen.extend((job.frozen / name).read_text() for name in ("prepare.py", "constants.py"))
        return harness.written_score(job)

    setup = harness.setup(level=level, scorer=score)
    result = run_command.measure(workspace, *setup, log_path=workspace.root / "run.log")
    assert (result.trained.outcome, result.val_bpb) == ("ok", 0.7)
    assert seen == ["", "TIME_BUDGET = 1\n"]
    (workspace.root / "run.log").unlink()
    assert (state(workspace.root), {path: path.read_bytes() for path in git_files}) == before


def test_run_m_proposes_the_edited_train_py_and_restores_the_best(workspace):
    path, committed = workspace.root / "train.py", (workspace.root / "train.py").read_text()
    path.write_text(train_py(1.5))
    e = propose(workspace, "worse\tidea", tag="t")
    assert (e.n, e.status, e.agent, e.description) == (1, "discard", "person", "worse idea")
    assert path.read_text() == committed
    assert Candidates(workspace, "t").show("refs/autoresearch/t/1") == train_py(1.5)
    assert (workspace.root / "run.log").read_text() == "the score is 1.5\n"
    path.write_text(train_py(0.9))
    assert propose(workspace, tag="t").status == "keep"
    assert path.read_text() == train_py(0.9)
    path.write_text("width = (")
    assert propose(workspace, tag="t").status == "crash"
    assert path.read_text() == train_py(0.9)
    assert [row[3] for row in rows(workspace.root)] == ["keep", "discard", "keep", "crash"]
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.8)), 1, view, tag="t")  # the loop goes on from there
    assert "uncommitted" not in view.text
    assert rows(workspace.root)[4][3] == "keep"


def test_run_m_without_an_edit_is_refused_and_records_nothing(workspace):
    with pytest.raises(UserError, match=r"nothing to propose\. Edit it first"):
        propose(workspace)
    assert workspace.tags() == [] or list(journal.read(workspace.state_dir("t"))) == []
    (workspace.root / "train.py").write_text(train_py(0.9))
    propose(workspace)
    with pytest.raises(UserError, match="nothing to propose"):
        propose(workspace)
    (workspace.root / "train.py").unlink()
    with pytest.raises(UserError, match=r"train\.py was deleted"):
        propose(workspace)


def test_run_m_proposes_an_edit_that_was_committed(workspace):
    run_loop(workspace, Scripted(), 0, tag="t")
    (workspace.root / "train.py").write_text(train_py(0.9))
    git(workspace.root, "commit", "-q", "-m", "mine", "--", "train.py")
    assert propose(workspace).status == "keep"


def test_an_edit_made_while_run_m_trains_is_not_lost(workspace):
    path = workspace.root / "train.py"
    path.write_text(train_py(1.5, f"open({str(path)!r}, 'a').write('# more')"))
    view = Notes()
    assert propose(workspace, view=view).status == "discard"
    assert path.read_text().endswith("# more")
    assert "edited meanwhile and stays as it is" in view.text


@pytest.mark.parametrize("place", ["nowhere/run.log", "train.py"])
def test_a_log_that_cannot_be_written_is_refused_before_the_training(workspace, place):
    (workspace.root / "train.py").write_text(train_py(0.9))
    before, log = state(workspace.root), workspace.root / place
    with pytest.raises(UserError, match=r"no folder .*nowhere|would replace .*--log run\.log"):
        run_command.measure(workspace, *harness.setup(), log_path=log)
    with pytest.raises(UserError, match=r"no folder .*nowhere|would replace .*--log run\.log"):
        run_command.propose(workspace, *harness.setup(), description="x", log_path=log)
    assert state(workspace.root) == before


def test_a_tag_goes_on_with_its_own_data(workspace, prepared, tmp_path, monkeypatch):
    """The workspace has prepared another source since, and so has another workspace."""
    root, home = prepared
    monkeypatch.setenv("AUTORESEARCH_HOME", str(data_helpers.copy_data(home, tmp_path / "data")))
    for name in manifest.FROZEN:
        (workspace.root / name).write_bytes((root / name).read_bytes())
    git(workspace.root, "commit", "-qam", "The frozen files that the data was prepared with")
    first = manifest.load(root)
    manifest.write(workspace.root, first)

    def examine(place, wanted, required, overrides=None, pinned=None):
        data = manifest.load(place.root, fingerprint=pinned)
        frozen = manifest.frozen_fingerprint(place.root)
        return Environment(DEVICE | {"frozen files": frozen, "data": data.fingerprint}, data=data)

    run_loop(workspace, Scripted(train_py(0.9)), 1, tag="t", examine=examine)
    second = structs.replace(first, source="/other", shards=first.shards[:1])
    manifest.write(data_helpers.make_workspace(tmp_path / "elsewhere"), second)
    shutil.rmtree(workspace.root / ".autoresearch")  # as in another checkout
    assert list(doctor._data(workspace, None)) == []
    view = Notes()
    run_loop(workspace, Scripted(train_py(0.8)), 1, view, examine=examine)
    assert "tag t (resumed" in view.text
    manifest.write(workspace.root, second)
    run_loop(workspace, Scripted(train_py(0.7)), 1, tag="t", examine=examine)
    assert [e.val_bpb for e in journal.read(workspace.state_dir("t"))] == [1.0, 0.9, 0.8, 0.7]
    view = Notes()
    run_loop(workspace, Scripted(), 0, view, examine=examine)
    assert "the newest, t, was measured with another data" in view.text
    names = {name: journal.read(workspace.state_dir(name)) for name in workspace.tags()}
    pinned = {name: found.first.fingerprint["data"] for name, found in names.items()}
    assert set(pinned.values()) == {first.fingerprint, second.fingerprint}


def test_the_loop_stops_when_its_data_is_gone(workspace, prepared, monkeypatch):
    root, home = prepared
    monkeypatch.setenv("AUTORESEARCH_HOME", str(home))
    for name in manifest.FROZEN:
        (workspace.root / name).write_bytes((root / name).read_bytes())
    git(workspace.root, "commit", "-qam", "The frozen files that the data was prepared with")
    frozen = manifest.frozen_fingerprint(root)
    options = {"fingerprint_of": lambda _: DEVICE | {"frozen files": frozen}}
    checks_env = 'import os\nassert os.environ["AUTORESEARCH_DATA"]\n' + train_py(0.9)
    data = manifest.load(root)
    run_loop(workspace, Scripted(checks_env), 1, tag="t", data=data, **options)
    assert [row[3] for row in rows(workspace.root)] == ["keep", "keep"]
    other = structs.replace(data, shards=data.shards[:1])  # which nobody has prepared
    with pytest.raises(UserError, match=f"the data {other.fingerprint} is not in {home} any more"):
        run_loop(workspace, Scripted(train_py(0.8)), 1, tag="u", data=other, **options)
    assert journal.read(workspace.state_dir("u"))[0].status is None
