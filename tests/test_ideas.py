"""The library of ideas: each fits and composes, and a person can add their own."""

import itertools
import json

import click.testing
import hypothesis
import hypothesis.strategies as st
import pytest

from autoresearch_jax.agents import search_space
from autoresearch_jax.cli.main import main
from autoresearch_jax.commands import presets
from autoresearch_jax.common import literals, paths
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.ideas import fit, library, merge
from autoresearch_jax.ideas.fit import State
from autoresearch_jax.ideas.merge import Edit
from tests import harness

SHIPPED = (paths.template() / "train.py").read_text()
MLP = "kit.mlp(x_BTD, self.c_fc, self.c_proj, self.config.fused)"
SILU = "product(nn.silu(product(x_BTD, self.c_fc)), self.c_proj)"
IDEAS = library.load()
NAMES = [name for name, idea in IDEAS.items() if idea.patch]


def applied(names, source=SHIPPED):
    """Return a train.py with these ideas, and those that they need."""
    for name in names:
        source = fit.apply(IDEAS[name], with_needs(name, source), IDEAS)
    return source


def with_needs(name, source=SHIPPED):
    """Return a train.py with the ideas that one needs."""
    return applied(IDEAS[name].needs, source)


# ---------------------------------------------------------------------------
# The merge
# ---------------------------------------------------------------------------

BASE = [f"line {i}" for i in range(8)]


@st.composite
def sides(draw):
    """Edits of BASE that do not overlap, each with lines of its own."""
    bounds = sorted(draw(st.lists(st.integers(0, len(BASE)), max_size=6)))
    word = draw(st.sampled_from("xyz"))
    return [
        Edit(start, end, tuple(f"{word} {i} {k}" for k in range(draw(st.integers(1, 2)))))
        for i, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=False))
    ]


@hypothesis.given(sides(), sides())
def test_a_merge_takes_both_sides_unless_they_overlap(ours, theirs):
    overlap = any(
        a != b and ({*range(a.start, a.end)} & {*range(b.start, b.end)} or inside(a, b))
        for a, b in itertools.product(ours, theirs)
    )
    if overlap:
        with pytest.raises(merge.Conflict):
            merge.merge(BASE, ours, theirs)
        return
    merged = merge.merge(BASE, ours, theirs)
    assert merged == merge.merge(BASE, theirs, ours)
    added = {line for edit in ours + theirs for line in edit.lines}
    removed = {BASE[i] for edit in ours + theirs for i in range(edit.start, edit.end)}
    assert added <= set(merged)
    assert [line for line in merged if line in BASE] == [x for x in BASE if x not in removed]
    for side in (ours, theirs):  # in its order
        own = [line for edit in side for line in edit.lines]
        rest = iter(merged)  # which has a line twice that both insert
        assert all(line in rest for line in own)


def inside(a, b):
    """Whether one inserts lines within those that the other replaces."""
    return any(x.start == x.end and y.start < x.start < y.end for x, y in ((a, b), (b, a)))


def test_the_same_change_on_both_sides_counts_once():
    ours = merge.edits(BASE, [*BASE[:3], "new", *BASE[3:]])
    assert merge.merge(BASE, ours, ours) == [*BASE[:3], "new", *BASE[3:]]


PATCH = "@@\n b\n-c\n+C\n"


@pytest.mark.parametrize(
    ("base", "patch", "merged"),
    [
        ("a b c d", PATCH, "a b C d"),
        ("b c b c", PATCH.replace("@@", "@@ -3,2 +3,2 @@"), "b c b C"),  # the nearer one
        ("a b c d", PATCH.replace("@@", "@@ -900,2 +900,2 @@ class A"), "a b C d"),
        ("a b c d", f"diff --git a/x b/x\n--- a/x\n+++ b/x\n{PATCH}", "a b C d"),
        ("a b c d", f"{PATCH}@@\n d\n+e\n\\ No newline at end of file\n", "a b C d e"),
    ],
)
def test_a_patch_is_found_by_its_text(base, patch, merged):
    lines = base.split()
    found = merge.apply(lines, merge.located(patch, lines))
    assert found == merged.split()
    assert merge.apply(found, merge.located(patch, found, reverse=True)) == lines


@pytest.mark.parametrize(
    ("base", "patch", "message"),
    [
        ("b c b c", PATCH, "is in it 2 times"),
        ("a c d", PATCH, "hunk 1 .* is not in it"),
        ("a b", "-c\n+C\n", "starts with @@"),
    ],
)
def test_a_patch_that_is_not_found_says_which_part(base, patch, message):
    with pytest.raises(ValueError, match=message):
        merge.located(patch, base.split())


# ---------------------------------------------------------------------------
# Each idea, and each two
# ---------------------------------------------------------------------------


def test_the_library_is_large_and_has_warnings():
    warnings = [idea for idea in IDEAS.values() if idea.kind == "warning"]
    assert len(NAMES) >= 20
    assert len(warnings) >= 10
    assert not any(idea.patch for idea in warnings)


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_fits_every_preset(name, nightly):
    constants = (paths.template() / "constants.py").read_text()
    for preset in map(presets.get, presets.PRESETS if nightly else ("v5e-8", "cpu", "demo")):
        source, _ = presets.apply(SHIPPED, constants, preset, None)
        source = with_needs(name, source)
        found = fit.apply(IDEAS[name], source, IDEAS)
        assert found != source
        compile(found, "train.py", "exec")
        assert max(map(len, found.splitlines())) <= 100
        sizes = [literals.read(text)["DEVICE_BATCH_SIZE"].value for text in (source, found)]
        assert sizes == [preset.train["DEVICE_BATCH_SIZE"]] * 2


@pytest.mark.parametrize("name", NAMES)
def test_an_idea_is_recognised_with_other_values_and_applied_once(name):
    source = fit.apply(IDEAS[name], with_needs(name), IDEAS)
    assert fit.fit(IDEAS[name], source, IDEAS).state is State.APPLIED
    assert fit.apply(IDEAS[name], source, IDEAS) == source
    for other in NAMES:  # and is not seen where it is not
        if other != name and other not in IDEAS[name].needs:
            assert not fit.contains(IDEAS[other], source, IDEAS), other
    turned = literals.rewrite(source, {"X0_LAMBDA": 0.07, "MATRIX_LR": 0.05, "ADAM_BETAS[0]": 0.7})
    assert fit.contains(IDEAS[name], turned, IDEAS)


@pytest.mark.parametrize("name", NAMES)
def test_the_search_can_turn_what_an_idea_adds(name):
    before = with_needs(name)
    old, new = literals.read(before), literals.read(fit.apply(IDEAS[name], before, IDEAS))
    for key in new.keys() - old.keys():
        assert search_space.infer(key, new[key].value).holds(new[key].value)
        assert key.partition("[")[0] in literals.used_names(applied([name]))


def composes(a, b):
    first, second = IDEAS[a], IDEAS[b]
    return not (b in first.excludes or a in second.excludes)


def test_each_two_ideas_compose_or_exclude_each_other():
    lines = SHIPPED.split("\n")
    alone = [name for name in NAMES if not IDEAS[name].needs]
    files = {name: fit.apply(IDEAS[name], SHIPPED, IDEAS) for name in alone}
    base = literals.read(SHIPPED)
    added, changed, edits = {}, {}, {}
    for name, text in files.items():
        found = literals.read(text)
        added[name] = found.keys() - base.keys()
        changed[name] = {key for key in base.keys() & found if base[key].value != found[key].value}
        edits[name] = merge.edits(lines, fit.with_spellings(text, like=SHIPPED).split("\n"))
    for a, b in itertools.combinations(alone, 2):
        if composes(a, b):
            merge.merge(lines, edits[a], edits[b])
            assert not added[a] & added[b], (a, b)
            assert not changed[a] & changed[b], (a, b)


def test_all_ideas_together_are_the_same_in_any_order():
    names = [
        name for name in NAMES if all(composes(name, other) for other in NAMES[: NAMES.index(name)])
    ]
    first = [name for name in names if not IDEAS[name].needs]
    later = [name for name in names if IDEAS[name].needs]
    one, other = applied([*first, *later]), applied([*first[::-1], *later])
    assert sorted(one.split("\n")) == sorted(other.split("\n"))
    compile(other, "train.py", "exec")
    assert {fit.fit(IDEAS[name], one, IDEAS).state for name in names} == {State.APPLIED}


@pytest.mark.nightly
def test_each_two_ideas_give_one_file_in_either_order():
    for a, b in itertools.combinations(NAMES, 2):
        if composes(a, b) and not IDEAS[a].needs and not IDEAS[b].needs:
            assert applied([a, b]) == applied([b, a]), (a, b)


def test_an_idea_is_carried_to_a_file_that_changed_beside_it():
    source = SHIPPED.replace("\n# Optimization\n", "\nNEW = 3  # of mine\n\n# Optimization\n")
    source = source.replace(MLP, SILU)
    source = literals.rewrite(source, {"MATRIX_LR": 0.03, "SOFTCAP": 20.0, "DEPTH": 6})
    found = fit.apply(IDEAS["smear"], source, IDEAS)
    values = {name: one.value for name, one in literals.read(found).items()}
    assert [values[name] for name in ("MATRIX_LR", "SOFTCAP", "DEPTH", "NEW")] == [0.03, 20.0, 6, 3]
    assert "nn.silu(" in found
    assert "self.smear_gate" in found
    crlf = fit.apply(IDEAS["smear"], source.replace("\n", "\r\n"), IDEAS)
    assert crlf == found.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("idea", "constant", "before", "after"),
    [
        ("half-batch", "TOTAL_BATCH_SIZE", 2**13, 2**12),  # sizes change by the same factor
        ("deeper", "DEPTH", 3, 4),
        ("embedding-rates", "EMBEDDING_LR", 0.3, 0.8),  # other values are set
    ],
)
def test_what_an_idea_makes_of_a_constant_that_was_changed(idea, constant, before, after):
    source = literals.rewrite(SHIPPED, {constant: before})
    found = fit.apply(IDEAS[idea], source, IDEAS)
    assert literals.read(found)[constant].value == after


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("swiglu", SHIPPED, "is a warning"),
        ("trigram-table", SHIPPED, "needs bigram-table.*ideas apply bigram-table"),
        ("warm-down-sqrt", applied(["warm-down-power"]), "exclude each other"),
        (
            "leaky-relu",
            SHIPPED.replace(MLP, SILU),
            "both change the line",
        ),
        ("backout", SHIPPED.replace("\nSOFTCAP", "\nBACKOUT_FRAC = 0.2\nSOFTCAP"), "adds it"),
        ("smear", "def f(:\n", "is not Python.*git checkout train.py"),
        ("smear", "x = 1\n", "both change"),
    ],
)
def test_an_idea_that_cannot_be_applied_says_why(name, source, message):
    with pytest.raises(UserError, match=message):
        fit.apply(IDEAS[name], source, IDEAS)


# ---------------------------------------------------------------------------
# A person's own ideas
# ---------------------------------------------------------------------------

OWN = """---
title: Mine
sources: [a page of my notebook]
claim: none yet
---

It is quieter.

```diff
@@ -1,3 +1,3 @@
 # Model
-DEPTH = 8  # transformer layers
+DEPTH = 8  # layers, transformers all
```
"""


def own(folder, text, name="mine.md"):
    (folder / "ideas").mkdir(exist_ok=True)
    (folder / "ideas" / name).write_text(text)
    return library.load(folder)


def test_the_idea_of_the_guide_to_porting_makes_the_change_of_its_example(tmp_path):
    guide = (paths.template() / "docs" / "porting.md").read_text()
    ideas = own(tmp_path, guide.split("````markdown\n")[1].split("````")[0], "head-scale.md")
    source = fit.apply(ideas["head-scale"], SHIPPED, ideas)
    example = [line[1:] for line in guide.splitlines() if line.startswith("+     ")][2:4]
    assert [line for line in source.splitlines() if line not in SHIPPED.splitlines()] == example
    assert len(source.splitlines()) == len(SHIPPED.splitlines()) + 2


def test_a_persons_ideas_are_listed_with_the_others(tmp_path):
    (tmp_path / "ideas").mkdir()
    (tmp_path / "ideas" / "README.md").write_text("about them")
    ideas = own(tmp_path, OWN)
    assert ideas.keys() == {*IDEAS, "mine"}
    source = literals.rewrite(SHIPPED, {"DEPTH": 4})
    assert "DEPTH = 4  # layers, transformers all" in fit.apply(ideas["mine"], source, ideas)


def test_a_persons_patch_may_be_on_their_own_file(tmp_path):
    source = SHIPPED.replace("\nDEPTH = 8", "\nWIDE = 3\nDEPTH = 8")
    ideas = own(tmp_path, OWN.replace(" # Model\n", " WIDE = 3\n"))
    found = fit.apply(ideas["mine"], source, ideas)
    assert "layers, transformers all" in found
    assert fit.fit(ideas["mine"], found, ideas).state is State.APPLIED
    with pytest.raises(UserError, match=r"fits neither .* hunk 1 \(-DEPTH = 8"):
        fit.apply(ideas["mine"], SHIPPED, ideas)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("title: Mine\n", "", "does not set title"),
        ("claim: none yet", "claim: -0.01", r"claim to -0\.01.*between quotes"),
        ("claim: none yet", "claims: none yet", "'claims', which is not a key. Did you mean claim"),
        ("sources: [a page of my notebook]", "sources: x", "sources to 'x'.*valid list"),
        ("---\n\nIt", "neutral: perhaps\n---\n\nIt", "neutral to 'perhaps'.*true or false"),
        ("---\n\nIt", "needs: [smaer]\n---\n\nIt", "needs to 'smaer'.*Did you mean smear"),
        ("---\n\nIt", "excludes: [mine]\n---\n\nIt", "excludes to 'mine'"),
        ("---\n\nIt", "\n\nIt", "no second ---"),
        ("title: Mine", "title: [", "is not YAML"),
        ("It is quieter.", "", "in words"),
        ("```diff", "```", "0 blocks that start with ```diff"),
        ("---\n\nIt", "kind: warning\n---\n\nIt", "1 blocks .*'warning'"),
        ("@@ -1,3 +1,3 @@\n", "", "line of @@"),
    ],
)
def test_a_file_of_a_person_that_is_wrong_is_named(tmp_path, old, new, named):
    assert OWN.count(old) == 1
    with pytest.raises(UserError, match=named) as caught:
        own(tmp_path, OWN.replace(old, new))
    assert "mine.md" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "named"),
    [("smear.md", "name of a shipped idea"), ("My idea.md", "lower-case letters")],
)
def test_a_persons_file_has_a_name_of_its_own(tmp_path, name, named):
    with pytest.raises(UserError, match=named):
        own(tmp_path, OWN, name)


# ---------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    root = harness.make_repository(tmp_path / "workspace")
    (root / "train.py").write_text(SHIPPED)
    harness.git(root, "commit", "-q", "-a", "-m", "The shipped one")
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "80")
    return root


def run(*words):
    return click.testing.CliRunner().invoke(main, ["ideas", *words])


def test_the_table_fits_80_columns_and_says_what_fits(workspace):
    own(workspace, OWN)
    (workspace / "train.py").write_text(applied(["smear"]))
    done = run()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    state = {words[0]: words[1] for words in map(str.split, lines) if words[:1] and len(words) > 2}
    assert [state[name] for name in ("smear", "backout", "trigram-table", "mine", "swiglu")] == [
        *("applied", "ready", "needs", "ready", "warning")
    ]
    rows = {row["id"]: row for row in json.loads(run("--json").stdout)}
    assert rows.keys() == {*IDEAS, "mine"}
    assert (rows["smear"]["state"], rows["trigram-table"]["detail"]) == ("applied", "bigram-table")


def test_the_library_is_listed_outside_of_a_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = json.loads(run("--json").stdout)
    assert {row["id"] for row in rows} == IDEAS.keys()
    assert {row["state"] for row in rows} == {None}
    assert "arxiv.org/abs/2601.07372" in run("show", "bigram-table").stdout


def test_apply_changes_train_py_alone_and_once(workspace):
    done = run("apply", "backout")
    assert done.exit_code == 0, done.output
    assert (workspace / "train.py").read_text() == applied(["backout"])
    assert harness.git(workspace, "status", "--porcelain").split() == ["M", "train.py"]
    assert "BACKOUT_LAMBDA = 0.2" in done.stdout
    assert 'run -m "backout"' in done.stdout
    again = run("apply", "backout")
    assert (again.exit_code, "already" in again.stdout) == (0, True)
    assert (workspace / "train.py").read_text() == applied(["backout"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apply", "smaer"], "no idea 'smaer'. Did you mean smear?"),
        (["show", "smaer"], "Did you mean smear?"),
        (["apply", "swiglu"], "is a warning"),
        (["smear"], "ideas show smear"),
        (["--json", "show", "smear"], "--json goes with"),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(workspace, words, message):
    done = run(*words)
    assert isinstance(done.exception, SystemExit)
    assert message in done.stderr
    assert done.stdout == ""
    assert harness.git(workspace, "status", "--porcelain") == ""
