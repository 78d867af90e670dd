//! What proofs are held against.

use super::error::ProofError;
use crate::commitment::{CommitmentRule, Roots};
use crate::types::{BlockHash, StateCommitment};

/// What is known of a block from a source that is trusted, such as its header. What is `None` is not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Anchor {
    /// The state commitment after the block.
    pub commitment: Option<StateCommitment>,
    /// The commitment rule of the block's version. Without it either rule may give the commitment.
    pub rule: Option<CommitmentRule>,
    /// The block's hash.
    pub block_hash: Option<BlockHash>,
}

/// Checks claimed roots against a trusted state commitment.
///
/// Under [`CommitmentRule::ContractsRootAlone`] a commitment says nothing of how it came about: a prover could give out
/// the hash over both roots as the contracts root of a state without classes. So that rule is only believed if
/// `contracts_root_shown`: a node is known whose Pedersen hash the contracts root is.
///
/// # Errors
/// [`ProofError::Commitment`] or [`ProofError::ContractsRootNotShown`].
pub fn check_commitment(
    roots: Roots,
    expected: StateCommitment,
    rule: Option<CommitmentRule>,
    contracts_root_shown: bool,
) -> Result<(), ProofError> {
    let gives = |tried: CommitmentRule| {
        let may = rule.is_none_or(|rule| rule == tried) || !roots.rule_matters();
        may && roots.commitment(tried) == expected
    };
    if gives(CommitmentRule::AlwaysBoth) {
        return Ok(());
    }
    if !gives(CommitmentRule::ContractsRootAlone) {
        let computed = roots.commitment(rule.unwrap_or(CommitmentRule::AlwaysBoth));
        return Err(ProofError::Commitment { expected, computed });
    }
    if contracts_root_shown { Ok(()) } else { Err(ProofError::ContractsRootNotShown(expected)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::contract_leaf_hashes;
    use crate::commitment::ContractLeaf;
    use crate::felt::Felt;
    use crate::hash;

    const ALONE: CommitmentRule = CommitmentRule::ContractsRootAlone;
    const BOTH: CommitmentRule = CommitmentRule::AlwaysBoth;

    #[test]
    fn a_hash_over_both_roots_does_not_pass_for_a_contracts_root() {
        let state = Roots { contracts: 5.into(), classes: 6.into() };
        let commitment = state.commitment(ALONE);
        let lie = Roots { contracts: commitment.0.into(), classes: 0.into() };
        for rule in [None, Some(ALONE)] {
            assert_eq!(
                check_commitment(lie, commitment, rule, false),
                Err(ProofError::ContractsRootNotShown(commitment))
            );
        }
        assert!(check_commitment(lie, commitment, Some(BOTH), true).is_err());
        assert_eq!(check_commitment(state, commitment, None, false), Ok(()));
    }

    #[test]
    fn a_commitment_is_compared_under_the_blocks_rule() {
        let roots = Roots { contracts: 5.into(), classes: 0.into() };
        for (rule, other) in [(ALONE, BOTH), (BOTH, ALONE)] {
            let commitment = roots.commitment(rule);
            assert_eq!(check_commitment(roots, commitment, Some(rule), true), Ok(()));
            assert_eq!(check_commitment(roots, commitment, None, true), Ok(()));
            assert_eq!(
                check_commitment(roots, commitment, Some(other), true),
                Err(ProofError::Commitment { expected: commitment, computed: roots.commitment(other) })
            );
        }
        assert_eq!(check_commitment(Roots::default(), StateCommitment::ZERO, None, false), Ok(()));
    }

    #[test]
    fn contract_leaves_are_three_hashes_deep() {
        let leaf = ContractLeaf { class_hash: 1.into(), storage_root: 2.into(), nonce: 3.into() };
        let [one, two, three] = [1u64, 2, 3].map(Felt::from);
        let expected = hash::pedersen(&hash::pedersen(&hash::pedersen(&one, &two), &three), &Felt::ZERO);
        let hashes = contract_leaf_hashes(&hash::Bulk, &[leaf, ContractLeaf::default()]);
        assert_eq!(hashes, [expected, Felt::ZERO]);
    }
}
