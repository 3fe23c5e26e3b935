"""The deciding score, computed in a process of its own that runs none of the agent's code.

`__main__` is the process, `model` reads the files of a training, and `probes` tests the model for
leaks. The harness's side is `autoresearch_jax.jobs.scoring`.
"""
