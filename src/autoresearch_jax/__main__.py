"""`python -m autoresearch_jax` is `autoresearch-jax`."""

import contextlib
import os
import sys

if __name__ == "__main__":
    # Python looks for modules in the current folder first. Nothing may be imported from there, and
    # what is in `sys.path` is shown to trainings.
    with contextlib.suppress(FileNotFoundError):  # the folder was removed, and is not in the path
        if not sys.flags.safe_path and sys.path[0] == os.getcwd():  # noqa: PTH109
            del sys.path[0]
    from autoresearch_jax.cli.main import main

    main(prog_name="autoresearch-jax")
