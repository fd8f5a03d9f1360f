"""The recipes of policies."""

from jaxmeta.recipes._config import Recipe
from jaxmeta.recipes._policy_settings import NavigationTasks, PolicyMamlLearner
from jaxmeta.recipes._settings import MlpModel

RECIPES = {
    "maml-navigation": Recipe(
        summary="MAML of a policy that walks to unseen goals in the plane",
        published="average return -40.41 / -11.68 / -3.33 / -3.23 after 0 / 1 / 2 / 3 "
        "updates (Finn et al. 2017, Table 4)",
        protocol="the released code's environment: goals uniform in [-0.5, 0.5]^2, "
        "reward minus the distance, 100 time steps; 20 episodes before and after one "
        "inner step at rate 0.5, 20 tasks a meta-step; tested with 40 episodes an "
        "update, later updates at 0.25. Ours: 64-64 units, PPO with low-variance "
        "curvature (ProMP) instead of TRPO; 400 test goals",
        tasks=NavigationTasks(),
        model=MlpModel(hidden=(64, 64)),
        learner=PolicyMamlLearner(),
        num_tasks=20,
        outer_learning_rate=3e-3,
        steps=400,
        log_every=5,
        validate_every=50,
        validation_tasks=40,
        test_tasks=400,
    ),
}
