"""Build the documentation as a site: `uv run --group docs docs/build.py` writes build/site.

The pages are the Markdown files of the repository and keep their places in it, so a link works on
GitHub and on the site as it is written. A link to any other file leads to a page that shows the
file. The reference is made from the code: from the options of the commands and the fields of
`LoopConfig`. Broken links and anchors end the build, and so does a page that loads anything from
another host.
"""

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click

from autoresearch_jax.cli.main import SECTIONS, main
from autoresearch_jax.loop.config import SETTINGS, LoopConfig

TOP = Path(__file__).parents[1]
PROGRAM = "autoresearch-jax"
PAGES = TOP / "build" / "pages"
SITE = TOP / "build" / "site"
MARKDOWN = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench/README.md", "docs/*.md")
PICTURES = ("docs/*.png", "docs/*.svg")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
BADGE = re.compile(r"^\[!\[.*\]\(\.\./\.\./actions/.*\n", re.MULTILINE)  # only GitHub has it
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".j2": "jinja"}


# --------------------------------------------------------------------------------------- pages


def collect() -> None:
    """Write all pages into an empty `PAGES`."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = {path for pattern in MARKDOWN for path in TOP.glob(pattern)}
    pictures = {path for pattern in PICTURES for path in TOP.glob(pattern)}
    for page in sorted(pages):

        def target(link: re.Match[str], page: Path = page) -> str:
            file = (page.parent / link[1]).resolve()
            if file in pages | pictures or not file.is_file():  # what is missing ends the build
                return link[1]
            write(f"{file.relative_to(TOP)}.md", shown(file))
            return f"{link[1]}.md"

        text = BADGE.sub("", page.read_text())
        write(str(page.relative_to(TOP)), LINK.sub(target, text))
    for picture in pictures:
        shutil.copy(picture, PAGES / picture.relative_to(TOP))
    write("reference/commands.md", commands())
    write("reference/settings.md", settings())


def write(name: str, text: str) -> None:
    (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / name).write_text(text)


def shown(file: Path) -> str:
    """Return a page that shows a file, a notebook by its cells."""
    text = file.read_text()
    heading = f"# {file.relative_to(TOP)}\n\n"
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        parts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        return heading + "\n\n".join(
            fenced(source, "python") if kind == "code" else re.sub("^# ", "## ", source)
            for kind, source in parts
        )
    return heading + fenced(text, LANGUAGES.get(file.suffix, "text"))


def fenced(text: str, language: str = "text") -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


# ----------------------------------------------------------------------------------- reference


def commands() -> str:
    """Return the reference of commands, in the order of `autoresearch-jax --help`."""
    parts = [
        "# Commands and options\n\nMade from the code: `autoresearch-jax COMMAND --help` prints "
        "the same. [The command line](../docs/cli.md) has exit codes and environment variables.\n",
        described(main, PROGRAM),
    ]
    for section, listed in SECTIONS.items():
        parts.append(f"## {section}\n")
        for command in listed:
            parts += [f"### {command.name}\n", described(command, f"{PROGRAM} {command.name}")]
            for name, inner in getattr(command, "commands", {}).items():
                words = f"{command.name} {name}"
                parts += [f"#### {words}\n", described(inner, f"{PROGRAM} {words}")]
    return "\n".join(parts)


def options(command: click.Command) -> list[click.Parameter]:
    """Return what a command takes, except --help, also what it makes of the settings."""
    helping = click.Context(command).help_option_names
    return [
        one
        for one in command.get_params(click.Context(command))
        if not set(one.opts) & set(helping)
    ]


def described(command: click.Command, words: str) -> str:
    """Return the usage, the help and the options of a command."""
    context = click.Context(command, info_name=words)
    usage = f"{words} {' '.join(command.collect_usage_pieces(context))}"
    rows = [record for one in options(command) if (record := one.get_help_record(context))]
    table = ["| option | meaning |", "|---|---|"] if rows else []
    for flags, text in rows:
        table.append(f"| {' <br> '.join(map(code, flags.split(', ')))} | {cell(text)} |")
    return "\n".join([fenced(usage), *paragraphs(command.help or ""), *table, ""])


def paragraphs(text: str) -> Iterator[str]:
    r"""Yield the paragraphs of a help text, those after `\b` as they are."""
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b\n"):
            title, _, example = part[2:].partition("\n")
            yield f"{escaped(title)}\n"
            yield fenced(inspect.cleandoc(example), "sh")
        else:
            yield f"{escaped(' '.join(part.split()))}\n"


def settings() -> str:
    """Return the reference of settings: the fields of `LoopConfig`."""
    flags = {
        one.name: " ".join(map(code, [*one.opts, *one.secondary_opts]))
        for one in options(main.commands["loop"])
    }
    parts = [
        "# Settings\n\nMade from the code. `program.md` may set those of the first table, as "
        "[the guide](../docs/program-md-guide.md#settings) explains; a flag of `loop` overrides it."
        "\n\n## In program.md\n"
    ]
    head = "| setting | flag | meaning |\n|---|---|---|"
    parts += [head, *(setting(name, flags) for name in SETTINGS), "\n## As a flag only\n", head]
    parts += [setting(name, flags) for name in LoopConfig.model_fields if name not in SETTINGS]
    return "\n".join([*parts, ""])


def setting(name: str, flags: dict[str, str]) -> str:
    meaning = LoopConfig.model_fields[name].description or ""
    return f"| `{name}` | {flags.get(name, 'none')} | {cell(meaning)} |"


def code(text: str) -> str:
    return f"`{text}`"


def cell(text: str) -> str:
    return escaped(" ".join(text.split())).replace("|", "\\|")


def escaped(text: str) -> str:
    """Return plain text as Markdown."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", text)


# ---------------------------------------------------------------------------------------- build


class Loaded(HTMLParser):
    """The addresses of what a page loads by itself, without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [given[name] or "" for name in ("src", "srcset", "poster") if name in given]
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")
        self.found += re.findall(r"url\(([^)]*)\)", given.get("style") or "")


def loaded_from_elsewhere(html: str) -> list[str]:
    """Return the addresses of other hosts from which a page loads something."""
    parser = Loaded()
    parser.feed(html)
    return [address for address in parser.found if re.match(r"(https?:)?//", address)]


def build() -> None:
    """Write the site. Raises SystemExit if anything is wrong with it."""
    collect()
    program = Path(sys.executable).with_name("zensical")
    done = subprocess.run([program, "build", "--clean", "--strict"], cwd=TOP, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    for page in SITE.rglob("*.html"):
        if found := loaded_from_elsewhere(page.read_text()):
            raise SystemExit(f"{page.relative_to(SITE)} loads {', '.join(found)}")


if __name__ == "__main__":
    build()
