//! The backend for CPUs with AVX-512 and its 52-bit integer multiply-add (IFMA).
//!
//! This file is the door: its functions are safe, and every function behind it requires the
//! instructions that the [`Platform`] check has seen.

mod accumulator;
mod join;
mod lanes;
mod pipeline;
mod poseidon;
mod terms;

use super::contribution::Contribution;
use super::field::Fp;
use super::job::{Job, Sums};
use super::platform::Platform;
use super::portable;
use super::table::{Form, Table};
use super::windows::{TERMS_MAX, Term};
use pipeline::Pipeline;
use starknet_types_core::felt::Felt;
use std::cell::RefCell;
use terms::{LANES, VectorTerm};

/// Up to this many sums, each is spread over the lanes of its own.
const SINGLE_SUMS_MAX: usize = 2;
/// Up to this many sums, accumulators beat the pipeline.
const FEW_SUMS_MAX: usize = 32;
const _: () = assert!(FEW_SUMS_MAX <= accumulator::FEW_MAX);
/// Sums per block of the pipeline: 32 whole hashes, or as many shorter sums as have about as many points.
/// Larger blocks share an inversion among more sums, smaller ones stay nearer to the core.
fn block_sums(width: usize) -> usize {
    const POINTS: usize = 32 * 36;
    (POINTS / width / LANES * LANES).clamp(32, 128)
}
/// Fewer joins than this do not repay the vector inversion.
const VECTOR_JOINS_MIN: usize = 4;
/// Fewer pairs than this are faster one by one.
const VECTOR_POSEIDON_MIN: usize = 2;

/// Calls vector code, once the platform has been asked.
macro_rules! on_checked_platform {
    ($call:expr) => {{
        assert_ne!(Platform::detect(), Platform::PORTABLE);
        // SAFETY: `Platform::detect` has seen avx512ifma, avx512vbmi2, avx512vl and bmi2, which is all
        // that the callee's `target_feature` attributes name; the callee is a safe function otherwise.
        unsafe { $call }
    }};
}

pub(crate) fn sum(table: &Table, job: Job<'_>, mut sums: Sums<'_>) {
    assert!(table.form() == Form::Limbs52);
    assert_eq!(job.len(), sums.len());
    on_checked_platform!(dispatch(table, &job, &mut sums));
}

#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
fn dispatch(table: &Table, job: &Job<'_>, sums: &mut Sums<'_>) {
    thread_local! {
        /// The pipeline's buffers: below 1 MiB, from a thread's first large batch on.
        static PIPELINE: RefCell<Pipeline> = RefCell::default();
    }
    let geometry = table.geometry();
    let width = job.terms(geometry);
    if width == 1 {
        let mut term = [Term::default()];
        for i in 0..job.len() {
            job.recode(geometry, i, &mut term);
            sums.put(i, table.get_limbs64(term[0]));
        }
    } else if job.len() <= SINGLE_SUMS_MAX && width >= LANES {
        let mut terms = [Term::default(); 2 * TERMS_MAX];
        let terms = &mut terms[..width];
        for i in 0..job.len() {
            job.recode(geometry, i, terms);
            sums.put(i, accumulator::single(table, terms));
        }
    } else if job.len() <= FEW_SUMS_MAX {
        let mut terms = [VectorTerm::default(); 2 * TERMS_MAX * FEW_SUMS_MAX.div_ceil(LANES)];
        let vectors = job.len().div_ceil(LANES);
        let terms = &mut terms[..vectors * width];
        for (vector, terms) in terms.chunks_exact_mut(width).enumerate() {
            terms::recode(geometry, job, vector * LANES, terms);
        }
        accumulator::few(table, terms, width, sums);
    } else {
        PIPELINE.with_borrow_mut(|pipeline| pipeline.run(table, job, block_sums(width), sums));
    }
}

/// x of A + B for each pair.
pub(crate) fn join(pairs: &[(Contribution, Contribution)], out: &mut [Fp]) {
    assert_eq!(pairs.len(), out.len());
    if pairs.len() < VECTOR_JOINS_MIN {
        return portable::join(pairs, out);
    }
    for (pairs, out) in pairs.chunks(join::JOINS_MAX).zip(out.chunks_mut(join::JOINS_MAX)) {
        on_checked_platform!(join::join(pairs, out));
    }
}

pub(crate) fn poseidon_many(pairs: &[[Felt; 2]], out: &mut [Felt]) {
    assert_eq!(pairs.len(), out.len());
    for (pairs, out) in pairs.chunks(2 * LANES).zip(out.chunks_mut(2 * LANES)) {
        if pairs.len() < VECTOR_POSEIDON_MIN {
            super::poseidon::poseidon_many(pairs, out);
        } else if pairs.len() <= LANES {
            on_checked_platform!(poseidon::hash::<1>(pairs, out));
        } else {
            on_checked_platform!(poseidon::hash::<2>(pairs, out));
        }
    }
}

/// Every path a sum can take here, on ready-made terms.
#[cfg(test)]
pub(super) fn term_paths() -> Vec<super::tests::TermsPath> {
    fn single(table: &Table, terms: &[Term], width: usize, mut sums: Sums<'_>) {
        for (i, terms) in terms.chunks_exact(width).enumerate() {
            sums.put(i, on_checked_platform!(accumulator::single(table, terms)));
        }
    }
    fn few(table: &Table, terms: &[Term], width: usize, mut sums: Sums<'_>) {
        for start in (0..sums.len()).step_by(accumulator::FEW_MAX) {
            let end = sums.len().min(start + accumulator::FEW_MAX);
            let mut vectors = vec![VectorTerm::default(); (end - start).div_ceil(LANES) * width];
            for i in 0..vectors.len() / width * LANES {
                let sum = (start + i).min(end - 1);
                for j in 0..width {
                    vectors[i / LANES * width + j].set_lane(i % LANES, terms[sum * width + j]);
                }
            }
            on_checked_platform!(accumulator::few(table, &vectors, width, &mut sums.range(start..end)));
        }
    }
    fn blocks_of_8(table: &Table, terms: &[Term], width: usize, mut sums: Sums<'_>) {
        on_checked_platform!(pipeline::run_terms(table, terms, width, 8, &mut sums));
    }
    fn blocks_of_32(table: &Table, terms: &[Term], width: usize, mut sums: Sums<'_>) {
        on_checked_platform!(pipeline::run_terms(table, terms, width, 32, &mut sums));
    }
    vec![single, few, blocks_of_8, blocks_of_32]
}
