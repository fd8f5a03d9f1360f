"""Tests the loaders: images sorted by class, folders of images, and Omniglot."""

import contextlib
import functools
import http.server
import io
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from jaxmeta.tasks import (
    _cache,
    _datasets,
    _omniglot,
    _omniglot_builder,
    _tfds,
    download,
)

Image = pytest.importorskip("PIL.Image")

DATA = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"


# Images sorted by class.


def test_image_classes_adds_the_channel_axis_and_names_the_classes():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    classes = _datasets.image_classes(images)
    np.testing.assert_array_equal(classes.images, images[..., None])
    np.testing.assert_array_equal(classes.num_examples, [3, 3])
    assert classes.num_examples.dtype == np.int32
    assert classes.names == ("0", "1")


def test_image_classes_keeps_names_and_channels():
    images = np.zeros((2, 1, 4, 4, 3), np.uint8)
    classes = _datasets.image_classes(images, ["cat", "dog"])
    assert classes.images.shape == images.shape
    assert classes.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("images", "names", "message"),
    [
        (np.zeros((2, 4), np.uint8), None, r"`images` must be numbers.*\(2, 4\)"),
        (np.zeros((0, 1, 4, 4), np.uint8), None, "not be empty"),
        (np.zeros((2, 1, 4, 4), np.uint8), ["a"], "each of the 2 classes, got 1"),
    ],
)
def test_image_classes_explains_what_is_wrong(images, names, message):
    with pytest.raises(ValueError, match=message):
        _datasets.image_classes(images, names)


def test_take_classes_keeps_images_counts_and_names_together():
    classes = _datasets.ImageClasses(
        images=np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1, 1),
        num_examples=np.array([1, 0, 1], np.int32),
        names=("a", "b", "c"),
    )
    taken = _datasets.take_classes(classes, np.array([2, 1]))
    assert taken.images.ravel().tolist() == [2, 1]
    assert taken.num_examples.tolist() == [1, 0]
    assert taken.names == ("c", "b")


# Folders of images.


def _save(path, pixels, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **kwargs)
    return path


def test_a_folder_is_loaded_in_the_order_of_names_and_padded(tmp_path):
    for name, value in [("b/2.png", 3), ("b/1.PNG", 2), ("a/x.bmp", 1)]:
        _save(tmp_path / name, np.full((4, 4), value))
    _save(tmp_path / ".hidden" / "1.png", np.zeros((4, 4)))
    _save(tmp_path / "a" / ".thumbnail.png", np.zeros((4, 4)))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "README").write_text("not a class")
    classes = _datasets.load_folder(tmp_path, size=2)
    assert classes.images.shape == (2, 2, 2, 2, 1)
    assert classes.images.dtype == np.uint8
    assert classes.images[..., 0, 0, 0].tolist() == [[1, 0], [2, 3]]
    assert classes.num_examples.tolist() == [1, 2]
    assert classes.names == ("a", "b")


def test_images_are_averaged_over_areas(tmp_path):
    blocks = np.array([[0, 40], [80, 120]])
    noise = np.array([[-8, 8], [8, -8]])  # Averages out within each 2x2 block.
    pixels = np.kron(blocks, np.ones((2, 2))) + np.tile(noise, (2, 2)) + 20
    path = _save(tmp_path / "1.png", pixels)
    image = _datasets.load_image(path, size=2, channels=1)
    np.testing.assert_array_equal(image[..., 0], blocks + 20)


@pytest.mark.parametrize(
    ("ground", "invert", "expected"),
    [
        (200, None, 55),
        (127, None, 127),
        (128, None, 127),
        (200, False, 200),
        (100, None, 100),
        (100, True, 155),
    ],
)
def test_light_backgrounds_are_inverted_unless_told_otherwise(
    tmp_path, ground, invert, expected
):
    _save(tmp_path / "a" / "1.png", np.full((4, 4), ground))
    _save(tmp_path / "b" / "1.png", np.full((4, 4), ground))
    _save(tmp_path / "b" / "2.png", np.full((4, 4), ground))
    classes = _datasets.load_folder(tmp_path, size=4, invert=invert)
    assert classes.images[0, 0, 0, 0, 0] == expected
    assert not classes.images[0, 1].any()  # Padding stays zero.


def test_colour_images_keep_their_channels_and_are_not_inverted(tmp_path):
    _save(tmp_path / "a" / "1.png", np.full((4, 4, 3), [250, 240, 230]))
    classes = _datasets.load_folder(tmp_path, size=2, channels=3)
    assert classes.images[0, 0, 0, 0].tolist() == [250, 240, 230]


def test_jpeg_and_gif_files_are_read(tmp_path):
    for name in ("1.jpg", "2.jpeg", "3.gif"):
        _save(tmp_path / "a" / name, np.full((8, 8), 100))
    classes = _datasets.load_folder(tmp_path, size=4)
    assert classes.num_examples.tolist() == [3]
    np.testing.assert_allclose(classes.images, 100, atol=1)


def test_transparent_images_are_laid_on_white(tmp_path):
    pixels = np.zeros((2, 2, 4))
    pixels[0, 0, 3] = 255  # Black ink on transparent black.
    path = _save(tmp_path / "1.png", pixels)
    image = _datasets.load_image(path, size=2, channels=1)
    assert image[..., 0].tolist() == [[0, 255], [255, 255]]


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    path = _save(tmp_path / "1.png", [[0, 50], [100, 150]], exif=exif)
    image = _datasets.load_image(path, size=2, channels=1)
    assert image[..., 0].tolist() == [[150, 100], [50, 0]]


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "1.png"
    Image.fromarray(np.full((2, 2), 100 * 256, np.uint16)).save(path)
    assert (_datasets.load_image(path, size=2, channels=1) == 100).all()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        _datasets.load_folder(tmp_path / "nowhere")


def test_a_folder_without_classes_is_named(tmp_path):
    _save(tmp_path / "1.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="has no sub-folders; each class requires"):
        _datasets.load_folder(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    _save(tmp_path / "a" / "1.png", np.zeros((4, 4)))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"The class \S*b has no images"):
        _datasets.load_folder(tmp_path)


@pytest.mark.parametrize("damage", ["junk", "truncated", "empty"])
def test_a_damaged_image_is_named(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    path = _save(tmp_path / "a" / "bad.png", noise)
    whole = path.read_bytes()
    path.write_bytes(
        {"junk": b"no image", "truncated": whole[:2000], "empty": b""}[damage]
    )
    with pytest.raises(ValueError, match=r"bad\.png is damaged or not an image"):
        _datasets.load_folder(tmp_path)


def test_load_image_explains_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone"):
        _datasets.load_image(tmp_path / "gone.png", size=2, channels=1)
    with pytest.raises(ValueError, match=r"`channels` must be 1 .* got 4"):
        _datasets.load_image(tmp_path / "gone.png", size=2, channels=4)
    with pytest.raises(ValueError, match=r"`size` must be a positive .* got 0"):
        _datasets.load_image(tmp_path / "gone.png", size=0, channels=1)


# The optional packages.


def test_importing_the_loaders_imports_neither_tfds_nor_pillow():
    code = (
        "import sys; from jaxmeta.tasks import _datasets, _omniglot, download; "
        "assert not {'tensorflow', 'tensorflow_datasets', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["tensorflow_datasets", "requests"])
def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    tmp_path, monkeypatch, module
):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"requires '{module}'.*pip install '\.\[data\]'"
    with pytest.raises(ImportError, match=message):
        _omniglot.load_omniglot(tmp_path)


# Omniglot in small: all 1623 characters, but made ones, with two drawings each.

DRAWERS = 2


def _made_drawing(label, drawer):
    """7x7 blocks of ink [7, 7] bool: 15x15 pixels as drawn, 4x4 once resized."""
    return np.random.default_rng([label, drawer]).random((7, 7)) < 0.5


def _write_zip(path, alphabets, first_label):
    """Writes a zip in Lake's layout; `alphabets` maps names to character counts."""
    label = first_label
    with zipfile.ZipFile(path, "w") as file:
        for alphabet, num_characters in alphabets.items():
            for character in range(1, num_characters + 1):
                folder = f"{path.stem}/{alphabet}/character{character:02}"
                for drawer in range(1, DRAWERS + 1):
                    paper = ~np.kron(
                        _made_drawing(label, drawer), np.ones((15, 15)) > 0
                    )
                    png = io.BytesIO()
                    Image.fromarray(paper).save(png, "PNG")
                    name = f"{folder}/{label:04}_{drawer:02}.png"
                    file.writestr(name, png.getvalue())
                label += 1
        file.writestr(f"__MACOSX/{path.stem}/._{alphabet}", b"debris")


@contextlib.contextmanager
def _serve(folder):
    """Serves a folder over HTTP from this machine to itself."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            del args

    handler = functools.partial(Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory):
    """A data_dir prepared, through a real download, from the made drawings."""
    pytest.importorskip("tensorflow_datasets")
    zips, data_dir = tmp_path_factory.mktemp("zips"), tmp_path_factory.mktemp("data")
    # 964 characters in 30 alphabets and 659 in 20, as in the real ones.
    background = {f"Early{i:02}": 32 for i in range(29)} | {"Futurama": 36}
    evaluation = {f"Late{i:02}": 33 for i in range(19)} | {"Keble": 32}
    _write_zip(zips / "images_background.zip", background, 1)
    _write_zip(zips / "images_evaluation.zip", evaluation, 965)
    for name in ("images_background_small1", "images_background_small2"):
        _write_zip(zips / f"{name}.zip", {"Early00": 32}, 1)
    with _serve(zips) as host, pytest.MonkeyPatch.context() as patch:
        for split, url in _omniglot_builder._ZIPS.items():
            name = url.rsplit("/", 1)[1]
            patch.setitem(_omniglot_builder._ZIPS, split, f"{host}/{name}")
        download.main(["omniglot", "--data-dir", os.fspath(data_dir)])
    return data_dir


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """An empty cache; also lets two drawings of each character do."""
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    monkeypatch.setattr(_omniglot, "_DRAWERS", DRAWERS)
    return tmp_path / "cache" / "jaxmeta"


@pytest.fixture
def other_dir(made_dir, tmp_path):
    """A copy of the made dataset that a test may damage."""
    shutil.copytree(made_dir / "omniglot", tmp_path / "other" / "omniglot")
    return tmp_path / "other"


def _assert_same(splits, others):
    for ours, theirs in zip(splits, others, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.num_examples, theirs.num_examples)
        assert ours.names == theirs.names


def test_keys_are_the_stock_ones_whose_hashes_order_the_records(tmp_path):
    _write_zip(tmp_path / "images_evaluation.zip", {"Keble": 1}, 965)
    examples = dict(_omniglot_builder._drawings(tmp_path / "images_evaluation.zip"))
    assert list(examples) == ["Keble_0_0965_01.png", "Keble_0_0965_02.png"]
    record = examples["Keble_0_0965_02.png"]
    assert record.pop("image").startswith(b"\x89PNG")
    assert record == {"alphabet": "Keble", "alphabet_char_id": 0, "label": 964}


def test_what_is_prepared_here_is_read_by_stock_tfds(made_dir):
    import tensorflow_datasets as tfds

    source = tfds.data_source(
        "omniglot",
        split=["train", "test", "small1"],
        data_dir=made_dir,
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    assert [len(split) for split in source] == [964 * 2, 659 * 2, 32 * 2]
    features = source[0].dataset_info.features
    assert features["alphabet"].names == sorted(features["alphabet"].names)
    assert features["label"].names[:2] == ["Early00_0", "Early00_1"]
    record = next(record for record in source[1] if record["label"] == 964)
    assert features["alphabet"].int2str(record["alphabet"]) == "Late00"
    assert record["alphabet_char_id"] == 0


def test_made_drawings_come_back_inverted_resized_and_sorted(made_dir, cache_dir):
    splits = _omniglot.load_omniglot(made_dir, "random")
    assert [split.images.shape for split in splits] == [
        (count, 2, 28, 28, 1) for count in (1100, 100, 423)
    ]
    alphabets = [f"Early{i:02}" for i in range(29)] + ["Futurama"]
    for split in splits:
        assert list(split.names) == sorted(split.names)
        for images, name in zip(split.images, split.names, strict=True):
            alphabet, character = name.split("/character")
            if alphabet in alphabets:
                label = 32 * alphabets.index(alphabet) + int(character)
                drawings = [_made_drawing(label, drawer) for drawer in (1, 2)]
                expected = [np.kron(d, np.full((4, 4), 255)) for d in drawings]
                found = images[..., 0].tolist()
                assert sorted(found) == sorted(e.tolist() for e in expected)


def test_examples_are_in_the_order_of_the_records(made_dir, cache_dir):
    import tensorflow_datasets as tfds

    train = _omniglot.load_omniglot(made_dir, "vinyals").train
    source = tfds.data_source(
        "omniglot", split="train", data_dir=made_dir, download=False
    )
    records = [source[i]["image"] for i in range(len(source)) if _label(source, i) == 7]
    expected = [255 * (record[::15, ::15, 0] == 0) for record in records]
    images = train.images[train.names.index("Early00/character08"), :, ::4, ::4, 0]
    np.testing.assert_array_equal(images, expected)


def _label(source, index):
    return source[index]["label"]


def test_the_cache_is_used_and_changes_nothing(made_dir, cache_dir, monkeypatch):
    cold = _omniglot.load_omniglot(made_dir)
    assert len(list(cache_dir.iterdir())) == 1
    monkeypatch.setattr(_omniglot, "_read_records", None)
    _assert_same(_omniglot.load_omniglot(made_dir), cold)


@pytest.mark.parametrize("damage", [b"junk", slice(10_000)])
def test_a_corrupt_cache_is_rewritten(made_dir, cache_dir, damage):
    cold = _omniglot.load_omniglot(made_dir)
    (path,) = cache_dir.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[damage] if isinstance(damage, slice) else damage)
    _assert_same(_omniglot.load_omniglot(made_dir), cold)
    assert path.stat().st_size == len(whole)


def test_an_unwritable_cache_is_no_error(made_dir, cache_dir):
    cache_dir.parent.write_text("a file where the folder should be")
    assert len(_omniglot.load_omniglot(made_dir, "lake").test.names) == 659


def test_a_changed_dataset_has_another_cache(other_dir, cache_dir):
    folder = other_dir / "omniglot" / "3.0.0"
    before = _cache.cache_path("omniglot", folder)
    assert _cache.cache_path("omniglot", folder) == before
    os.utime(folder / "omniglot-train.array_record-00000-of-00001", (0, 0))
    assert _cache.cache_path("omniglot", folder) != before


def test_half_a_file_of_records_is_an_error_that_says_what_to_do(other_dir, cache_dir):
    folder = other_dir / "omniglot" / "3.0.0"
    path = folder / "omniglot-test.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="does not hold all of Omniglot") as caught:
        _omniglot.load_omniglot(other_dir)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert (
        f"run `python -m jaxmeta.tasks.download omniglot --data-dir {other_dir}`"
        in (message)
    )
    assert "\n" not in message
    assert not cache_dir.exists()


def test_another_dataset_is_an_error_that_says_so(other_dir, cache_dir, monkeypatch):
    monkeypatch.setattr(_omniglot, "_DRAWERS", 20)
    message = r"1623 characters with \[2\] drawings each\)\. Remove that folder"
    with pytest.raises(ValueError, match=message):
        _omniglot.load_omniglot(other_dir)


@pytest.mark.parametrize(
    ("old", "new"), [('"array_record"', '"tfrecord"'), ("{", "["), ("omniglot", "o")]
)
def test_a_wrong_description_is_an_error_that_says_so(other_dir, cache_dir, old, new):
    path = other_dir / "omniglot" / "3.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match="Omniglot in array_record format"):
        _omniglot.load_omniglot(other_dir)


def test_an_unknown_split_lists_the_choices(tmp_path):
    message = "`split` must be one of 'vinyals', 'random', 'lake', got 'ravi'"
    with pytest.raises(ValueError, match=message):
        _omniglot.load_omniglot(tmp_path, "ravi")


def test_the_random_split_never_changes():
    names = np.array([f"A/character{i:04}" for i in range(1623)])
    parts = _omniglot._assign("random", _omniglot._Characters(None, names, None))
    order = np.argsort(np.random.PCG64(0).random_raw(1623))
    assert order[:4].tolist() == [855, 921, 269, 1185]
    assert np.bincount(parts).tolist() == [1100, 100, 423]
    assert (np.diff(parts[order]) >= 0).all()  # Train first, then validation, test.


# No network.


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    # Nothing listens at port 1.
    monkeypatch.setitem(_omniglot_builder._ZIPS, "train", "http://127.0.0.1:1/a.zip")


def test_with_nothing_prepared_and_no_network_the_error_is_quick(tmp_path, offline):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as caught:
        _omniglot.load_omniglot(tmp_path)
    assert time.perf_counter() - start < 5
    assert str(caught.value) == (
        f"omniglot is not at {tmp_path}/omniglot/3.0.0, and "
        "http://127.0.0.1:1/a.zip cannot be reached to download it. "
        "With a network, `python -m jaxmeta.tasks.download omniglot --data-dir "
        f"{tmp_path}` downloads it."
    )


def test_the_default_folder_is_that_of_tfds(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere/omniglot"):
        _omniglot.load_omniglot()


def test_the_command_line_exits_with_the_message(tmp_path, offline):
    with pytest.raises(SystemExit, match="omniglot is not at") as caught:
        download.main(["omniglot", "--data-dir", os.fspath(tmp_path)])
    assert isinstance(caught.value.code, str)  # So the exit status is 1.


def test_the_command_line_prints_where_the_dataset_is(made_dir, capsys):
    download.main(["omniglot", "--data-dir", os.fspath(made_dir)])
    assert capsys.readouterr().out.strip() == f"{made_dir}/omniglot/3.0.0"


def test_a_host_that_never_answers_is_given_up():
    pytest.importorskip("requests")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        start = time.perf_counter()
        assert not _tfds.reachable(url, seconds=0.2)
        assert time.perf_counter() - start < 2


def test_a_lookup_of_the_host_that_hangs_is_given_up(monkeypatch):
    requests = pytest.importorskip("requests")
    release = threading.Event()
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: release.wait(10))
    start = time.perf_counter()
    assert not _tfds.reachable("http://host/a.zip", seconds=0.1)
    assert time.perf_counter() - start < 2
    release.set()


# The real Omniglot.


@pytest.fixture(scope="module")
def omniglot():
    """The real dataset in its three splits."""
    pytest.importorskip("tensorflow_datasets")
    if not (DATA / "tfds").is_dir():
        pytest.skip("the real Omniglot is not at ../shared/data")
    return {
        split: _omniglot.load_omniglot(DATA / "tfds", split)
        for split in _omniglot.SPLITS
    }


@pytest.fixture(scope="module")
def stored():
    """The same images, stored by other code: {name: [20, 28, 28]} for each set."""
    if not (DATA / "omniglot").is_dir():
        pytest.skip("the stored Omniglot is not at ../shared/data")
    with np.load(DATA / "omniglot" / "omniglot_28x28.npz") as file:
        return {
            split: {
                f"{alphabet}/character{character:02}": images
                for alphabet, character, images in zip(
                    file[f"{split}_alphabet"],
                    file[f"{split}_character"],
                    file[split],
                    strict=True,
                )
            }
            for split in ("background", "evaluation")
        }


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("vinyals", [1028, 172, 423]),
        ("random", [1100, 100, 423]),
        ("lake", [828, 136, 659]),
    ],
)
def test_splits_are_disjoint_and_cover_the_real_omniglot(omniglot, split, counts):
    splits = omniglot[split]
    assert [part.images.shape for part in splits] == [
        (count, 20, 28, 28, 1) for count in counts
    ]
    assert all((part.num_examples == 20).all() for part in splits)
    assert all(list(part.names) == sorted(part.names) for part in splits)
    assert len({name for part in splits for name in part.names}) == 1623


@pytest.mark.parametrize("split", _omniglot.SPLITS)
def test_real_images_equal_the_stored_ones(omniglot, stored, split):
    expected = stored["background"] | stored["evaluation"]
    for part in omniglot[split]:
        for name, images in zip(part.names, part.images, strict=True):
            ours = sorted(image.tobytes() for image in images)
            assert ours == sorted(image.tobytes() for image in expected[name])


def test_ink_is_high(omniglot):
    images = omniglot["vinyals"].test.images
    assert images.max() == 255
    assert 10 < images.mean() < 40


@pytest.mark.parametrize(
    ("part", "file"), [("train", "train"), ("validation", "val"), ("test", "test")]
)
def test_the_vinyals_split_equals_the_published_lists(omniglot, part, file):
    listed = DATA / "omniglot" / "splits" / f"vinyals_{file}_classes.txt"
    names = getattr(omniglot["vinyals"], part).names
    assert sorted(names) == sorted(listed.read_text().split())


def test_the_lake_split_tests_on_the_evaluation_alphabets(omniglot, stored):
    train, validation, test = omniglot["lake"]
    assert set(test.names) == set(stored["evaluation"])
    assert set(train.names + validation.names) == set(stored["background"])
    assert {name.split("/")[0] for name in validation.names} == {
        *("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    }
