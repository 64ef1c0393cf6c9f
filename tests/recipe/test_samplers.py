"""The recipe's samplers are those that can be drawn with."""

from __future__ import annotations

from typing import get_args

from lorasmith.generate.samplers import SAMPLERS
from lorasmith.recipe.schema import Sampler


def test_the_recipe_knows_every_sampler() -> None:
    assert set(get_args(Sampler)) == set(SAMPLERS)
