//! The one operation behind Pedersen hashes and contribution points: many sums of table points.
//!
//! A caller's operands are put in canonical form, classed by length, and grouped so that all sums of a
//! [`Job`] add the same number of points. A backend then turns a job into sums without asking any
//! further questions.

use super::contribution::{Contribution, Side};
use super::curve::Affine;
use super::field::Fp;
use super::job::{Job, Summand, Sums};
use super::platform::{Backend, Platform};
use super::portable;
use super::table::Table;
use super::windows::{Geometry, TERMS_MAX};
use starknet_types_core::felt::Felt;

/// Sums taken into one job at most; bounds the memory of a call whatever its length.
const JOB_SUMS_MAX: usize = 2048;

fn run(platform: Platform, table: &Table, job: Job<'_>, sums: Sums<'_>) {
    assert_eq!(job.len(), sums.len());
    debug_assert!(job.terms(table.geometry()) <= 2 * TERMS_MAX);
    match platform.backend() {
        Backend::Portable => portable::sum(table, job, sums),
        #[cfg(target_arch = "x86_64")]
        Backend::Ifma => super::ifma::sum(table, job, sums),
    }
}

/// One hash without any of the batch bookkeeping.
pub(crate) fn pedersen(platform: Platform, table: &Table, left: &Felt, right: &Felt) -> Felt {
    let summands = [Summand::new(Side::Left, left), Summand::new(Side::Right, right)];
    let classes = summands.map(|summand| table.geometry().classify(&summand.limbs));
    let mut x = [Fp::ZERO];
    run(platform, table, Job { classes: &classes, summands: &summands }, Sums::X(&mut x));
    x[0].to_felt()
}

pub(crate) fn pedersen_many(platform: Platform, table: &Table, pairs: &[[Felt; 2]], out: &mut [Felt]) {
    assert_eq!(pairs.len(), out.len(), "one output per pair");
    let mut x = Vec::new();
    for (pairs, out) in pairs.chunks(JOB_SUMS_MAX).zip(out.chunks_mut(JOB_SUMS_MAX)) {
        let summands: Vec<Summand> = pairs
            .iter()
            .flat_map(|[left, right]| [Summand::new(Side::Left, left), Summand::new(Side::Right, right)])
            .collect();
        for_each_shape::<2>(table.geometry(), &summands, |job, places| {
            x.clear();
            x.resize(job.len(), Fp::ZERO);
            run(platform, table, job, Sums::X(&mut x));
            for (x, place) in x.iter().zip(places) {
                out[place] = x.to_felt();
            }
        });
    }
}

pub(crate) fn contributions(
    platform: Platform,
    table: &Table,
    operands: &[(Side, Felt)],
    out: &mut [Contribution],
) {
    assert_eq!(operands.len(), out.len(), "one output per operand");
    let mut points = Vec::new();
    for (operands, out) in operands.chunks(JOB_SUMS_MAX).zip(out.chunks_mut(JOB_SUMS_MAX)) {
        let summands: Vec<Summand> = operands.iter().map(|(side, felt)| Summand::new(*side, felt)).collect();
        for_each_shape::<1>(table.geometry(), &summands, |job, places| {
            points.clear();
            points.resize(job.len(), Affine::default());
            run(platform, table, job, Sums::Points(&mut points));
            for (point, place) in points.iter().zip(places) {
                out[place] = Contribution(*point);
            }
        });
    }
}

/// Groups sums of K operands by the classes of their operands and calls `f` with each group and with
/// the places its sums had. Nearly always there is one group, and nothing is moved.
fn for_each_shape<const K: usize>(
    geometry: Geometry,
    summands: &[Summand],
    mut f: impl FnMut(Job<'_>, &mut dyn Iterator<Item = usize>),
) {
    let (sums, rest) = summands.as_chunks::<K>();
    debug_assert!(rest.is_empty());
    let shape = |sum: &[Summand; K]| sum.map(|summand| geometry.classify(&summand.limbs));
    let Some(first) = sums.first().map(shape) else {
        return;
    };
    if sums.iter().all(|sum| shape(sum) == first) {
        return f(Job { classes: &first, summands }, &mut (0..sums.len()));
    }
    let mut places: Vec<usize> = (0..sums.len()).collect();
    places.sort_by_key(|&i| shape(&sums[i]));
    for group in places.chunk_by(|&a, &b| shape(&sums[a]) == shape(&sums[b])) {
        let members: Vec<Summand> = group.iter().flat_map(|&i| sums[i]).collect();
        f(Job { classes: &shape(&sums[group[0]]), summands: &members }, &mut group.iter().copied());
    }
}
