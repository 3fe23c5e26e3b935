"""The search that draws ideas and constants together."""

import dataclasses
import math
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from autoresearch_jax.agents import score_model
from autoresearch_jax.agents.agent import AgentError, Context
from autoresearch_jax.agents.constants import read
from autoresearch_jax.agents.factory import make_agent
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.agents.search import Search, drawn
from autoresearch_jax.agents.search_history import History
from autoresearch_jax.common import literals
from autoresearch_jax.ideas import fit, library
from autoresearch_jax.loop.config import LoopConfig
from autoresearch_jax.records.experiment import Experiment
from tests import harness
from tests.test_tpe import CENTRES, ENCODED, SMALL

TRAIN = (Path(__file__).parents[1] / "train.py").read_text()
IDEAS = library.load()


class Session:
    """Experiments whose scores a test decides, and the search after them."""

    def __init__(self, folder: Path, source: str = SMALL, ideas=None, given=None, seed: int = 0):
        self.folder, self.seed, self.ideas = folder, seed, ideas or {}
        self.given = LoopConfig(search=given or {}).search
        folder.mkdir(parents=True, exist_ok=True)
        self.sources: dict[str, str] = {}
        self.history: list[Experiment] = []
        self.search, self.unfit, self.pending = Search(), (), ()
        self.add(source, 1.0)

    @property
    def best(self) -> Experiment:
        return [e for e in self.history if e.status == "keep"][-1]

    @property
    def best_source(self) -> str:
        return self.sources[self.best.commit]

    def add(self, source: str, score: float | None, running: bool = False) -> None:
        """Record an experiment on the best one; None is a crash."""
        n, base = len(self.history), self.best.commit if self.history else ""
        kept = score is not None and (not self.history or score < self.best.val_bpb)
        status = None if running else "crash" if score is None else "keep" if kept else "discard"
        commit = f"{n:040x}"
        self.sources[commit] = source
        taken = self.taken(source) if base else ()
        self.history.append(
            Experiment(n, commit, base, "x", "somebody", status=status, val_bpb=score, ideas=taken)
        )

    def taken(self, source: str) -> tuple[str, ...]:
        """Return the ideas that a file takes, as a loop records them."""
        before = self.best_source
        return Taken(self.ideas).of(read(before), before, read(source), source)

    def turn(self, score: float | None, **values) -> None:
        self.add(literals.rewrite(self.best_source, values), score)

    def take(self, name: str, score: float | None) -> None:
        self.add(fit.apply(self.ideas[name], self.best_source, self.ideas), score)

    def context(self) -> Context:
        (self.folder / "train.py").write_text(self.best_source)
        more = {"search": self.given, "unfit": self.unfit, "ideas": self.ideas}
        more["pending"] = self.pending
        return harness.simulated_context(
            self.folder, self.history, self.sources, seed=self.seed, **more
        )

    def next(self) -> tuple[str, dict]:
        """Return the next proposal's description, and the constants that it changes."""
        said = self.search.propose(self.context()).description
        self.proposed = (self.folder / "train.py").read_text()
        before, after = literals.read(self.best_source), literals.read(self.proposed)
        new = {k: one.value for k, one in after.items()}
        return said, {k: v for k, v in new.items() if k not in before or before[k].value != v}


@pytest.mark.nightly
def test_it_comes_far_in_30_experiments(tmp_path):
    """Further than a draw from the same candidates at random, on average over three seeds."""
    reached = {}
    for guided in (True, False):
        lost = []
        for seed in range(3):
            session = Session(tmp_path / f"{seed}{guided}", seed=seed)
            dice, rng = random.Random(seed), random.Random(f"{seed}/draws")
            optimum = {k: (c * 2 ** dice.gauss(0, 1), w) for k, (c, w) in CENTRES.items()}

            def score(source, optimum=optimum):
                now = {k: one.value for k, one in literals.read(source).items()}
                away = (w * abs(math.log2(now[k] / c)) ** 1.5 for k, (c, w) in optimum.items())
                return 1.0 + sum(away)

            session.history.clear()
            session.add(SMALL, score(SMALL))
            for _ in range(30):
                if guided:
                    session.next()
                else:
                    known = History().known(session.context())
                    changes = next(drawn(known, rng, 100))
                    session.proposed = literals.rewrite(session.best_source, changes)
                session.add(session.proposed, score(session.proposed))
            lost.append(session.best.val_bpb - 1.0)
        reached[guided] = sum(lost)
    assert reached[True] < 0.6 * reached[False]


def test_it_is_the_default_agent_and_needs_no_login():
    agent = make_agent(LoopConfig().agent)
    assert isinstance(agent, Search)
    agent.check()


def test_it_depends_on_history_and_seed_alone(tmp_path):
    def proposals(folder: str, seed: int) -> list[str]:
        session = Session(tmp_path / folder, TRAIN, IDEAS, seed=seed)
        found = []
        for n in range(6):
            found.append(session.next()[0])
            session.add(session.proposed, 1.01 + n / 100)
        return found

    assert proposals("a", 1) == proposals("b", 1) != proposals("c", 2)


def test_the_first_idea_is_the_one_that_gave_others_most(tmp_path):
    session = Session(tmp_path, TRAIN, IDEAS)
    said, changes = session.next()
    assert said.startswith("idea half-batch")
    assert changes == {"TOTAL_BATCH_SIZE": 2**18}
    assert min(one.effect or 0 for one in IDEAS.values()) == IDEAS["half-batch"].effect


def test_ideas_and_constants_are_drawn_together(tmp_path):
    few = {name: IDEAS[name] for name in ("smear", "backout", "key-offset")}
    session = Session(tmp_path, TRAIN, few)
    dice, kinds = random.Random(0), set()
    for _ in range(12):
        said, changes = session.next()
        idea = said.startswith("idea ")
        kinds.add((idea, " -> " in said))
        assert idea or changes
        session.add(session.proposed, 1.0 + dice.uniform(0.001, 0.004))
    assert kinds >= {(False, True), (True, True)}


@pytest.mark.parametrize("kept", [True, False])
def test_a_kept_or_nearly_kept_number_is_moved_a_step_further_and_a_step_back(tmp_path, kept):
    session = Session(tmp_path)
    session.turn(0.99 if kept else 1.0001, MATRIX_LR=0.08)
    further, back = session.next(), None
    assert further == (f"MATRIX_LR {0.08 if kept else 0.04} -> 0.16", {"MATRIX_LR": 0.16})
    session.add(session.proposed, 1.2)
    back = session.next()[1]
    assert list(back) == ["MATRIX_LR"]
    assert 0.05 < back["MATRIX_LR"] < 0.07
    session.add(session.proposed, 1.2)
    assert session.next()[1].get("MATRIX_LR") not in (0.16, back["MATRIX_LR"])


def test_noise_around_the_best_is_not_followed_for_ever(tmp_path):
    """Under a policy that confirms, a lower score may be discarded, and all look nearly kept."""
    session = Session(tmp_path)
    session.turn(1.0001, EMBEDDING_LR=0.8)
    for n in range(2):
        [(name, value)] = History().known(session.context()).steps[0].items()
        assert name == "EMBEDDING_LR"
        session.turn(1.0 + 1e-5 * n, EMBEDDING_LR=value)
    assert not History().known(session.context()).steps
    session.turn(0.99, EMBEDDING_LR=1.8)  # it is kept, so it is followed from there
    assert History().known(session.context()).steps


def test_what_says_nothing_about_one_number_is_not_followed(tmp_path):
    for n, (score, values) in enumerate(
        [
            (1.1, {"MATRIX_LR": 0.08}),  # a clear loss
            (0.99, {"MATRIX_LR": 0.08, "EMBEDDING_LR": 0.3}),  # which of them?
            (None, {"MATRIX_LR": 0.08}),
        ]
    ):
        session = Session(tmp_path / str(n))
        session.turn(score, **values)
        assert not History().known(session.context()).steps
    session = Session(tmp_path / "moved")
    session.turn(0.99, MATRIX_LR=0.08)
    session.turn(0.98, MATRIX_LR=0.04)
    assert all(step["MATRIX_LR"] < 0.08 for step in History().known(session.context()).steps)


def test_what_the_next_best_probably_changes_is_left_alone(tmp_path):
    """Two gains wait to be measured together; another change of the same would conflict."""
    session = Session(tmp_path, TRAIN, IDEAS)
    session.turn(0.98, MATRIX_LR=0.08)
    session.history[-1] = structs.replace(session.history[-1], status="discard")
    session.take("bigram-table", 0.97)
    session.history[-1] = structs.replace(session.history[-1], status="discard")
    assert session.next()[1] == {"MATRIX_LR": 0.16}  # as if none waited: a step further
    session.pending = (1, 2)
    for _ in range(8):
        said, values = session.next()
        assert "MATRIX_LR" not in values
        assert "bigram-table" not in said
        session.add(session.proposed, 1.01)


def test_what_the_next_best_probably_changes_is_proposed_if_nothing_else_is_left(tmp_path):
    session = Session(tmp_path, "MATRIX_LR = 0.04\nlr = MATRIX_LR\n")
    session.turn(0.98, MATRIX_LR=0.08)
    session.history[-1] = structs.replace(session.history[-1], status="discard")
    session.pending = (1,)
    assert [*session.next()[1]] == ["MATRIX_LR"]


def test_it_learns_from_what_others_proposed(tmp_path):
    """What lost much is not proposed soon, whoever tried it, and what it is like is."""
    session = Session(tmp_path, TRAIN, IDEAS)
    for name in ("bigram-table", "half-batch", "deeper"):
        session.take(name, 1.05)
    for _ in range(12):
        said, _ = session.next()
        assert not {"bigram-table", "half-batch", "deeper"} & {*said.replace(",", "").split()}
        session.add(session.proposed, 1.01)


def test_the_effect_of_code_that_an_agent_wrote_is_not_put_down_to_the_constants(tmp_path):
    """It changes a rate as well, to where rates were worse before, and gains much."""
    session = Session(tmp_path)
    for value, score in ((0.02, 1.05), (0.028, 1.02), (0.056, 0.98)):
        session.turn(score, MATRIX_LR=value)
    source = literals.rewrite(session.best_source, {"MATRIX_LR": 0.02})
    session.add(source + "print('a better model')\n", 0.5)
    known = History().known(session.context())
    lower, higher = (
        dataclasses.replace(known.best, values={**known.best.values, "MATRIX_LR": value})
        for value in (0.01, 0.056)
    )
    gains = score_model.expected_improvements(known, {}, [lower, higher])
    assert gains[1] > gains[0]


def test_ranges_of_the_user_hold_for_ideas_too(tmp_path):
    given = {"TOTAL_BATCH_SIZE": False, "DEPTH": [6, 8], "MATRIX_LR": [0.03, 0.05]}
    session = Session(tmp_path, TRAIN, IDEAS, given)
    session.turn(0.99, MATRIX_LR=0.049)
    for _ in range(12):
        _, changes = session.next()
        assert "TOTAL_BATCH_SIZE" not in changes
        assert 6 <= changes.get("DEPTH", 8) <= 8
        assert 0.03 <= changes.get("MATRIX_LR", 0.04) <= 0.05
        session.add(session.proposed, 1.01)


def test_ideas_that_exclude_each_other_or_need_another_are_not_drawn(tmp_path):
    session = Session(tmp_path, TRAIN, {n: IDEAS[n] for n in ("bigram-table", "trigram-table")})
    drawn = [session.next()[0]]
    assert "trigram-table" not in drawn[0]
    session.take("bigram-table", 0.99)
    found = []
    for _ in range(8):
        found.append(session.next()[0])
        session.add(session.proposed, 1.0)
    assert any("trigram-table" in said for said in found)
    pair = {n: IDEAS[n] for n in ("warm-down-power", "warm-down-sqrt")}
    session = Session(tmp_path / "pair", TRAIN, pair)
    session.take("warm-down-power", 0.99)
    for _ in range(8):
        assert "warm-down-sqrt" not in session.next()[0]
        session.add(session.proposed, 1.0)


def test_what_the_compile_check_refused_is_not_proposed_again(tmp_path):
    session, found = Session(tmp_path, TRAIN, IDEAS), []
    for _ in range(4):
        session.next()
        found.append(session.proposed)
        session.unfit = tuple((source, "it needs too much memory") for source in found)
    assert len({*found}) == 4


@pytest.mark.parametrize("source", ENCODED)
def test_whatever_python_runs_is_searched(tmp_path, source):
    session = Session(tmp_path, literals.decode(source))
    context = session.context()
    (context.worktree / "train.py").write_bytes(source)
    Search().propose(context)
    proposed = (context.worktree / "train.py").read_bytes()
    assert proposed != source
    assert proposed.count(b"\r") == source.count(b"\r")
    compile(proposed, "train.py", "exec")


NAMES = ["MATRIX_LR", "X_RATIO", "DEPTH", "TOTAL_BATCH_SIZE", "BETA", "HEAD_DIM", "WINDOW_PATTERN"]
texts = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        st.integers(), st.floats(-1e300, 1e300), st.sampled_from(["SL", "", "{{ x }}", "\n"])
    ),
    min_size=1,
).map(lambda values: "".join(f"{k} = {v!r}\nprint({k})\n" for k, v in values.items()))
scores = st.one_of(st.none(), st.just(0.0), st.floats(1e-9, 1e9))
statuses = st.sampled_from(["keep", "discard", "crash", None])


@given(
    st.lists(st.tuples(texts, st.integers(-1, 5), statuses, scores), min_size=1, max_size=6),
    st.lists(texts, max_size=2),
)
def test_whatever_the_history_is_a_proposal_is_new(history, unfit):
    sources, past = {}, []
    for n, (source, base, status, score) in enumerate(history):
        commit = f"{n:040x}"
        sources[commit] = source
        score = None if status == "crash" else score
        more = {"status": status, "val_bpb": score, "ideas": ("smear",) * (n % 2)}
        past.append(Experiment(n, commit, f"{base:040x}" if base >= 0 else "", "x", "y", **more))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.py")
        path.write_text(f"{history[-1][0]}SCALAR_LR = 0.5\nprint(SCALAR_LR)\n")
        more = {"seed": 0, "ideas": IDEAS, "unfit": tuple((one, "too large") for one in unfit)}
        context = harness.simulated_context(Path(name), past, sources, **more)
        best = path.read_text()
        Search().propose(context)
        proposed = read(path.read_text())
    tried = [read(source).signature for source in (best, *sources.values(), *unfit)]
    assert proposed.values
    assert proposed.signature not in tried


def test_without_anything_to_search_it_says_so(tmp_path):
    session = Session(tmp_path, "def f():\n    return 1\n")
    with pytest.raises(AgentError, match="no upper-case constants"):
        session.next()
    session = Session(tmp_path / "one", "A = 'SL'\nprint(A)\n", given={"A": ["SL", "L"]})
    session.add("A = 'L'\nprint(A)\n", 1.5)
    with pytest.raises(AgentError, match="nothing new") as caught:
        session.next()
    assert caught.value.kind == "exhausted"
