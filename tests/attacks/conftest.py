"""Fixtures of the attacks: the ground, made once and copied for each group of them."""

import pytest

from tests.attacks import lab


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Ground with a measured baseline. Only read and copy it."""
    return lab.shared_ground(tmp_path_factory)


@pytest.fixture(scope="module")
def attack(template, tmp_path_factory, nightly):
    """Run attacks, name -> train.py, in one loop on a copy of the ground.

    By day it runs only those named in `by_day`, because each costs seconds.
    """

    def attack(attacks, by_day=None, **options):
        if by_day is not None and not nightly:
            attacks = {name: attacks[name] for name in by_day}
        ground = template.copy(tmp_path_factory.mktemp("attack") / "ground")
        return lab.Group(ground, attacks, **options)

    return attack
