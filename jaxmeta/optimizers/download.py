"""Downloads published weights: `python -m jaxmeta.optimizers.download celo`."""

import argparse
import sys
from collections.abc import Sequence

# Name -> repository of its authors on Hugging Face, and what reads the file.
PUBLISHED = {
    "celo": ("amoudgl/celo", "load_celo(PATH, total_steps=N)"),
    "celo-adam": ("amoudgl/celo-adam", "load_celo(PATH, total_steps=N)"),
    "celo2": ("amoudgl/celo2", "load_celo2(PATH, learning_rate)"),
    "celo2-base": (
        "amoudgl/celo2-base",
        "load_celo2(PATH, learning_rate, orthogonalize=False)",
    ),
    "small-fc-mlp": ("amoudgl/adafac-mlp-lopt", "load_small_fc_mlp(PATH)"),
    "velo": ("amoudgl/velo-4000", "load_velo(PATH, total_steps=N)"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Downloads the weights named on the command line, and prints where they are.

    Args:
      argv: the arguments; default those of the process.

    Raises:
      SystemExit: if the arguments are invalid, huggingface_hub is not installed, or the
        file cannot be downloaded.

    Example:
      >>> main(["celo", "--out", "weights"])  # doctest: +SKIP
    """
    parser = argparse.ArgumentParser(
        prog="python -m jaxmeta.optimizers.download", description=__doc__
    )
    parser.add_argument("optimizer", choices=PUBLISHED)
    parser.add_argument("--out", help="folder for the file (Hugging Face's own cache)")
    args = parser.parse_args(argv)
    repository, load = PUBLISHED[args.optimizer]
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit(
            "The weights are on Hugging Face: pip install huggingface_hub, or download "
            f"https://huggingface.co/{repository}/resolve/main/theta.state."
        )
    try:
        path = huggingface_hub.hf_hub_download(
            repository, "theta.state", local_dir=args.out
        )
    except Exception as error:  # Those of several HTTP libraries, by version.
        sys.exit(f"Cannot download theta.state of {repository}: {error}")
    print(path)
    print(f"jaxmeta.optimizers.{load.replace('PATH', repr(path))}")


if __name__ == "__main__":
    main()
