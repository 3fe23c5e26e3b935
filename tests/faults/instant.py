"""Trainings that take no time: they leave what real ones leave.

The one place that knows what `trainer.train` leaves and returns, and where it is called. It is
scored as the harness's tests score: `harness.written_score`.
"""

import json
import random
import re
import time
from pathlib import Path

from autoresearch_jax.common import protocol
from autoresearch_jax.jobs import training
from autoresearch_jax.jobs.local import SEED
from autoresearch_jax.jobs.training import TrainResult


def train(folder: Path, *, log: Path, artifacts: Path, env: dict[str, str], **_) -> TrainResult:
    """Believes the SCORE in a train.py (tests/harness.py), which it does not run.

    Of other seeds than the first it differs, by up to 0.016.
    """
    found = re.search(r"^SCORE = ([0-9.]+)$", (folder / "train.py").read_text(), re.MULTILINE)
    summary = {"peak_vram_mb": 2048.0}
    log.write_text(f"trained {folder}\n")
    (artifacts / protocol.EXPORTED).touch()
    (artifacts / protocol.STOPPED).touch()
    luck = 0.002 * ((7 * int(env["AUTORESEARCH_SEED"])) % 11 - (7 * SEED) % 11)
    (artifacts / "score").write_text(f"{float(found[1]) + luck:.6f}")
    (artifacts / protocol.SUMMARY).write_text(json.dumps(summary))
    return TrainResult("ok", "", summary | {"wall_seconds": 0.0}, log)


def overlap() -> None:
    """From now on some trainings take longer than others, and two numbers lower the score."""
    train_at_once = training.train

    def train(folder: Path, *, artifacts: Path, **options) -> TrainResult:
        text = (folder / "train.py").read_text()
        time.sleep(random.Random(text).choice((0.02, 0.4)))
        result = train_at_once(folder, artifacts=artifacts, **options)
        numbers = re.findall(r"(?m)^(?:FIRST|SECOND) = ([-0-9.]+)$", text)
        score = float((artifacts / "score").read_text()) - sum(map(float, numbers))
        (artifacts / "score").write_text(f"{score:.6f}")
        return result

    training.train = train


def install(wrap=lambda function: function) -> None:
    """Puts `train` in the place of the real one; `wrap` goes around it."""
    training.train = wrap(train)
