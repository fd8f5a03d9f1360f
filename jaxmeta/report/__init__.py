"""An HTML report of one run, or of several side by side (extra `report`).

`jaxmeta report RUN...` writes one self-contained HTML file: settings, curves, the
hardest test tasks with their mistakes, and the training environment.
"""

from jaxmeta.report._write import write_report

__all__ = ["write_report"]
