"""Text sampled from a trained model, in a process of its own that runs none of the agent's code.

`__main__` is the process, and `autoresearch_jax.commands.sample` is the harness's side. No score
depends on it, so `scoring.code_sha256` does not cover it.
"""
