//! Block witness: what a block read and wrote in all tries, enough to commit it without a store.
//!
//! A [`Witness`] is recorded while a block is committed ([`commit_with_witness`]): every node that the commitment loads
//! is on the way to a key that the block writes, or is the sibling that an edge merges with when a leaf goes, so what is
//! loaded is what is needed, and nothing is walked a second time for it. Added to that are the ways to keys that
//! the block only read, and to contracts that it wrote without change. The nodes that the commitment makes are the
//! ways after the block.
//!
//! For a prover a way does not end at an edge that leaves it: the preimage of the node at the edge's end (its *bottom*, if
//! that is no leaf) belongs to the way, in the trie before and in the trie after. StarkWare's committer always gives it,
//! and StarkWare's Cairo needs it where a key departs at the edge's last bit. So every edge of a witness comes with its
//! bottom.
//!
//! While no class is declared, a commitment may be the contracts root itself. It is believed to be that only if the node
//! is shown whose hash it is, so a block on such a state has that node in its witness, also if it touches no contract.
//!
//! [`Witness::apply`] is the check that needs no store: the same commitment over the witness itself. Nodes are looked up
//! by hash, from the stated old roots down, so nothing counts that does not hash up to them. Then what that commitment
//! read and made must be the whole witness: one node more, less, or different is refused. The caller compares the old
//! roots with a commitment it trusts ([`Witness::check_commitment_before`]).

mod apply;
mod encoding;
mod error;
mod record;

pub use error::WitnessError;
pub use record::commit_with_witness;

pub use crate::outcome::witness::{Witness, WitnessTrie};
