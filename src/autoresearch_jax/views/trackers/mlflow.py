"""Runs of MLflow: in an SQLite file by default, on $MLFLOW_TRACKING_URI if that is set."""

import logging
import os
import re
import shlex
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from autoresearch_jax.views.trackers.logged import PROJECT, UNDECIDED, Logged

ID = "autoresearch.id"  # the tag that finds a run again: MLflow chooses its own ids
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else it shows traces of agents
NAME = re.compile(r"[^\w./: -]+")  # what a name must not have, such as in BETAS[0]
MOST_METRICS, MOST_PARAMS = 1000, 100  # in a request


class MLflow:
    """Writes runs to an MLflow experiment for each tag."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self._folder = folder
        self._artifacts = None if given else (folder / "artifacts").as_uri()
        self._known: dict[str, tuple[str, dict[str, str]]] = {}  # by tag: experiment, runs by ID
        self.target = given or f"sqlite:///{folder / 'mlflow.db'}"
        self.look = f"mlflow ui --backend-store-uri {shlex.quote(self.target)}"
        if given:
            self.look = "the server of MLFLOW_TRACKING_URI"

    def write(self, run: Logged) -> None:
        from mlflow.entities import Metric, Param, RunTag

        client, (experiment, known) = self._client, self._experiment(run.tag)
        if run.id not in known:
            begun = client.create_run(experiment, _ms(run.started), {ID: run.id}, run.name)
            known[run.id] = begun.info.run_id
        name = known[run.id]
        data = client.get_run(name).data
        rows = [(key, x, row) for row in run.rows for key, x in row.values.items()]
        there = {
            (key, one.step)
            for key in {key for key, _, _ in rows if key in data.metrics}
            for one in client.get_metric_history(name, key)
        }
        # Of several values for a step, the latest counts.
        metrics = [
            Metric(key, x, _ms(time.time()), run.at)
            for key, x in run.numbers.items()
            if data.metrics.get(key) != x
        ]
        metrics += [
            Metric(key, x, _ms(row.time), row.step)
            for key, x, row in rows
            if (key, row.step) not in there
        ]
        # What a parameter is cannot be changed.
        constants = {NAME.sub(".", key).strip("."): x for key, x in run.constants.items()}
        params = [Param(key, str(x)) for key, x in constants.items() if key not in data.params]
        words = {"mlflow.runName": run.name, "mlflow.note.content": run.description}
        tags = {"status": run.status, **run.facts, **words}
        for at in range(0, len(metrics), MOST_METRICS):
            client.log_batch(name, metrics=metrics[at : at + MOST_METRICS])
        for at in range(0, len(params), MOST_PARAMS):
            client.log_batch(name, params=params[at : at + MOST_PARAMS])
        client.log_batch(name, tags=[RunTag(key, text) for key, text in tags.items()])
        if run.diff:
            client.log_text(name, run.diff, "train.diff")
        if run.status != UNDECIDED:
            ended = "FAILED" if run.status == "crash" else "FINISHED"
            client.set_terminated(name, ended, _ms(run.finished or run.started))

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient  # takes seconds

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._folder.mkdir(parents=True, exist_ok=True)
        return MlflowClient(self.target)

    def _experiment(self, tag: str) -> tuple[str, dict[str, str]]:
        """Return the id of a tag's experiment, and the ids of the runs that it has."""
        if tag not in self._known:
            name = f"{PROJECT}/{tag}"
            found = self._client.get_experiment_by_name(name)
            if found is None:
                made = self._client.create_experiment(name, self._artifacts, KIND)
                self._known[tag] = (made, {})
            else:
                self._known[tag] = (found.experiment_id, self._runs(found.experiment_id))
        return self._known[tag]

    def _runs(self, experiment: str) -> dict[str, str]:
        found: dict[str, str] = {}
        token, first = None, True
        while first or token:
            page = self._client.search_runs([experiment], page_token=token)
            found |= {one.data.tags.get(ID, ""): one.info.run_id for one in page}
            token, first = page.token, False
        return found


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
