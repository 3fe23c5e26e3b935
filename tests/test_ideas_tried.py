"""Which ideas of the library experiments take, from their files."""

import time

from autoresearch_jax.agents import constants
from autoresearch_jax.agents.ideas_tried import Taken
from autoresearch_jax.commands import presets
from autoresearch_jax.common import literals, paths
from autoresearch_jax.ideas import fit, library

IDEAS = library.load()
SHIPPED = (paths.template() / "train.py").read_text()


def with_ideas(*names, source=SHIPPED):
    for name in names:
        source = fit.apply(IDEAS[name], source, IDEAS)
    return source


def of(taken, before, after):
    return taken.of(constants.read(before), before, constants.read(after), after)


def test_each_idea_that_is_applied_is_found_and_no_other():
    frozen = (paths.template() / "constants.py").read_text()
    base, _ = presets.apply(SHIPPED, frozen, presets.get("demo"), None)
    taken = Taken(IDEAS)
    for idea in IDEAS.values():
        if idea.patch:
            before = with_ideas(*idea.needs, source=base)
            after = with_ideas(idea.id, source=before)
            assert of(taken, before, after) == (idea.id,)
            assert of(taken, before, before) == ()
            assert of(taken, after, before) == ()


def test_an_idea_beside_other_changes_is_found_and_a_turned_number_of_it_is_not_the_idea():
    taken = Taken(IDEAS)
    both = with_ideas("bigram-table", "half-batch").replace(
        "WEIGHT_DECAY = ", "WEIGHT_DECAY = 2 * "
    )
    assert of(taken, SHIPPED, both) == ("bigram-table", "half-batch")
    fewer_rows = literals.rewrite(both, {"BIGRAM_ROWS": 3})
    assert of(taken, both, fewer_rows) == ()
    assert of(taken, SHIPPED, fewer_rows) == ("bigram-table", "half-batch")
    other_batch = literals.rewrite(SHIPPED, {"TOTAL_BATCH_SIZE": 2**17})
    assert of(taken, SHIPPED, other_batch) == ()
    assert of(taken, SHIPPED, "not python (") == ()


def test_no_file_of_an_agent_takes_long():
    both = with_ideas("attention-gate", "cosine-decay", "leaky-relu", "value-gate")
    begun = time.process_time()
    assert of(Taken(IDEAS), SHIPPED, both + "\n" * 200_000) == ()
    assert time.process_time() - begun < 30  # once, minutes


def test_an_idea_of_the_users_own_file_is_found(tmp_path):
    (tmp_path / "ideas").mkdir()
    (tmp_path / "ideas" / "mine.md").write_text(
        "---\ntitle: Mine\nsources: [me]\nclaim: none\n---\nWords.\n\n"
        "```diff\n@@ @@\n x = 1\n+y = 2\n z = 3\n```\n"
    )
    taken = Taken(library.load(tmp_path))
    before = "A = 1\nx = 1\nz = 3\n"
    assert of(taken, before, "A = 2\nx = 1\ny = 2\nz = 3\n") == ("mine",)
    assert of(taken, before, "A = 2\nx = 1\ny = 4\nz = 3\n") == ()


def test_the_code_of_files_that_differ_in_numbers_is_looked_at_once(monkeypatch):
    looked, contains = [], fit.contains
    monkeypatch.setattr(fit, "contains", lambda *of: looked.append(of) or contains(*of))
    taken = Taken(IDEAS)
    for rate in range(1, 50):
        other = literals.rewrite(SHIPPED, {"MATRIX_LR": 0.01 * rate})
        of(taken, SHIPPED, other)
    assert len(looked) == len({idea.id for idea, *_ in looked}) > 10
