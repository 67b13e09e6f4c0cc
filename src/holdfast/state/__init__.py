"""The versioned state: what contracts read and write, its history, its roots and its proofs."""
