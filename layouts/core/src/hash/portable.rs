//! Pedersen sums on any machine.
//!
//! One sum alone runs through an accumulator with projective denominators. Several are added as a
//! tree of affine additions, where all additions of a level share one inversion: six multiplications
//! per addition in place of ten.

use super::contribution::Contribution;
use super::curve::{Affine, sum_complete};
use super::field::Fp;
use super::job::{Job, Sums, redo};
use super::table::{Form, Table};
use super::windows::{TERMS_MAX, Term};

/// Sums per tree: enough to make an inversion cheap, few enough for the second-level cache.
const BLOCK_SUMS: usize = 64;
/// Below this many sums the tree's inversions, one per level, cost more than they save.
const TREE_SUMS_MIN: usize = 4;
/// Table reads asked for ahead of use.
const PREFETCH_AHEAD: usize = 24;

pub(crate) fn sum(table: &Table, job: Job<'_>, mut sums: Sums<'_>) {
    assert!(table.form() == Form::Limbs64);
    assert_eq!(job.len(), sums.len());
    let width = job.terms(table.geometry());
    if job.len() < TREE_SUMS_MIN {
        let mut terms = [Term::default(); 2 * TERMS_MAX];
        let terms = &mut terms[..width];
        for i in 0..job.len() {
            job.recode(table.geometry(), i, terms);
            sums.put(i, accumulate(table, terms));
        }
        return;
    }
    let mut tree = Tree::new(BLOCK_SUMS.min(job.len()), width);
    for start in (0..job.len()).step_by(BLOCK_SUMS) {
        let block = start..(start + BLOCK_SUMS).min(job.len());
        let terms = &mut tree.terms[..block.len() * width];
        for (i, terms) in terms.chunks_exact_mut(width).enumerate() {
            job.recode(table.geometry(), start + i, terms);
        }
        tree.run(table, sums.range(block));
    }
}

/// x = X/ZZ, y = Y/ZZZ with ZZ³ = ZZZ².
struct Accumulator {
    x: Fp,
    y: Fp,
    zz: Fp,
    zzz: Fp,
}

impl Accumulator {
    /// Adds an affine point. Two equal x turn `zz` into zero, and it stays zero from then on.
    #[inline(always)]
    fn add(&mut self, point: &Affine) {
        let p = point.x.mul(&self.zz).sub(&self.x);
        let r = point.y.mul(&self.zzz).sub(&self.y);
        let pp = p.square();
        let ppp = p.mul(&pp);
        let q = self.x.mul(&pp);
        self.x = r.square().sub(&ppp).sub(&q).sub(&q);
        self.y = r.mul(&q.sub(&self.x)).sub(&self.y.mul(&ppp));
        self.zz = self.zz.mul(&pp);
        self.zzz = self.zzz.mul(&ppp);
    }
}

/// One sum with one inversion at the end.
pub(crate) fn accumulate(table: &Table, terms: &[Term]) -> Affine {
    terms.iter().for_each(|&term| table.prefetch(term));
    let first = table.get(terms[0]);
    if terms.len() == 1 {
        return first;
    }
    let mut sum = Accumulator { x: first.x, y: first.y, zz: Fp::ONE, zzz: Fp::ONE };
    for &term in &terms[1..] {
        sum.add(&table.get(term));
    }
    if sum.zz.is_zero() {
        return redo(table, terms.iter().copied());
    }
    // ZZ = Z² and ZZZ = Z³, so 1/ZZ = (ZZ/ZZZ)².
    let inverse = sum.zzz.invert();
    Affine { x: sum.x.mul(&sum.zz.mul(&inverse).square()), y: sum.y.mul(&inverse) }
}

/// A block of sums being added, all of the same width.
pub(crate) struct Tree {
    width: usize,
    pub(crate) terms: Vec<Term>,
    /// `width` points per sum; partial sums move to the front of each sum's stretch.
    points: Vec<Affine>,
    /// For each addition of a level, the product of the denominators of all later additions.
    suffixes: Vec<Fp>,
}

impl Tree {
    pub(crate) fn new(sums: usize, width: usize) -> Tree {
        Tree {
            width,
            terms: vec![Term::default(); sums * width],
            points: vec![Affine::default(); sums * width],
            suffixes: vec![Fp::ZERO; sums * (width / 2)],
        }
    }

    /// Adds up `self.terms`, `width` terms for each of the sums.
    pub(crate) fn run(&mut self, table: &Table, mut sums: Sums<'_>) {
        let (count, width) = (sums.len(), self.width);
        let terms = &self.terms[..count * width];
        terms.iter().take(PREFETCH_AHEAD).for_each(|&term| table.prefetch(term));
        for (i, point) in self.points[..terms.len()].iter_mut().enumerate() {
            if let Some(&ahead) = terms.get(i + PREFETCH_AHEAD) {
                table.prefetch(ahead);
            }
            *point = table.get(terms[i]);
        }
        let mut left = width;
        while left > 1 {
            if !self.level(count, left, sums.wants_y()) {
                for (i, terms) in self.terms[..count * width].chunks_exact(width).enumerate() {
                    sums.put(i, redo(table, terms.iter().copied()));
                }
                return;
            }
            left = left.div_ceil(2);
        }
        for i in 0..count {
            let Affine { x, y } = self.points[i * width];
            // A single negated term has y in (0, p]; additions always return less than p.
            sums.put(i, Affine { x, y: if width == 1 { y.fold() } else { y } });
        }
    }

    /// Halves the number of points of each sum; false if two of a pair have the same x.
    ///
    /// Products are gathered from the back so that additions can go from the front, where each result
    /// lands on a place already read.
    fn level(&mut self, count: usize, left: usize, wants_y: bool) -> bool {
        let (pairs, odd) = (left / 2, left % 2 == 1);
        let last = left == 2 && !wants_y;
        let suffixes = &mut self.suffixes[..count * pairs];
        let mut product = Fp::ONE;
        for (sum, suffixes) in
            self.points.chunks_exact(self.width).zip(suffixes.chunks_exact_mut(pairs)).take(count).rev()
        {
            for (pair, suffix) in sum[..2 * pairs].as_chunks::<2>().0.iter().zip(suffixes).rev() {
                *suffix = product;
                product = product.mul(&pair[1].x.sub(&pair[0].x));
            }
        }
        if product.is_zero() {
            return false;
        }
        let mut inverse = product.invert();
        for (sum, suffixes) in
            self.points.chunks_exact_mut(self.width).zip(suffixes.chunks_exact(pairs)).take(count)
        {
            for (j, suffix) in suffixes.iter().enumerate() {
                let (p, q) = (sum[2 * j], sum[2 * j + 1]);
                let slope = q.y.sub(&p.y).mul(&inverse.mul(suffix));
                inverse = inverse.mul(&q.x.sub(&p.x));
                sum[j] = if last {
                    Affine { x: slope.square().sub(&p.x).sub(&q.x), y: Fp::ZERO }
                } else {
                    p.along(&slope, &q.x)
                };
            }
            if odd {
                sum[pairs] = sum[left - 1];
            }
        }
        true
    }
}

/// x of A + B for each pair.
pub(crate) fn join(pairs: &[(Contribution, Contribution)], out: &mut [Fp]) {
    assert_eq!(pairs.len(), out.len());
    let denominator = |(a, b): &(Contribution, Contribution)| b.0.x.sub(&a.0.x);
    // The outputs hold the prefix products until they are overwritten with the sums.
    let mut product = Fp::ONE;
    for (pair, prefix) in pairs.iter().zip(out.iter_mut()) {
        *prefix = product;
        product = product.mul(&denominator(pair));
    }
    if product.is_zero() {
        for ((a, b), x) in pairs.iter().zip(out) {
            *x = join_complete(a, b);
        }
        return;
    }
    let mut inverse = product.invert();
    for (pair, x) in pairs.iter().zip(out).rev() {
        let (Contribution(a), Contribution(b)) = pair;
        let slope = b.y.sub(&a.y).mul(&inverse.mul(x));
        inverse = inverse.mul(&denominator(pair));
        *x = slope.square().sub(&a.x).sub(&b.x);
    }
}

/// x of A + B in every case.
///
/// # Panics
/// If the sum is the point at infinity, as contributions of the two sides never add up to.
#[cold]
#[expect(clippy::panic, reason = "documented: the two sides never cancel")]
pub(crate) fn join_complete(a: &Contribution, b: &Contribution) -> Fp {
    match sum_complete([a.0, b.0].into_iter()) {
        Some(point) => point.x,
        None => panic!("contributions cancel: not one of the left and one of the right side"),
    }
}
