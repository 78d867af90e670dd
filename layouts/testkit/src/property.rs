//! Running a property over random inputs.

use flagstone_core::diff::StateDiff;
use flagstone_core::error::StateError;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::strategies::blocks;

/// Runs a property over random block sequences with a fixed seed; a failure prints the shrunk input.
pub(crate) fn for_random_blocks(
    cases: u32,
    count: std::ops::Range<usize>,
    property: impl Fn(Vec<StateDiff>) -> Result<(), TestCaseError>,
) {
    for_random(cases, &blocks(count), property);
}

/// The same over anything.
pub(crate) fn for_random<S: Strategy>(
    cases: u32,
    strategy: &S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let outcome = runner.run(strategy, property);
    assert!(outcome.is_ok(), "{}", outcome.err().map(|error| error.to_string()).unwrap_or_default());
}

pub(crate) fn fail(error: StateError) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

/// Threads to run something on.
pub(crate) fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    #[expect(clippy::expect_used, reason = "without threads there is nothing to test")]
    pool.expect("the system gives threads")
}
