"""The command line ``holdfast``: commands over the public parts of the store, and nothing the store does not do."""
