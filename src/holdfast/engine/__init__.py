"""Ordered key-value engines under the views: one contract, four implementations.

An engine holds only what can be rebuilt from the journal, so it needs atomic batches and honest errors, not its own
durability for each commit.
"""
