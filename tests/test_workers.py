"""Several workers: bases of proposals, order of decisions, and failing workers."""

import itertools
import json
import os
import re
import signal
import threading
import time
from collections import Counter

import pytest
from click.testing import CliRunner
from msgspec import structs

from autoresearch_jax.agents.agent import Proposal
from autoresearch_jax.cli.main import main
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import device_allocation
from autoresearch_jax.jobs.job import NO_EVENTS, Lost
from autoresearch_jax.jobs.local import LocalExecutor
from autoresearch_jax.records import journal
from autoresearch_jax.records.events import Purpose, Repeated
from autoresearch_jax.records.journal import Journal
from autoresearch_jax.repo.workspace import Workspace
from tests import harness
from tests.harness import Notes, Scripted, git, lines, rows, run_loop, train_py

# FIRST and SECOND lower the score, and are far enough apart to be merged; together they cost
# CLASH. HOLD is a file that the training waits for; a baseline waits for nothing.
PARTS = """\
import os, pathlib, sys, time
FIRST = 0



SECOND = 0



HOLD = ""



CLASH = 0
seed = int(os.environ["AUTORESEARCH_SEED"])
def wait(done):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
if HOLD:
    pathlib.Path(HOLD + f".{os.getpid()}.waits").touch()
    wait(lambda: pathlib.Path(HOLD).exists())
SCORE -= FIRST + SECOND - (CLASH if FIRST and SECOND else 0)
"""


_before: set[threading.Thread] = set()  # a test's: others of this process may have left some


@pytest.fixture(autouse=True)
def threads():
    _before.update(threading.enumerate())
    yield
    _before.clear()


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    # As many workers as a test wants, on whichever cores this machine has.
    monkeypatch.setattr(
        device_allocation, "split", lambda workers, names: [device_allocation.WHOLE] * workers
    )
    return Workspace.open(harness.make_repository(tmp_path / "workspace", train_py(1.0, PARTS)))


def change_baseline(workspace, old, new):
    path = workspace.root / "train.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    git(workspace.root, "commit", "-qam", "Another baseline")


class Events(Notes):
    """Notes; the file `decided-N` appears when experiment N is decided."""

    def __init__(self, workspace):
        super().__init__()
        self.folder = workspace.root.parent

    def say(self, text):
        super().say(text)
        if decided := re.match(r" *(\d+) (keep|discard|crash) ", text):
            (self.folder / f"decided-{decided[1]}").touch()


def idea(description, hold="", then=lambda: None, **values):
    """An answer that gives constants of train.py other values; its training waits for `hold`."""

    def answer(context):
        path = context.worktree / "train.py"
        text = path.read_text()
        values_here = values | ({"HOLD": str(path_of(context, hold))} if hold else {})
        for name, value in values_here.items():
            text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", text)
            assert count == 1
        path.write_text(text)
        then()
        return Proposal(description)

    return answer


def path_of(context, name):
    """A file beside the workspace."""
    return context.sources_of.__self__.workspace.root.parent / name


def when_waiting(workspace, name, count, let=None):
    """Once so many trainings wait for a file, that one appears, or another."""
    folder = workspace.root.parent

    def wait():
        end = time.monotonic() + 60
        while len(list(folder.glob(f"{name}.*.waits"))) < count:
            assert time.monotonic() < end
            time.sleep(0.01)
        (folder / (let or name)).touch()

    threading.Thread(target=wait).start()


def run(workspace, ideas, most, *, workers=2, view=None, **options):
    agent = Scripted(*ideas) if isinstance(ideas, list | tuple) else ideas
    view = view or Events(workspace)
    return run_loop(workspace, agent, most, view, tag="t", workers=workers, **options)


def found(workspace):
    return list(journal.read(workspace.state_dir("t")))


def records(workspace, step):
    return [one for one in lines(workspace.state_dir("t")) if one["step"] == step]


def decisions(workspace):
    """The numbers of the experiments in the order in which they were decided."""
    return [one["n"] for one in records(workspace, "decided")]


def looks_right(workspace, *, undecided=()):
    """Everything is decided once, and git and results.tsv are as the journal says."""
    history = found(workspace)
    assert sorted([*decisions(workspace), *undecided]) == [e.n for e in history]
    kept = [e for e in history if e.status == "keep"]
    chain = git(workspace.root, "rev-list", "--reverse", "autoresearch/t").split()
    assert chain[chain.index(kept[0].commit) :] == [e.commit for e in kept]
    assert [e.base for e in kept] == ["", *(e.commit for e in kept[:-1])]
    refs = git(
        workspace.root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/autoresearch"
    )
    assert sorted(refs.splitlines()) == sorted(
        f"refs/autoresearch/t/{e.n} {e.commit}" for e in history
    )
    decided = [[e.commit[:7], e.status] for e in history if e.status]
    assert [[row[0], row[3]] for row in rows(workspace.root)] == decided
    git(workspace.root, "fsck", "--strict")
    going_on = set()  # of what is measured again
    for one in lines(workspace.state_dir("t")):
        if one["step"] == "repeating" and one["phase"] != "given up":
            going_on.add((one["n"], one["seed"]))
        elif one["step"] in ("repeating", "repeated"):
            going_on.discard((one["n"], one["seed"]))
    assert not going_on
    assert set(threading.enumerate()) <= _before
    return history


# --------------------------------------------------------------------------------- decisions


def test_a_result_behind_the_best_is_carried_over_and_counts_there(workspace):
    when_waiting(workspace, "decided-4", 1, let="third")  # so that the carried-over one is fourth
    ideas = [
        idea("first", "third", FIRST=0.1),
        idea("second", SECOND=0.2),
        idea("worse", "decided-4", SECOND=-1),
    ]
    result = run(workspace, ideas, 3)
    history = looks_right(workspace)
    baseline, first, second, worse, both = history
    assert [e.status for e in history] == ["keep", "discard", "keep", "discard", "keep"]
    assert decisions(workspace) == [0, 2, 1, 4, 3]  # as their scores arrived
    # Each was proposed on the best of its time.
    assert [e.base for e in history[1:3]] == [baseline.commit] * 2
    assert worse.base == both.base == second.commit
    assert [e.of for e in history] == [None, None, None, None, 1]
    assert first.verdict == "carried over to experiment 2, which is the best now"
    assert worse.verdict == "not better than its base, experiment 2"
    assert both.description == "first (experiment 1 on top of 2)"
    # It was better than its base and worse than the best; its changes count once measured there.
    assert [e.val_bpb for e in (first, both)] == pytest.approx([0.9, 0.7])
    assert [one["n"] for one in records(workspace, "trained")].count(4) == 1
    assert (result.stopped, result.decided, result.best) == ("max", 5, both)
    spent = journal.read(workspace.state_dir("t")).costs.total
    assert spent.experiments == 3  # a repeat is not a proposal


@pytest.mark.parametrize(("gain", "kept"), [(0.4, True), (0.1, False)])
def test_a_conflicting_result_is_proposed_unmerged_if_it_is_better(workspace, gain, kept):
    run(workspace, [idea("slow", "decided-2", FIRST=gain), idea("quick", FIRST=0.2)], 2)
    history = looks_right(workspace)
    statuses = ["keep", "discard", "keep"]
    assert [e.status for e in history] == ([*statuses, "keep"] if kept else statuses)
    dropped = [(one["of"], one["reason"]) for one in records(workspace, "dropped")]
    if kept:
        assert (history[3].of, history[3].program) == (1, history[1].program)
        assert history[3].val_bpb == pytest.approx(0.6)
        assert dropped == []
    else:
        assert dropped == [(1, "it conflicts with experiment 2")]


@pytest.mark.parametrize(("gain", "kept"), [(0.4, True), (0.1, False)])
def test_a_result_spoiled_by_a_merge_is_proposed_unmerged_if_it_is_better(workspace, gain, kept):
    change_baseline(workspace, "CLASH = 0", "CLASH = 1")
    run(workspace, [idea("slow", "decided-2", FIRST=gain), idea("quick", SECOND=0.2)], 2)
    history = looks_right(workspace)
    statuses = ["keep", "discard", "keep", "discard"]
    assert [e.status for e in history] == ([*statuses, "keep"] if kept else statuses)
    assert (history[3].of, history[3].val_bpb) == (1, pytest.approx(1.8 - gain))
    if kept:
        assert decisions(workspace) == [0, 2, 1, 3, 4]
        alone = history[4]
        assert (alone.of, alone.base, alone.program) == (1, history[2].commit, history[1].program)
        assert alone.val_bpb == pytest.approx(0.6)
        assert alone.description == "slow (experiment 1 on top of 2)"


# Each part lowers the score by its number, once its file is there. What has A and B, but not C, is
# slow: it waits until the experiments of C and D are decided.
FOUR = """\
import pathlib, time
def wait(path):
    end = time.monotonic() + 60
    while not pathlib.Path(path).exists():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
A = 0, ""



B = 0, ""



C = 0, ""



D = 0, ""



PARTS = A, B, C, D
for number, path in PARTS:
    if path:
        wait(path)
    SCORE -= number
"""
SLOW = """\
if A[0] and B[0] and not C[0]:
    for n in (3, 4):
        wait(pathlib.Path(B[1]).with_name(f"decided-{n}"))
"""


def four(workspace, more=""):
    """Four changes: A is kept, then B is carried over to it, while C and D arrive."""
    (workspace.root / "train.py").write_text(train_py(1.0, FOUR + SLOW + more))
    git(workspace.root, "commit", "-qam", "Four parts")

    def part(name, gain, after):
        def answer(context):
            path, source = str(path_of(context, after)), context.worktree / "train.py"
            change = f"{name} = {gain}, {path if after else ''!r}"
            source.write_text(re.sub(rf"(?m)^{name} = .*$", change, source.read_text()))
            return Proposal(f"part {name}")

        return answer

    # C and D are measured once what carries B over has been proposed, which is experiment 5.
    return [
        part("A", 0.1, "asked"),
        part("B", 0.2, "decided-1"),
        part("C", 0.3, "proposed-5"),
        part("D", 0.4, "proposed-5"),
    ]


class Proposals(Events):
    """Also makes the files `asked`, once all four are asked for, and `proposed-5`."""

    def __init__(self, workspace):
        super().__init__(workspace)
        threading.Thread(target=self._watch, args=(workspace,)).start()

    def _watch(self, workspace):
        end = time.monotonic() + 60
        for count, name in ((5, "asked"), (6, "proposed-5")):
            while len(self._known(workspace)) < count and time.monotonic() < end:
                time.sleep(0.01)
            (self.folder / name).touch()

    def _known(self, workspace):
        path = workspace.state_dir("t") / "journal.jsonl"
        return re.findall('"step": ?"proposed"', path.read_text()) if path.exists() else []


def test_what_waits_is_measured_together_as_one_candidate(workspace):
    ideas = four(workspace)
    run(workspace, ideas, 4, workers=4, view=Proposals(workspace))
    history = looks_right(workspace)
    assert [e.status for e in history] == ["keep", "keep", *["discard"] * 3, "keep", "keep"]
    slow, both = history[5:]
    assert (slow.of, slow.together) == (2, ())
    # D gains more than C. Both are measured once more, not once each.
    assert (both.of, both.together, both.base) == (4, (4, 3), slow.commit)
    assert both.description == "part D, and 1 more (experiments 4 and 3 on top of 5)"
    assert both.val_bpb == pytest.approx(1.0 - 0.1 - 0.2 - 0.3 - 0.4)
    assert len(records(workspace, "trained")) == 7
    assert journal.read(workspace.state_dir("t")).costs.total.experiments == 4
    shown = CliRunner().invoke(main, ["-C", str(workspace.root), "show", "6"]).output
    assert "\ncarries   over experiment 4: part D\ncarries   over experiment 3: part C\n" in shown
    shown = CliRunner().invoke(main, ["-C", str(workspace.root), "show", "3"]).output
    assert "\ncarried   over as experiment 6: keep\n" in shown


def test_what_fails_together_is_measured_in_halves(workspace):
    ideas = four(workspace, "SCORE += 2 if C[0] and D[0] else 0\n")
    run(workspace, ideas, 4, workers=4, view=Proposals(workspace))
    history = looks_right(workspace)
    assert [e.together for e in history[6:]] == [(4, 3), (), ()]
    assert sorted(e.of for e in history[7:]) == [3, 4]
    # Each gains alone, and they cost 2 together, so only one of them is kept.
    assert [e.status for e in history[6:]].count("keep") == 1
    best = journal.read(workspace.state_dir("t")).best
    assert best.val_bpb == min(e.val_bpb for e in history)


def test_only_proposals_count_and_never_more_than_were_asked_for(workspace):
    asked = itertools.count(1)

    def better(context):
        n = next(asked)
        name = "FIRST" if n % 2 else "SECOND"
        return idea(f"idea {n}", **{name: n / 100})(context)

    agent = Scripted(*[better] * 20)
    result = run(workspace, agent, 7, workers=3)
    history = looks_right(workspace)
    assert result.stopped == "max"
    assert sum(e.of is None for e in history[1:]) == 7
    assert len(records(workspace, "finished")) == 1
    run(workspace, agent, 2, workers=3)  # two more
    assert sum(e.of is None for e in looks_right(workspace)[1:]) == 9


# ---------------------------------------------------------------------------------- at a time


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux binds to cores")
def test_trainings_overlap_each_on_cores_of_its_own(workspace, monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("there is one core")
    monkeypatch.undo()  # the real split; the environment comes again
    monkeypatch.setenv("AUTORESEARCH_HOME", str(workspace.home))
    monkeypatch.setenv("AUTORESEARCH_LOCK_DIR", str(workspace.home / "locks"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    change_baseline(workspace, "CLASH = 0", "CLASH = 0\nprint(sorted(os.sched_getaffinity(0)))")
    when_waiting(workspace, "both", 2)
    ideas = [idea(f"{n}", "both", FIRST=n / 10) for n in (1, 2)]
    run(workspace, ideas, 2)
    looks_right(workspace)
    size = len(cores) // 2
    parts = [cores[:size], cores[size : 2 * size]]
    logs = [workspace.run_dir("t", n) / "run.log" for n in range(3)]
    used = [json.loads(log.read_text().splitlines()[0]) for log in logs]
    assert used[0] in parts  # the baseline has no more than those that are compared with it
    assert sorted(used[1:]) == parts
    assert sorted(os.sched_getaffinity(0)) == cores  # of this thread nothing is changed


class Thinking(Scripted):
    """Thinks while trainings run, in a thread for each worker."""

    name = "thinking"
    slow = True

    def __init__(self, workers, *sources):
        super().__init__(*sources)
        self.together = threading.Barrier(workers)
        self.one = threading.Lock()

    def propose(self, context):
        with self.one:
            first = len(self.contexts) < self.together.parties
            self.contexts.append(context)
            source = self.sources.pop(0)
        if first:
            self.together.wait(60)  # until all think
        return source(context)


def test_slow_agents_think_one_for_each_worker(workspace):
    # None is kept, since a proposal that conflicts with a keep is replaced by a new one.
    agent = Thinking(3, *(idea(f"{n}", FIRST=-n) for n in range(1, 6)))
    run(workspace, agent, 5, workers=3)
    history = looks_right(workspace)
    assert len(history) == 6
    assert agent.sources == []
    assert len({context.worktree for context in agent.contexts[:3]}) == 3
    # The last one asked knew of at least one other.
    others = [
        re.search(r"(\d) other agents? got the same request", one.prompt)
        for one in agent.contexts[:3]
    ]
    assert max(int(one[1]) for one in others if one) >= 1


MEET = """
if seed != 42:
    here = pathlib.Path({folder!r})
    here.mkdir(exist_ok=True)
    (here / str(os.getpid())).touch()
    wait(lambda: len(list(here.iterdir())) > 1)
SCORE += 0.001 * (seed * 7 % 5)
"""


def meeting(workspace):
    """Every training but the first of an experiment waits until there is another one."""
    meet = MEET.format(folder=str(workspace.root.parent / "repeats"))
    change_baseline(workspace, "CLASH = 0\n", f"CLASH = 0\n{PARTS.partition('CLASH = 0')[2]}{meet}")


def test_the_noise_is_measured_side_by_side_with_other_seeds(workspace):
    meeting(workspace)
    view = Events(workspace)
    run(workspace, [], 0, policy="confirm", view=view)
    (baseline,) = looks_right(workspace)
    assert sorted(one.seed for one in baseline.repeats) == [43, 44, 45, 46]
    scores = {one.seed: one.score for one in baseline.repeats}
    assert scores == {seed: pytest.approx(1 + 0.001 * (seed * 7 % 5)) for seed in scores}
    assert "noise of a score" in view.text


def test_a_repeat_is_reported_with_its_own_score(workspace, monkeypatch):
    append = Journal.append

    def two(book, event):
        append(book, event)
        if isinstance(event, Repeated):  # by another worker, at that moment
            metrics, seed = {"val_bpb": 9.0}, event.seed + 100
            append(book, structs.replace(event, metrics=metrics, seed=seed, purpose=Purpose.NOISE))

    monkeypatch.setattr(Journal, "append", two)
    view = Events(workspace)
    run(workspace, [idea("better", FIRST=0.1)], 1, workers=1, audit=2, view=view)
    reported = [line for line in view.said if "audit: experiment" in line]
    assert len(reported) == 3  # the baseline's first run counts
    assert not [line for line in reported if "9.0" in line]


def sorted_(repeats):
    return sorted(repeats, key=lambda one: one.seed)


def noisy(workspace):
    noise = "SCORE += 0.001 * (seed * 7 % 5)\n"
    change_baseline(workspace, "if HOLD:", f"{noise}if HOLD:")


def test_a_close_score_is_measured_again_while_others_train(workspace):
    noisy(workspace)
    close = [idea(f"close {n}", FIRST=n / 10000) for n in (52, 55, 58, 61, 64)]
    # The last two are asked for if a close one is kept first, onto which others cannot be merged.
    ideas = [*close[:3], idea("clear", SECOND=0.5), *close[3:]]
    run(workspace, ideas, 4, policy="confirm", workers=3)
    history = looks_right(workspace)
    again = [one for e in history for one in e.repeats if one.purpose == "decide"]
    assert again
    for e in history:
        seeds = [one.seed for one in e.repeats]
        assert len({42, *seeds}) == 1 + len(seeds)
    best = [e for e in history if e.status == "keep"][-1]
    assert best.val_bpb < 0.51


# ------------------------------------------------------------------------------ workers lost


class Broken:
    """A scorer that fails if `at(the worker's folder, the experiment's number)` is true."""

    def __init__(self, at, error="no device here."):
        self.at, self.error = at, error
        self.asked = []

    def __call__(self, job, *_, **__):
        worker, n = job.frozen.parent.name, int(job.artifacts.parent.name)
        self.asked.append((worker, n))
        if self.at(worker, n):
            raise UserError(self.error)
        return harness.written_score(job)


def test_a_worker_that_fails_is_retired_and_its_experiment_goes_to_another(workspace):
    when_waiting(workspace, "both", 2)
    ideas = [idea(f"{n}", "both", FIRST=n / 10) for n in (1, 2)]
    ideas += [idea(f"more {n}", SECOND=n / 10) for n in (1, 2)]
    scorer, view = Broken(lambda worker, n: n and worker == "worker-2"), Events(workspace)
    result = run(workspace, ideas, 4, scorer=scorer, view=view)
    looks_right(workspace)
    assert result.stopped == "max"
    (lost,) = [n for worker, n in scorer.asked if n and worker == "worker-2"]  # asked once
    assert f"Warning: no device here. Experiment {lost} is queued again." in view.said
    assert [n for _, n in scorer.asked].count(lost) == 2
    assert [one["n"] for one in records(workspace, "trained")].count(lost) == 1


def test_an_experiment_that_fails_on_two_workers_stops_all(workspace):
    more = (idea(f"more {n}", SECOND=n / 1000) for n in itertools.count(1))
    ideas = [idea("odd", FIRST=0.1), *itertools.islice(more, 60)]
    scorer = Broken(lambda worker, n: n == 1)
    with pytest.raises(UserError, match=r"^no device here\.$"):
        run(workspace, ideas, 60, scorer=scorer, workers=3)
    assert [n for _, n in scorer.asked].count(1) == 2
    history = looks_right(workspace, undecided=undecided(workspace))
    assert history[1].status is None
    assert len(history) < 30
    run(workspace, ideas, 0)  # repaired
    looks_right(workspace)


def undecided(workspace):
    return [e.n for e in found(workspace) if e.status is None]


def breaking(workspace):
    """Ideas of which the first one's training breaks the machine."""
    broken = workspace.root.parent / "broken"
    change_baseline(
        workspace,
        "CLASH = 0\n",
        f"CLASH = 0\nif os.path.exists({str(broken)!r}): raise OSError('no device')\n",
    )
    ideas = [idea("fine", FIRST=0.1, then=broken.touch)]
    return ideas + [idea(f"{n}", SECOND=n / 100) for n in range(1, 40)]


def test_a_lost_control_is_done_again_after_the_next_crash(workspace, monkeypatch):
    gone = Gone(monkeypatch, lambda _, name: name == "control", times=1)
    view = Events(workspace)
    with pytest.raises(UserError, match=r"Paused: \d+ experiments in a row crashed"):
        run(workspace, breaking(workspace), 40, view=view)
    assert gone.lost == 1
    assert len(looks_right(workspace, undecided=undecided(workspace))) < 14  # all workers paused
    assert view.said.count("Warning: the machine is gone. That check was not completed.") == 1
    assert len(records(workspace, "control")) == 1


class Gone:
    """The machine of a training is gone, so many times."""

    def __init__(self, monkeypatch, wanted, times):
        self.wanted, self.times, self.lost = wanted, times, 0
        train = LocalExecutor.train

        def lost(executor, job, events=NO_EVENTS):
            if (
                self.wanted(int(job.artifacts.parent.name), job.artifacts.name)
                and self.lost < self.times
            ):
                self.lost += 1
                raise Lost("the machine is gone.")
            return train(executor, job, events)

        monkeypatch.setattr(LocalExecutor, "train", lost)


def test_an_experiment_that_was_lost_with_its_machine_is_trained_again(workspace, monkeypatch):
    Gone(monkeypatch, lambda n, _: n == 1, times=1)
    view = Events(workspace)
    run(workspace, [idea("1", FIRST=0.1), idea("2", SECOND=0.2)], 2, view=view)
    assert all(e.status != "crash" for e in looks_right(workspace))
    assert view.said.count("Warning: the machine is gone. Experiment 1 is queued again.") == 1


def test_an_experiment_that_is_lost_twice_is_a_crash(workspace, monkeypatch):
    gone = Gone(monkeypatch, lambda n, _: n == 1, times=9)
    run(workspace, [idea("1", FIRST=0.1), idea("2", SECOND=0.2)], 2)
    history = looks_right(workspace)
    assert [e.status for e in history] == ["keep", "crash", "keep"]
    assert (history[1].reason, gone.lost) == ("the machine is gone.", 2)


def test_an_experiment_whose_repeats_are_lost_twice_is_a_crash(workspace, monkeypatch):
    noisy(workspace)
    gone = Gone(monkeypatch, lambda n, name: n == 1 and name.startswith("repeat-"), times=9)
    run(workspace, [idea("close", FIRST=0.0055)], 1, policy="confirm")
    history = looks_right(workspace)
    assert history[1].reason == "run again with another seed, it failed: the machine is gone."
    assert gone.lost == 2


def test_the_baseline_the_noise_and_the_audit_are_done_once_more(workspace, monkeypatch):
    noisy(workspace)
    calls = Counter()
    train = LocalExecutor.train

    def every_other(executor, job, events=NO_EVENTS):
        if job.artifacts.parent.name == "0" or job.artifacts.name.startswith("repeat-"):
            calls[job.folder] += 1  # of that worker
            if calls[job.folder] % 2:
                raise Lost("the machine is gone.")
        return train(executor, job, events)

    monkeypatch.setattr(LocalExecutor, "train", every_other)
    view = Events(workspace)
    ideas = [idea("clear", FIRST=0.5)]
    run(workspace, ideas, 1, policy="confirm", audit=2, view=view)
    looks_right(workspace)
    assert len(records(workspace, "audited")) == 1
    again = view.said.count("Warning: the machine is gone. Its work is done again.")
    assert again == 1 + 4 + 2  # baseline, noise, audit of the best


# --------------------------------------------------------------------------------- Ctrl-C


def test_the_first_ctrl_c_finishes_what_runs(workspace):
    def stop():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # the main thread handles it
        (workspace.root.parent / "go").touch()

    ideas = [idea("1", "go", FIRST=0.1), idea("2", then=stop, SECOND=0.2)]
    result = run(workspace, ideas, 9)
    assert (result.stopped, result.decided) == ("interrupted", 2)
    looks_right(workspace, undecided=[2])
    assert records(workspace, "finished") == []
    result = run(workspace, [], 0, workers=1)
    assert [e.status for e in looks_right(workspace)][:2] == ["keep", "keep"]
    assert found(workspace)[-1].val_bpb == pytest.approx(0.7)


def test_the_second_ctrl_c_abandons_all_and_the_same_command_continues(workspace):
    folder = workspace.root.parent

    def stop():
        end = time.monotonic() + 60
        while len(list(folder.glob("go.*.waits"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    ideas = [idea("1", "go", FIRST=0.1), idea("2", "go", SECOND=0.2)]
    stopper = threading.Thread(target=stop)
    stopper.start()
    result = run(workspace, ideas, 2)
    stopper.join()
    assert (result.stopped, result.decided) == ("abandoned", 1)
    looks_right(workspace, undecided=[1, 2])
    for path in folder.glob("go.*.waits"):
        assert not harness.alive(int(path.name.split(".")[1]))
    (folder / "go").touch()
    result = run(workspace, [], 2, workers=1)
    assert result.stopped == "max"
    history = looks_right(workspace)
    assert [e.of for e in history[:3]] == [None] * 3
    assert sum(e.of is None for e in history[1:]) == 2
    assert result.best.val_bpb == pytest.approx(0.7)  # both, one carried over to the other
