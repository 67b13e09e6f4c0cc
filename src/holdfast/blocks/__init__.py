"""Blocks on every branch: records, fork choice, orphans, finality, epochs, and what a frame does to their tables."""
