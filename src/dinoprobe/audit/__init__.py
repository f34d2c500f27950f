"""What is wrong with labelled images, told from their features, files and parts, before training.

`check` gathers it: copies (across parts first, then under two labels), labels that heads fitted
without the image contradict, outliers, classes that are tiny, confused or in two clusters, a test
part unlike the training part, files that are odd or broken. Of 50,000 x 768 features all of it
takes 71 s of CPU, most of that for copies (benchmarks/check.py).
"""

from dinoprobe.audit.finding import KINDS, SEVERITIES, Check, Finding
from dinoprobe.audit.pictures import Pictures
from dinoprobe.audit.suspects import MINIMUM_MARGIN, Suspect, suspicious_labels
from dinoprobe.audit.whole import check

__all__ = [
    "KINDS",
    "MINIMUM_MARGIN",
    "SEVERITIES",
    "Check",
    "Finding",
    "Pictures",
    "Suspect",
    "check",
    "suspicious_labels",
]
