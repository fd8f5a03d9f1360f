"""Lake's one-shot classification challenge: 20 runs of 20-way 1-shot tasks."""

import collections
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxmeta import _archives, _checks, base
from jaxmeta.tasks import _datasets

_RUNS_PER_ALPHABET = 2
_ALPHABETS = 10
_WAYS = 20
_MAX_BYTES = 2**30  # of an archive's drawings, unpacked; the original has 3 MB
_DRAWING = re.compile(r"[^/]+/([^/]+)/(character\d+)/\d+_(\d+)\.png")
# Some archives have a folder above the runs; macOS adds files like "._class01.png".
_FILE = re.compile(
    r"(?:.*/)?(run\d+/(?:class_labels\.txt|(?:training|test)/[^/.][^/]*\.png))"
)

Files: TypeAlias = Mapping[str, bytes]


def load_lake_runs(path: str | os.PathLike[str], *, size: int = 28) -> list[base.Task]:
    """Loads the runs of Lake's challenge: within-alphabet 20-way 1-shot tasks.

    One person drew the support set, another the query set. The original is
    `all_runs.zip` in the folder
    `python/one-shot-classification` of https://github.com/brendenlake/omniglot:
    `runNN/training/classNN.png`, `runNN/test/itemNN.png`, and `runNN/class_labels.txt`
    with a line "run01/test/item01.png run01/training/class08.png" per item. The error
    is the mean over the items of all runs, 400 in the original.

    Args:
      path: the archive, or the folder it was unpacked into.
      size: H = W; drawings are inverted and averaged over areas to this size, as in
        `load_omniglot`. 105 keeps the original pixels.

    Returns:
      One task per run, sorted by name: drawings [20, size, size, 1] in [0, 1] with ink
      1, targets one-hot [20, 20]. Label k is the k-th training image; queries are in
      the order of `class_labels.txt`.

    Raises:
      FileNotFoundError: if `path` does not exist.
      ValueError: if it is not such an archive or unpacks to more than 1 GiB, a run
        lacks labels or they name missing files, a test image is one of the training
        images, a drawing cannot be read, or `size` is not a positive int.
      ImportError: if the extra `data` is not installed.

    Example:
      >>> tasks = load_lake_runs("all_runs.zip")  # doctest: +SKIP
      >>> len(tasks), tasks[0].support.inputs.shape  # doctest: +SKIP
      (20, (20, 28, 28, 1))

    References:
      Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through
      probabilistic program induction", Science 2015. Reported errors: people 4.5 %, BPL
      3.3 %, a convolutional network 13.5 %.
    """
    _checks.check_int("size", size)
    path = pathlib.Path(path).expanduser()
    files = _read_files(path)
    runs = sorted({name.split("/")[0] for name in files})
    if not runs:
        raise ValueError(
            f"{path} holds no runs of Lake's challenge (runNN/training/classNN.png, "
            "runNN/test/itemNN.png, runNN/class_labels.txt): use `all_runs.zip` from "
            "brendenlake/omniglot, or make one with `jaxmeta.tasks.make_lake_runs`."
        )
    try:
        return [_task(run, files, size) for run in runs]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def make_lake_runs(
    evaluation_zip: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
) -> pathlib.Path:
    """Writes runs like those of Lake's challenge, if the original is unavailable.

    As in the original there are two runs for each of ten alphabets, with the same 20
    characters but four different people: one drew a run's training images, another its
    test images. The alphabets (among those with at least 20 characters), characters,
    people and all orders are random, and a seed always gives the same bytes. From the
    original evaluation set, seed 0 draws Atemayar_Qelisayer, Atlantean, Aurek-Besh,
    Kannada, Manipuri, Old_Church_Slavonic_(Cyrillic), Sylheti, Tengwar, Tibetan and
    ULOG. The original runs have other characters and people, so errors differ by a few
    points.

    Args:
      evaluation_zip: `images_evaluation.zip` from
        https://github.com/brendenlake/omniglot, with files
        `images_evaluation/ALPHABET/characterNN/CCCC_DD.png`, where DD is the person.
      path: the archive to write, for `load_lake_runs`.
      seed: random seed.

    Returns:
      `path`.

    Raises:
      FileNotFoundError: if there is no file `evaluation_zip`.
      ValueError: if it is not such an archive, or has fewer than ten alphabets of at
        least 20 characters, all drawn by the same four people.

    Example:
      >>> make_lake_runs("images_evaluation.zip", "runs.zip")  # doctest: +SKIP
      PosixPath('runs.zip')
    """
    drawings = _read_drawings(pathlib.Path(evaluation_zip).expanduser())
    # Only NumPy's raw bits are guaranteed never to change.
    bits = np.random.PCG64(seed)
    shuffle = lambda values: [
        values[i] for i in np.argsort(bits.random_raw(len(values)))
    ]
    runs = []
    for alphabet in sorted(shuffle(sorted(drawings))[:_ALPHABETS]):
        characters = drawings[alphabet]
        chosen = shuffle(sorted(characters))[:_WAYS]
        people = shuffle(sorted(_people(characters)))
        for k in range(_RUNS_PER_ALPHABET):
            train, test = (
                {
                    character: characters[character][person]
                    for character in shuffle(chosen)
                }
                for person in people[2 * k : 2 * k + 2]
            )
            runs.append((train, test))
    path = pathlib.Path(path).expanduser()
    with zipfile.ZipFile(path, "w") as archive:
        for number, run in enumerate(shuffle(runs), 1):
            for name, content in _run_files(f"run{number:02}", *run).items():
                # Reproducible bytes: fixed date and system, no compression.
                info = zipfile.ZipInfo(name)
                info.create_system = 3
                archive.writestr(info, content)
    return path


def _read_files(path: pathlib.Path) -> Files:
    """Reads the runs' files; names start with the run's."""
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.is_file())
        inside = {p.relative_to(path.parent).as_posix(): p for p in found}
        return {
            run: inside[name].read_bytes() for name, run in _matching(inside).items()
        }
    with _archives.open_zip(path) as archive:
        matches = _matching(archive.namelist())
        read = _archives.read_members(archive, matches, max_bytes=_MAX_BYTES)
    return {matches[name]: content for name, content in read.items()}


def _matching(names: Iterable[str]) -> dict[str, str]:
    """Those of the runs: name in the archive -> name that starts with the run's."""
    matches = ((name, _FILE.fullmatch(name)) for name in names)
    return {name: match[1] for name, match in matches if match}


def _task(run: str, files: Files, size: int) -> base.Task:
    """Builds the task of one run."""
    if f"{run}/class_labels.txt" not in files:
        raise ValueError(f"{run} has no class_labels.txt.")
    lines = files[f"{run}/class_labels.txt"].decode().split("\n")
    pairs = [line.split() for line in lines if line.strip()]
    training = sorted(name for name in files if name.startswith(f"{run}/training/"))
    items, classes = [], []
    for pair in pairs:
        matches = [_FILE.fullmatch(name) for name in pair]
        names = [match[1] if match else "" for match in matches]
        if len(names) != 2 or names[0] not in files or names[1] not in training:
            raise ValueError(
                f"the line {' '.join(pair)!r} of {run}/class_labels.txt does not name "
                "an existing test image and training image."
            )
        items.append(names[0])
        classes.append(training.index(names[1]))
    if not items:
        raise ValueError(f"{run}/class_labels.txt is empty.")
    labels = jnp.eye(len(training))
    drawings = {name: _decode(name, files[name]) for name in training + items}
    support = {drawings[name].tobytes(): name for name in training}
    for name in items:
        if same := support.get(drawings[name].tobytes()):
            raise ValueError(f"{name} is the drawing of {same}: the answer leaks.")
    stack = lambda names: jnp.stack([_resize(drawings[name], size) for name in names])
    return base.Task(
        support=base.Examples(stack(training), labels),
        query=base.Examples(stack(items), labels[jnp.array(classes)]),
    )


def _decode(name: str, png: bytes) -> np.ndarray:
    """Decodes a drawing to [H, W] uint8, ink 0."""
    pil = _datasets.import_extra("PIL.Image")
    try:
        return np.asarray(pil.open(io.BytesIO(png)).convert("L"))
    # Pillow's decoders raise OSError, SyntaxError, struct.error and others.
    except Exception as error:
        raise ValueError(f"{name} is not an image ({error}).") from error


def _resize(paper: np.ndarray, size: int):
    """Averages a drawing over areas, to [size, size, 1] in [0, 1], ink 1."""
    pil = _datasets.import_extra("PIL.Image")
    ink = pil.fromarray(np.where(paper > 0, 0, 255).astype(np.uint8))
    resized = np.asarray(ink.resize((size, size), pil.Resampling.BOX))
    return jnp.asarray(resized)[..., None].astype(jnp.result_type(float)) / 255


Drawings: TypeAlias = dict[str, dict[str, bytes]]  # character -> person -> PNG


def _read_drawings(path: pathlib.Path) -> dict[str, Drawings]:
    """Reads the sufficiently large alphabets: alphabet -> drawings."""
    found: dict[str, Any] = collections.defaultdict(
        lambda: collections.defaultdict(dict)
    )
    with _archives.open_zip(path) as archive:
        names = {name: _DRAWING.fullmatch(name) for name in archive.namelist()}
        names = {name: match for name, match in names.items() if match}
        read = _archives.read_members(archive, names, max_bytes=_MAX_BYTES)
    for name, content in read.items():
        alphabet, character, person = names[name].groups()
        found[alphabet][character][person] = content
    enough = {
        alphabet: characters
        for alphabet, characters in found.items()
        if len(characters) >= _WAYS
        and len(_people(characters)) >= 2 * _RUNS_PER_ALPHABET
    }
    if len(enough) < _ALPHABETS:
        raise ValueError(
            f"{path} must hold at least {_ALPHABETS} alphabets of {_WAYS} characters, "
            f"all drawn by the same {2 * _RUNS_PER_ALPHABET} people, got {len(enough)} "
            f"of {len(found)}: use `images_evaluation.zip` of brendenlake/omniglot."
        )
    return enough


def _people(characters: Drawings) -> set[str]:
    """The people who have drawn every character."""
    return set.intersection(*(set(drawings) for drawings in characters.values()))


def _run_files(
    run: str, train: Mapping[str, bytes], test: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Returns name -> content of a run's files, for character -> PNG."""
    classes = {c: f"{run}/training/class{k:02}.png" for k, c in enumerate(train, 1)}
    items = {c: f"{run}/test/item{k:02}.png" for k, c in enumerate(test, 1)}
    labels = "".join(f"{items[c]} {classes[c]}\n" for c in items)
    return (
        {f"{run}/class_labels.txt": labels.encode()}
        | {classes[c]: train[c] for c in classes}
        | {items[c]: test[c] for c in items}
    )
