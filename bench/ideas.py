"""The effect of each idea on the score of a small model: equal tokens, and paired seeds.

    uv run bench/ideas.py --resume FILE                  # each idea, and a table of the effects
    uv run bench/ideas.py --resume FILE --pairs          # the best ones two by two, too
    uv run bench/ideas.py --resume FILE --pairs --table  # from what FILE has, without training
    uv run bench/ideas.py --resume FILE --pairs --write  # and into bench/README.md and the ideas

Trains the shipped train.py, and that file with an idea as `ideas apply` puts it in, on the same
tokens with the same seeds (bench/by_tokens.py). An effect is the mean of the paired differences of
val_bpb, new minus old, with its 95% t interval. An idea that needs others is compared with the file
that has those. FILE keeps a line for each training, so an interrupted run goes on.

**Equal tokens are not equal time.** What a token costs, relative to the file without the idea, is
that of the compiled step: FLOPs of its products, and bytes to and from main memory. Not measured:
other sizes, longer trainings, rates that were tuned for the idea. One interval in 20 is wrong.
"""

import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import click
from scipy import stats

from autoresearch_jax.commands import setup
from autoresearch_jax.commands.presets import PRESETS
from autoresearch_jax.common import literals
from autoresearch_jax.common.console import QuietView
from autoresearch_jax.common.errors import UserError
from autoresearch_jax.data import manifest
from autoresearch_jax.ideas import fit, library

BENCH = Path(__file__).parent
# Of the preset demo, but deeper and narrower, with more and smaller steps: 128 of 1024 tokens.
SIZES = {"DEPTH": 4, "ASPECT_RATIO": 32, "HEAD_DIM": 32, "TOTAL_BATCH_SIZE": 2**10}
TOKENS = 2**17
BEGIN, END = "<!-- bench/ideas.py --write -->", "<!-- end of bench/ideas.py -->"
COSTS = ("flops_per_token", "bytes_per_token")
IDEAS = library.load()
NAMES = [name for name, idea in IDEAS.items() if idea.patch]


class Trainings:
    """The trainings of a results file, and a workspace to make more of them in."""

    def __init__(self, root, results, tokens, seeds):
        self.root, self.results, self.tokens, self.seeds = root, results, tokens, range(seeds)
        self.base = (root / "train.py").read_text()
        self.depth = literals.read(self.base)["DEPTH"].value
        frozen = [(root / name).read_bytes() for name in ("constants.py", "prepare.py")]
        data = manifest.load(root, splits=("train", "val"))
        self.same = b"".join([*frozen, f"{data.fingerprint} {tokens}".encode()])
        self.found = defaultdict(dict)  # by the hash of a file and its data, by seed
        for line in results.read_text().splitlines() if results.exists() else ():
            row = json.loads(line)
            self.found[row["key"]][row["seed"]] = row

    def source(self, names):
        """Return the train.py with these ideas and those that they need. Raises UserError."""
        source = self.base
        for name in [needed for one in names for needed in (*IDEAS[one].needs, one)]:
            source = fit.apply(IDEAS[name], source, IDEAS)
        return source

    def key(self, source):
        return hashlib.sha256(source.encode() + self.same).hexdigest()[:16]

    def of(self, names):
        """Return the trainings of the file with these ideas by seed, as far as they are made."""
        found = self.found[self.key(self.source(names))]
        return {seed: found[seed] for seed in self.seeds if seed in found}

    def make(self, names):
        """Make those that are missing, in one process."""
        source, have = self.source(names), self.of(names)
        missing = [f"--seed={seed}" for seed in self.seeds if seed not in have]
        if not missing:
            return
        click.echo(f"{' + '.join(names) or 'the shipped file'}: {len(missing)} trainings", err=True)
        (self.root / "train.py").write_text(source)
        command = [sys.executable, BENCH / "by_tokens.py", self.root, f"--tokens={self.tokens}"]
        with subprocess.Popen([*command, *missing], stdout=subprocess.PIPE, text=True) as training:
            for line in training.stdout:
                row = {"key": self.key(source), "ideas": list(names), **json.loads(line)}
                self.found[row["key"]][row["seed"]] = row
                with self.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        if training.returncode:
            click.echo(f"{' + '.join(names)} failed, see above; going on with the others", err=True)


def needs(*names):
    return list(dict.fromkeys(needed for name in names for needed in IDEAS[name].needs))


def interval(differences):
    """Return the mean and the half width of its 95% t interval; None of fewer than two."""
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), error * stats.t.ppf(0.975, len(differences) - 1)


def effects(new, old):
    """Return the difference of the scores of each seed that both have."""
    after, before = (
        {seed: row["val_bpb"] for seed, row in rows.items() if "val_bpb" in row}
        for rows in (new, old)
    )
    return {seed: after[seed] - before[seed] for seed in after if seed in before}


def summary(trainings, name):
    """Return the effect of an idea and its cost, as far as they are measured."""
    new, old = trainings.of([name]), trainings.of(needs(name))
    differences = effects(new, old)
    row = {"idea": name, "on": needs(name), "seeds": len(differences)}
    row |= {"failed": sum("failed" in one for one in new.values())}
    if found := interval(list(differences.values())):
        row |= {"effect": found[0], "half_width": found[1]}
        seed = next(iter(differences))
        row |= {cost: new[seed][cost] / old[seed][cost] for cost in COSTS}
    return row


def pair_summary(trainings, names):
    """Return the effect of two ideas together beside the sum of their own; None if not measured."""
    together = effects(trainings.of(names), trainings.of(needs(*names)))
    alone = [effects(trainings.of([name]), trainings.of(needs(name))) for name in names]
    seeds = [seed for seed in together if all(seed in one for one in alone)]
    sums = [sum(one[seed] for one in alone) for seed in seeds]
    found = interval([together[seed] for seed in seeds])
    if found is None:
        return None
    more = interval([together[seed] - both for seed, both in zip(seeds, sums, strict=True)])
    return {
        "ideas": list(names),
        "seeds": len(seeds),
        "effect": found[0],
        "half_width": found[1],
        "sum": statistics.fmean(sums),
        "beyond_sum": more[0],
        "beyond_sum_half_width": more[1],
    }


def pairs_of_best(trainings, rows, count):
    """Return each two of the best ideas that compose."""
    best = [row["idea"] for row in rows if "effect" in row][:count]
    return [pair for pair in itertools.combinations(best, 2) if composes(trainings, pair)]


def composes(trainings, pair):
    if set(pair) & set(needs(*pair)):  # one is measured on top of the other already
        return False
    try:
        return bool(trainings.source(pair))
    except UserError:
        return False


def signed(mean, half_width):
    return f"{mean:+.4f} ± {half_width:.4f}"


def known(row):
    """Return whether an effect differs from none, by its interval."""
    return abs(row["effect"]) > row["half_width"]


def in_words(row, depth):
    """Return what the file of an idea says under `measured`."""
    if row["failed"]:
        return f"its loss exploded in {row['failed']} trainings at depth {depth}"
    effect = f"{signed(row['effect'], row['half_width'])} bpb at depth {depth}"
    return effect if known(row) else f"not known ({effect})"


def base_in_words(trainings):
    """Return the score of the shipped file, and how it scatters."""
    rows = [row for row in trainings.of([]).values() if "val_bpb" in row]
    if len(rows) < 2:
        return "The shipped file is not measured."
    scores, one = [row["val_bpb"] for row in rows], rows[0]
    return (
        f"The shipped file at depth {trainings.depth}, with {one['params']:,} parameters, "
        f"{one['tokens']:,} tokens and {one['steps']} steps: {statistics.fmean(scores):.4f} bits "
        f"per byte, with a standard deviation of {statistics.stdev(scores):.4f} over the seeds."
    )


def tables(rows, pairs):
    """Return both tables in Markdown."""
    lines = ["| idea | effect, bits per byte | seeds | FLOPs a token | bytes a token |"]
    lines += ["|---|---|---|---|---|"]
    for row in rows:
        name = f"`{row['idea']}`" + "".join(f" on `{other}`" for other in row["on"])
        if "effect" not in row:
            state = f"failed {row['failed']} times" if row["failed"] else "not measured"
            lines.append(f"| {name} | {state} | {row['seeds']} | | |")
            continue
        effect = signed(row["effect"], row["half_width"]) + ("" if known(row) else ", not known")
        failed = f", {row['failed']} failed" if row["failed"] else ""
        costs = " | ".join(f"{100 * (row[cost] - 1):+.1f}%" for cost in COSTS)
        lines.append(f"| {name} | {effect} | {row['seeds']}{failed} | {costs} |")
    if pairs:
        lines += ["", "| ideas | sum of their effects | effect together | beyond the sum | seeds |"]
        lines += ["|---|---|---|---|---|"]
    for row in pairs:
        names = " + ".join(f"`{name}`" for name in row["ideas"])
        effect = signed(row["effect"], row["half_width"])
        beyond = signed(row["beyond_sum"], row["beyond_sum_half_width"])
        lines.append(f"| {names} | {row['sum']:+.4f} | {effect} | {beyond} | {row['seeds']} |")
    return "\n".join(lines)


def write_tables(path, text):
    """Put the tables between the two marks of a Markdown file."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise click.ClickException(f"{path} has no lines {BEGIN!r} and {END!r} around the tables")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def write_measured(path, text):
    """Write what was measured into the file of an idea, in place of what was there."""
    claim = re.compile(r"^(claim: .*\n(?:effect: .*\n)?)(measured: .*\n)?", re.MULTILINE)
    new = claim.sub(lambda found: f'{found[1]}measured: "{text}"\n', path.read_text(), count=1)
    path.write_text(new)


def workspace(folder, preset):
    """Make a workspace of the sizes to measure at, with its data."""
    if preset is None:
        os.environ["JAX_PLATFORMS"] = "cpu"
    root = setup.setup(folder, QuietView(), preset=preset or "demo", skip_data=True)
    command = [sys.executable, "prepare.py", "--source", "pydocs"]
    subprocess.run(command, cwd=root, stdout=sys.stderr, check=True)
    train = root / "train.py"
    train.write_text(literals.rewrite(train.read_text(), {} if preset else SIZES))
    return root


@click.command(help=__doc__.partition("\n")[0])
@click.option("--resume", "results", type=click.Path(path_type=Path), required=True, metavar="FILE")
@click.option("--idea", "chosen", multiple=True, type=click.Choice(NAMES), help="[default: all]")
@click.option("--seeds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=TOKENS, show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="For another size.")
@click.option("--pairs", is_flag=True, help="Also each two of the best.")
@click.option("--best", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("--table", is_flag=True, help="Train nothing: show what FILE has.")
@click.option("--write", is_flag=True, help="Also into bench/README.md and the shipped ideas.")
@click.option("--json", "as_json", is_flag=True)
def main(results, chosen, seeds, tokens, preset, pairs, best, table, write, as_json):
    if write and chosen:
        raise click.UsageError("--write is for all ideas: leave --idea out")
    names = chosen or NAMES
    with tempfile.TemporaryDirectory() as folder:
        trainings = Trainings(workspace(Path(folder, "w"), preset), results, tokens, seeds)
        for name in () if table else names:
            trainings.make(needs(name))
            trainings.make([name])
        rows = [summary(trainings, name) for name in names]
        rows.sort(key=lambda row: row.get("effect", float("inf")))
        together = pairs_of_best(trainings, rows, best) if pairs else []
        for pair in () if table else together:
            trainings.make(needs(*pair))
            trainings.make(pair)
        together = list(filter(None, (pair_summary(trainings, pair) for pair in together)))
    text = f"{base_in_words(trainings)}\n\n{tables(rows, together)}"
    if write:
        write_tables(BENCH / "README.md", text)
        for row in rows:
            if "effect" in row or row["failed"]:
                write_measured(IDEAS[row["idea"]].path, in_words(row, trainings.depth))
    if as_json:
        click.echo(json.dumps({"tokens": tokens, "ideas": rows, "pairs": together}))
    else:
        click.echo(text)


if __name__ == "__main__":
    main()
