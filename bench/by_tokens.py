"""Train the train.py of a workspace on a number of tokens, whatever time that takes, and score it.

    uv run bench/by_tokens.py WORKSPACE --tokens 262144 --seed 0 --seed 1

Runs the file's own main() with a clock that counts tokens: schedules follow the tokens seen, and
training ends at their number, so the speed and the load of the machine do not change a score. The
seed also decides the order of the training rows. A parameter starts from random numbers of its name
and the seed, so that two files agree in the parameters that both have. Everything else is the
file's and prepare.py's, and the score is prepare.py's, on the whole validation split.

Prints a line of JSON for each seed; the step is compiled once for all of them. Needs prepared data.
"""

import contextlib
import gc
import importlib
import io
import json
import math
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from flax.core import scope


class Tokens:
    """The tokens that a training has taken; what the file takes for the time since its start."""

    def __init__(self):
        self.taken = 0

    def count(self, batches):
        for batch in batches:
            self.taken += batch.shape[0] * (batch.shape[1] - 1)
            yield batch


class Session:
    """In place of prepare.Session: has a budget in tokens, and keeps what the file would save."""

    def __init__(self, logits_fn, budget):
        self.logits_fn, self.budget_s = logits_fn, budget

    def finish(self, params, stats):
        self.params, self.stats = params, stats


class Costly(Exception):
    """The step of a file takes more FLOPs a token than it may."""


class Trainer:
    """The modules of a workspace, changed so that trainings go by tokens."""

    def __init__(self, workspace, budget):
        os.chdir(workspace)
        sys.path.insert(0, str(workspace))
        import prepare
        from autoresearch_jax import kit
        from autoresearch_jax.data import manifest

        self.prepare: Any = prepare
        self.budget, self.most_flops = budget, math.inf
        data = manifest.load(Path(workspace), splits=("train", "val"))
        self.rows, self.held_out = (prepare.read_rows(data, name) for name in ("train", "val"))
        self.bytes = np.load(data.token_bytes_path)
        self.make_loader = prepare.make_loader
        kit.compile_step = self.compile_step
        kit.same_on_all_processes = lambda _: (self.tokens.taken,)
        prepare.begin = self.begin
        prepare.make_loader = lambda *given, **named: self.tokens.count(
            self.make_loader(*given, **named)
        )
        by_name(scope.Scope)
        self.load()

    def load(self):
        """Take the train.py of the workspace as it is now."""
        sys.modules.pop("train", None)
        sys.dont_write_bytecode = True  # which may be that of another file of the same second
        jax.clear_caches()
        train: Any = importlib.import_module("train")
        train.TIME_BUDGET = self.budget
        self.train = train
        self.compiled = self.evaluator = None

    def compile_step(self, jitted_step, arguments):
        from autoresearch_jax.compiler import cost, flops

        if self.compiled is None:
            traced = jitted_step.trace(*arguments)
            rows, length = arguments[2].shape
            if flops.products(traced.jaxpr) > self.most_flops * rows * (length - 1):
                raise Costly
            self.compiled = traced.lower().compile()
            self.cost = cost.of(self.compiled, traced.jaxpr)
        return self.compiled

    def begin(self, logits_fn, params):
        self.session = Session(logits_fn, self.budget)
        return self.session

    def run(self, seed):
        """Return the score of a training, its number of steps, and what a token costs."""
        self.tokens, prepare = Tokens(), self.prepare
        rows = np.random.default_rng(seed).permutation(self.rows)
        prepare.read_rows = lambda *_: rows
        prepare.seed = lambda: seed
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                self.train.main()
        except SystemExit as error:  # its loss has exploded
            return {"seed": seed, "failed": str(error)}
        finally:
            gc.enable()  # main() has disabled it
            gc.unfreeze()
        if self.evaluator is None:
            size = prepare.rows_per_device()
            self.evaluator = prepare.Evaluator(self.session.logits_fn, self.session.params, size)
        self.evaluator.load(self.session.params)
        nats_NT, _ = self.evaluator(self.held_out[:, :-1], self.held_out[:, 1:])
        step_tokens = self.tokens.taken / self.session.stats["num_steps"]
        return {
            "seed": seed,
            "val_bpb": prepare.mean_bits(nats_NT, self.held_out[:, 1:], self.bytes),
            "tokens": self.tokens.taken,
            "steps": self.session.stats["num_steps"],
            "params": self.session.stats["num_params"],
            "flops_per_token": self.cost.flops / step_tokens,
            "bytes_per_token": self.cost.bytes / step_tokens,
        }


def by_name(scope_type):
    """Make flax draw a parameter's first values by its name, and not by its place among others."""
    original = scope_type.param

    def param(self, name, *given, **named):
        self.rng_counters["params"] = zlib.crc32(name.encode()) >> 1
        return original(self, name, *given, **named)

    scope_type.param = param


@click.command(help=__doc__.partition("\n")[0])
@click.argument("workspace", type=click.Path(exists=True, file_okay=False, resolve_path=True))
@click.option("--tokens", type=click.IntRange(min=1), required=True)
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, required=True)
def main(workspace, tokens, seeds):
    trainer = Trainer(workspace, tokens)
    for seed in seeds:
        print(json.dumps(trainer.run(seed)), flush=True)


if __name__ == "__main__":
    main()
