"""Neural art: its loss against NumPy, and that it can be optimised."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmeta as jm

RNG = np.random.default_rng(0)
CONTENTS = RNG.random((3, 6, 5, 3), np.float32)
STYLES = RNG.random((2, 8, 8, 3), np.float32)
KERNEL = RNG.normal(size=(3, 4)).astype(np.float32)


def _features(images):
    first = jnp.tanh(images @ jnp.asarray(KERNEL))
    return {"first": first, "second": first[:, ::2] ** 2}


def _problem(**options):
    layers = {"content_layers": ["second"], "style_layers": ["first", "second"]}
    return jm.problems.neural_art(_features, CONTENTS, STYLES, **layers | options)


def _by_hand(image, content, style, alpha, beta, gamma):
    def maps(x):
        first = np.tanh(x.astype(np.float64) @ KERNEL)
        return {"first": first, "second": first[::2] ** 2}

    def gram(x):
        n = x.shape[0] * x.shape[1]
        return np.einsum("hwi,hwj->ij", x, x) / n

    ours, of_content, of_style = map(maps, (image, content, style))
    over = lambda a, b: np.sum((a - b) ** 2) / np.sum(b**2)
    total = alpha * over(ours["second"], of_content["second"])
    pairs = [(gram(ours[k]), gram(of_style[k])) for k in ("first", "second")]
    total += beta * np.mean([over(*pair) for pair in pairs])
    steps = [np.diff(image.astype(np.float64), axis=axis) ** 2 for axis in (0, 1)]
    return total + gamma * sum(x.sum() for x in steps) / image.size


def test_the_loss_is_that_by_hand(key):
    weights = {"content_weight": 0.7, "style_weight": 3.0, "variation_weight": 0.2}
    problem = _problem(**weights)
    instance = jax.jit(problem.sample)(key)
    image = problem.init(key, instance)
    (i,) = [k for k in range(3) if (instance.content == CONTENTS[k]).all()]
    expected = [
        _by_hand(np.asarray(image), CONTENTS[i], style, *weights.values())
        for style in STYLES
    ]
    found = problem.loss(image, instance, key)
    assert min(abs(found - x) / x for x in expected) < 1e-5
    assert problem.full_loss(image, instance) == found
    assert problem.loss(image, instance, jax.random.key(9)) == found


def test_runs_draw_all_pictures(key):
    problem = _problem()
    instances = jax.vmap(problem.sample)(jax.random.split(key, 60))
    for found, count in ((instances.content, 3), (instances.grams["first"], 2)):
        assert len(np.unique(np.asarray(found).reshape(60, -1), axis=0)) == count


def test_starts(key):
    problem = _problem(start="content")
    instance = problem.sample(key)
    image = problem.init(key, instance)
    chex.assert_trees_all_equal(image, instance.content)
    alone = _problem(start="content", style_weight=0.0, variation_weight=0.0)
    assert alone.loss(image, instance, key) == 0
    noise = _problem().init(key, instance)
    assert abs(noise.mean() - 0.5) < 0.05
    assert 0.05 < noise.std() < 0.15


def test_pictures_of_bytes_are_those_of_numbers(key):
    pixels = np.round(255 * CONTENTS).astype(np.uint8)
    of_bytes, of_floats = (
        jm.problems.neural_art(
            _features, x, x[:1], content_layers=["first"], style_layers=["first"]
        )
        for x in (pixels, pixels.astype(np.float32) / 255)
    )
    found = [problem.sample(key) for problem in (of_bytes, of_floats)]
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)


def test_an_optimizer_makes_art(key):
    problem = _problem()
    curves = jm.training.evaluate_optimizer(
        jm.optimizers.learned_rate(optax.adam),
        0.05,
        problem,
        num_steps=100,
        num_problems=2,
        key=key,
    )
    assert (curves.per_problem[:, -1] < 0.6 * curves.per_problem[:, 0]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content_layers": ["third"]}, "`content_layers` must be some of what"),
        ({"style_layers": []}, "`style_layers` must be some of what"),
        ({"style_weight": -1.0}, "`style_weight` must be at least 0"),
        ({"variation_weight": float("nan")}, "`variation_weight` must be at least 0"),
        ({"start": "zeros"}, "`start` must be"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        _problem(**changes)


@pytest.mark.parametrize("shape", [(6, 5, 3), (2, 6, 5, 1), (0, 6, 5, 3)])
def test_bad_pictures_are_named(shape):
    for contents, styles, name in (
        (np.ones(shape), STYLES, "contents"),
        (CONTENTS, np.ones(shape), "styles"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            jm.problems.neural_art(_features, contents, styles)
