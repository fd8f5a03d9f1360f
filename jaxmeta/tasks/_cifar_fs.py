"""CIFAR-FS and FC100: few-shot splits of CIFAR-100, without TensorFlow."""

import collections
import io
import os
import pathlib
from typing import NamedTuple

import numpy as np

from jaxmeta.tasks import _cache, _datasets, _labelled_builder, _tfds

_EXAMPLES = 600

# Together these are the classes of CIFAR-100, and their superclasses.
_CIFAR_FS_TRAIN = """
    apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar
    chair clock cloud cockroach couch cup dinosaur dolphin elephant forest girl
    hamster house kangaroo keyboard lawn_mower lion lizard lobster mountain mouse
    mushroom oak_tree orange orchid palm_tree pear pine_tree plate porcupine possum
    rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel
    streetcar sunflower tank tiger train trout tulip turtle willow_tree wolf
"""
_CIFAR_FS_VALIDATION = """
    beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree
    motorcycle otter sea shark television tractor
"""
_CIFAR_FS_TEST = """
    baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose
    snail sweet_pepper table telephone wardrobe whale woman worm
"""
_FC100_TRAIN = """
    fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture large_man-made_outdoor_things large_natural_outdoor_scenes
    reptiles trees vehicles_1 vehicles_2
"""
_FC100_VALIDATION = """
    large_carnivores large_omnivores_and_herbivores non-insect_invertebrates
    small_mammals
"""
_FC100_TEST = """
    aquatic_mammals insects medium_mammals people
"""
CIFAR_FS = (_CIFAR_FS_TRAIN, _CIFAR_FS_VALIDATION, _CIFAR_FS_TEST)
FC100 = (_FC100_TRAIN, _FC100_VALIDATION, _FC100_TEST)


class _Photographs(NamedTuple):
    """All of CIFAR-100, sorted by name; C classes, E photographs per class."""

    images: np.ndarray  # [C, E, 32, 32, 3] uint8
    names: np.ndarray  # [C] str, such as "aquatic_mammals/whale"


def load_cifar_fs(data_dir: str | os.PathLike[str] | None = None) -> _datasets.Splits:
    """Loads CIFAR-FS: the 100 classes of CIFAR-100, split at random 64 / 16 / 20.

    Each class has all 600 photographs, including CIFAR-100's test examples. Classes
    are sorted by name, superclass first ("aquatic_mammals/whale"), so that
    `few_shot(..., within_groups=True)` draws tasks within a superclass. The examples of
    a class are in the record order of the prepared data set, the same everywhere.

    The first call downloads and prepares CIFAR-100 if `data_dir` does not have it, and
    decodes it; the decoded images are cached in `$XDG_CACHE_HOME/jaxmeta`
    (`~/.cache/jaxmeta`).

    Args:
      data_dir: tensorflow-datasets folder; default `$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.

    Returns:
      The splits; images are [C, 600, 32, 32, 3].

    Raises:
      ValueError: if the data set in `data_dir` is damaged or a different one.
      FileNotFoundError: if there is no data set and no network to download it.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> load_cifar_fs().train.images.shape  # doctest: +SKIP
      (64, 600, 32, 32, 3)

    References:
      Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable
      closed-form solvers", ICLR 2019. https://arxiv.org/abs/1805.08136
    """
    return _load(data_dir, CIFAR_FS, 1)


def load_fc100(data_dir: str | os.PathLike[str] | None = None) -> _datasets.Splits:
    """Loads FC100: CIFAR-100 split by superclass, 60 / 20 / 20 classes.

    Of the 20 superclasses of five classes, 12 are for training, 4 for validation and 4
    for testing, so test classes are less similar to training classes than in
    `load_cifar_fs`, which describes how they are sorted and cached.

    Args:
      data_dir: as in `load_cifar_fs`.

    Returns:
      The splits; images are [C, 600, 32, 32, 3].

    Raises:
      As `load_cifar_fs`.

    Example:
      >>> load_fc100().test.images.shape  # doctest: +SKIP
      (20, 600, 32, 32, 3)

    References:
      Oreshkin, Rodriguez, Lacoste, "TADAM: Task dependent adaptive metric for improved
      few-shot learning", NeurIPS 2018. https://arxiv.org/abs/1805.10123
    """
    return _load(data_dir, FC100, 0)


def _load(
    data_dir: str | os.PathLike[str] | None, split: tuple[str, ...], part: int
) -> _datasets.Splits:
    """Splits the classes by `part` of their names: 0 the superclass, 1 the class."""
    folder = _labelled_builder.prepare_cifar100(data_dir)
    name = f"cifar100-classes-{folder.name}"
    photographs = _cache.cached(name, folder, _read_records, _Photographs)
    names = photographs.names.tolist()
    classes = _datasets.image_classes(photographs.images, names)
    keys = np.array([name.split("/")[part] for name in names])
    return _datasets.Splits(
        *(
            _datasets.take_classes(classes, np.flatnonzero(np.isin(keys, part.split())))
            for part in split
        )
    )


def _read_records(folder: pathlib.Path) -> _Photographs:
    """Reads and decodes a prepared data set."""
    tfds = _datasets.import_extra("tensorflow_datasets")
    _datasets.import_extra("array_record")
    pil = _datasets.import_extra("PIL.Image")

    try:
        builder = tfds.builder_from_directory(folder)
        features, images = builder.info.features, collections.defaultdict(list)
        for split in ("train", "test"):
            decoders = {"image": tfds.decode.SkipDecoding()}
            for record in builder.as_data_source(split, decoders=decoders):
                names = (
                    features[key].int2str(record[key])
                    for key in ("coarse_label", "label")
                )
                image = np.asarray(pil.open(io.BytesIO(record["image"])))
                images["/".join(names)].append(image)
        names = sorted(images)
        counts = {len(stack) for stack in images.values()}
        known = sorted(" ".join(CIFAR_FS).split())
        if sorted(n.split("/")[1] for n in names) != known or counts != {_EXAMPLES}:
            raise ValueError(f"{len(names)} classes with {sorted(counts)} images each")
        return _Photographs(np.stack([images[name] for name in names]), np.array(names))
    # The records, their descriptions and Pillow each raise their own exceptions.
    except Exception as error:
        raise _tfds.damaged("cifar100", folder, error, "CIFAR-100") from error
