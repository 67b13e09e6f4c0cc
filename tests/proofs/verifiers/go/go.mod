module holdfast.invalid/proofs

go 1.21

require (
	github.com/celestiaorg/smt v0.3.0
	github.com/cosmos/ics23/go v0.11.0
)
