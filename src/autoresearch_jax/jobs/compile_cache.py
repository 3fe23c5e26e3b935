"""The compile cache of a worker's trainings."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from autoresearch_jax.common import files


@dataclass(frozen=True)
class CompileCache:
    """Each training starts with a copy of what the baseline compiled.

    What other trainings add is dropped: an entry of an agent's making can hold anything, and what
    a later training is recorded with would depend on it.
    """

    folder: Path  # of the training that runs
    trusted: Path  # what the baseline compiled; the workers of a tag share it

    def prepare(self) -> None:
        """Makes the folder for the next training."""
        files.remove(self.folder)
        if self.trusted.is_dir():
            shutil.copytree(self.trusted, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def trust(self) -> None:
        """Keeps what the last training compiled, the baseline's, for all later ones."""
        if self.folder.is_dir():  # else a loop that was killed has moved it already
            files.remove(self.trusted)
            self.folder.rename(self.trusted)
