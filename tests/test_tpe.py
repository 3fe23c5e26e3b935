"""The built-in search: constants of train.py, their ranges, and proposals."""

import ast
import dataclasses
import math
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autoresearch_jax.agents import constants, tpe
from autoresearch_jax.agents.agent import AgentError, Context
from autoresearch_jax.agents.constants import read
from autoresearch_jax.agents.drawing import anywhere, space_of
from autoresearch_jax.agents.search_space import infer
from autoresearch_jax.agents.tpe import Tpe, Trial, choose
from autoresearch_jax.common import literals, syntax
from autoresearch_jax.common.validation import first_fault
from autoresearch_jax.loop import config
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records.events import Repeated
from autoresearch_jax.records.experiment import Experiment
from tests import harness

TRAIN = (Path(__file__).parents[1] / "train.py").read_text()
SMALL = """# naïve – sizes
DEPTH = 4  # layers
ASPECT_RATIO = 64
HEAD_DIM = 64
TOTAL_BATCH_SIZE = 2**13  # tokens
DEVICE_BATCH_SIZE = 32
MATRIX_LR = 0.04
EMBEDDING_LR = 0.6
WARMDOWN_RATIO = 0.5  # share
WEIGHT_DECAY = 0.2
UNUSED_LR = 0.1
SEED = 7
print(DEPTH, ASPECT_RATIO, HEAD_DIM, TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE, MATRIX_LR, EMBEDDING_LR,
      WARMDOWN_RATIO, WEIGHT_DECAY, SEED)
"""
CENTRES = {
    "TOTAL_BATCH_SIZE": (2**13, 0.02),
    "MATRIX_LR": (0.04, 0.02),
    "EMBEDDING_LR": (0.6, 0.005),
    "DEPTH": (4, 0.02),
}


def ranges_of(source, history=(), given=None):
    return space_of(source, history, LoopConfig(search=given or {}).search)


class Simulation:
    """Simulated experiments, with an optimum that the seed moves."""

    def __init__(self, folder: Path, seed: int, source: str = SMALL):
        self.folder, self.seed, self.best_source = folder, seed, source
        folder.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(seed)
        self.optimum = {
            name: (centre * 2 ** self.random.gauss(0, 1), weight)
            for name, (centre, weight) in CENTRES.items()
        }
        self.sources: dict[str, str] = {}
        self.history: list[Experiment] = []
        self.record(source, "baseline")

    def score(self, source: str) -> float | None:
        found = {name: one.value for name, one in literals.read(source).items()}
        if found["DEPTH"] * found["ASPECT_RATIO"] > 600:
            return None  # out of memory
        distances = (
            weight * abs(math.log2(found[name] / centre)) ** 1.5
            for name, (centre, weight) in self.optimum.items()
        )
        return 1.5 + sum(distances) + self.random.gauss(0, 0.001)

    def record(self, source: str, description: str) -> None:
        n = len(self.history)
        score = self.score(source)
        best = self.best
        keep = score is not None and (best is None or score < best)
        status = "crash" if score is None else "keep" if keep else "discard"
        commit = f"{n:040x}"
        self.sources[commit] = source
        self.history.append(
            Experiment(n, commit, "", description, "tpe", status=status, val_bpb=score)
        )
        if keep:
            self.best_source = source

    @property
    def best(self) -> float | None:
        return min((e.val_bpb for e in self.history if e.val_bpb is not None), default=None)

    def context(self, seed: int | None = None) -> Context:
        (self.folder / "train.py").write_text(self.best_source)
        seed = self.seed if seed is None else seed
        return harness.simulated_context(self.folder, self.history, self.sources, seed=seed)

    def step(self, agent: Tpe) -> str:
        description = agent.propose(self.context()).description
        self.record((self.folder / "train.py").read_text(), description)
        return description


# ------------------------------------------------------------------------------- literals

values = st.one_of(
    st.integers(-(2**40), 2**40),
    st.floats(-1e300, 1e300),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
comments = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=6)


@st.composite
def sources(draw):
    """Return a file of constants in many notations, and their values."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text, expected = f"# {draw(comments)}{end}import math{end}", {}
    for index in range(draw(st.integers(1, 5))):
        name, value = f"C{index}", draw(values)
        spelling = repr(value)
        if draw(st.booleans()):
            exponent = draw(st.integers(0, 40))
            value, spelling = (
                2**exponent,
                draw(
                    st.sampled_from([f"2**{exponent}", f"1 << {exponent}", f"( 2 ** {exponent} )"])
                ),
            )
        gap = draw(st.sampled_from([" ", "  ", ": int = ", "="]))
        equals = gap if "=" in gap else f"{gap}={gap}"
        text += f"{name}{equals}{spelling}  # {draw(comments)}{end}"
        expected[name] = value
    return text + f"def f():{end}    C0 = 3{end}", expected


@given(sources(), st.data())
def test_a_file_like_an_earlier_one_is_read_as_if_it_were_parsed(made, data):
    """Whatever stands in place of a constant, and whatever else has changed."""
    source, _ = made
    plain = st.sampled_from(
        ["1", "-2.5", "1e-05", "7e3", "007", "1_0", "1.", "0x1e", "1j", "1if", ""]
    )
    for _ in range(4):
        assert read(source) == parsed(source)
        known = list(literals.read(source).values())
        text = source.encode()
        for one in reversed(known):
            if data.draw(st.booleans()):
                new = data.draw(plain | values.map(repr)).encode(errors="replace")
                text = text[: one.start] + new + text[one.end :]
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(text)))
            text = (
                text[:at] + data.draw(st.sampled_from([b"0", b".", b"-", b"e1", b"#"])) + text[at:]
            )
        new = text.decode(errors="ignore")
        assert read(new) == parsed(new)


def parsed(source: str) -> constants.Reading:
    found = constants._parsed(source, source.encode())
    return constants.Reading({name: value for name, _, value in found.constants}, found.code)


@given(sources(), values, st.data())
def test_a_rewrite_changes_the_value_and_no_other_byte(made, value, data):
    source, expected = made
    known = literals.read(source)
    assert {name: one.value for name, one in known.items()} == expected
    assert literals.rewrite(source, expected) == source
    name = data.draw(st.sampled_from(sorted(expected)))
    changed = literals.rewrite(source, {name: value})
    assert {n: one.value for n, one in literals.read(changed).items()} == expected | {name: value}
    before, after, one = source.encode(), changed.encode(), known[name]
    assert after.startswith(before[: one.start])
    assert after.endswith(before[one.end :])


ENCODED = [
    SMALL.encode("utf-8-sig"),
    SMALL.replace("\n", "\r\n").encode("utf-8-sig"),
    f"# coding: latin-1\n{SMALL}".replace("–", "-").encode("latin-1"),
    f"#!/usr/bin/python\r\n# vim: set fileencoding=cp1252 :\r\n{SMALL}".encode("cp1252"),
    f"# coding: latin9\r{SMALL}".replace("–", "€").replace("\n", "\r").encode("latin9"),
    f"# coding: ascii\n{SMALL}".replace("ï", "i").replace("–", "-").replace("  #", "\t#").encode(),
    f"{SMALL}if DEPTH:\n\tprint(SEED)\n\x0c\n".encode(),
]


@pytest.mark.parametrize("source", ENCODED)
def test_whatever_python_runs_is_rewritten_in_its_own_encoding(source):
    names = {}
    exec(compile(source, "train.py", "exec"), {"print": lambda *_: None}, names)
    found = literals.read(source)
    assert {name: one.value for name, one in found.items()} == {
        name: value for name, value in names.items() if name.isupper()
    }
    changed = literals.rewrite(source, {"MATRIX_LR": 0.05})
    assert changed == source.replace(b"0.04", b"0.05")
    assert literals.readable(source) == literals.decode(source)
    assert "na" in literals.readable(source)


@pytest.mark.parametrize("source", ENCODED)
def test_whatever_python_runs_is_searched(tmp_path, source):
    simulation = Simulation(tmp_path / "worktree", 0, source=literals.decode(source))
    context = simulation.context()
    (context.worktree / "train.py").write_bytes(source)
    Tpe().propose(context)
    proposed = (context.worktree / "train.py").read_bytes()
    assert proposed != source
    assert proposed.startswith(source[:20])
    assert proposed.count(b"\r") == source.count(b"\r")
    compile(proposed, "train.py", "exec")


@pytest.mark.parametrize(
    "source",
    [b"A = 1  # \xe9\n", b"# coding: nonsense\nA = 1\n", b"# coding: rot13\nA = 1\n",
     b"\xef\xbb\xbf# coding: latin-1\nA = 1\n", b"# coding: ascii\nA = '\xe9'\n"],
)  # fmt: skip
def test_what_python_cannot_decode_is_refused_and_yet_shown(tmp_path, source):
    (tmp_path / "train.py").write_bytes(source)
    ran = subprocess.run([sys.executable, tmp_path / "train.py"], capture_output=True, text=True)
    assert "SyntaxError" in ran.stderr
    with pytest.raises(SyntaxError):
        literals.read(source)
    assert syntax.unparsable(source)
    assert "A = " in literals.readable(source)
    context = Simulation(tmp_path / "worktree", 0).context()
    (context.worktree / "train.py").write_bytes(source)
    with pytest.raises(AgentError, match="not Python"):
        Tpe().propose(context)


def test_a_rewrite_keeps_the_notation():
    source = "A = 2**19 # x\nB = 20_000\nC = 1<<4\nD = (0.8, 0.95)\nE = 'S'\nF = \"S\"\nG = 3 * 4\n"
    changed = literals.rewrite(
        source,
        {"A": 2**17, "B": 3_000_000, "C": 8, "D[1]": 0.9, "E": "L", "F": "L", "G": 5},
    )
    assert changed == (
        "A = 2**17 # x\nB = 3_000_000\nC = 1<<3\nD = (0.8, 0.9)\nE = 'L'\nF = \"L\"\nG = 5\n"
    )


def test_a_value_that_no_single_place_determines_is_not_read():
    source = "A = 1\nA = 2\nB = 3\nB += 1\nC = f()\nD = True\nE = 9**9**9\nF = -0.5\nlow = 1\n"
    source += "G = 1\nif on_tpu:\n    G = 2\nH = 1\nH, I = 2, 3\nJ = K = 4\nL = f'{G}'\n"
    assert {n: one.value for n, one in literals.read(source).items()} == {"F": -0.5}


def test_a_file_whose_code_gives_a_warning_is_read():
    assert literals.read('A = 1\nB = "\\d"\n')["A"].value == 1


def test_unknown_names_are_refused():
    with pytest.raises(KeyError):
        literals.rewrite("A = 1\n", {"B": 2})


@given(sources(), st.sampled_from(["def f():", "class A:", "@f"]))
def test_a_file_is_read_in_two_parts_as_in_one(made, line):
    # The cut may be inside a string, and constants may come after the first function.
    source, expected = made
    text = f"TEXT = '''\n{line}\n'''\n{source}\nLAST = 2**3\nC0 += 1\n"
    found = literals.read(text)
    assert found["LAST"].value == 8
    assert literals.rewrite(text, {"LAST": 16}) == text.replace("LAST = 2**3", "LAST = 2**4")
    assert {n: one.value for n, one in found.items() if n not in ("TEXT", "LAST")} == {
        name: value for name, value in expected.items() if name != "C0"
    }


# --------------------------------------------------------------------------------- ranges


def test_what_the_next_best_probably_changes_is_left_alone(tmp_path):
    simulation, agent = Simulation(tmp_path, 0), Tpe()
    changed = literals.rewrite(SMALL, {"MATRIX_LR": 0.08, "EMBEDDING_LR": 0.8})
    one = Experiment(1, "1" * 40, "0" * 40, "", "tpe", status="discard", val_bpb=1.0)
    simulation.sources["1" * 40] = changed
    simulation.history.append(one)
    for n in range(12):
        context = dataclasses.replace(simulation.context(seed=n), pending=(1,))
        said = agent.propose(context).description
        assert not {"MATRIX_LR", "EMBEDDING_LR"} & {*said.split()}


def test_the_search_space_of_the_real_train_py():
    space = ranges_of(TRAIN)
    assert {"DEPTH", "MATRIX_LR", "TOTAL_BATCH_SIZE", "WARMDOWN_RATIO", "ADAM_BETAS[1]"} <= set(
        space
    )
    assert "DEVICE_BATCH_SIZE" not in space
    assert space["MATRIX_LR"].scale == "log"
    assert space["TOTAL_BATCH_SIZE"].scale == "powers"
    assert space["WARMDOWN_RATIO"].scale == "linear"
    assert space["ADAM_BETAS[1]"].scale == "tail"


@pytest.mark.parametrize(
    ("name", "described", "good"),
    [
        ("ROTARY_BASE", "1250 to 6.4e+05, log", 200_000.0),
        ("SHORT_WINDOW", "0.0625 to 1, log", 0.125),
        ("INIT_SCALE", "0.25 to 4, log", 0.68),
        ("RESID_LAMBDA", "0.5 to 2, log", 1.1),
        ("MUON_MOMENTUM", "0.75 to 0.99, tail", 0.97),
        ("EMBEDDING_DECAY", "one of 0.0, 0.0003, 0.001, 0.003, 0.01, 0.03", 0.001),
    ],
)
def test_constants_that_public_runs_tuned_are_searched(name, described, good):
    """The value that helped there is in the range, and one step away."""
    one, now = ranges_of(TRAIN)[name], literals.read(TRAIN)[name].value
    assert one.describe() == described
    axis, at = one.axis(now, 1.0), one.encode(good)
    assert at in axis.choices if one.scale == "choice" else axis.low <= at <= axis.high
    assert name == "RESID_LAMBDA" or one.moves(now, good)


def test_constants_without_effect_are_not_searched():
    assert not {"UNUSED_LR", "SEED"} & set(ranges_of(SMALL))
    named = "LOG_STEPS = 5\nLOGIT_CAP = 15.0\nprint(LOG_STEPS, LOGIT_CAP)\n"
    assert set(ranges_of(named)) == {"LOGIT_CAP"}


@given(
    st.sampled_from(["MATRIX_LR", "X_RATIO", "DEPTH", "TOTAL_BATCH_SIZE", "BETA", "HEAD_DIM"]),
    st.one_of(st.floats(1e-6, 1e3), st.integers(1, 2**20)),
    st.floats(0, 1),
)
def test_every_position_on_an_axis_is_a_value_of_the_same_kind(name, value, reach):
    one = infer(name, value)
    axis = one and one.axis(value, reach)
    if axis is None:
        return
    assert axis.low <= one.encode(value) <= axis.high
    for at in (axis.low, axis.high):
        decoded = one.decode(at)
        assert isinstance(decoded, int) == isinstance(value, int)
        assert decoded >= 0


@pytest.mark.parametrize(
    ("first", "now", "scale"),
    [("X_DECAY = 0.2", "X_DECAY = 0.0", "linear"), ("X_LR = 30", "X_LR = 0.5", "log")],
)
def test_a_value_outside_its_range_gets_another_range(first, now, scale):
    use = f"\nprint({first.split()[0]})\n"
    [found] = ranges_of(now + use, [read(first + use).values]).values()
    assert infer(first.split()[0], read(first).values[first.split()[0]]) != found
    assert found.scale == scale


GIVEN = {
    "MATRIX_LR": [0.03, 0.05],
    "EMBEDDING_LR": {"low": 0.4, "high": 0.5, "scale": "linear"},
    "DEPTH": {"low": 2, "high": 8, "unit": 2},
    "ASPECT_RATIO": {"choices": [48, 80]},
    "HEAD_DIM": {"low": 16, "high": 32, "scale": "powers"},
    "WARMDOWN_RATIO": {"low": 0.9, "high": 0.99, "scale": "tail"},
    "TOTAL_BATCH_SIZE": False,
    "SEED": [1, 9],
    "RENAMED": [1, 2],
}


def test_given_ranges_apply_also_if_the_current_value_is_outside():
    space = ranges_of(SMALL, given=GIVEN)
    assert "TOTAL_BATCH_SIZE" not in space
    assert set(space) == set(GIVEN) - {"TOTAL_BATCH_SIZE", "RENAMED"} | {"WEIGHT_DECAY"}
    values = read(SMALL).values
    reached = {name: set() for name in space}
    dice = random.Random(0)
    for name, one in space.items():
        for reach in (0.0, 1.0):
            for _ in range(300):
                reached[name].add(anywhere(one, one.axis(values[name], reach), dice))
    assert 0.03 == min(reached["MATRIX_LR"]) < max(reached["MATRIX_LR"]) == 0.05
    assert len(reached["MATRIX_LR"]) > 8  # finer than two digits
    assert 0.4 <= min(reached["EMBEDDING_LR"]) <= max(reached["EMBEDDING_LR"]) <= 0.5
    assert reached["DEPTH"] == {2, 4, 6, 8}
    assert reached["ASPECT_RATIO"] == {48, 80}
    assert reached["HEAD_DIM"] == {16, 32}
    assert 0.9 <= min(reached["WARMDOWN_RATIO"]) <= max(reached["WARMDOWN_RATIO"]) <= 0.99
    assert reached["SEED"] == set(range(1, 10))
    assert space["WEIGHT_DECAY"] == infer("WEIGHT_DECAY", 0.2)


@pytest.mark.parametrize(
    ("line", "given", "scale", "whole"),
    [
        ("X_LR = 0.1", [0.0, 0.5], "linear", False),  # no logarithm of 0
        ("X_BETA = 0.9", [0.5, 0.99], "tail", False),
        ("X_SIZE = 300", {"low": 50, "high": 1000, "scale": "log"}, "log", True),
        ("X_DECAY = 0", [0.0, 0.3], "linear", False),
        ("X_BATCH = 64", [16, 128], "powers", True),
        ("X_BATCH = 64", [48, 96], "grid", True),  # no powers of two as ends
        ("X = -3.0", [-5.0, 5.0], "linear", False),
        ("EMBEDDING_DECAY = 0.0", [0.0, 0.1], "linear", False),  # a choice without given bounds
    ],
)
def test_missing_parts_of_a_given_range_are_inferred(line, given, scale, whole):
    [one] = ranges_of(
        f"{line}\nprint({line.split()[0]})\n", given={line.split()[0]: given}
    ).values()
    assert (one.scale, one.whole) == (scale, whole)
    now = literals.read(line)[line.split()[0]].value
    drawn = {type(anywhere(one, one.axis(now, 1.0), random.Random(i))) for i in range(9)}
    assert drawn == {int if whole else float}


@pytest.mark.parametrize(
    ("line", "given"),
    [("X = 'SL'", [1, 2]), ("X = 0.5", ["a", "b"]), ("X = 0.5", {"low": 1, "high": 8, "unit": 1})],
)
def test_a_given_range_of_another_kind_excludes_the_constant(line, given):
    assert ranges_of(f"{line}\nprint(X)\n", given={"X": given}) == {}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (7, r"to 7, and it should be \[low, high\]"),
        ([1, 2, 3], r"should be \[low, high\]"),
        ({"low": 1}, r"should be \[low, high\]"),
        ([2, 1], r"to \[2, 1\], and it should have a low below its high"),
        ([float("nan"), 1], "low to nan, and it should be a number"),
        ({"low": 1, "high": 2, "step": 3}, "step to 3, and it should be left out"),
        ({"low": 1, "high": 2, "scale": "cubic"}, "should be 'log', 'linear', 'tail', 'powers' or"),
        ({"low": 0, "high": 2, "scale": "log"}, "above 0"),
        ({"low": 0.5, "high": 1, "scale": "tail"}, "between 0 and 1"),
        ({"low": 3, "high": 8, "scale": "powers"}, "powers of two"),
        ({"low": 1, "high": 8, "unit": 0}, "unit to 0, and it should be greater"),
        ({"low": 1, "high": 8, "scale": "log", "unit": 2}, "scale grid, or no unit"),
        ({"low": 17, "high": 30, "unit": 16}, "two multiples of its unit"),
        (["a", 1], "only words or only numbers"),
        (["a", "a"], "each once"),
        ({"choices": "ab"}, "a list of only words"),
        ({"choices": [1, 2], "low": 1}, "no keys other than choices"),
    ],
)
def test_an_invalid_range_is_refused(given, rule):
    with pytest.raises(ValidationError) as caught:
        LoopConfig(search={"A": [1, 2], "X_LR": given})
    assert re.search(rf"^sets search\.X_LR.*{rule}", first_fault(caught.value))


def test_the_documented_ranges_fit_the_shipped_file():
    text = (Path(__file__).parents[1] / "docs" / "search.md").read_text()
    front = text.split("---\nsearch:")[1].split("---")[0]
    given = config.from_program(f"---\nsearch:{front}---\n").search
    space = space_of(TRAIN, (), given)
    assert set(given) - set(space) == {"SOFTCAP"}
    assert all(space[name].strict for name in set(given) - {"SOFTCAP"})


def test_numbers_with_an_exponent_need_no_point():
    front = "---\nsearch: {X_LR: [1e-3, 1e-1], Y: {choices: [1e4, 2e4]}}\n---\n"
    given = config.from_program(front).search
    assert (given["X_LR"].low, given["Y"].choices) == (0.001, (10000.0, 20000.0))
    assert config.from_program("---\nagent: 1e3x\n---\n").agent == "1e3x"


def test_the_range_of_a_constant_is_that_of_its_first_value():
    turned = SMALL.replace("MATRIX_LR = 0.04", "MATRIX_LR = 0.2")
    assert turned != SMALL
    history = [read(text).values for text in (SMALL, turned)]
    assert ranges_of(turned, history)["MATRIX_LR"] == ranges_of(SMALL)["MATRIX_LR"]
    assert ranges_of(turned)["MATRIX_LR"] != ranges_of(SMALL)["MATRIX_LR"]


def test_other_code_is_another_experiment():
    assert read(SMALL).signature != read(f"{SMALL}print('more')\n").signature
    assert read("def f(): pass\n").signature != read("def g(): pass\n").signature


def test_widths_that_round_to_the_same_heads_are_the_same_experiment():
    def signature(aspect):
        return read(SMALL.replace("ASPECT_RATIO = 64", f"ASPECT_RATIO = {aspect}")).signature

    assert signature(64) == signature(60)
    assert signature(64) != signature(80)


def test_a_short_window_that_no_layer_has_is_ignored():
    def signature(pattern, share):
        text = TRAIN.replace('"SSSL"', f'"{pattern}"').replace(
            "SHORT_WINDOW = 0.5", f"SHORT_WINDOW = {share}"
        )
        return read(text).signature

    assert signature("L", 0.5) == signature("L", 0.25)
    assert signature("SL", 0.5) != signature("SL", 0.25)


# ------------------------------------------------------------------------------ proposals


def test_the_same_history_and_seed_give_the_same_proposal(tmp_path):
    simulation = Simulation(tmp_path, 1)
    for _ in range(6):
        simulation.step(Tpe())
    first = Tpe().propose(simulation.context())
    source = (tmp_path / "train.py").read_text()
    used = Tpe()
    simulation.sources["e" * 40] = source  # a crash that was repaired leaves the history
    crashed = Experiment(7, "e" * 40, "", "", "tpe")
    context = simulation.context()
    used.known(dataclasses.replace(context, history=(*context.history, crashed)))
    assert used.propose(simulation.context()) == first
    assert (tmp_path / "train.py").read_text() == source
    assert len({Tpe().propose(simulation.context(seed)) for seed in range(8)}) > 1


def test_a_proposal_changes_only_what_its_description_states(tmp_path):
    simulation = Simulation(tmp_path, 2, TRAIN.replace("DEPTH = 8", "DEPTH = 4"))
    description = Tpe().propose(simulation.context()).description
    before, after = simulation.best_source, (tmp_path / "train.py").read_text()
    values = read(before).values
    changes = {}
    for change in description.split(", "):
        name, old, arrow, new = change.split(" ")
        assert (arrow, str(values[name])) == ("->", old)
        changes[name] = ast.literal_eval(new) if name != "WINDOW_PATTERN" else new
    assert 1 <= len(changes) <= 3
    assert literals.rewrite(before, changes) == after != before


def test_proposals_are_distinct_and_batches_stay_powers_of_two(tmp_path):
    simulation = Simulation(tmp_path, 3)
    agent = Tpe()
    for _ in range(40):
        simulation.step(agent)
    assert len({read(source).signature for source in simulation.sources.values()}) == 41
    for source in simulation.sources.values():
        values = read(source).values
        # train.py splits a step evenly over devices and passes, whatever DEVICE_BATCH_SIZE is.
        assert values["TOTAL_BATCH_SIZE"].bit_count() == 1
        assert values["DEVICE_BATCH_SIZE"] == 32
        assert 0 <= values["WARMDOWN_RATIO"] <= 1


def test_a_file_without_constants_is_an_error(tmp_path):
    simulation = Simulation(tmp_path, 0)
    simulation.best_source = "SEED = 3\nprint(SEED)\n"
    with pytest.raises(AgentError, match="no upper-case constants") as caught:
        Tpe().propose(simulation.context())
    assert caught.value.kind == "failed"


def test_an_exhausted_space_is_an_error(tmp_path):
    simulation = Simulation(tmp_path, 0)
    texts = [f"DEPTH = {depth}\nprint(DEPTH)\n" for depth in (1, 2)]
    simulation.sources = {
        one.commit: text for one, text in zip(simulation.history, texts, strict=False)
    }
    simulation.sources["f" * 40] = texts[1]
    simulation.history.append(Experiment(1, "f" * 40, "", "", "tpe", status="discard", val_bpb=2.0))
    simulation.best_source = texts[0]
    with pytest.raises(AgentError, match="nothing new") as caught:
        Tpe().propose(simulation.context())
    assert caught.value.kind == "exhausted"


@pytest.mark.parametrize(
    "source",
    [
        "DEPTH = = 3\n",
        f"DEPTH = {'9' * 400}\n",
        'DEPTH = "SL"\nMATRIX_LR = 0\n',
    ],
)
def test_odd_files_in_the_history_are_ignored(tmp_path, source):
    simulation = Simulation(tmp_path, 0)
    simulation.sources["f" * 40] = source
    simulation.history.append(Experiment(1, "f" * 40, "", "", "person", status="crash"))
    assert "->" in Tpe().propose(simulation.context()).description


def test_a_constant_at_the_end_of_its_range_is_chosen_less():
    space = ranges_of("DEPTH = 4\nX_LR = 0.5\nprint(DEPTH, X_LR)\n")

    def share(depth, tried):
        trials = [Trial({"DEPTH": one, "X_LR": 0.5}, 1.0) for one in tried]
        dice = random.Random(0)
        now = {"DEPTH": depth, "X_LR": 0.5}
        return sum("DEPTH" in choose(dice, space, now, trials) for _ in range(200)) / 200

    one_side = range(5, 8)
    assert share(4, one_side) > 0.8  # below it there is room
    assert share(2, one_side) < 0.7  # the range ends there
    assert share(4, [*one_side, 3]) < 0.7  # both sides are known


def test_it_learns_from_every_result(tmp_path):
    """The score improves in one direction, up to a crash: proposals go in that direction."""
    text = "MATRIX_LR = {}\nprint(MATRIX_LR)\n"
    simulation = Simulation(tmp_path, 0)
    simulation.sources, simulation.history = {}, []
    tried = [(0.04, 2.0), (0.03, 2.1), (0.05, 1.9), (0.06, 1.8), (0.02, 2.3), (0.2, None)]
    for n, (rate, score) in enumerate(tried):
        simulation.sources[f"{n:040x}"] = text.format(rate)
        status = "crash" if score is None else "keep"
        simulation.history.append(
            Experiment(n, f"{n:040x}", "", "", "tpe", status=status, val_bpb=score)
        )
    simulation.best_source = text.format(0.06)
    drawn = []
    for seed in range(12):
        Tpe().propose(simulation.context(seed))
        drawn.append(literals.read((tmp_path / "train.py").read_text())["MATRIX_LR"].value)
    assert sum(0.05 < rate < 0.16 for rate in drawn) >= 9


def test_of_a_very_long_history_it_learns_from_the_newest_results(tmp_path, monkeypatch):
    simulation = Simulation(tmp_path, 3)
    for _ in range(40):
        simulation.step(Tpe())

    def proposals(better: slice) -> list[str]:
        """Proposals on the best file, with better scores of some experiments."""
        before = simulation.history.copy()
        for e in before[better]:
            if e.val_bpb is not None:
                simulation.history[e.n] = msgspec.structs.replace(e, val_bpb=1 / e.val_bpb)
        found = [Tpe().propose(simulation.context(seed)).description for seed in range(6)]
        simulation.history[:] = before
        return found

    monkeypatch.setattr(tpe, "TRIALS", 20)
    old, new = slice(1, 15), slice(-15, -1)
    assert proposals(old) == proposals(slice(0))
    assert proposals(new) != proposals(slice(0))
    monkeypatch.undo()
    assert proposals(old) != proposals(slice(0))


def test_it_beats_random_sampling(tmp_path):
    searched, sampled = [], []
    for seed in range(4):
        simulation = Simulation(tmp_path / f"tpe{seed}", seed)
        agent = Tpe()
        for _ in range(30):
            simulation.step(agent)
        searched.append(simulation.best)
        simulation = Simulation(tmp_path / f"random{seed}", seed)
        for _ in range(30):
            simulation.record(_anywhere(SMALL, simulation.random), "random")
        sampled.append(simulation.best)
    assert sum(searched) < sum(sampled)


def test_proposals_stay_in_given_ranges(tmp_path):
    simulation = Simulation(tmp_path, 6)
    rates, given = set(), LoopConfig(search={"MATRIX_LR": [0.06, 0.08]}).search
    for seed in range(30):
        context = dataclasses.replace(simulation.context(seed), search=given)
        Tpe().propose(context)
        rates.add(literals.read((tmp_path / "train.py").read_text())["MATRIX_LR"].value)
    rates.remove(0.04)
    assert len(rates) > 3
    assert 0.06 <= min(rates) <= max(rates) <= 0.08


def test_a_refused_proposal_is_avoided_and_not_repeated(tmp_path):
    simulation, agent = Simulation(tmp_path, 7), Tpe()
    unfit = []
    for _ in range(12):
        agent.propose(dataclasses.replace(simulation.context(), unfit=tuple(unfit)))
        unfit.append(((tmp_path / "train.py").read_text(), "too much memory"))
    assert len({read(source).signature for source, _ in unfit}) == 12
    context = dataclasses.replace(simulation.context(), unfit=tuple(unfit))
    assert sum(trial.val_bpb is None for trial in agent.known(context).trials) == 12
    # A refusal of other code says nothing about the constants.
    other = dataclasses.replace(context, unfit=((SMALL + "print(1)\n", "too much memory"),))
    assert all(trial.val_bpb is not None for trial in agent.known(other).trials)


def test_a_running_experiment_counts_as_the_median_and_is_not_repeated(tmp_path):
    simulation, agent = Simulation(tmp_path, 8), Tpe()
    for _ in range(4):
        simulation.step(agent)
    scores = sorted(e.val_bpb for e in simulation.history if e.val_bpb is not None)
    assert len(scores) == 5
    agent.propose(simulation.context())
    running = (tmp_path / "train.py").read_text()
    simulation.sources["f" * 40] = running
    simulation.history.append(Experiment(5, "f" * 40, "", "", "tpe"))
    last = agent.known(simulation.context()).trials[-1]
    assert (last.n, last.val_bpb) == (5, scores[2])
    assert last.values == read(running).values
    drawn = set()
    for seed in range(40):
        agent.propose(simulation.context(seed))
        drawn.add((tmp_path / "train.py").read_text())
    assert running not in drawn


def test_an_experiment_that_was_run_again_counts_by_its_mean(tmp_path):
    simulation, agent = Simulation(tmp_path, 9), Tpe()
    again = Repeated(
        n=0, seed=43, purpose="noise", split="val", outcome="ok", metrics={"val_bpb": 1.2}
    )
    recorded = msgspec.structs.replace(simulation.history[0], repeats=(again,))
    simulation.history = [recorded]
    (trial,) = agent.known(simulation.context()).trials
    assert trial.val_bpb == pytest.approx((recorded.val_bpb + 1.2) / 2)


def test_the_gain_of_new_code_is_attributed_to_the_code(tmp_path):
    simulation, agent = Simulation(tmp_path, 9), Tpe()

    def add(n, base, source, score):
        status = "crash" if score is None else "keep"
        simulation.sources[f"{n:040x}"] = source
        simulation.history.append(
            Experiment(n, f"{n:040x}", f"{base:040x}", "", "", status=status, val_bpb=score)
        )

    simulation.history = []
    wide, better = SMALL.replace("DEPTH = 4", "DEPTH = 6"), SMALL + "print(1)\n"
    add(0, 99, SMALL, 1.0)
    add(1, 0, wide, 1.1)
    add(2, 0, better, 0.8)  # code
    add(3, 2, better.replace("DEPTH = 4", "DEPTH = 6"), 0.85)
    add(4, 2, better + "print(2)\n", None)  # a crash of code
    add(5, 2, better + "print(3)\n", 0.7)  # more code, and then more constants
    add(6, 5, wide + "print(1)\nprint(3)\n", 0.72)
    add(7, 5, wide + "print(1)\nprint(3)\n# more\nprint(4)\n", 0.9)
    add(8, 0, SMALL.replace("DEPTH = 4", "DEPTH = 9"), None)  # a crash of constants
    add(9, 5, SMALL.replace("DEPTH = 4", "DEPTH = 5"), 0.9)  # back to the first code
    found = {trial.n: trial.val_bpb for trial in agent.known(simulation.context()).trials}
    assert found.keys() == {0, 1, 2, 3, 5, 6, 7, 8, 9}
    assert found[8] is None
    expected = {0: 1.0, 1: 1.1, 2: 1.0, 3: 1.05, 5: 1.0, 6: 1.02, 7: 1.0, 9: 0.9}
    assert {n: found[n] for n in expected} == pytest.approx(expected)


def _anywhere(source: str, rng: random.Random) -> str:
    now, space = read(source).values, ranges_of(source)
    changes = {name: anywhere(one, one.axis(now[name], 1.0), rng) for name, one in space.items()}
    return literals.rewrite(source, changes)


def test_optuna_prints_nothing(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tpe().propose(Simulation(tmp_path, 5).context())
    assert capfd.readouterr() == ("", "")
