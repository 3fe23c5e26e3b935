"""`watch` in a terminal: what fits, and a real one (tmux) that is resized, stopped and lost."""

import dataclasses
import io
import os
import shutil
import subprocess
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.screen import Screen

from autoresearch_jax.jobs.training_log import Progress
from autoresearch_jax.records.foreign_results import Row
from autoresearch_jax.views import tables
from autoresearch_jax.views.entries import entries
from autoresearch_jax.views.summary import summarize
from autoresearch_jax.views.watch import frame, live_model
from autoresearch_jax.views.watch.running import Running
from tests import harness
from tests.watch_helpers import COMMAND, DEADLINE_SECONDS, Recording, Terminal, everything

UNTRUSTED = (
    "\x1b[31mred\x1b]0;title\x07 \u202eever\u202c\n漢字 👩\u200d👩\u200d👧 \ufeff\tcafé " * 2
)
ORIGINAL = (
    "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
    "a1b2c3d\t0.997900\t44.0\tkeep\tbaseline\n"
    "b2c3d4e\t0.993200\t44.2\tkeep\tincrease LR to 0.04\n"
    "c3d4e5f\t1.005000\t44.0\tdiscard\tswitch to GeLU activation\n"
    "d4e5f6g\t0.000000\t0.0\tcrash\tdouble model width (OOM)\n"
)
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@pytest.fixture
def recording(tmp_path):
    return Recording(tmp_path / "w", 30)


def look(recording):
    return live_model.open_reader(recording.workspace.root).read()


def drawn(model, width=80, height=24):
    """What a terminal of this size shows."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(Screen(frame.screen(model, width, height, time.time())), end="")
    return [line.rstrip() for line in captured.get().split("\n")]


# -------------------------------------------------------------------------------------- frames


def test_a_frame_of_80_by_24_has_all_that_is_important(recording):
    recording.live()
    n = recording.propose("the idea of now")
    recording.log(n, 57)
    found = drawn(look(recording))
    assert len(found) == 24
    text = "\n".join(found)
    for words in (
        "autoresearch/nov1  running",
        f"experiment {n}  the idea of now",
        "training 57%, 129 s left",
        "step 570  loss 3.3524  10,667 tok/s  MFU 41.5%  0.5 GiB",
        "by claude, on experiment 0, expects -0.001",
        "val_bpb 1.000000 -> 0.997000 (0.30% lower), best: ",
        "experiment 21: MATRIX_LR 0.04 -> 0.04021 and some words",
        "30 experiments, 1 improvement, 4 crashes, 10.9 experiments per hour",
        "time: 2.8 h, of it training 8",
        "cost: 1.50 dollars, 30,000 tokens",
        "   29   1.009722  +0.012722  discard  MATRIX_LR 0.04 -> 0.04029 and some words",
    ):
        assert words in text
    assert [line.split()[0] for line in found[-4:]] == ["28", "27", "26", "25"]


def test_a_wide_frame_has_more_columns_and_rows(recording):
    found = drawn(look(recording), 160, 50)
    header = next(line for line in found if "commit" in line)
    names = list(frame.COLUMNS)
    assert header.split() == [*names, "description"]
    assert len(found) - found.index(header) > 20
    assert sum("│" in line or "└" in line for line in found) >= 1


@pytest.mark.parametrize("count", [2, 8])
def test_parallel_experiments_fit_80_by_24(recording, count):
    recording.live(workers=count)
    numbers = [
        recording.propose(f"idea {at} of several, in many words", of=None if count == 8 else 3)
        for at in range(count)
    ]
    for n in numbers[1:]:
        recording.log(n, 57)
    model = look(recording)
    found = drawn(model)
    assert len(found) == 24
    assert all(len(line) <= 80 for line in found)
    if count == 2:
        assert found[2].startswith("experiment 30  carries over experiment 3: idea 0 of several")
        assert found[3] == "  ──────────  starting"
        assert found[4].startswith("experiment 31  carries over experiment 3: idea 1 of several")
        assert found[5].startswith("  ━━━━━━────  training 57%, 129 s left  step 570  loss 3.3534")
    else:
        assert found[2].startswith("   30  ──────────  starting                       idea 0 of")
        assert found[6].startswith("   34  ━━━━━━────  training 57%      loss 3.3564  idea 4 of")
        assert found[7] == "       and 3 more"
    best = found.index(next(line for line in found if line.startswith("val_bpb")))
    for n in numbers[1:]:
        recording.decide(2.0, n)
    lines = drawn(look(recording))
    assert lines[best].startswith("val_bpb")  # nothing moves while the loop goes on
    assert "by claude, on experiment 0, expects -0.001" in lines[5]
    everything_else = frame.plain(model, time.time())
    assert sum("idea" in line for line in everything_else) == count


def test_a_tall_frame_shows_all_running_experiments(recording):
    recording.live(workers=8)
    for at in range(8):
        recording.propose(f"idea {at} of several")
    found = "\n".join(drawn(look(recording), 160, 50))
    assert all(f"idea {at} of several" in found for at in range(8))
    assert "more" not in found


@pytest.mark.parametrize("state", ["thinking", "interrupted", "idle"])
def test_a_frame_without_a_running_experiment_says_why(recording, state):
    if state == "thinking":
        recording.live()
    if state == "interrupted":
        recording.live(harness.ended_pid())
        recording.propose("left behind")
    found = "\n".join(drawn(look(recording)))
    words = {
        "thinking": "experiment 30\n  waits for a proposal of the agent",
        "interrupted": "interrupted: no loop runs",
        "idle": "To continue: autoresearch-jax loop",
    }
    assert words[state] in found


@hypothesis.given(
    words=st.text(max_size=200),
    number=st.none() | st.floats() | st.floats(0, 10),
    status=st.sampled_from(["keep", "discard", "crash"]) | st.text(max_size=20),
    count=st.integers(0, 40),
    width=st.integers(1, 200),
    height=st.integers(1, 60),
)
@hypothesis.example(UNTRUSTED, 0.9, "keep", 30, 80, 24)
@hypothesis.example(UNTRUSTED, 1e30, "keep", 3, 20, 40)
def test_whatever_is_recorded_fits_a_terminal_of_any_size(
    words, number, status, count, width, height
):
    listed = entries([Row(words, number, number, status, words)] * count)
    running = Running(
        n=count, description=words, expected=words, agent=words, base=0, carries=(1,),
        phase="training", started=0.0, progress=Progress(step=3, percent=number, loss=number),
    )  # fmt: skip
    summary = summarize(listed)
    model = live_model.LiveModel(words, listed, summary, (running,), 1, "running", problem=words)
    others = [dataclasses.replace(model, running=(running,) * many) for many in (2, 5, 40)]
    table = dataclasses.replace(model, running=(), state="table", problem="")
    for one in (model, *others, table):
        found = drawn(one, width, height)
        assert len(found) <= height
        for line in found:
            assert cell_len(line) <= width
        for text in (*found, *frame.plain(one, time.time())):
            assert not set(text) & set("\x1b\x07\n\r\t\u202e\u200d")


def test_the_staircase_goes_down_as_the_best_does():
    assert frame.staircase([4, 4, 3, 3, 1, 1], 6, 4) == [
        "──┐   ",
        "  └─┐ ",
        "    │ ",
        "    └─",
    ]
    assert frame.staircase([2.0, 2.0], 3, 2) == ["───", "   "]
    rows = [(None, "crash"), (2.0, "x"), (3.0, "keep"), (1.0, "discard"), (1.5, "keep")]
    listed = entries([Row("c", bpb, None, status, "") for bpb, status in rows])
    assert [entry.best_so_far for entry in listed] == [None, 2.0, 2.0, 2.0, 1.5]


# ------------------------------------------------------------------------------- no terminal


def piped(folder: Path, *words: str, **env: str) -> str:
    done = subprocess.run(
        [*COMMAND, "-C", str(folder), "watch", *words],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    return done.stdout


def test_a_pipe_gets_the_current_state_once(recording):
    recording.live()
    recording.propose(UNTRUSTED)
    before = everything(recording.workspace.root)
    said = piped(recording.workspace.root, FORCE_COLOR="1")
    assert everything(recording.workspace.root) == before
    assert said.startswith("autoresearch/nov1, running\nexperiment 30  [31mred")
    assert "-> 0.997000 (0.30% lower)" in said
    assert len(said.splitlines()) == 21
    assert "??" in piped(recording.workspace.root, PYTHONIOENCODING="ascii")


def test_a_table_of_the_original_and_an_empty_workspace_in_a_pipe(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "results.tsv").write_text(ORIGINAL)
    said = piped(tmp_path / "theirs")
    assert said.startswith("theirs\nval_bpb 0.997900 -> 0.993200 (0.47% lower), best: b2c3d4e")
    assert "double model width (OOM)" in said
    root = harness.make_repository(tmp_path / "w")
    said = piped(root)
    assert f"Nothing has run here yet. To start: autoresearch-jax -C {root} loop" in said
    assert "nothing is kept yet" in said


# ------------------------------------------------------------------------------ real terminals


@pytest.fixture
def terminal(tmp_path):
    """Opens terminals, and closes them."""
    opened = []

    def open_one(width=80, height=24, **env):
        folder = tmp_path / f"terminal{len(opened)}"
        folder.mkdir()
        opened.append(Terminal(folder, width, height, **env))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@needs_tmux
def test_a_terminal_shows_what_happens_through_a_resize_and_a_stop(recording, terminal):
    recording.live()
    n = recording.propose(UNTRUSTED)
    recording.log(n, 57)
    before = everything(recording.workspace.root)
    one = terminal(COLUMNS="80", LINES="24")  # what was exported once is not its size for ever
    one.watch(recording.workspace.root)
    text = one.until("training 57%", "q ends")
    lines = text.split("\n")
    assert len(lines) == 24
    assert lines[0].startswith("autoresearch/nov1  running")
    assert lines[-1].split()[0] == "25"  # nothing wrapped: the last row is where it belongs
    assert "commit" not in text
    assert everything(recording.workspace.root) == before

    recording.log(n, 58)
    one.until("training 58%")
    recording.decide(0.5)
    recording.propose("the next one")
    text = one.until("0.500000 (50.00% lower)", "experiment 31  the next one", "starting")
    assert len(text.split("\n")) == 24

    one("resize-window", "-x", "160", "-y", "50")
    text = one.until("commit", "expected")
    assert len(text.split("\n")) == 50
    assert sum(line.startswith("autoresearch/nov1  running") for line in text.split("\n")) == 1
    one("resize-window", "-x", "80", "-y", "24")
    text = one.until("the next one", gone="commit")
    assert len(text.split("\n")) == 24

    one.keys("C-z")
    one.until("Stopped", gone="q ends")
    one.keys("fg; echo then $?")
    one.keys("Enter")
    one.until("the next one", "q ends")
    one.keys("q")
    one.until("then 0", gone="q ends")
    one.keys("echo the shell has its keys back")
    one.until("$ echo the shell has its keys back")


def test_the_screen_switches_to_the_tag_that_a_loop_begins(recording):
    reader = live_model.open_reader(recording.workspace.root, follow=True)
    assert drawn(reader.read())[0].startswith("autoresearch/nov1  no loop runs")
    recording.begin("nov2")
    recording.live()
    recording.propose("the first of a new tag")
    found = drawn(reader.read(), width=100)
    words = "autoresearch/nov2  running  new; to see the one before: --tag nov1"
    assert found[0].startswith(words)
    assert "the first of a new tag" in found[2]


@needs_tmux
def test_a_table_of_the_original_in_a_terminal(tmp_path, terminal):
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "results.tsv"
    path.write_text(ORIGINAL)
    one = terminal(NO_COLOR="1")
    one.watch(tmp_path / "theirs")
    one.until("0.993200 (0.47% lower)", "switch to GeLU activation")
    with path.open("a") as file:
        file.write("e5f6a7b\t0.992100\t44.2\tkeep\twarm down longer\n")
    one.until("0.992100 (0.58% lower)", "warm down longer")
    coloured = one("capture-pane", "-p", "-e")
    assert "\x1b[32m" not in coloured
    one.keys("C-c")
    one.until("ended 0", gone="q ends")


@needs_tmux
def test_a_lost_terminal_ends_it_quietly(recording, terminal, tmp_path):
    one = terminal()
    status, err = tmp_path / "status", tmp_path / "err"
    words = " ".join([*COMMAND, "-C", str(recording.workspace.root), "watch"])
    script = tmp_path / "script"
    script.write_text(
        f"trap : HUP\n{words} 2>{err}\necho $? >{status}.new\nmv {status}.new {status}\n"
    )
    one.keys(f"exec sh {script}")
    one.keys("Enter")
    one.until("q ends")
    one("kill-server")
    begun = time.monotonic()
    while not status.exists():
        assert time.monotonic() < begun + DEADLINE_SECONDS
        time.sleep(0.05)
    assert status.read_text() == "0\n"
    assert err.read_text() == ""


def test_a_line_has_no_markup_and_no_control_characters():
    assert tables.line_of("[bold]a\u200db[/bold]\x1b ").plain == "[bold]ab[/bold] "
