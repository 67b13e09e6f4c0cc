"""Ready chains: each is a pure ``Chain`` (decode, validate) and, where it helps, a facade over the store."""
