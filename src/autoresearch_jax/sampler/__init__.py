"""Text from what a training left, by a process of its own that runs nothing of the agent's.

`__main__` is the process. The harness's side is `autoresearch_jax.commands.sample`. No score rests
on it, so `scoring.code_sha256` does not cover it.
"""
