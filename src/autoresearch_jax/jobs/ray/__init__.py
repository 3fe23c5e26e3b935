"""Trainings on the machines of a Ray cluster.

Only the coordinator writes git and the journal. `driver`, a process of its own, talks to Ray, which
ends a driver that loses its head; `machine` is what runs on the cluster's machines; `runner` has
the interface of the runner that trains here, and `parcel` is how folders travel.
"""
