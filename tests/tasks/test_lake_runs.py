"""Lake's runs: reading and making them, and the distances that need no learning."""

import hashlib
import io
import os
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmeta as jm
from benchmarks import lake

Image = pytest.importorskip("PIL.Image")

DATA = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
EVALUATION = DATA / "omniglot" / "images_evaluation.zip"


def _png(ink):
    png = io.BytesIO()
    Image.fromarray(~np.asarray(ink, bool)).save(png, "PNG")
    return png.getvalue()


def _drawing(*key):
    """[15, 15] bool, five by five blocks, different for each key."""
    return np.kron(np.random.default_rng(key).random((5, 5)) < 0.4, np.ones((3, 3))) > 0


# Two runs of three classes; ITEMS[run][k] is the class of test item k.
ITEMS = {1: [2, 0, 1], 2: [0, 2, 1]}


def _files(prefix=""):
    """The files of a small challenge, named as in the original."""
    files = {}
    for run, classes in ITEMS.items():
        folder = f"{prefix}run{run:02}"
        for k in range(3):
            files[f"{folder}/training/class{k + 1:02}.png"] = _png(_drawing(run, 0, k))
            files[f"{folder}/test/item{k + 1:02}.png"] = _png(_drawing(run, 1, k))
        files[f"{folder}/class_labels.txt"] = "".join(
            f"run{run:02}/test/item{k + 1:02}.png run{run:02}/training/"
            f"class{c + 1:02}.png\n"
            for k, c in enumerate(classes)
        ).encode()
    return files


def _write(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(params=["zip", "zip with a folder", "folder"])
def archive(request, tmp_path):
    if request.param == "zip":
        debris = {"__MACOSX/run01/training/._class01.png": b"", "run01/": b""}
        return _write(tmp_path / "all_runs.zip", debris | _files())
    if request.param == "zip with a folder":
        return _write(tmp_path / "all_runs.zip", _files("all_runs/"))
    for name, content in _files().items():
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "runs"


def test_runs_are_read_with_their_labels_and_all_pixels(archive):
    tasks = jm.tasks.load_lake_runs(archive, size=15)
    assert len(tasks) == 2
    for run, (support, query) in enumerate(tasks, 1):
        for part, examples in enumerate((support, query)):
            expected = np.stack([_drawing(run, part, k) for k in range(3)])
            np.testing.assert_array_equal(examples.inputs, expected[..., None])
            assert examples.inputs.dtype == examples.targets.dtype == np.float32
        np.testing.assert_array_equal(support.targets, np.eye(3))
        np.testing.assert_array_equal(query.targets, np.eye(3)[ITEMS[run]])


def test_drawings_are_averaged_over_areas(archive):
    task = jm.tasks.load_lake_runs(archive, size=5)[1]
    expected = [_drawing(2, 1, k)[1::3, 1::3] for k in range(3)]
    np.testing.assert_array_equal(task.query.inputs[..., 0], np.stack(expected))
    task = jm.tasks.load_lake_runs(archive, size=1)[1]
    expected = [_drawing(2, 1, k).mean() for k in range(3)]
    np.testing.assert_allclose(task.query.inputs.ravel(), expected, atol=0.51 / 255)


def test_a_learner_takes_a_run(archive, key):
    """A prototypical network without network: the nearest pixels."""
    task = jm.tasks.load_lake_runs(archive, size=15)[0]
    distances = lake.pixel_distances(task.support.inputs, task.query.inputs)
    gap = np.asarray(task.query.inputs[:, None] - task.support.inputs[None])
    expected = np.sqrt(np.square(gap).sum((2, 3, 4)))
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run01/class_labels.txt": None}, "run01 has no class_labels.txt"),
        ({"run02/class_labels.txt": b"\n"}, "run02/class_labels.txt is empty"),
        ({"run02/test/item02.png": None}, "does not name an existing test"),
        ({"run02/training/class01.png": None}, "run02/test/item01.png .* of run02/cla"),
        (
            {"run01/class_labels.txt": b"run01/test/item01.png"},
            "does not name an exist",
        ),
        (
            {"run01/class_labels.txt": b"run01/test/item01.png run01/test/item02.png"},
            "does not name an existing test image and training image",
        ),
        ({"run01/test/item01.png": b"junk"}, "run01/test/item01.png is not an image"),
        ({name: None for name in _files()} | {"a.txt": b""}, "holds no runs of Lake's"),
    ],
)
def test_a_wrong_archive_is_explained(tmp_path, changes, message):
    files = {k: v for k, v in (_files() | changes).items() if v is not None}
    path = _write(tmp_path / "all_runs.zip", files)
    with pytest.raises(ValueError, match=rf"all_runs\.zip .*{message}"):
        jm.tasks.load_lake_runs(path)


def test_a_flipped_bit_in_an_archive_is_explained(tmp_path):
    path = _write(tmp_path / "all_runs.zip", _files())
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"all_runs\.zip is damaged"):
        jm.tasks.load_lake_runs(path)


def test_missing_files_and_wrong_sizes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.zip"):
        jm.tasks.load_lake_runs(tmp_path / "gone.zip")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.zip"):
        jm.tasks.make_lake_runs(tmp_path / "gone.zip", tmp_path / "runs.zip")
    (tmp_path / "junk.zip").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.zip is damaged or not a zip archive"):
        jm.tasks.load_lake_runs(tmp_path / "junk.zip")
    with pytest.raises(ValueError, match="`size` must be an int >= 1, got 0"):
        jm.tasks.load_lake_runs(tmp_path / "junk.zip", size=0)


# Made runs. A drawing of a made alphabet says what it is in its pixels.

SMALL = "Small"  # The alphabet with too few characters.


def _evaluation(num_alphabets=11, num_characters=21, num_people=5):
    counts = {f"Alphabet{a:02}": num_characters for a in range(num_alphabets)}
    files = {"images_evaluation/": b"", "images_evaluation/notes.txt": b"none"}
    for a, (alphabet, count) in enumerate((counts | {SMALL: 19}).items()):
        for character in range(1, count + 1):
            for person in range(1, num_people + 1):
                pixels = np.array([[a, character, person]], np.uint8)
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                files[
                    f"images_evaluation/{alphabet}/character{character:02}/"
                    f"{100 * a + character:04}_{person:02}.png"
                ] = png.getvalue()
    return files


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    return _write(folder / "images_evaluation.zip", _evaluation())


def _decoded(path):
    """{run: (alphabet, characters, person) of training and test, in label order}."""
    runs = {}
    with zipfile.ZipFile(path) as archive:
        read = lambda name: np.asarray(Image.open(io.BytesIO(archive.read(name))))[0]
        for name in archive.namelist():
            if not name.endswith("class_labels.txt"):
                continue
            pairs = [line.split() for line in archive.read(name).decode().splitlines()]
            assert len(pairs) == len({p[0] for p in pairs}) == 20
            runs[name.split("/")[0]] = np.array(
                [[read(file) for file in pair] for pair in pairs]
            )
    return runs


def test_made_runs_follow_the_protocol(evaluation, tmp_path):
    path = jm.tasks.make_lake_runs(evaluation, tmp_path / "runs.zip")
    runs = _decoded(path)
    assert sorted(runs) == [f"run{k:02}" for k in range(1, 21)]
    of_alphabet = {}
    for run in runs.values():
        alphabet, characters, people = np.moveaxis(
            run, 2, 0
        )  # each [20, test and train]
        assert len(np.unique(alphabet)) == 1
        assert (characters[:, 0] == characters[:, 1]).all()
        assert len(np.unique(characters[:, 0])) == 20
        test, train = people.T
        assert len(set(test)) == len(set(train)) == 1
        of_alphabet.setdefault(int(alphabet[0, 0]), []).append(
            (set(characters[:, 0].tolist()), int(test[0]), int(train[0]))
        )
    assert len(of_alphabet) == 10
    assert 11 not in of_alphabet  # The small one.
    for (first, *people), (second, *others) in of_alphabet.values():
        assert first == second
        assert len({*people, *others}) == 4
    orders = [run[:, 0, 1].tolist() for run in runs.values()]
    assert not any(order == sorted(order) for order in orders)
    assert [int(run[0, 0, 0]) for run in runs.values()] != sorted([*of_alphabet] * 2)


def test_made_runs_are_reproducible_and_depend_on_the_seed(evaluation, tmp_path):
    made = [
        jm.tasks.make_lake_runs(evaluation, tmp_path / f"{k}.zip", seed=seed)
        for k, seed in enumerate([0, 0, 1])
    ]
    first, again, other = (path.read_bytes() for path in made)
    assert first == again
    assert first != other
    alphabets = [
        {int(run[0, 0, 0]) for run in _decoded(path).values()} for path in made[1:]
    ]
    assert alphabets[0] != alphabets[1]


def test_labels_in_a_made_archive_are_in_both_orders(evaluation, tmp_path):
    """Items in order, classes not: the loader's targets then match the pictures."""
    path = jm.tasks.make_lake_runs(evaluation, tmp_path / "runs.zip", seed=3)
    for task in jm.tasks.load_lake_runs(path, size=1)[:2]:
        assert task.support.inputs.shape == (20, 1, 1, 1)
        permutation = np.asarray(task.query.targets).argmax(1)
        assert sorted(permutation) == list(range(20))
        assert list(permutation) != list(range(20))


@pytest.mark.parametrize(
    "small", [{"num_alphabets": 9}, {"num_characters": 19}, {"num_people": 3}]
)
def test_too_small_an_evaluation_set_is_explained(tmp_path, small):
    path = _write(tmp_path / "few.zip", _evaluation(**small))
    message = "at least 10 alphabets of 20 characters, all drawn by the same 4 people"
    with pytest.raises(ValueError, match=message):
        jm.tasks.make_lake_runs(path, tmp_path / "runs.zip")
    assert not (tmp_path / "runs.zip").exists()


# Distances.


def _naive_hausdorff(a, b):
    """The definition, a loop over pairs of pixels."""
    points = []
    for drawing in (a, b):
        inked = [
            (i, j) for i, row in enumerate(drawing) for j, ink in enumerate(row) if ink
        ]
        rows, columns = (sum(x) / len(inked) for x in zip(*inked, strict=True))
        points.append([(i - rows, j - columns) for i, j in inked])
    means = []
    for there, here in (points, points[::-1]):
        nearest = [
            min(((i - k) ** 2 + (j - l) ** 2) ** 0.5 for k, l in here) for i, j in there
        ]
        means.append(sum(nearest) / len(nearest))
    return max(means)


def test_the_modified_hausdorff_distance_is_the_naive_one():
    drawings = [_drawing(k)[..., None].astype(float) for k in range(5)]
    distances = lake.hausdorff_distances(drawings[:2], drawings[2:])
    expected = [
        [_naive_hausdorff(query[..., 0], support[..., 0]) for support in drawings[:2]]
        for query in drawings[2:]
    ]
    np.testing.assert_allclose(distances, expected, rtol=1e-12)


def test_the_modified_hausdorff_distance_in_the_head():
    """Points 0, 1, 2 on a line against their outer two: 1/3 one way, 0 the other."""
    line = np.array([[0, 0], [0, 1], [0, 2]], float)
    assert lake.modified_hausdorff(line, line[::2]) == pytest.approx(1 / 3)
    assert lake.modified_hausdorff(line[::2], line) == pytest.approx(1 / 3)


def test_errors_count_the_trials_whose_nearest_is_of_another_class():
    inputs = jnp.arange(4.0).reshape(4, 1, 1, 1)
    support = jm.Examples(inputs, jnp.eye(4)[::-1])
    query = jm.Examples(inputs + 0.2, jnp.eye(4)[jnp.array([3, 2, 1, 3])])
    found = lake.errors([jm.Task(support, query)] * 2, lake.pixel_distances)
    assert found == [25.0, 25.0]


# The real drawings.


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory):
    if not EVALUATION.exists():
        pytest.skip("the real Omniglot is not at ../shared/data")
    path = tmp_path_factory.mktemp("lake") / "runs.zip"
    return jm.tasks.make_lake_runs(EVALUATION, path)


def test_the_real_runs_stay_the_same_bytes(real_runs):
    digest = hashlib.sha256(pathlib.Path(real_runs).read_bytes()).hexdigest()
    assert digest[:16] == "448832a9584fa8d6"


def test_the_real_runs_are_loaded_and_as_hard_as_published(real_runs):
    tasks = jm.tasks.load_lake_runs(real_runs)
    assert len(tasks) == 20
    for task in tasks:
        assert task.support.inputs.shape == task.query.inputs.shape == (20, 28, 28, 1)
        np.testing.assert_array_equal(task.query.targets.sum(0), np.ones(20))
        assert 0.02 < task.support.inputs.mean() < 0.2  # Ink is high, and scarce.
    # Koch et al. 2015 have 78.3 % on the original runs.
    assert 70 < np.mean(lake.errors(tasks, lake.pixel_distances)) < 90
    large = jm.tasks.load_lake_runs(real_runs, size=105)[:2]
    assert set(np.unique(large[0].support.inputs)) == {0.0, 1.0}
    # 38.8 % over all the original runs (Lake et al. 2015).
    assert np.mean(lake.errors(large, lake.hausdorff_distances)) < 70


def test_paths_may_be_strings(real_runs):
    assert len(jm.tasks.load_lake_runs(os.fspath(real_runs), size=7)) == 20
