"""The named recipes: learner x tasks x settings x published number."""

from jaxmeta.recipes import (
    _learner_table,
    _maml_table,
    _metric_table,
    _optimizer_table,
    _policy_table,
)
from jaxmeta.recipes._config import OptimizerRecipe, Recipe

DEFAULT = "maml-glyphs-5w1s"

RECIPES: dict[str, Recipe | OptimizerRecipe] = {
    **_maml_table.RECIPES,
    **_learner_table.RECIPES,
    **_metric_table.RECIPES,
    **_policy_table.RECIPES,
    **_optimizer_table.RECIPES,
}
