"""Images with the content of one picture in the style of another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from jaxmeta import _checks, _pytrees, base
from jaxmeta.problems import _classification


class NeuralArt(NamedTuple):
    """What one image is to look like."""

    content: jax.Array  # [H, W, 3], the picture
    maps: dict[str, jax.Array]  # of the content, [1, h, w, C]
    grams: dict[str, jax.Array]  # of the style, [C, C]


def neural_art(
    features: Callable[[jax.Array], Mapping[str, jax.Array]],
    contents: ArrayLike,
    styles: ArrayLike,
    *,
    content_layers: Sequence[str] = ("conv3_3",),
    style_layers: Sequence[str] = ("conv1_2", "conv2_2", "conv3_3"),
    content_weight: float = 1.0,
    style_weight: float = 3.0,
    variation_weight: float = 10.0,
    start: Literal["noise", "content"] = "noise",
) -> base.OptimizationProblem:
    r"""Finds an image with a picture's content and another's style.

    With the maps F of the image, P of the content picture and A of the style at a
    layer, and Gram matrices :math:`G(F)_{ij} = \overline{F_i F_j}` over positions,

    .. math::
      L = \alpha \overline{\left(\frac{|F - P|^2}{|P|^2}\right)}
        + \beta \overline{\left(\frac{|G(F) - G(A)|^2}{|G(A)|^2}\right)}
        + \gamma \overline{|\nabla x|^2}

    averaged over layers; the last term is the mean squared difference of neighbours.

    Args:
      features: `(images [N, H, W, 3] in [0, 1]) -> {layer: maps [N, h, w, C]}`, such
        as `models.vgg16_features`.
      contents: pictures [n, H, W, 3] in [0, 1], or uint8. A run draws one.
      styles: pictures [m, H', W', 3]; their size may be another. A run draws one.
      content_layers: names of layers. Static.
      style_layers: names of layers. Static.
      content_weight: alpha.
      style_weight: beta.
      variation_weight: gamma.
      start: the image that optimization starts from: "noise", normal around grey with
        deviation 0.1, or "content", the picture. Static.

    Returns:
      An `OptimizationProblem` whose parameters are the image, [H, W, 3], and whose
      instances are `NeuralArt`. Its loss has no minibatch: it ignores its key.

    Raises:
      ValueError: if pictures are not [n, H, W, 3], a weight is negative, a layer is
        missing, or `start` is unknown.

    Differs from the paper:
      Gatys et al. sum squares; here each term is over its target's size, so that
      weights of about 1 suit any network, layer and resolution (the variation of an
      image in [0, 1] is some 0.01).

    References:
      Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
      NeurIPS 2016, Section 3.3. https://arxiv.org/abs/1606.04474
      Gatys, Ecker, Bethge, "A neural algorithm of artistic style", 2015, equations 1
      to 7. https://arxiv.org/abs/1508.06576

    Example:
      >>> import jax, jax.numpy as jnp
      >>> pixels = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
      >>> problem = neural_art(lambda x: {"own": x}, pixels, pixels[:1],
      ...                      content_layers=["own"], style_layers=["own"])
      >>> instance = problem.sample(jax.random.key(1))
      >>> image = problem.init(jax.random.key(2), instance)
      >>> image.shape
      (8, 8, 3)
    """
    contents = _pictures("contents", contents)
    styles = _pictures("styles", styles)
    _checks.check_choice("start", start, ("noise", "content"))
    weights = {
        "content_weight": content_weight,
        "style_weight": style_weight,
        "variation_weight": variation_weight,
    }
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {weight}.")
    found = jax.eval_shape(features, contents[:1])
    for name, layers in (
        ("content_layers", content_layers),
        ("style_layers", style_layers),
    ):
        if not layers or set(layers) - set(found):
            raise ValueError(
                f"`{name}` must be some of what `features` returns, {sorted(found)}, "
                f"got {list(layers)}."
            )

    def sample(data, key):
        features, contents, styles = data
        content, style = (
            x[jax.random.randint(k, (), 0, len(x))]
            for k, x in zip(jax.random.split(key), (contents, styles), strict=True)
        )
        of_content, of_style = features(content[None]), features(style[None])
        return NeuralArt(
            content,
            {name: of_content[name] for name in content_layers},
            {name: _gram(of_style[name]) for name in style_layers},
        )

    def init(key, instance):
        shape, dtype = instance.content.shape, instance.content.dtype
        if start == "content":
            return instance.content
        return 0.5 + 0.1 * jax.random.normal(key, shape, dtype)

    def full_loss(features, image, instance):
        maps = features(image[None])
        grams = {name: _gram(maps[name]) for name in style_layers}
        return (
            content_weight * _distance(maps, instance.maps)
            + style_weight * _distance(grams, instance.grams)
            + variation_weight * _variation(image)
        )

    def loss(features, image, instance, key):
        del key
        return full_loss(features, image, instance)

    features = _pytrees.as_partial(features)
    return base.OptimizationProblem(
        Partial(sample, (features, contents, styles)),
        init,
        Partial(loss, features),
        Partial(full_loss, features),
    )


def _pictures(name, pictures):
    pictures = jnp.asarray(np.asarray(pictures))
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.size:
        raise ValueError(f"`{name}` must be [n, H, W, 3], got shape {pictures.shape}.")
    pictures = _classification.to_float(pictures)
    return pictures.astype(jnp.result_type(float, pictures))


def _gram(maps):
    """Products of channels, their mean over positions: [1, h, w, C] to [C, C]."""
    x = maps.reshape(-1, maps.shape[-1])
    return x.T @ x / len(x)


def _distance(found, targets):
    """The mean over layers of squared distances over the targets' squares."""
    ratios = [
        jnp.sum((found[name] - x) ** 2) / jnp.maximum(jnp.sum(x**2), 1e-12)
        for name, x in targets.items()
    ]
    return sum(ratios) / len(ratios)


def _variation(image):
    rows, columns = jnp.diff(image, axis=0), jnp.diff(image, axis=1)
    return (jnp.sum(rows**2) + jnp.sum(columns**2)) / image.size
