"""Runs jobs on the machines of a Ray cluster.

Only the coordinator writes to git and the journal. `executor` turns its jobs into tasks for the
machines that `placement` chooses, and `transfer` sends their files. `cluster` sends the tasks to
`driver`, a separate process, and `machine` runs them there.
"""
