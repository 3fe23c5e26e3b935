"""Checks of a candidate before a budget is spent on it."""

import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.commands import run as run_command
from autoresearch_jax.common import syntax
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.jobs import compile_check
from autoresearch_jax.jobs.environment import Environment
from autoresearch_jax.loop import config
from autoresearch_jax.repo.workspace import Workspace
from autoresearch_jax.system import disk_use
from tests import harness

# A train.py with a step of 2 * SIZE**2 * 4 bytes, which trains for SECONDS, or until the compile
# check beside it has answered.
GATED = """\
import json, os, pathlib, time
SIZE, SECONDS, PEAK_MB, SCORE = {size}, {seconds}, {peak_mb}, {score}
ANSWER = pathlib.Path("..", "gate-scratch", "answer.json")


def abstract_step(devices):
    import jax

    return jax.jit(lambda x: x @ x), (jax.ShapeDtypeStruct((SIZE, SIZE), "float32"),)


if __name__ == "__main__":
    left = pathlib.Path(os.environ["AUTORESEARCH_RUN_DIR"])
    (left / "exported.bin").touch()
    time.sleep(SECONDS)
    while {waits} and not ANSWER.exists():
        time.sleep(0.02)
    (left / "stopped").touch()
    (left / "exported.bin").write_text(str(SCORE))
    (left / "summary.json").write_text(json.dumps({{"peak_vram_mb": PEAK_MB}}))
"""


def gated(size=64, seconds=0.0, peak_mb=100.0, score=0.9, waits=False):
    return GATED.format(size=size, seconds=seconds, peak_mb=peak_mb, score=score, waits=waits)


@pytest.fixture
def repository(tmp_path):
    # The baseline's compile check has to answer before its training ends.
    return harness.make_repository(tmp_path / "repository", gated(score=1.0, waits=True))


@pytest.fixture
def workspace(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("AUTORESEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (repository / "constants.py").write_text("TIME_BUDGET = 60\n")
    harness.git(repository, "commit", "-qam", "Longer")
    return Workspace.open(repository)


def beside(workspace, *_):
    """An environment in which the compile check runs beside trainings, for the devices here."""
    return Environment({**harness.DEVICE, "device count": 1}, target="")


def run(workspace, *sources, **options):
    options.setdefault("examine", beside)
    view = harness.Notes()
    agent = harness.Scripted(*sources)
    result = harness.run_loop(workspace, agent, len(sources), view, **options)
    return result, view


# ------------------------------------------------------------------------- while others train


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (8192, "out of memory: a step needs 0.50 GiB of a device, 256.0 MiB more than"),
        (-1, "ValueError"),
    ],
)
def test_a_candidate_that_cannot_run_ends_in_seconds(workspace, size, reason):
    """Its training would take a minute, and the reason names the array that is too large."""
    _, view = run(workspace, gated(size=size, seconds=59.0), max_memory_gb=0.25)
    (crash,) = [line for line in view.said if " crash " in line]
    if size > 0:
        assert reason in crash
        assert "f32[8192,8192], 256.0 MiB" in crash
    rows = harness.rows(workspace.root)
    assert [row[3] for row in rows] == ["keep", "crash"]
    assert rows[1][1] == "crash"


def test_a_proposal_is_compiled_while_the_one_before_it_trains(workspace):
    """The real compiler checks it before its turn, so it is refused without a training."""

    class Slow(harness.Scripted):
        slow = True

    unfit = [gated(size=size, seconds=59.0) for size in (8192, 8193, 8194, 8195)]
    agent = Slow(gated(waits=True, score=2.0), *unfit)
    options = {"examine": beside, "max_memory_gb": 0.25}
    harness.run_loop(workspace, agent, 2, harness.Notes(), **options)
    second = journal_of(workspace)[2]
    assert second.refused.startswith("out of memory")
    assert (second.status, second.reason) == ("crash", second.refused)
    assert "wall_seconds" not in second.metrics


def test_the_answer_of_a_compile_check_is_recorded(workspace):
    run(workspace, gated(waits=True))
    for e in journal_of(workspace):
        assert e.metrics["compiled_gib"] * 2**30 == 2 * 64 * 64 * 4
        assert e.metrics["gate_seconds"] >= 0


def test_a_compile_check_that_refuses_the_baseline_is_not_trusted(workspace):
    """The baseline did run, so the compile check is wrong on this machine."""
    (workspace.root / "train.py").write_text(gated(size=8192, score=1.0, waits=True))
    harness.git(workspace.root, "commit", "-qam", "Large")
    run(workspace, gated(size=8200, waits=True), max_memory_gb=0.25)
    assert [e.status for e in journal_of(workspace)] == ["keep", "keep"]


def test_what_a_compile_check_writes_counts_towards_its_candidates_limit(workspace, monkeypatch):
    """A disk is not filled from there either, and nothing of it stays."""
    monkeypatch.setattr(disk_use, "MOST_BYTES", 20 << 20)
    fills = gated(seconds=50.0) + (
        "\nif __name__ != '__main__':\n    open('large', 'wb').write(bytes(50 << 20))\n"
        "    time.sleep(60)\n"
    )
    run(workspace, fills)
    crash = journal_of(workspace)[1]
    assert (crash.status, crash.reason) == ("crash", "it wrote more than 0.0 GiB")
    home = workspace.private_dir(workspace.tags()[0])
    assert not (home / "gate").exists()
    assert not (home / "gate-scratch").exists()


def test_a_train_py_without_a_step_is_trained(workspace):
    run(workspace, harness.train_py(0.5))
    assert [e.status for e in journal_of(workspace)] == ["keep", "keep"]


def journal_of(workspace):
    from autoresearch_jax.records import journal

    (tag,) = workspace.tags()
    return list(journal.read(workspace.state_dir(tag)))


# ------------------------------------------------------------------------- memory, as run


def test_memory_that_only_the_run_shows(workspace):
    """A training above the limit is discarded however good it is; a baseline is refused."""
    plain = {"examine": lambda *_: Environment(harness.DEVICE)}
    lean = {"max_memory_gb": 1.0, **plain}
    (workspace.root / "train.py").write_text(gated(score=1.0))
    harness.git(workspace.root, "commit", "-qam", "Short")
    fat, better = gated(peak_mb=1536.0, score=0.5), gated(peak_mb=1000.0, score=0.6)
    _, view = run(workspace, fat, better, **lean)
    assert [e.status for e in journal_of(workspace)] == ["keep", "discard", "keep"]
    assert "it used 1.50 GiB of a device, and may use 1" in view.text
    with pytest.raises(
        UserError, match=r"baseline.*it used 0.10 GiB of a device, and may use 0.05"
    ):
        run(workspace, fat, tag="other", max_memory_gb=0.05, **plain)


def test_a_training_gets_its_memory_limit(workspace):
    """By it kit.compile_step refuses a step before the budget starts, on every device."""
    tells = gated().replace(
        "time.sleep(SECONDS)", "print(os.environ.get('AUTORESEARCH_MAX_MEMORY_GB'))"
    )
    (workspace.root / "train.py").write_text(tells)
    (workspace.root / "program.md").write_text("---\nmax_memory_gb: 40\n---\nGo on.\n")
    harness.git(workspace.root, "commit", "-qam", "Tell")
    examine = {"examine": lambda *_: Environment(harness.DEVICE)}
    for flag, limit in ((None, "40.0"), (7.5, "7.5")):
        log = workspace.root / "run.log"
        given = config.resolve(workspace.root, max_memory_gb=flag), harness.tools(**examine)
        assert run_command.measure(workspace, *given, log_path=log).val_bpb == 0.9
        assert log.read_text().strip() == limit


# ------------------------------------------------------------------------- twice the same


def test_the_same_program_is_not_run_again(workspace):
    plain = {"examine": lambda *_: Environment(harness.DEVICE)}
    (workspace.root / "train.py").write_text(gated(score=1.0))
    harness.git(workspace.root, "commit", "-qam", "Short")
    other = gated(score=1.5)
    again = "# A comment.\n" + other.replace(
        "    import jax\n", '    "Docs."\n\n    import jax  # it\n'
    )
    agent = harness.Scripted(other, again, gated(score=0.8))
    view = harness.Notes()
    harness.run_loop(workspace, agent, 2, view, **plain)
    assert [e.status for e in journal_of(workspace)] == ["keep", "discard", "keep"]
    assert (
        "no proposal: train.py equals that of experiment 1 (discard, val_bpb 1.500000" in view.text
    )

    (workspace.root / "train.py").write_text(again)
    with pytest.raises(UserError, match=r"that of experiment 1 \(discard.*show 1"):
        run_command.propose(
            workspace, *harness.setup(**plain), description="x", log_path=workspace.root / "run.log"
        )
    assert (workspace.root / "train.py").read_text() == again


def test_a_program_without_a_score_may_run_again(workspace):
    plain = {"examine": lambda *_: Environment(harness.DEVICE)}
    (workspace.root / "train.py").write_text(gated(score=1.0))
    harness.git(workspace.root, "commit", "-qam", "Short")
    failing = gated() + "    raise SystemExit('the disk was full')\n"
    run(workspace, failing, failing, **plain)
    assert [e.status for e in journal_of(workspace)] == ["keep", "crash", "crash"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("x = 1", "x   =  1  # one\n", True),
        ("class A:\n  '''a'''\n", "class A:\n  '''b'''\n", True),
        ("x = 1", "x = 1.0", False),
        ("if a:\n  b\nc", "if a:\n  b\n  c", False),
    ],
)
def test_meaning(first, second, same):
    assert (syntax.meaning(first.encode()) == syntax.meaning(second.encode())) is same


@given(
    st.one_of(
        st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))
    )
)
def test_any_source_has_a_meaning_or_none(text):
    """What is not Python has none, so it equals nothing."""
    assert bool(syntax.meaning(text)) is not bool(syntax.unparsable(text))


# ------------------------------------------------------------------------- front matter


@pytest.mark.parametrize(
    ("program", "limit"),
    [
        ("# Goal\n", None),
        ("---\n---\n# Goal", None),
        ("---  \nmax_memory_gb: 0.5  # GiB\n---\n", 0.5),
        ("---\nmax_memory_gb:\n---\n", None),
    ],
)
def test_front_matter(program, limit):
    assert config.from_program(program).max_memory_gb == limit


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (
            "---\nmax_memory: 40\n---\n",
            "sets 'max_memory', which is not a setting. Did you mean max_memory_gb?",
        ),
        (
            "---\nmax_memory_gb: lots\n---\n",
            "sets max_memory_gb to 'lots', and it should be a valid number",
        ),
        ("---\nmax_memory_gb: -1\n---\n", "to -1, and it should be greater than 0"),
        ("---\nmax_memory_gb: .inf\n---\n", "to inf, and it should be a finite number"),
        ("---\njust words\n---\n", "is 'just words', and should be lines such as"),
        ("---\na: [\n---\n", "is not YAML"),
        ("---\nmax_memory_gb: 40\n", "has no second ---"),
    ],
)
def test_front_matter_that_is_refused(program, says):
    with pytest.raises(UserError, match=r"^The front matter of program\.md") as caught:
        config.from_program(program)
    assert says in str(caught.value)


@given(st.text(max_size=80))
def test_any_front_matter_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        limit = config.from_program(f"---\n{text}\n---\n").max_memory_gb
        assert limit is None or limit > 0


def test_a_loop_refuses_a_bad_program_before_it_makes_a_tag(workspace):
    (workspace.root / "program.md").write_text("---\nmemory: 40\n---\n")
    with pytest.raises(UserError, match="which is not a setting"):
        run(workspace, gated())
    assert not workspace.tags()


# ------------------------------------------------------------------------- by hand


def compile_only(workspace, **options):
    options = {"device": "cpu", "devices": 1, "log_path": workspace.root / "run.log", **options}
    limit = options.pop("limit", None)
    given = config.LoopConfig(isolation="none", max_memory_gb=limit)
    return run_command.compile_only(workspace, given, harness.tools(), **options)


def test_compiling_by_hand(workspace):
    verdict = compile_only(workspace)
    assert verdict.refused == ""
    assert verdict.cost["peak_gib"] * 2**30 == 2 * 64 * 64 * 4
    assert any(line.startswith("peak memory") for line in compile_check.lines(verdict.cost))
    (workspace.root / "train.py").write_text(gated(size=4096))  # edited, not committed
    assert "out of memory" in compile_only(workspace, limit=0.01).refused


def test_compiling_by_hand_a_program_that_cannot_run(workspace):
    (workspace.root / "train.py").write_text("import nowhere")
    assert compile_only(workspace).refused == "ModuleNotFoundError: No module named 'nowhere'"
    (workspace.root / "train.py").write_text("x = 1")
    verdict = compile_only(workspace)
    assert compile_check.lines(verdict.cost) == [
        "Nothing was compiled: train.py has no abstract_step(devices)."
    ]
    (workspace.root / "train.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match=r"not compiled: killed by SIGKILL.*run\.log"):
        compile_only(workspace)


@pytest.mark.parametrize(
    "answer",
    [
        '{"peak_gib": NaN}',
        '{"peak_gib": 1%s}' % ("0" * 400),
        "[1]",
        "nonsense",
        json.dumps({"refused": 3}),
        "[" * 5000,
        "x" * (2 << 20),
    ],
)
def test_any_answer_is_read(tmp_path, answer):
    """A process that runs an agent's code writes it."""
    one = compile_check.CompileCheck.__new__(compile_check.CompileCheck)
    one._out = tmp_path / "answer.json"
    one._out.write_text(answer)
    assert one.refused() in ("", "3")
    assert one._verdict().metrics == {}


@pytest.mark.parametrize("made", ["pipe", "endless link"])
def test_an_answer_that_is_not_a_file_is_ignored(tmp_path, made):
    one = compile_check.CompileCheck.__new__(compile_check.CompileCheck)
    one._out = tmp_path / "answer.json"
    if made == "pipe":
        os.mkfifo(one._out)
    else:
        one._out.symlink_to("/dev/zero")
    assert one.refused() == ""
