"""`python -m autoresearch_jax` is `autoresearch-jax`."""

from autoresearch_jax.cli.main import main

if __name__ == "__main__":
    main(prog_name="autoresearch-jax")
