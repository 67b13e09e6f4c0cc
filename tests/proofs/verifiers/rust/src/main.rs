//! The Rust crates `jmt` and `ics23` behind a pipe: one command a line, one answer a line, bytes as hex.
//!
//! put KEY VALUE | del KEY            collected for the next version; answers "ok"
//! commit                             answers the root of the next version
//! prove KEY                          the ICS-23 proof of the newest version, as `jmt` makes it
//! exist SCHEME ROOT KEY VALUE PROOF  "yes" or "no"
//! absent SCHEME ROOT KEY PROOF       "yes" or "no"

use std::io::{self, BufRead, Write};

use ics23::{CommitmentProof, HashOp, HostFunctionsManager, InnerSpec, LeafOp, LengthOp, ProofSpec};
use jmt::{mock::MockTreeStore, KeyHash, Sha256Jmt};
use prost::Message;
use sha2::Sha256;

/// docs/FORMAT.md, section 8.1, written here anew.
fn published_spec(scheme: &str) -> ProofSpec {
    let (leaf, inner_bytes, null) = match scheme {
        "jmt-sha256" => (b"JMT::LeafNode".to_vec(), 16, b"SPARSE_MERKLE_PLACEHOLDER_HASH__".to_vec()),
        "ics23-smt" => (vec![0], 1, vec![0; 32]),
        other => panic!("unknown scheme {other}"),
    };
    ProofSpec {
        leaf_spec: Some(LeafOp {
            hash: HashOp::Sha256.into(),
            prehash_key: HashOp::Sha256.into(),
            prehash_value: HashOp::Sha256.into(),
            length: LengthOp::NoPrefix.into(),
            prefix: leaf,
        }),
        inner_spec: Some(InnerSpec {
            child_order: vec![0, 1],
            child_size: 32,
            min_prefix_length: inner_bytes,
            max_prefix_length: inner_bytes,
            empty_child: null,
            hash: HashOp::Sha256.into(),
        }),
        max_depth: 256,
        min_depth: 0,
        prehash_key_before_comparison: true,
    }
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).expect("hex")
}

fn verdict(accepted: bool) -> String {
    if accepted { "yes" } else { "no" }.to_string()
}

fn verify(scheme: &str, root: &str, key: &str, value: Option<&str>, proof: &str) -> String {
    let Ok(proof) = CommitmentProof::decode(bytes(proof).as_slice()) else {
        return verdict(false);
    };
    let (spec, root, key) = (published_spec(scheme), bytes(root), bytes(key));
    verdict(match value {
        Some(value) => ics23::verify_membership::<HostFunctionsManager>(&proof, &spec, &root, &key, &bytes(value)),
        None => ics23::verify_non_membership::<HostFunctionsManager>(&proof, &spec, &root, &key),
    })
}

fn main() {
    let store = MockTreeStore::default();
    let tree = Sha256Jmt::new(&store);
    let mut version = 0;
    let mut pending: Vec<(KeyHash, Option<Vec<u8>>)> = Vec::new();
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["put", key, value] => {
                let key = bytes(key);
                let key_hash = KeyHash::with::<Sha256>(&key);
                store.put_key_preimage(key_hash, &key);
                pending.push((key_hash, Some(bytes(value))));
                "ok".to_string()
            }
            ["del", key] => {
                pending.push((KeyHash::with::<Sha256>(bytes(key)), None));
                "ok".to_string()
            }
            ["commit"] => {
                version += 1;
                let (root, batch) = tree.put_value_set(pending.drain(..), version).expect("a version");
                store.write_tree_update_batch(batch).expect("the mock store writes");
                hex::encode(root.0)
            }
            ["prove", key] => {
                let (_, proof) = tree.get_with_ics23_proof(bytes(key), version).expect("a proof");
                hex::encode(proof.encode_to_vec())
            }
            ["exist", scheme, root, key, value, proof] => verify(scheme, root, key, Some(value), proof),
            ["absent", scheme, root, key, proof] => verify(scheme, root, key, None, proof),
            _ => panic!("unknown command {line}"),
        };
        writeln!(out, "{answer}").expect("an answer");
    }
    out.flush().expect("all answers");
}
