"""Finds the images in a folder."""

import pathlib

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


def image_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's images, sorted, without hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
