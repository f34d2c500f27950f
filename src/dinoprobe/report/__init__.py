"""A finished evaluation as one HTML page for people, and as a model card for the hub.

Both take the same `ReportInput` and return text. The page carries its pictures, style and script
within itself, so that it can be mailed and still opens in ten years; the price is a third more
bytes for each thumbnail, and a limit on how many there are.
"""

from dinoprobe.report.card import render_card
from dinoprobe.report.html import render_report
from dinoprobe.report.input import (
    Baseline,
    Compared,
    EpochPoint,
    Prediction,
    ReportInput,
    SelectionPoint,
)

__all__ = [
    "Baseline",
    "Compared",
    "EpochPoint",
    "Prediction",
    "ReportInput",
    "SelectionPoint",
    "render_card",
    "render_report",
]
