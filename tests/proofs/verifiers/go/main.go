// The Go modules ics23/go and celestiaorg/smt behind a pipe: one command a line, one answer a line, bytes as hex.
//
//	put KEY VALUE | del KEY            at once; answers "ok"
//	root                               root of the sparse Merkle tree of celestiaorg/smt
//	exist SCHEME ROOT KEY VALUE PROOF  "yes" or "no"
//	absent SCHEME ROOT KEY PROOF       "yes" or "no"
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/celestiaorg/smt"
	ics23 "github.com/cosmos/ics23/go"
)

// published is docs/FORMAT.md, section 8.1, written here anew.
func published(scheme string) *ics23.ProofSpec {
	leaf, innerBytes, null := []byte("JMT::LeafNode"), int32(16), []byte("SPARSE_MERKLE_PLACEHOLDER_HASH__")
	if scheme == "ics23-smt" {
		leaf, innerBytes, null = []byte{0}, 1, make([]byte, 32)
	} else if scheme != "jmt-sha256" {
		panic("unknown scheme " + scheme)
	}
	return &ics23.ProofSpec{
		LeafSpec: &ics23.LeafOp{
			Hash:         ics23.HashOp_SHA256,
			PrehashKey:   ics23.HashOp_SHA256,
			PrehashValue: ics23.HashOp_SHA256,
			Length:       ics23.LengthOp_NO_PREFIX,
			Prefix:       leaf,
		},
		InnerSpec: &ics23.InnerSpec{
			ChildOrder:      []int32{0, 1},
			ChildSize:       32,
			MinPrefixLength: innerBytes,
			MaxPrefixLength: innerBytes,
			EmptyChild:      null,
			Hash:            ics23.HashOp_SHA256,
		},
		MaxDepth:                   256,
		MinDepth:                   0,
		PrehashKeyBeforeComparison: true,
	}
}

func data(text string) []byte {
	found, err := hex.DecodeString(text)
	check(err)
	return found
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func verify(words []string) string {
	proof := &ics23.CommitmentProof{}
	if proof.Unmarshal(data(words[len(words)-1])) != nil {
		return "no"
	}
	spec, root, key := published(words[1]), data(words[2]), data(words[3])
	accepted := false
	if words[0] == "exist" {
		accepted = ics23.VerifyMembership(spec, root, proof, key, data(words[4]))
	} else {
		accepted = ics23.VerifyNonMembership(spec, root, proof, key)
	}
	if accepted {
		return "yes"
	}
	return "no"
}

func main() {
	tree := smt.NewSparseMerkleTree(smt.NewSimpleMap(), smt.NewSimpleMap(), sha256.New())
	in := bufio.NewReader(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		answer := "ok"
		switch words[0] {
		case "put":
			_, err = tree.Update(data(words[1]), data(words[2]))
			check(err)
		case "del":
			if present, err := tree.Has(data(words[1])); err != nil {
				panic(err)
			} else if present {
				_, err = tree.Delete(data(words[1]))
				check(err)
			}
		case "root":
			answer = hex.EncodeToString(tree.Root())
		case "exist", "absent":
			answer = verify(words)
		default:
			panic("unknown command " + line)
		}
		fmt.Fprintln(out, answer)
	}
}
