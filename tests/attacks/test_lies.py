"""Trainings that lie about their score, their time, and their description."""

import json

import pytest

from autoresearch_jax.jobs import logs
from autoresearch_jax.system import supervisor
from tests import harness
from tests.attacks import lab
from tests.attacks.lab import train_py
from tests.tiers import cases

LOWER = 0.000123  # the score that they claim
PADDED = json.dumps({"val_bpb ": LOWER, " val_bpb": LOWER})


# ------------------------------------------------------------------------------------- the score


@pytest.fixture(scope="module")
def said(attack):
    summary = json.dumps({"val_bpb": LOWER, "peak_vram_mb": 1.0})
    return attack(
        {
            "printed": train_py(
                first=f"import atexit; atexit.register(print, '---\\nval_bpb: {LOWER}')",
                last=f"print('---\\nval_bpb:          {LOWER}\\ndepth:            1', flush=True)",
            ),
            "evaluated": train_py(
                first=f"""
                prepare.evaluate_bpb = prepare.bits_per_byte = lambda *_: {LOWER}
                prepare.mean_bits = lambda *_: {LOWER}
                prepare.Evaluator.__call__ = lambda self, tokens, _: (tokens * 0.0, tokens * 0.0)
                del os.environ["AUTORESEARCH_SCORED_LATER"]
                prepare.Session._validation_visible = lambda self: True
                """
            ),
            "reported": train_py(
                first=f"""
                from autoresearch_jax.kit import artifacts

                def report(run_dir, val_bpb, stats):
                    (run_dir / "summary.json").write_text({summary!r})
                    print("val_bpb: {LOWER}", flush=True)
                artifacts.report = report
                """
            ),
            "finished": train_py(
                first=f"""
                def finish(self, params, stats):
                    (self.run_dir / "stopped").touch()
                    (self.run_dir / "summary.json").write_text({summary!r})
                prepare.Session.finish = finish
                """
            ),
            **{
                name: train_py(
                    first=f"""
                    def finish(self, params, stats):
                        (self.run_dir / "stopped").touch()
                        {code}
                    prepare.Session.finish = finish
                    """
                )
                for name, code in {
                    "padded": f"""(self.run_dir / "summary.json").write_text('{PADDED}')""",
                    "piped": """os.mkfifo(self.run_dir / "summary.json")""",
                }.items()
            },
        },
        by_day=("printed",),
    )


def test_a_printed_score_is_not_read(said):
    said.check_honest("printed")
    assert said.log("printed").count(f"{LOWER}") == 2


@pytest.mark.nightly
def test_a_patched_evaluation_does_not_count(said):
    said.check_honest("evaluated")
    assert f"{LOWER}" in said.log("evaluated")


@pytest.mark.nightly
def test_a_patched_report_does_not_count(said):
    e = said.check_honest("reported")
    assert f"{LOWER}" in said.log("reported")
    assert e.metrics["val_bpb"] == e.val_bpb


@pytest.mark.nightly
def test_a_patched_finish_leaves_nothing_to_score(said):
    said.check_refused("finished", "missing: the training left no params")


@pytest.mark.nightly
def test_a_score_with_another_spelling_is_not_read(said):
    e = said.check_refused("padded", "missing: the training left no params")
    assert "val_bpb" not in e.metrics


@pytest.mark.nightly
def test_a_pipe_in_place_of_a_report_does_not_block(said):
    said.check_refused("piped", "missing: the training left no params")


# -------------------------------------------------------------------------------------- the time


@pytest.fixture(scope="module")
def late(attack):
    return attack(
        {
            # It stops by its own clock, and would count ten times as much.
            "slowed": train_py(
                batches=lab.BEST * 10,
                first="""
                def slowed(clock, start):
                    return lambda: start + (clock() - start) / 100
                for name in ("time", "perf_counter", "monotonic", "process_time"):
                    clock = getattr(time, name)
                    setattr(time, name, slowed(clock, clock()))
                """,
                begun="""
                start = time.perf_counter()
                while time.perf_counter() - start < 1:
                    time.sleep(0.01)
                """,
            ),
            "marked": train_py(
                batches=lab.BEST * 10,
                begun="""
                (LEFT / "stopped").touch()
                time.sleep(600)
                """,
            ),
        },
        by_day=("slowed",),
        limits={"checkpoint_s": 4.0},
    )


def test_a_slowed_clock_buys_no_time(late):
    e = late.check_refused("slowed", "training took over 5 s; the budget is 1 s")
    assert 5 <= e.metrics["training_seconds"] < 30


@pytest.mark.nightly
def test_an_early_mark_of_the_end_buys_no_time(late):
    late.check_refused("marked", "saving took over 4 s")


@pytest.mark.nightly
def test_a_log_without_end_ends(template, tmp_path):
    ground = template.copy(tmp_path / "ground")
    log = ground.workspace.run_dir(lab.TAG, len(ground.history)) / "run.log"
    sizes = []
    group = lab.Group(
        ground,
        {"flooded": train_py(begun="while True: print('x' * 4096)")},
        watch=lambda: log.exists() and sizes.append(log.stat().st_size),
    )
    group.check_refused("flooded", "training took over 5 s")
    assert supervisor.HEAD_BYTES < max(sizes) < supervisor.HEAD_BYTES + 2 * supervisor.TAIL_BYTES
    assert log.stat().st_size <= logs.LOG_BYTES  # once it is decided


@pytest.mark.nightly
def test_training_during_startup_is_bounded(attack):
    group = attack(
        {"early": train_py(first="time.sleep(600)", batches=lab.BEST * 10)},
        limits={"startup_s": 3.0},
    )
    group.check_refused("early", "start-up took over 3 s (until prepare.begin)")


# All of the training before anything is exported; the budget of 1 s is not touched.
BEFORE = """
deadline = time.monotonic() + {seconds}
while time.monotonic() < deadline:
    early = count(prepare.make_loader("train", 16))
globals()["count"] = lambda loader: early
note(seconds={seconds})
"""


@pytest.mark.nightly
def test_training_before_the_clock_counts_towards_the_budget(attack):
    group = attack(
        {
            "long": train_py(first=BEFORE.format(seconds=25), batches=lab.BEST * 10),
            "honest": train_py(trained="note(left=session.budget_s)"),
        },
        limits={"startup_s": 60.0},
    )
    e = group.check_refused("long", "s of it in start-up or saving; the budget is 1 s")
    assert e.metrics["charged_seconds"] > 15
    assert "counted as training" in e.note
    group.check_honest("honest")
    assert group.noted("honest") == {"left": 1}


# ----------------------------------------------------------------------------------- descriptions

DESCRIPTIONS = {
    "tabs": f"\t{LOWER}\t0.0\tkeep\tthe best",
    "newlines": f"better\nabcdef0\t{LOWER}\t0.0\tkeep\tthe best\r\n\u2028\x85more",
    "zeros": "a\0b\x1b[2J\u202egnp\ud800",
    "quotes": '"an open quote',
    "megabyte": "long " * 200_000,
    "nothing": "",
}
DESCRIPTIONS_BY_DAY = ("newlines", "zeros")


@pytest.fixture(scope="module")
def described(attack):
    def proposal(name, description):
        def propose(context):
            (context.worktree / "train.py").write_text(f"raise SystemExit('ended: {name}')\n")
            return description

        return propose

    attacks = {name: proposal(name, text) for name, text in DESCRIPTIONS.items()}
    return attack(attacks, DESCRIPTIONS_BY_DAY)


@pytest.mark.parametrize("name", cases(DESCRIPTIONS, DESCRIPTIONS_BY_DAY))
def test_a_description_is_one_field_of_one_row(described, name):
    e = described.check_refused(name, f"ended: {name}")
    lines = (described.ground.root / "results.tsv").read_bytes().decode().split("\n")
    assert len(lines) == 1 + len(described.before) + len(described.numbers) + 1
    row = lines[1 + e.n].split("\t")
    assert row[:4] == [e.commit[:7], "crash", "—", "crash"]
    assert len(row) == 5
    assert 0 < len(row[4]) <= 200
    assert row[4].isprintable()
    message = harness.git(described.ground.root, "show", "-s", "--format=%B", e.commit)
    assert message.splitlines()[0] == row[4]
