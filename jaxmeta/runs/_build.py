"""Builds recipes of any kind."""

from jaxmeta import recipes
from jaxmeta.runs import _learner_parts, _optimizer_parts, _parts


def build(recipe: recipes.Training) -> _parts.Parts:
    """Builds a recipe; raises ValueError for invalid settings."""
    if isinstance(recipe, recipes.OptimizerRecipe):
        return _optimizer_parts.build(recipe)
    assert isinstance(recipe, recipes.Recipe)
    return _learner_parts.build(recipe)
