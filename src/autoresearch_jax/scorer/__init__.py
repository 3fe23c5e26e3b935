"""The score that decides, computed by a process of its own that runs nothing of the agent's.

`__main__` is the process, `model` reads what a training left, `probes` asks it for leaks. The
harness's side is `autoresearch_jax.jobs.scoring`.
"""
