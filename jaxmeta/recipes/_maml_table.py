"""The recipes of MAML."""

import dataclasses

from jaxmeta.recipes._config import Recipe
from jaxmeta.recipes._learner_settings import MamlLearner
from jaxmeta.recipes._task_settings import (
    Conv4Model,
    GlyphTasks,
    MlpModel,
    OmniglotTasks,
    SinusoidTasks,
)

OMNIGLOT_PROTOCOL = (
    "1,200 random training characters (100 of them for validation), 423 for test, "
    "rotations as classes in training and at test; as many queries as shots; "
    "{test_tasks:,} test tasks; transductive batch norm, the inductive number beside "
    "it. "
)

_maml_glyphs = Recipe(
    summary="MAML on invented characters: no download, a minute or two on two cores",
    published="",
    protocol="new characters in every task; {test_tasks:,} test tasks; "
    "{tasks.test_queries} queries a class; transductive batch norm, the inductive "
    "number beside it",
    tasks=GlyphTasks(),
    model=Conv4Model(filters=32),
    learner=MamlLearner(inner_learning_rate=0.4, inner_steps=1, test_inner_steps=3),
    num_tasks=16,
    outer_learning_rate=3e-3,
    cosine=True,
    steps=1500,
    log_every=25,
    validate_every=250,
    validation_tasks=100,
)

_maml_sinusoid = Recipe(
    summary="MAML on sinusoids, the paper's setting",
    published="squared error 0.67 / 0.38 / 0.35 after 1 / 5 / 10 steps, 5 test shots "
    "(Finn et al. 2017, Table 2)",
    protocol="trained with {tasks.shots} shots and one inner step as the paper, "
    "tested with {tasks.test_shots}; {test_tasks:,} test tasks of "
    "{tasks.test_queries} query points. Ours: outer rate {outer_learning_rate:g} "
    "instead of 0.001, and the checkpoint with the lowest loss after "
    "{learner.test_inner_steps} inner steps on {validation_tasks:,} validation tasks: "
    "of the others, most diverge on a task in some thousands",
    tasks=SinusoidTasks(),
    model=MlpModel(),
    learner=MamlLearner(inner_learning_rate=0.01, inner_steps=1, test_inner_steps=10),
    num_tasks=25,
    outer_learning_rate=6e-3,
    steps=70_000,
    log_every=500,
    validate_every=2500,
    validation_tasks=10_000,
    test_tasks=2000,
)

_maml_omniglot_5w1s = Recipe(
    summary="MAML on Omniglot, 5-way 1-shot, Conv4",
    published="98.7 ± 0.4 % (Finn et al. 2017, Table 1, 60,000 meta-steps)",
    protocol=OMNIGLOT_PROTOCOL
    + "Ours: {steps:,} meta-steps, outer rate {outer_learning_rate:g} along a cosine "
    "instead of 0.001.",
    tasks=OmniglotTasks(),
    model=Conv4Model(),
    learner=MamlLearner(inner_learning_rate=0.4, inner_steps=1, test_inner_steps=3),
    num_tasks=32,
    outer_learning_rate=3e-3,
    cosine=True,
    steps=10_000,
)

RECIPES = {
    "maml-glyphs-5w1s": _maml_glyphs,
    "maml-sinusoid": _maml_sinusoid,
    "fomaml-sinusoid": dataclasses.replace(
        _maml_sinusoid,
        summary="First-order MAML on sinusoids",
        published="none in the paper; compare maml-sinusoid",
        learner=dataclasses.replace(_maml_sinusoid.learner, first_order=True),
    ),
    "maml-omniglot-5w1s": _maml_omniglot_5w1s,
    "maml-omniglot-20w1s": dataclasses.replace(
        _maml_omniglot_5w1s,
        summary="MAML on Omniglot, 20-way 1-shot, Conv4",
        published="95.8 ± 0.3 % (Finn et al. 2017, Table 1, 60,000 meta-steps)",
        tasks=OmniglotTasks(ways=20),
        num_tasks=16,
        protocol=OMNIGLOT_PROTOCOL + "Ours: {steps:,} meta-steps of one inner step at "
        "{learner.inner_learning_rate:g} where the paper takes five at 0.1 (a quarter "
        "of the time a meta-step), {learner.test_inner_steps} at test; outer rate "
        "{outer_learning_rate:g} along a cosine.",
        steps=8000,
        validation_tasks=100,
    ),
    "fomaml-omniglot-5w1s": dataclasses.replace(
        _maml_omniglot_5w1s,
        summary="First-order MAML on Omniglot, 5-way 1-shot, Conv4",
        published="98.3 ± 0.5 % (Nichol et al. 2018, Table 2)",
        learner=dataclasses.replace(_maml_omniglot_5w1s.learner, first_order=True),
    ),
    "maml-mlp-omniglot-5w1s": dataclasses.replace(
        _maml_omniglot_5w1s,
        summary="MAML on Omniglot, 5-way 1-shot, without convolutions",
        published="89.7 ± 1.1 % (Finn et al. 2017, Table 1, 60,000 meta-steps)",
        model=MlpModel(hidden=(256, 128, 64, 64), norm="batch"),
        protocol=OMNIGLOT_PROTOCOL
        + "Ours: {steps:,} meta-steps, outer rate {outer_learning_rate:g} along a "
        "cosine instead of 0.001.",
        tasks_per_chunk=4,
        steps=30_000,
    ),
}
