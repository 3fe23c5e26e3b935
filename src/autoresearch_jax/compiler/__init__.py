"""What a training step costs on a device, found by compiling it: memory, FLOPs, bytes.

`python -m autoresearch_jax.compiler SPEC` imports the `train.py` of its working folder, compiles
its `abstract_step` for a device that need not be there, and answers in a file. It runs an agent's
code, so it runs in a sandbox, and its answer is advice to the harness: a step that is said to fit
and does not costs the agent its own experiment.
"""
