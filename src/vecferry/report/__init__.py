"""An evaluation as one HTML file that needs nothing else: no script, no network, charts as SVG.

text.py      numbers and findings as a person reads them
binning.py   queries counted for the charts that show them all
charts.py    charts as SVG
page.py      the page from its templates
"""

from __future__ import annotations

from vecferry.report.charts import slices_picture
from vecferry.report.page import check_report_path, render, write_report

__all__ = ["check_report_path", "render", "slices_picture", "write_report"]
