"""Benchmarks of the store: each compares the subject with a floor in the same run, in alternating rounds.

Run with ``make bench`` or ``python -m bench``; docs/BENCHMARKS.md says what each one measures.
"""
