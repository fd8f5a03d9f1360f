"""A page about one run, or about several side by side (the extra `report`).

`jaxmeta report RUN...` writes one HTML file that needs nothing else: settings, curves,
the hardest test tasks with their mistakes, and where it was trained.
"""

from jaxmeta.report._write import write_report

__all__ = ["write_report"]
