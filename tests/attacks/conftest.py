"""Fixtures of the attacks: the ground, made once and copied for each group of them."""

import pytest

from tests.attacks import lab


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Ground that nobody may change."""
    return lab.make_ground(tmp_path_factory.mktemp("attacks") / "template")


@pytest.fixture(scope="module")
def attack(template, tmp_path_factory):
    """Runs attacks, name -> train.py, in one loop on a copy of the ground."""

    def attack(attacks, **options):
        ground = template.copy(tmp_path_factory.mktemp("attack") / "ground")
        return lab.Group(ground, attacks, **options)

    return attack
