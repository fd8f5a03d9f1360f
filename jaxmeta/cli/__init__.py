"""The command line, `jaxmeta`."""

from jaxmeta.cli._main import main

__all__ = ["main"]
