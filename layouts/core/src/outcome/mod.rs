//! What comes out of commitments, checks and proofs: plain data below all that makes it and all that takes it.
//!
//! Each is public where it is made: [`commit`](crate::commit), [`layout`](crate::layout), [`audit`](crate::audit),
//! [`proof`](crate::proof), [`witness`](crate::witness).

pub(crate) mod changes;
pub(crate) mod findings;
pub(crate) mod proof;
pub(crate) mod witness;
