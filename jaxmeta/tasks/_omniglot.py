"""Omniglot through tensorflow-datasets, without TensorFlow."""

import collections
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmeta.tasks import _cache, _datasets, _omniglot_builder, _tfds

SPLITS = ("vinyals", "random", "lake")

_CHARACTERS = 1623
_DRAWERS = 20
_SIZE = 28

_VINYALS_VALIDATION = (
    "Armenian",
    "Bengali",
    "Early_Aramaic",
    "Hebrew",
    "Mkhedruli_(Georgian)",
)
_VINYALS_TEST = (
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Syriac_(Serto)",
    "Sylheti",
    "Tengwar",
    "Tibetan",
    "ULOG",
)
# The only divided alphabet: its first 41 characters are for training.
_VINYALS_TEST_GURMUKHI = tuple(f"Gurmukhi/character{i}" for i in (42, 43, 44, 45))
# The alphabets of Lake's smaller background set, `images_background_small1`.
_LAKE_VALIDATION = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")


class _Characters(NamedTuple):
    """All of Omniglot, sorted by name; C characters, E drawers."""

    images: np.ndarray  # [C, E, 28, 28] uint8
    names: np.ndarray  # [C] str
    background: np.ndarray  # [C] bool: in Lake's background set (tfds "train")


def load_omniglot(
    data_dir: str | os.PathLike[str] | None = None, split: str = "vinyals"
) -> _datasets.Splits:
    """Loads Omniglot: 1623 characters of 50 alphabets, each drawn by 20 people.

    Each 105x105 drawing is inverted and averaged over areas to 28x28: ink is 255,
    paper 0. Classes are sorted by name, alphabet first. The 20 examples of a class
    are in the record order of the prepared dataset: sorted by a hash of the image's
    file name, so the same everywhere, but not by drawer.

    The three splits:

    - `vinyals` (1028 / 172 / 423 characters): the split of Matching Networks, which
      most later papers use. Alphabets are whole, except for the last four characters of
      Gurmukhi, which are for testing.
    - `random` (1100 / 100 / 423): random characters, irrespective of alphabet, as in
      the MAML paper and its code. The permutation of the sorted names is
      `np.argsort(np.random.PCG64(0).random_raw(1623))`, in the order train, validation,
      test. It is not the paper's own, which depended on the order of a directory.
    - `lake` (828 / 136 / 659): the 30 background alphabets, with Balinese, Early
      Aramaic, Greek, Korean and Latin for validation, and the 20 evaluation alphabets
      for testing.

    The first call downloads and prepares the dataset if `data_dir` does not have it,
    and decodes it; the decoded images are cached in `$XDG_CACHE_HOME/jaxmeta`
    (`~/.cache/jaxmeta`), and later calls take a fraction of a second.

    Args:
      data_dir: tensorflow-datasets folder; default `$TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.
      split: "vinyals", "random" or "lake".

    Returns:
      The splits; images are [C, 20, 28, 28, 1].

    Raises:
      ValueError: if `split` is unknown, or the dataset in `data_dir` is damaged or a
        different one.
      FileNotFoundError: if there is no dataset and no network to download it.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> splits = load_omniglot()  # doctest: +SKIP
      >>> splits.train.images.shape  # doctest: +SKIP
      (1028, 20, 28, 28, 1)

    References:
      Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through
      probabilistic program induction", Science 2015.
      Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016,
      https://arxiv.org/abs/1606.04080.
      Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017,
      https://arxiv.org/abs/1703.03400.
    """
    if split not in SPLITS:
        choices = ", ".join(map(repr, SPLITS))
        raise ValueError(f"`split` must be one of {choices}, got {split!r}.")
    folder = _omniglot_builder.prepare_omniglot(data_dir)
    name = f"omniglot-{_omniglot_builder.VERSION}"
    characters = _cache.cached(name, folder, _read_records, _Characters)
    classes = _datasets.image_classes(characters.images, characters.names.tolist())
    parts = _assign(split, characters)
    return _datasets.Splits(
        *(_datasets.take_classes(classes, np.flatnonzero(parts == i)) for i in range(3))
    )


def _read_records(folder: pathlib.Path) -> _Characters:
    """Reads and decodes a prepared dataset."""
    tfds = _datasets.import_extra("tensorflow_datasets")
    _datasets.import_extra("array_record")
    _datasets.import_extra("PIL.Image")
    try:
        builder = tfds.builder_from_directory(folder)
        examples = {
            split: builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            for split in ("train", "test")
        }
        return _sort(examples, builder.info.features["alphabet"].int2str)
    # The records, their descriptions and Pillow each raise their own exceptions.
    except Exception as error:
        raise _tfds.damaged("omniglot", folder, error, "Omniglot") from error


def _sort(
    examples: Mapping[str, Iterable[dict[str, Any]]], to_alphabet: Callable[[int], str]
) -> _Characters:
    """Decodes the records and sorts them by the characters' names."""
    drawings = collections.defaultdict(list)
    background = set()
    for split, records in examples.items():
        for record in records:
            alphabet = to_alphabet(record["alphabet"])
            name = f"{alphabet}/character{record['alphabet_char_id'] + 1:02}"
            drawings[name].append(_decode(record["image"]))
            if split == "train":
                background.add(name)
    names = sorted(drawings)
    counts = {len(images) for images in drawings.values()}
    if len(names) != _CHARACTERS or counts != {_DRAWERS}:
        raise ValueError(f"{len(names)} characters with {sorted(counts)} drawings each")
    return _Characters(
        images=np.stack([drawings[name] for name in names]),
        names=np.array(names),
        background=np.array([name in background for name in names]),
    )


def _decode(png: bytes) -> np.ndarray:
    """Decodes a drawing to [28, 28] uint8, ink 255."""
    pil = _datasets.import_extra("PIL.Image")
    paper = np.asarray(pil.open(io.BytesIO(png)).convert("L"))
    # Paper is 255 here, but 1 if another library wrote the dataset.
    ink = pil.fromarray(np.where(paper > 0, 0, 255).astype(np.uint8))
    return np.asarray(ink.resize((_SIZE, _SIZE), pil.Resampling.BOX))


def _assign(split: str, characters: _Characters) -> np.ndarray:
    """Returns the split of each class, [C] int: 0 train, 1 validation, 2 test."""
    names, background = characters.names, characters.background
    if split == "random":
        # Only NumPy's raw bits are guaranteed never to change.
        order = np.argsort(np.random.PCG64(0).random_raw(len(names)))
        # The second assignment overwrites the first 1100: 1100 / 100 / 423.
        parts = np.full(len(names), 2)
        parts[order[:1200]] = 1
        parts[order[:1100]] = 0
        return parts
    alphabets = np.array([name.split("/")[0] for name in names])
    if split == "lake":
        return np.where(background, np.isin(alphabets, _LAKE_VALIDATION), 2)
    test = np.isin(alphabets, _VINYALS_TEST) | np.isin(names, _VINYALS_TEST_GURMUKHI)
    return np.where(test, 2, np.isin(alphabets, _VINYALS_VALIDATION))
