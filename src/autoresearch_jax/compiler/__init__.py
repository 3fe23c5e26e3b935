"""Compiles a training step for a device, to find its memory, FLOPs and bytes.

`python -m autoresearch_jax.compiler SPEC` runs an agent's code, so it runs in a sandbox, and its
answer is advice to the harness: a wrong one costs the agent its own experiment.
"""
