"""Runs jobs on the machines of a Ray cluster.

Only the coordinator writes git and the journal. `executor` turns its jobs into tasks for the
machines that `placement` chooses, and `archive` packs their folders. `cluster` hands the tasks to
`driver`, a process of its own, since Ray ends a driver that loses its head. `machine` carries them
out there.
"""
