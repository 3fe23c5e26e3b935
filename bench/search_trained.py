"""The built-in searches on real trainings of a small model: equal tokens, and the same seeds.

    uv run bench/search_trained.py --resume FILE [--seeds 4] [--count 25] [--json]

Each run begins with the train.py that bench/ideas.py begins with, and trains every file on the same
tokens (bench/by_tokens.py). All trials of a run have its seed: the order of the text, the first
parameters, and the dice of the search. A file may take twice the FLOPs a token of the first one;
what takes more is refused before it is trained, up to three times in a row. The best files after
ten trials and at the end are trained again with seeds that no search has seen, the same for all;
these scores are compared, run by run, by 95% t intervals. FILE keeps a line for each training, so
an interrupted comparison goes on. Every core trains for one run at a time.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import by_tokens, ideas
from bench.search import searched
from bench.searchers import METHODS
from bench.surrogate import Outcome

TOKENS = 2**16
FRESH = 1000  # the first of the seeds that no search has seen
MOST_FLOPS = 2.0  # a token, of those of the first file
FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # a core for each run


class Trained:
    """A landscape that trains; in place of surrogate.Landscape."""

    def __init__(self, root, results):
        self.root, self.seed = root, 0
        self.made = ideas.Trainings(root, results, TOKENS, 0)
        self.first = self.made.base
        self.trainer = by_tokens.Trainer(root, TOKENS)
        first = self.of(self.first, 0)
        self.trainer.most_flops = MOST_FLOPS * first["flops_per_token"]

    def of(self, source, seed):
        """Train a file, unless that is in the results file; return its row."""
        key = self.made.key(source)
        found = self.made.found[key]
        if seed not in found:
            (self.root / "train.py").write_text(source)
            found[seed] = {"key": key, "seed": seed} | self._train(seed)
            with self.made.results.open("a") as file:  # a line at once: other runs write, too
                file.write(json.dumps(found[seed]) + "\n")
        return found[seed]

    def _train(self, seed):
        try:
            self.trainer.load()
            return self.trainer.run(seed)
        except by_tokens.Costly:
            return {"costly": True}
        except Exception as error:  # whatever an untried train.py raises
            return {"failed": f"{type(error).__name__}: {error}"[:200]}

    def fits(self, source):
        return "costly" not in self.of(source, self.seed)

    def train(self, source):
        score = self.of(source, self.seed).get("val_bpb")
        return Outcome(score, score, "" if score is not None else "code")

    def score(self, source, seeds):
        """Return the mean score of a file over fresh seeds, without those whose loss exploded."""
        rows = [self.of(source, FRESH + n) for n in range(seeds)]
        return statistics.fmean(row["val_bpb"] for row in rows if "val_bpb" in row)


@functools.cache
def landscape(results):
    """Return the landscape of this process."""
    folder = Path(tempfile.mkdtemp())  # for as long as the process runs
    return Trained(ideas.workspace(folder / "w", None), results)


def run(results, method, seed, count, fresh):
    """Return what one method found with one seed."""
    there = landscape(results)
    there.seed = seed
    trainer = searched(there, seed, there.first, METHODS[method](), count, True, False)
    found = trainer.simulation
    return {
        "method": method,
        "seed": seed,
        "first": there.score(there.first, fresh),
        "scores": {mark: there.score(trainer.bests[mark - 1], fresh) for mark in marks(count)},
        "measured": {mark: found.measured[mark - 1] for mark in marks(count)},
        "kept": [e.description for e in trainer.history if e.status == "keep"][1:],
        "crashes": found.crashes.total(),
        "refused": found.refused,
        "flops": there.of(trainer.bests[-1], FRESH)["flops_per_token"],
    }


def marks(count):
    return sorted({min(10, count), count})


def compared(runs, methods, count):
    """Return a row for each method: its scores, and by how much they differ from the others'."""
    of = {(one["method"], one["seed"]): one for one in runs}
    seeds = sorted({seed for _, seed in of})
    rows = []
    for method in methods:
        mine = [of[method, seed] for seed in seeds]
        row = {"method": method, "kept": {one["seed"]: one["kept"] for one in mine}}
        row |= {name: sum(one[name] for one in mine) for name in ("crashes", "refused")}
        for mark in marks(count):
            for kind in ("scores", "measured"):
                row[f"{kind}_at_{mark}"] = statistics.fmean(one[kind][mark] for one in mine)
            for other in methods:
                pairs = [(one, of[other, one["seed"]]) for one in mine]
                gains = [one["scores"][mark] - them["scores"][mark] for one, them in pairs]
                if other != method and len(gains) > 1:
                    row[f"at_{mark}_minus_{other}"] = ideas.interval(gains)
        rows.append(row)
    return rows


def table(rows, first, count):
    """Return the rows in Markdown, each beside its difference from the others below the first."""
    others = [row["method"] for row in rows[1:]]
    pairs = [(mark, other) for mark in marks(count) for other in others]
    head = ["", *(f"after {mark}" for mark in marks(count))]
    head += [f"after {mark}, minus `{other}`" for mark, other in pairs]
    head += ["crashes", "refused"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| the first file | {first:.4f}" + " |" * (len(head) - 1)]
    for row in rows:
        found = [row.get(f"at_{mark}_minus_{other}") for mark, other in pairs]
        cells = [
            f"`{row['method']}`",
            *(f"{row[f'scores_at_{mark}']:.4f}" for mark in marks(count)),
        ]
        cells += ["" if one is None else ideas.signed(*one) for one in found]
        cells += [str(row["crashes"]), str(row["refused"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__.partition("\n")[0])
@click.option("--resume", "results", type=click.Path(path_type=Path), required=True, metavar="FILE")
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True)
@click.option("--seeds", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--count", type=click.IntRange(min=1), default=25, show_default=True)
@click.option("--fresh", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(results, methods, seeds, count, fresh, as_json):
    methods = methods or ("search", "tpe", "steps")
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}  # before a process imports JAX
    context = multiprocessing.get_context("spawn")
    runs = []
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        jobs = [
            pool.submit(run, results.resolve(), method, seed, count, fresh)
            for seed in range(seeds)
            for method in methods
        ]
        for job in concurrent.futures.as_completed(jobs):
            runs.append(job.result())
            click.echo(json.dumps(runs[-1]), err=True)
    rows = compared(runs, methods, count)
    if as_json:
        click.echo(json.dumps({"first": runs[0]["first"], "methods": rows}))
    else:
        click.echo(table(rows, runs[0]["first"], count))


if __name__ == "__main__":
    main()
