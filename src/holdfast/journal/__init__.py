"""The journal: one append-only, checksummed, hash-chained sequence of frames that is the truth of a store.

Frames, segments and the watermark are those of docs/FORMAT.md, sections 4 to 6.
"""
