"""How long a training may take for what its budget does not pay: the table in docs/trust.md.

uv run bench/free_time.py [--budget 300] [--saving 2]
"""

import click

from autoresearch_jax.jobs.job import Limits


@click.command()
@click.option("--budget", default=300.0, show_default=True, help="Seconds of training.")
@click.option("--saving", default=2.0, show_default=True, help="Seconds, of the baseline.")
def main(budget: float, saving: float) -> None:
    for startup in (10.0, 40.0, 120.0):
        took = {
            "startup_seconds": startup,
            "training_seconds": budget,
            "checkpoint_seconds": saving,
        }
        limits = Limits.after(took, budget)
        cells = (
            limits.free_startup_s,
            limits.startup_s,
            limits.free_startup_s - startup,
            limits.free_checkpoint_s,
            limits.checkpoint_s,
            limits.overrun(budget),
        )
        print(f"| {startup:.0f} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
