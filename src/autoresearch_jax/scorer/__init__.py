"""The score that decides, computed by a process of its own that runs nothing of the agent's.

`__main__` is the process, `model` reads what a training left, `probes` asks it for leaks. The
harness's side is `autoresearch_jax.scoring`.
"""

REFUSED, BROKEN = 3, 4  # exit codes: what was left breaks a rule; the data or machine is at fault
GO = b"go\n"  # to one that was started ahead: the training has ended
