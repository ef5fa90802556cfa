"""Reports: figures from arrays, a self-contained page, run facts, and a safe output folder.

Shared by every job that ends in a report. Nothing here knows what is reported.
"""

from subspan.report.facts import Stopwatch, run_facts
from subspan.report.files import Entry, OutputError, write_atomic, write_json, write_safetensors
from subspan.report.folder import RunFolder
from subspan.report.html import Page, visible

__all__ = [
    "Entry",
    "OutputError",
    "Page",
    "RunFolder",
    "Stopwatch",
    "run_facts",
    "visible",
    "write_atomic",
    "write_json",
    "write_safetensors",
]
