"""Runs the notebooks from top to bottom and stores what they show.

    python notebooks/run.py [NAME...]

A test compares the code of each with what was run: run it again after a change.
"""

import argparse
import hashlib
import pathlib

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code cells, in order."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def run(path: pathlib.Path) -> None:
    """Executes the notebook and writes it back with its outputs."""
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=3600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # Times: another diff at every run.
    notebook.metadata["jaxmeta"] = {"ran": digest(notebook)}
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 01_quickstart; default: all")
    args = parser.parse_args()
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not args.names or path.stem in args.names:
            print(path.stem, flush=True)
            run(path)


if __name__ == "__main__":
    main()
