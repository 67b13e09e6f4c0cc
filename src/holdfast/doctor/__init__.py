"""The doctor: what of a store at rest is whole, how it can go on, and the front door that recovers it by itself.

``diagnose`` and ``repair`` are in ``doctor.examination``: what a sound store never needs is not loaded with its open.
"""

from __future__ import annotations

from .door import open_attended
from .ladder import open_recovered
from .report import DoctorReport, Finding, Loss, LostBlock, Plan, RepairReport, Step

__all__ = [
    "DoctorReport",
    "Finding",
    "Loss",
    "LostBlock",
    "Plan",
    "RepairReport",
    "Step",
    "open_attended",
    "open_recovered",
]
