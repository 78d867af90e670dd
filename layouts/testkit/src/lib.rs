//! The exam for layouts and stores.
//!
//! [`mod@reference`] is the whole commitment in the plainest possible code, following the specification line by line; it
//! is slow and stays so, because everything quick is compared to it. [`strategies`] makes random sequences of state
//! diffs out of small universes of nasty keys. [`conformance!`] is the suite that any layout runs with one line:
//!
//! ```ignore
//! flagstone_testkit::conformance!(MyLayout::new());
//! ```
//!
//! [`stores::conforms`] is the same for a store.

pub mod conformance;
mod driver;
mod property;
pub mod reference;
pub mod stores;
pub mod strategies;
mod whole_states;
