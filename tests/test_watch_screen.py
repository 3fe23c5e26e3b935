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

from autoresearch_jax.records.results_tsv import Row
from autoresearch_jax.views import tables
from autoresearch_jax.views.entries import entries
from autoresearch_jax.views.summary import summarize
from autoresearch_jax.views.watch import frame, live_model
from autoresearch_jax.views.watch.logs import Progress
from autoresearch_jax.views.watch.running import Running
from tests import harness
from tests.watch_helpers import COMMAND, DEADLINE_SECONDS, TAG, Night, Terminal, everything

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
def night(tmp_path):
    return Night(tmp_path / "w", 30)


def look(night):
    return live_model.open_reader(night.workspace.root).read()


def drawn(told, width=80, height=24):
    """What a terminal of this size shows."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(Screen(frame.screen(told, width, height, time.time())), end="")
    return [line.rstrip() for line in captured.get().split("\n")]


# -------------------------------------------------------------------------------------- frames


def test_a_frame_of_80_by_24_has_all_that_is_important(night):
    night.live()
    n = night.propose("the idea of now")
    night.log(n, 57)
    found = drawn(look(night))
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
        "time: 2.7 h, of it training 85%",
        "cost: 1.50 dollars, 30,000 tokens",
        "   29   1.009722  -0.012722  discard  MATRIX_LR 0.04 -> 0.04029 and some words",
    ):
        assert words in text
    assert [line.split()[0] for line in found[-4:]] == ["28", "27", "26", "25"]


def test_a_wide_frame_has_more_columns_and_rows(night):
    found = drawn(look(night), 160, 50)
    header = next(line for line in found if "commit" in line)
    names = list(frame.COLUMNS)
    assert header.split() == [*names, "description"]
    assert len(found) - found.index(header) > 20
    assert sum("│" in line or "└" in line for line in found) >= 1


@pytest.mark.parametrize("count", [2, 8])
def test_several_that_run_fit_80_by_24(night, count):
    night.live(workers=count)
    numbers = [
        night.propose(f"idea {at} of several, in many words", of=None if count == 8 else 3)
        for at in range(count)
    ]
    for n in numbers[1:]:
        night.log(n, 57)
    told = look(night)
    found = drawn(told)
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
        night.decide(2.0, n)
    lines = drawn(look(night))
    assert lines[best].startswith("val_bpb")  # nothing moves while the loop goes on
    assert "by claude, on experiment 0, expects -0.001" in lines[5]
    everything_else = frame.plain(told, time.time())
    assert sum("idea" in line for line in everything_else) == count


def test_a_high_frame_has_room_for_all_that_runs(night):
    night.live(workers=8)
    for at in range(8):
        night.propose(f"idea {at} of several")
    found = "\n".join(drawn(look(night), 160, 50))
    assert all(f"idea {at} of several" in found for at in range(8))
    assert "more" not in found


@pytest.mark.parametrize("state", ["thinking", "interrupted", "idle"])
def test_where_nothing_runs_it_says_why(night, state):
    if state == "thinking":
        night.live()
    if state == "interrupted":
        night.live(harness.ended_pid())
        night.propose("left behind")
    found = "\n".join(drawn(look(night)))
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
        n=count, description=words, expected=words, agent=words, base=0, of=1, phase="training",
        started=0.0, progress=Progress(step=3, percent=number, loss=number),
    )  # fmt: skip
    summary = summarize(listed)
    told = live_model.LiveModel(words, listed, summary, (running,), 1, "running", problem=words)
    others = [dataclasses.replace(told, running=(running,) * many) for many in (2, 5, 40)]
    table = dataclasses.replace(told, running=(), state="table", problem="")
    for one in (told, *others, table):
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


def test_a_pipe_gets_the_present_state_once(night):
    night.live()
    night.propose(UNTRUSTED)
    before = everything(night.workspace.root)
    said = piped(night.workspace.root, FORCE_COLOR="1")
    assert everything(night.workspace.root) == before
    assert said.startswith("autoresearch/nov1, running\nexperiment 30  [31mred")
    assert "-> 0.997000 (0.30% lower)" in said
    assert len(said.splitlines()) == 21
    assert "??" in piped(night.workspace.root, PYTHONIOENCODING="ascii")


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


def test_options_of_the_page_need_the_page(tmp_path):
    done = subprocess.run(
        [*COMMAND, "watch", "--port", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--port and --host go with --web" in done.stderr


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
def test_a_terminal_shows_what_happens_through_a_resize_and_a_stop(night, terminal):
    night.live()
    n = night.propose(UNTRUSTED)
    night.log(n, 57)
    before = everything(night.workspace.root)
    one = terminal(COLUMNS="80", LINES="24")  # what was exported once is not its size for ever
    one.watch(night.workspace.root)
    text = one.until("training 57%", "q ends")
    lines = text.split("\n")
    assert len(lines) == 24
    assert lines[0].startswith("autoresearch/nov1  running")
    assert lines[-1].split()[0] == "25"  # nothing wrapped: the last row is where it belongs
    assert "commit" not in text
    assert everything(night.workspace.root) == before

    night.log(n, 58)
    one.until("training 58%")
    night.decide(0.5)
    night.propose("the next one")
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


@needs_tmux
def test_a_terminal_turns_to_the_tag_that_a_loop_begins(night, terminal):
    one, named = terminal(100), terminal(100)
    one.watch(night.workspace.root)
    named.watch(night.workspace.root, "--tag", TAG)
    for each in (one, named):
        each.until("autoresearch/nov1  no loop runs", "30 experiments")
    night.begin("nov2")
    night.live()
    night.propose("the first of a new tag")
    one.until(
        "autoresearch/nov2  running  new; to see the one before: --tag nov1", "the first of a new"
    )
    assert "autoresearch/nov1" in named.until("30 experiments")


@needs_tmux
@pytest.mark.parametrize("keys", ["C-c", "Q"])
def test_a_table_of_the_original_in_a_terminal(tmp_path, terminal, keys):
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
    one.keys(keys)
    one.until("ended 0", gone="q ends")


@needs_tmux
def test_an_empty_workspace_in_a_terminal_waits_for_its_first_experiment(tmp_path, terminal):
    night = Night(tmp_path / "w")
    hidden = night.state_dir.rename(tmp_path / "hidden")
    one = terminal(60, 15)
    one.watch(tmp_path / "w")
    one.until("Nothing has run here yet")
    hidden.rename(night.state_dir)
    night.add()
    one.until("autoresearch/nov1", "baseline", gone="Nothing has run here yet")


@needs_tmux
def test_a_lost_terminal_ends_it_quietly(night, terminal, tmp_path):
    one = terminal()
    told, err = tmp_path / "told", tmp_path / "err"
    words = " ".join([*COMMAND, "-C", str(night.workspace.root), "watch"])
    script = tmp_path / "script"
    script.write_text(f"trap : HUP\n{words} 2>{err}\necho $? >{told}.new\nmv {told}.new {told}\n")
    one.keys(f"exec sh {script}")
    one.keys("Enter")
    one.until("q ends")
    one("kill-server")
    begun = time.monotonic()
    while not told.exists():
        assert time.monotonic() < begun + DEADLINE_SECONDS
        time.sleep(0.05)
    assert told.read_text() == "0\n"
    assert err.read_text() == ""


def test_a_line_has_no_markup_and_no_control_characters():
    assert tables.line_of("[bold]a\u200db[/bold]\x1b ").plain == "[bold]ab[/bold] "
