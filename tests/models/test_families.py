"""Every family of the campaign once, with one seed."""

import random

import pytest

from campaigns.architectures import FAMILIES
from campaigns.families import family_trial


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_replacing_promoting_and_harvesting(family, tmp_path):
    assert family_trial(family, random.Random(f"1 {family}"), tmp_path) is None
