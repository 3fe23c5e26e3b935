"""Links, commands, settings and tests that the documents name exist."""

import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import click
import yaml

from autoresearch_jax.cli.main import main
from autoresearch_jax.common import front_matter, paths
from autoresearch_jax.loop import config
from docs import build

ROOT = paths.template()
SKILL = ROOT / "skills" / "autoresearch-jax" / "SKILL.md"
GUIDE = ROOT / "docs" / "program-md-guide.md"
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "program.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "bench").glob("*.md"),
        *(ROOT / "skills").glob("**/*.md"),
    ]
)
TEXTS = {path.relative_to(ROOT): path.read_text() for path in DOCUMENTS}
FENCE = re.compile(r"^(```+)[^`\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
ELSEWHERE = r"[a-z]+:|\.\./\.\./actions/"  # on GitHub the latter is the page of a workflow
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def code(text):
    """Return the lines of code blocks and the code spans of the prose."""
    blocks = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    return blocks + [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]


def anchors(text):
    """Return the anchors that GitHub generates from the headings of a document."""
    found = []
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


# --------------------------------------------------------------------------------- links


def broken(name, target):
    """Return what does not exist of a link in the document `name`, or an empty string."""
    file, _, anchor = target.partition("#")
    there = (ROOT / name.parent / file).resolve() if file else ROOT / name
    if not there.exists() or not there.is_relative_to(ROOT):
        return f"{name}: no file {file}"
    if anchor and anchor not in anchors(there.read_text()):
        return f"{name}: no heading #{anchor} in {there.name}"
    return ""


def test_links_point_to_existing_files_and_headings():
    links = [
        (name, "".join(found))
        for name, text in TEXTS.items()
        for found in re.findall(
            r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"", SPAN.sub("", FENCE.sub("", text))
        )
    ]
    local = [(name, target) for name, target in links if not re.match(ELSEWHERE, target)]
    assert len(local) > 50
    assert [problem for name, target in local if (problem := broken(name, target))] == []


def test_the_badges_say_what_is_true():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    versions = [one.removeprefix(prefix) for one in project["classifiers"] if prefix in one]
    for name, text in (("license", project["license"]), ("python", " | ".join(versions))):
        badge = (ROOT / "docs" / f"badge-{name}.svg").read_text()
        assert f"<title>{name}: {text}</title>" in badge
        assert f">{text}</text>" in badge
    workflow = ROOT / ".github" / "workflows" / "checks.yml"
    assert workflow.is_file()
    assert f"(../../actions/workflows/{workflow.name}/badge.svg)" in TEXTS[Path("README.md")]


def test_anchors_follow_githubs_rules():
    text = "# Good and bad\n## `run -m`, by hand?\n# Good and bad\n```\n# no heading\n```\n"
    assert anchors(text) == ["good-and-bad", "run--m-by-hand", "good-and-bad-1"]


# ------------------------------------------------------------------------------ commands


def commands_in(line):
    """Yield the words after each `autoresearch-jax` in a line of code."""
    for match in re.finditer(r"(?:^|\s)autoresearch-jax\s+([^|;&)]*)", line):
        try:
            yield shlex.split(match[1], comments=True)
        except ValueError:  # an unbalanced quotation mark
            yield match[1].rstrip(" \"'").split()


def unknown(words):
    """Return what does not exist among the words of a command, or an empty string."""
    words = [word for word in words if word not in ("--help", "-h")]
    if words[:1] == ["-C"]:
        words = words[2:]
    if not words or words[0] == "COMMAND":
        return ""
    if words[0] == "--version":
        return ""
    command = main.commands.get(words[0])
    if command is None:
        return f"no command {words[0]}"
    known = {
        flag
        for parameter in command.get_params(click.Context(command))
        if isinstance(parameter, click.Option)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    flags = [word.partition("=")[0] for word in words[1:] if re.match("--?[a-z]", word)]
    return ", ".join(f"{words[0]} has no {flag}" for flag in flags if flag not in known)


def test_commands_and_flags_exist():
    found = [
        (name, words)
        for name, text in TEXTS.items()
        for line in code(text)
        for words in commands_in(line)
    ]
    assert len(found) > 50
    assert [(name, problem) for name, words in found if (problem := unknown(words))] == []


def test_an_unknown_command_or_flag_is_reported():
    (words,) = commands_in("uv run --extra tpu autoresearch-jax loop --agent 'a -b' --x=1  # --y")
    assert unknown(words) == "loop has no --x"
    assert unknown(["sing"]) == "no command sing"
    assert unknown(["-C", "DIR", "run", "-m", "x"]) == ""


# ------------------------------------------------------------------------------ settings


def rows_of_settings():
    text = GUIDE.read_text()
    table = text[text.index("| setting |") :].split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.split("\n")[2:]]


def test_the_guide_lists_exactly_the_settings():
    names = [row[0].strip("` ") for row in rows_of_settings()]
    assert names == [*config.SETTINGS]


def test_the_flags_of_settings_exist():
    flags = [row[3].strip("` |") for row in rows_of_settings()]
    assert [flag for flag in flags if flag != "none" and unknown(["loop", flag])] == []


def test_settings_in_examples_are_valid():
    shown = 0
    for text in TEXTS.values():
        for _, block in FENCE.findall(text):
            if block.startswith("---\n") and not block.startswith("---\ntitle:"):  # of an idea
                assert config.from_program(block) != config.LoopConfig()
                shown += 1
            elif re.match("(search|agents):\n", block):
                assert config.from_program(f"---\n{block}---\n") != config.LoopConfig()
                shown += 1
    assert shown >= 4


def test_program_md_shows_every_setting_and_sets_none():
    text = (ROOT / "program.md").read_text()
    assert config.from_program(text) == config.LoopConfig()
    front = front_matter.split(text)[0]
    live = re.sub(r"^#(?=[a-z_]+:)", "", front, flags=re.MULTILINE)
    assert set(yaml.safe_load(live)) == {*config.SETTINGS}
    assert config.from_program(f"---\n{live}---\n") != config.LoopConfig()


# ---------------------------------------------------------------------------------- site


def pages_of(nav):
    """Yield the pages of the navigation of zensical.toml."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_site_shows_every_page_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    pages = {path.relative_to(ROOT) for pattern in build.MARKDOWN for path in ROOT.glob(pattern)}
    made = ["reference/commands.md", "reference/settings.md"]
    assert sorted(pages_of(nav)) == sorted([*map(str, pages), *made])


def test_the_reference_has_every_command_option_and_setting():
    page = build.commands()
    for name, command in main.commands.items():
        if command.hidden:
            continue
        _, _, rest = page.partition(f"\n### {name}\n")
        part = rest.partition("\n### ")[0]
        options = [one for one in build.options(command) if isinstance(one, click.Option)]
        flags = {flag for one in options if not one.hidden for flag in one.opts}
        assert flags <= {*re.findall(r"(?<=[`/ ])--?[\w-]+", part)}, name
        assert part.count("\n```text\n") == 1 + len(getattr(command, "commands", {}))
    rows = re.findall(r"^\| `(\w+)` \| ", build.settings(), re.MULTILINE)
    assert sorted(rows) == sorted(config.LoopConfig.model_fields)


def test_a_page_that_loads_something_from_another_host_is_reported():
    html = """<a href="https://a.org">a</a><link rel="canonical" href="https://b.org">
        <img src="c.png"><script src="//d.org/d.js"></script><p style="background: url(http://e)">
        <link rel="stylesheet" href="https://f.org/f.css">"""
    assert build.loaded_from_elsewhere(html) == ["//d.org/d.js", "http://e", "https://f.org/f.css"]


def test_a_shown_file_may_hold_fences():
    assert build.fenced("a\n````\nb") == "`````text\na\n````\nb\n`````\n"


def test_no_code_in_a_table_has_an_escaped_bar():
    """GitHub needs the backslash there, and Python-Markdown, which makes the site, shows it."""
    found = re.compile(r"^\|.*`[^`|]*\\\|[^`|]*`", re.MULTILINE)
    assert [name for name, text in TEXTS.items() if found.search(FENCE.sub("", text))] == []


# --------------------------------------------------------------------------------- tests


@cache
def functions_by_file():
    """Return the names of the test functions of each test file, by the file's stem."""
    return {
        path.stem: set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE))
        for path in (ROOT / "tests").rglob("test_*.py")
    }


def test_named_tests_exist():
    """`FILE::TEST`, where FILE may omit the folder, `test_` and `.py`."""
    missing = []
    for document, text in TEXTS.items():
        for name, test in re.findall(r"([\w/.]+)::(test_\w+)", text):
            stem = name.rpartition("/")[2].removesuffix(".py").removeprefix("test_")
            if test not in functions_by_file().get(f"test_{stem}", ()):
                missing.append(f"{document}: {name}::{test}")
        for name in re.findall(r"\btests/[\w/]+\.py", text):
            if not (ROOT / name).is_file():
                missing.append(f"{document}: {name}")
    assert missing == []


def decorators_and_file(name, test):
    """Return the lines right above a test function, and the text of its file."""
    (path,) = (ROOT / "tests").rglob(f"test_{name.rpartition('/')[2]}.py")
    text = path.read_text()
    match = re.search(rf"((?:^[@ \])].*\n)*)^def {test}\(", text, re.MULTILINE)
    return match[1], text


def test_the_table_of_claims_names_the_tier_of_each_test():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| [^*].* \| (.*) \| (day|nightly) \|$", text, re.MULTILINE)
    assert len(rows) > 40
    for tests, tier in rows:
        for name, test in re.findall(r"`([\w/]+)::(test_\w+)`", tests):
            above, whole = decorators_and_file(name, test)
            nightly = re.search(r"^@pytest\.mark\.nightly$", above, re.MULTILINE) or re.search(
                r"^(pytestmark = |    )pytest\.mark\.nightly,?$", whole, re.MULTILINE
            )
            assert tier == ("nightly" if nightly else "day"), f"{name}::{test}"


# --------------------------------------------------------------------------------- skill


def test_the_skill_has_the_format_of_agent_skills():
    front, body = front_matter.split(SKILL.read_text())
    found = yaml.safe_load(front)
    assert set(found) <= {
        "name", "description", "license", "compatibility", "metadata", "allowed-tools",
    }  # fmt: skip
    assert found["name"] == SKILL.parent.name
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", found["name"])
    assert len(found["name"]) <= 64
    assert 0 < len(found["description"]) <= 1024
    assert 0 < len(found["compatibility"]) <= 500
    assert all(isinstance(value, str) for value in found.values())
    assert len(body.splitlines()) < 500


def test_the_skill_names_the_commands_that_it_needs():
    words = [words for line in code(SKILL.read_text()) for words in commands_in(line)]
    assert {"setup", "run", "loop", "results", "doctor"} <= {one[0] for one in words}
    assert any(one[:2] == ["run", "-m"] for one in words)
