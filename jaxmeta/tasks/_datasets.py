"""Labelled images on the host, sorted by class: the raw material of few-shot tasks.

Letters: C classes, E examples per class, H height, W width.
"""

import importlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmeta import _images


class ImageClasses(NamedTuple):
    """Images, or other examples, sorted by class, on the host.

    Attributes:
      images: [C, E, H, W, channels] uint8; or examples of any other kind, [C, E, ...].
      num_examples: [C] int32; a class's examples beyond these are zeros.
      names: C names, such as "Greek/character03".
    """

    images: np.ndarray
    num_examples: np.ndarray
    names: tuple[str, ...]

    def take_classes(self, classes: Sequence[int] | np.ndarray) -> "ImageClasses":
        """Keeps only these classes, in the given order, e.g. to hold out a test set.

        Raises:
          ValueError: if a class is unknown or repeated, or none are given.

        Example:
          >>> data = image_classes(np.zeros((5, 20, 28, 28), np.uint8))
          >>> train, test = data.take_classes(range(3)), data.take_classes([3, 4])
          >>> train.names, test.names
          (('0', '1', '2'), ('3', '4'))
        """
        chosen = [int(c) for c in classes]
        count = len(self.images)
        known = set(range(count))
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= known:
            raise ValueError(
                f"`classes` must be some of 0 to {count - 1}, each once, got {chosen}."
            )
        return ImageClasses(
            self.images[chosen],
            self.num_examples[chosen],
            tuple(self.names[c] for c in chosen),
        )


class Splits(NamedTuple):
    """Classes for meta-training, validation and testing."""

    train: ImageClasses
    validation: ImageClasses
    test: ImageClasses


def image_classes(
    images: np.ndarray, names: Sequence[str] | None = None
) -> ImageClasses:
    """Wraps an array of images, or other examples, that is already sorted by class.

    Args:
      images: [C, E, H, W] or [C, E, H, W, channels] uint8; or any other array
        [C, E, ...] that `jaxmeta.tasks.few_shot` takes, e.g. features [C, E, D].
      names: C class names; default "0", "1", ...

    Returns:
      The classes, each with E examples.

    Raises:
      ValueError: if `images` are not numbers [C, E, ...] or are empty, or `names` has
        the wrong length.

    Example:
      >>> classes = image_classes(np.zeros((3, 20, 28, 28), np.uint8))
      >>> classes.images.shape
      (3, 20, 28, 28, 1)
      >>> classes.num_examples
      array([20, 20, 20], dtype=int32)
      >>> classes.names
      ('0', '1', '2')
    """
    images = np.asarray(images)
    check_examples("images", images)
    if images.dtype == np.uint8 and images.ndim == 4:
        images = images[..., None]
    num_classes, num_examples = images.shape[:2]
    names = tuple(map(str, range(num_classes) if names is None else names))
    if len(names) != num_classes:
        raise ValueError(
            f"`names` must name each of the {num_classes} classes, got {len(names)}."
        )
    return ImageClasses(
        images=images,
        num_examples=np.full(num_classes, num_examples, np.int32),
        names=names,
    )


def check_examples(name: str, examples: Any, hint: str = "") -> None:
    """Raises unless `examples` are numbers [C, E, ...] and not empty."""
    shape, dtype = getattr(examples, "shape", ()), getattr(examples, "dtype", None)
    is_numbers = dtype is not None and (
        jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_
    )
    if len(shape) < 3 or not is_numbers:
        got = type(examples) if dtype is None else f"shape {shape} and dtype {dtype}"
        raise ValueError(
            f"`{name}` must be numbers [classes, examples, ...]: uint8 images, floats "
            f"or integers with at least three axes, got {got}. {hint}".rstrip()
        )
    if 0 in shape:
        raise ValueError(f"`{name}` must not be empty, got shape {shape}.")


def load_folder(
    root: str | os.PathLike[str],
    *,
    size: int = 28,
    channels: int = 1,
    invert: bool | None = None,
) -> ImageClasses:
    """Loads a folder of images: each sub-folder is a class.

    The layout is `root/class/image.png`; the files may be PNG, JPEG, BMP or GIF.
    Classes and their images are sorted by name. Hidden files and folders, and files of
    other types, are ignored.

    Args:
      root: the folder that holds the classes.
      size: H = W; see `load_image` for how images are resized.
      channels: 1 for grey, 3 for RGB.
      invert: whether to replace each value v by 255 - v. None inverts grey images
        on a light background (a mean above 127 over all images), so that ink is
        high and paper is low, and leaves colour images alone. Set True or False if
        folders are loaded separately but must be treated alike.

    Returns:
      The classes; those with fewer images than the largest are zero-padded.

    Raises:
      FileNotFoundError: if there is no folder `root`.
      ValueError: if `root` has no sub-folders, one of them has no image, or an
        image cannot be read.

    Example:
      >>> load_folder("~/doodles", size=28).names  # doctest: +SKIP
      ('cat', 'house', 'sun')
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    folders = [folder for folder in _visible(root) if folder.is_dir()]
    if not folders:
        raise ValueError(
            f"{root} has no sub-folders; each class requires its own, as in "
            f"{root / 'cat' / '1.png'}."
        )
    stacks = [_load_class(folder, size, channels) for folder in folders]
    if invert is None:
        total = sum(stack.sum(dtype=np.int64) for stack in stacks)
        invert = channels == 1 and total > 127 * sum(stack.size for stack in stacks)
    if invert:
        stacks = [255 - stack for stack in stacks]
    return _pad(stacks, tuple(folder.name for folder in folders))


def load_image(
    path: str | os.PathLike[str], *, size: int, channels: int, max_pixels: int = 2**26
) -> np.ndarray:
    """Loads one image, resized to a square by averaging over areas.

    Values are as in the file, never inverted, whereas `few_shot` scales to [0, 1] and
    `load_folder` inverts drawings on light paper: to predict, use `image[None] / 255`
    or `(255 - image)[None] / 255`.

    A non-square image is resized to a square, a transparent one is composited on white,
    EXIF orientation is applied, and the first frame of an animation is used.

    Args:
      path: a file that Pillow can read.
      size: H = W, in pixels.
      channels: 1 for grey, 3 for RGB.
      max_pixels: of the file; a small file may unpack to very many.

    Returns:
      [H, W, channels] uint8.

    Raises:
      FileNotFoundError: if there is no file `path`.
      ValueError: if the file is not an image, is damaged or has more than `max_pixels`,
        or `size` or `channels` is out of range.

    Example:
      >>> load_image("cat.png", size=28, channels=1).shape  # doctest: +SKIP
      (28, 28, 1)
    """
    if size < 1:
        raise ValueError(f"`size` must be a positive number of pixels, got {size}.")
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), got {channels}.")
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    pil = import_extra("PIL.Image")
    try:
        with pil.open(path) as file:
            if file.width * file.height > max_pixels:
                raise ValueError(
                    f"{file.width} x {file.height} pixels are more than `max_pixels`, "
                    f"{max_pixels:,}"
                )
            image = _flatten(file).convert("RGB" if channels == 3 else "L")
    # Pillow's decoders raise OSError, SyntaxError, struct.error and others.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not an image; replace or remove it ({error})."
        ) from error
    image = image.resize((size, size), pil.Resampling.BOX)
    return np.asarray(image).reshape(size, size, channels)


def take_classes(classes: ImageClasses, indices: np.ndarray) -> ImageClasses:
    """Returns the classes at `indices` [S] int, in that order."""
    return ImageClasses(
        images=classes.images[indices],
        num_examples=classes.num_examples[indices],
        names=tuple(classes.names[index] for index in indices),
    )


def import_extra(module: str) -> Any:
    """Imports a module that the extra `data` installs.

    Args:
      module: full name, such as "PIL.Image".

    Returns:
      The module.

    Raises:
      ImportError: if it is missing, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Reading data requires {module!r} ({error}). Install the extra `data`: in "
            "a clone, pip install '.[data]'."
        ) from error


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _load_class(folder: pathlib.Path, size: int, channels: int) -> np.ndarray:
    paths = _images.image_paths(folder)
    if not paths:
        raise ValueError(
            f"The class {folder} has no images ({', '.join(_images.IMAGE_SUFFIXES)}); "
            "add some or remove the folder."
        )
    return np.stack([load_image(path, size=size, channels=channels) for path in paths])


def _flatten(image: Any) -> Any:
    """Applies the orientation of a PIL image, composites it on white, in 8 bits."""
    pil = import_extra("PIL.Image")
    image = import_extra("PIL.ImageOps").exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit values at 255.
        return pil.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # Ink is often black on transparent black: dropping the alpha channel would
        # make it invisible.
        image = image.convert("RGBA")
        return pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image


def check_padding(names: Sequence[str], num_examples: Sequence[int], shape: Any):
    """Raises ValueError if padding classes to the largest takes far more than they.

    Args:
      names: of the classes.
      num_examples: of each class.
      shape: of an example, in bytes.
    """
    size = math.prod(shape)
    largest = int(np.argmax(num_examples))
    padded = len(num_examples) * num_examples[largest] * size
    own = sum(num_examples) * size
    if padded > max(2**32, 4 * own):
        raise ValueError(
            f"The class {names[largest]!r} has {num_examples[largest]:,} images, the "
            f"median class {int(np.median(num_examples)):,}. Padded to the largest, "
            f"all {len(num_examples):,} take {padded / 2**30:.1f} GiB, their images "
            f"alone {own / 2**30:.1f}. Keep fewer images of it."
        )


def _pad(stacks: list[np.ndarray], names: tuple[str, ...]) -> ImageClasses:
    num_examples = np.array([len(stack) for stack in stacks], np.int32)
    check_padding(names, num_examples.tolist(), stacks[0].shape[1:])
    shape = (len(stacks), num_examples.max(), *stacks[0].shape[1:])
    images = np.zeros(shape, np.uint8)
    for padded, stack in zip(images, stacks, strict=True):
        padded[: len(stack)] = stack
    return ImageClasses(images=images, num_examples=num_examples, names=names)
