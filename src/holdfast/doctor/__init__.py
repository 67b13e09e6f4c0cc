"""The doctor: what of a store at rest is whole, how it can go on, and the front door that recovers it by itself."""

from __future__ import annotations

from .examination import diagnose, repair
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
    "diagnose",
    "open_recovered",
    "repair",
]
