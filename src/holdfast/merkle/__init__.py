"""The Merkle tree over the state: rules, proofs, and two implementations that give the same bytes."""
