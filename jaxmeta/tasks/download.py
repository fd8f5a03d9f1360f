"""Downloads a dataset: `python -m jaxmeta.tasks.download omniglot --data-dir DIR`."""

import argparse
import sys
from collections.abc import Sequence

from jaxmeta.tasks import _labelled_builder, _omniglot_builder

DATASETS = {
    "cifar10": _labelled_builder.prepare_cifar10,
    "cifar100": _labelled_builder.prepare_cifar100,
    "mnist": _labelled_builder.prepare_mnist,
    "omniglot": _omniglot_builder.prepare_omniglot,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Downloads and prepares the dataset named on the command line.

    Args:
      argv: the arguments; default those of the process.

    Raises:
      SystemExit: if the arguments are invalid, or the dataset cannot be downloaded.

    Example:
      >>> main(["omniglot", "--data-dir", "data"])  # doctest: +SKIP
    """
    parser = argparse.ArgumentParser(
        prog="python -m jaxmeta.tasks.download", description=__doc__
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument(
        "--data-dir",
        help="tensorflow-datasets folder ($TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    args = parser.parse_args(argv)
    try:
        print(DATASETS[args.dataset](args.data_dir))
    except (ImportError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
