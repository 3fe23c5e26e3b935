"""Trainings that take no time: they write the artifacts of real ones.

The one place that knows what `training.train` leaves and returns, and where it is called. It is
scored as the harness's tests score: `harness.written_score`.
"""

import json
import random
import re
import time

from autoresearch_jax.common import protocol
from autoresearch_jax.jobs import training
from autoresearch_jax.jobs.job import SEED, TrainJob, TrainResult


def train(job: TrainJob, *_, **__) -> TrainResult:
    """Use the SCORE in a train.py (tests/harness.py) without running the file.

    Of other seeds than the first it differs, by up to 0.016.
    """
    found = re.search(r"^SCORE = ([0-9.]+)$", (job.folder / "train.py").read_text(), re.MULTILINE)
    summary = {"peak_vram_mb": 2048.0}
    job.log.write_text(f"trained {job.folder}\n")
    (job.artifacts / protocol.STOPPED).touch()
    luck = 0.002 * ((7 * job.seed) % 11 - (7 * SEED) % 11)
    (job.artifacts / protocol.EXPORTED).write_text(f"{float(found[1]) + luck:.6f}")
    (job.artifacts / protocol.SUMMARY).write_text(json.dumps(summary))
    return TrainResult("ok", "", summary | {"wall_seconds": 0.0}, job.log)


def overlap() -> None:
    """From now on, some trainings take longer than others, and four numbers lower the score."""
    train_at_once = training.train

    def train(job: TrainJob, *arguments, **options) -> TrainResult:
        text = (job.folder / "train.py").read_text()
        found = re.findall(r"(?m)^(?:FIRST|SECOND|THIRD|FOURTH) = ([-0-9.]+)$", text)
        numbers = [*map(float, found)]
        # While the first is carried over to another one, the others arrive, and go together.
        two = sum(map(bool, numbers)) == 2
        time.sleep(0.8 if two else random.Random(text).choice((0.02, 0.3)))
        result = train_at_once(job, *arguments, **options)
        score = float((job.artifacts / protocol.EXPORTED).read_text()) - sum(numbers)
        (job.artifacts / protocol.EXPORTED).write_text(f"{score:.6f}")
        return result

    training.train = train


def install(wrap=lambda function: function) -> None:
    """Replace the real training by `train`, wrapped by `wrap`."""
    training.train = wrap(train)
