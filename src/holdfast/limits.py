"""Every fixed limit of the store, with its unit in the name. Settings may lower some of them, never raise them."""

from typing import Final

HASH_BYTES: Final = 32
ENGINE_KEY_BYTES_MAX: Final = 500
TABLE_ID_BYTES: Final = 2
ROW_VALUE_BYTES_MAX: Final = 64 * 1024 * 1024

PART_BYTES_MAX: Final = 256 * 1024 * 1024
FRAME_BYTES_MAX: Final = 512 * 1024 * 1024
FRAME_PARTS_MAX: Final = 4096
BLOCKS_PER_FRAME_MAX: Final = 128

HEADER_BYTES_MAX: Final = 1024 * 1024
BODY_BYTES_MAX: Final = PART_BYTES_MAX
EXTRA_BYTES_MAX: Final = PART_BYTES_MAX
PRODUCER_BYTES_MAX: Final = 128
REASON_BYTES_MAX: Final = 1024

SEGMENT_BYTES_FIRST: Final = 1024 * 1024
SEGMENT_BYTES_MAX: Final = 64 * 1024 * 1024
COMPACTED_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Of the segment that a compacted file stands for."""
COMPACTED_EXTENT_BYTES: Final = 256 * 1024
COMPACTED_EXTENT_BYTES_MAX: Final = 1024 * 1024

HEIGHT_MAX: Final = 2**63 - 1
WORK_MAX: Final = 2**256 - 1

INDEX_NAME_BYTES_MAX: Final = 64
INDEX_KEY_BYTES_MAX: Final = 240
INDEX_VALUE_BYTES_MAX: Final = 64 * 1024
INDEX_ROWS_PER_BLOCK_MAX: Final = 100_000
INDEXES_MAX: Final = 64

SAFETY_IDENTITIES_MAX: Final = 64
SAFETY_IDENTITY_BYTES_MAX: Final = 128
SAFETY_POSITION_MAX: Final = 8
SAFETY_PAYLOAD_BYTES_MAX: Final = 64 * 1024

STATE_KEY_BYTES_MAX: Final = 400
STATE_NAMESPACE_BYTES_MAX: Final = 64
STATE_VALUE_BYTES_MAX: Final = 64 * 1024 * 1024
STATE_INLINE_BYTES_MAX: Final = 64 * 1024
"""Values above this stand in the tree as a reference: their hash and length."""
STATE_CHANGES_MAX: Final = 1_000_000
STATE_CHANGES_BYTES_MAX: Final = 192 * 1024 * 1024
PROOF_BYTES_MAX: Final = 1024 * 1024
PROOF_DEPTH_MAX: Final = 256
PROOF_KEYS_MAX: Final = 4096

DOCUMENT_SPACE_BYTES_MAX: Final = 64
DOCUMENT_KEY_BYTES_MAX: Final = 400
DOCUMENT_VALUE_BYTES_MAX: Final = 16 * 1024 * 1024
DOCUMENT_BATCH_ROWS_MAX: Final = 1_000_000
DOCUMENT_BATCH_BYTES_MAX: Final = 448 * 1024 * 1024
DOCUMENT_PART_BYTES_MAX: Final = 64 * 1024 * 1024
"""A longer batch becomes several parts of one frame."""

BACKUP_TARGET_CHARACTERS_MAX: Final = 900
BACKUP_SCHEDULE_CHARACTERS_MAX: Final = 100
OBJECT_TIMEOUT_SECONDS_MAX: Final = 60.0
"""Longest request to an object store; the lock of a repository there reckons with it."""
OBJECTS_LISTED_MAX: Final = 20_000_000
"""Objects of a repository in an object store that a listing gives."""
OBJECTS_SHELF_MAX: Final = 500_000
"""Objects of one listing: of a shelf of chunks, or of all manifests and marks."""
OBJECTS_KNOWN_MAX: Final = 2_000_000
"""Chunks in an object store whose lengths are kept in memory, about 200 bytes each, while its lock is held."""
