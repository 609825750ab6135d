"""What can be found out about one model before anything is measured with it: all of it as data, nothing is printed.

Loading stops at the first self-test that fails; here every one is run and reported, and so is all else that decides
whether a number means anything: the files, the parts, the prompt, the sites, the token grid and the memory needed.
"""

from segbench.adapters.report.examination import examine
from segbench.adapters.report.findings import Check, Files, Memory, Model, Part, Parts, Report, Row, Tokens, View

__all__ = ["Check", "Files", "Memory", "Model", "Part", "Parts", "Report", "Row", "Tokens", "View", "examine"]
