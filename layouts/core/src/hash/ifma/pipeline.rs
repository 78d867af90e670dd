//! Many sums: trees of affine additions, all of them sharing one inversion per step.
//!
//! A block of sums is a tree: its points are added in pairs, then the results in pairs, and so on. Each
//! level needs an inversion, which costs as much as some seventy vector multiplications. So several blocks
//! are in flight, each one level further than the next, and a step advances all of them by one level:
//!
//! ```text
//! step     0    1    2    3    4   …
//! block 0  L0   L1   L2   L3   L4
//! block 1       L0   L1   L2   L3
//! block 2            L0   L1   L2      one inversion per column
//! ```
//!
//! A step first multiplies up all denominators, last addition first, in four chains so that the
//! multiplier is kept busy; then inverts; then does the additions, first one first. Results land on
//! places already read.
//!
//! Bounds, in units of p, of the coordinates that enter level l (loose values, above −L and below U):
//! x₃ = λ² − x₁ − x₂ gives L' = 2U and U' = 1.01 + 2L, from L = 0, U = 1 at the leaves. That is
//! (0, 1), (2, 1.01), (2.02, 5.01), (10.1, 5.1), (10.2, 21.1), (42.2, 21.3), (42.5, 85.4), (170.9, 86.1).
//! Differences at level l are within ±2^(l+1), so that multiple of p lifts them. y grows by less than 2
//! per level and never decides.

use super::lanes::{Lanes, invert_four};
use super::terms::{LANES, VectorTerm, recode};
use crate::hash::curve::Affine;
use crate::hash::field::Fp;
use crate::hash::job::{Job, Sums, redo};
use crate::hash::table::Table;
use crate::hash::windows::TERMS_MAX;

/// Chains of denominators; also a bound on how far apart two dependent multiplications are.
const CHAINS: usize = 4;
/// Levels of the widest tree.
const LEVELS_MAX: usize = (2 * TERMS_MAX).next_power_of_two().ilog2() as usize;
const _: () = assert!(LEVELS_MAX == 7);

/// The multiple of p that lifts differences of level l.
fn lift_of(level: usize) -> u64 {
    debug_assert!(level <= LEVELS_MAX);
    2 << level
}

/// Loose coordinates of eight points.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Points {
    x: Lanes,
    y: Lanes,
}

/// Blocks in flight, kept for the next call of the thread.
///
/// With 36 points per sum and blocks of 32 sums this is 120 KiB for each of seven blocks.
#[derive(Default)]
pub(crate) struct Pipeline {
    blocks: Vec<Block>,
}

/// Sums that advance together.
#[derive(Default)]
struct Block {
    terms: Vec<VectorTerm>,
    /// `width` places per vector of sums; partial sums are at the front.
    points: Vec<Points>,
    /// For each addition of the level, the product of the denominators after it in its chain.
    suffixes: Vec<Lanes>,
    /// Terms per sum.
    width: usize,
    /// Points left per sum.
    left: usize,
    level: usize,
    vectors: usize,
    /// The sums of the job that this block holds.
    sums: std::ops::Range<usize>,
    finished: bool,
}

impl Pipeline {
    /// All sums of a job, in blocks of this many.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    pub(crate) fn run(&mut self, table: &Table, job: &Job<'_>, block_sums: usize, sums: &mut Sums<'_>) {
        let width = job.terms(table.geometry());
        self.drive(table, job.len(), width, block_sums, sums, |block| {
            for vector in 0..block.vectors {
                let terms = &mut block.terms[vector * width..][..width];
                recode(table.geometry(), job, block.sums.start + vector * LANES, terms);
            }
        });
    }

    /// As [`Pipeline::run`], with terms written by the caller.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn drive(
        &mut self,
        table: &Table,
        count: usize,
        width: usize,
        block_sums: usize,
        sums: &mut Sums<'_>,
        mut fill: impl FnMut(&mut Block),
    ) {
        debug_assert!(width >= 2 && block_sums.is_multiple_of(LANES));
        let levels = width.next_power_of_two().ilog2() as usize;
        let total = count.div_ceil(block_sums);
        // One slot for each level, and one that is being prepared.
        let slots = levels + 1;
        self.blocks.resize_with(slots.max(self.blocks.len()), Block::default);
        let mut prepare = |blocks: &mut [Block], number: usize| {
            let block = &mut blocks[number % slots];
            block.reset(number * block_sums..((number + 1) * block_sums).min(count), width);
            fill(block);
        };
        prepare(&mut self.blocks, 0);
        self.blocks[0].terms.iter().for_each(|term| term.prefetch(table));
        for step in 0..total + levels - 1 {
            let in_flight = (step + 1).saturating_sub(levels)..(step + 1).min(total);
            let next = step + 1;
            let mut coming = Vec::new();
            if next < total {
                prepare(&mut self.blocks, next);
                coming = std::mem::take(&mut self.blocks[next % slots].terms);
            }
            self.advance(table, in_flight, slots, &coming, sums);
            if next < total {
                self.blocks[next % slots].terms = coming;
            }
        }
    }

    /// One step: every block in flight goes up one level.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn advance(
        &mut self,
        table: &Table,
        in_flight: std::ops::Range<usize>,
        slots: usize,
        coming: &[VectorTerm],
        sums: &mut Sums<'_>,
    ) {
        let one = Lanes::one();
        let mut products = [one; CHAINS];
        for number in in_flight.clone() {
            let block = &mut self.blocks[number % slots];
            if !block.finished {
                block.gather_denominators(table, &mut products);
            }
        }
        let Some(mut inverses) = invert_four(&products) else {
            // Two equal x somewhere in flight. It cannot happen with operands; it is not worth finding
            // out where.
            for number in in_flight {
                self.blocks[number % slots].redo(table, sums);
            }
            return;
        };
        // Table lines of the coming block are asked for one addition at a time: in a burst they
        // would wait for each other.
        let mut coming = coming.iter();
        for number in in_flight.rev() {
            let block = &mut self.blocks[number % slots];
            if !block.finished {
                block.add_pairs(&mut inverses, sums, || {
                    if let Some(term) = coming.next() {
                        term.prefetch(table);
                    }
                });
            }
        }
        coming.for_each(|term| term.prefetch(table));
    }
}

impl Block {
    fn reset(&mut self, sums: std::ops::Range<usize>, width: usize) {
        self.vectors = sums.len().div_ceil(LANES);
        self.sums = sums;
        self.width = width;
        self.left = width;
        self.level = 0;
        self.finished = false;
        let (points, pairs) = (self.vectors * width, self.vectors * (width / 2));
        self.terms.resize(points, VectorTerm::default());
        let zero = Lanes::zero();
        self.points.resize(points.max(self.points.len()), Points { x: zero, y: zero });
        self.suffixes.resize(pairs.max(self.suffixes.len()), zero);
    }

    /// Multiplies the denominators of this level onto the chains, last addition first, and leaves in
    /// `suffixes` what was there before each. At the leaves, fetches the points.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn gather_denominators(&mut self, table: &Table, products: &mut [Lanes; CHAINS]) {
        let (pairs, lift) = (self.left / 2, lift_of(self.level));
        for vector in (0..self.vectors).rev() {
            let start = vector * self.width;
            if self.level == 0 && self.left % 2 == 1 {
                self.fetch(table, start + self.left - 1);
            }
            for j in (0..pairs).rev() {
                let at = start + 2 * j;
                if self.level == 0 {
                    self.fetch(table, at);
                    self.fetch(table, at + 1);
                }
                let denominator = self.points[at + 1].x.load().sub(&self.points[at].x.load()).lift(lift);
                let addition = vector * pairs + j;
                let product = products[addition % CHAINS].load();
                self.suffixes[addition].store(&product);
                products[addition % CHAINS].store(&product.mul(&denominator));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn fetch(&mut self, table: &Table, at: usize) {
        let term = &self.terms[at];
        let (x, y) = term.fetch(table);
        let point = &mut self.points[at];
        point.x.store(&x);
        point.y.store(&y.negate(term.negated()));
    }

    /// Adds the pairs of this level, two at a time so that one fills the other's waiting.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn add_pairs(&mut self, inverses: &mut [Lanes; CHAINS], sums: &mut Sums<'_>, mut between: impl FnMut()) {
        let pairs = self.left / 2;
        let total = self.vectors * pairs;
        let last = self.left == 2;
        let skip_y = last && !sums.wants_y();
        // Places of an addition: its operands' and its result's.
        let width = self.width;
        let (mut from, mut to, mut j) = (0, 0, 0);
        let mut next = || {
            let places = (from, to);
            (from, to, j) = (from + 2, to + 1, j + 1);
            if j == pairs {
                let vector = to / width + 1;
                (from, to, j) = (vector * width, vector * width, 0);
            }
            places
        };
        let mut addition = 0;
        while addition + 1 < total {
            let (a, b) = (next(), next());
            between();
            self.add_two([a, b], addition, inverses, skip_y);
            between();
            addition += 2;
        }
        if addition < total {
            let a = next();
            self.add_one(a, addition, inverses, skip_y);
            between();
        }
        if self.left % 2 == 1 {
            for vector in 0..self.vectors {
                let start = vector * width;
                let (odd, place) = (start + self.left - 1, start + pairs);
                let (x, y) = (self.points[odd].x.load(), self.points[odd].y.load());
                self.points[place].x.store(&x);
                self.points[place].y.store(&y);
            }
        }
        self.left = self.left.div_ceil(2);
        self.level += 1;
        if last {
            self.emit(sums);
        }
    }

    /// Takes the inverse of one denominator out of its chain.
    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn take_inverse(&self, from: usize, addition: usize, inverses: &mut [Lanes; CHAINS]) -> Lanes {
        let (p, q) = (&self.points[from], &self.points[from + 1]);
        let denominator = q.x.load().sub(&p.x.load()).lift(lift_of(self.level));
        let chain = inverses[addition % CHAINS].load();
        let inverse = chain.mul(&self.suffixes[addition].load());
        inverses[addition % CHAINS].store(&chain.mul(&denominator));
        inverse
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn slope(&self, from: usize, inverse: &Lanes) -> Lanes {
        let (p, q) = (&self.points[from], &self.points[from + 1]);
        q.y.load().sub(&p.y.load()).lift(lift_of(self.level)).mul(inverse)
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn x_of_sum(&self, from: usize, slope: &Lanes) -> Lanes {
        slope.square_loose().sub(&self.points[from].x.load()).sub(&self.points[from + 1].x.load())
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn y_of_sum(&self, from: usize, slope: &Lanes, x: &Lanes) -> Lanes {
        let p = &self.points[from];
        let distance = p.x.load().sub(x).lift(lift_of(self.level + 1));
        slope.mul_loose(&distance).sub(&p.y.load())
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn add_two(
        &mut self,
        places: [(usize, usize); 2],
        addition: usize,
        inverses: &mut [Lanes; CHAINS],
        skip_y: bool,
    ) {
        let [(from_a, to_a), (from_b, to_b)] = places;
        let inverse_a = self.take_inverse(from_a, addition, inverses);
        let inverse_b = self.take_inverse(from_b, addition + 1, inverses);
        let slope_a = self.slope(from_a, &inverse_a);
        let slope_b = self.slope(from_b, &inverse_b);
        let x_a = self.x_of_sum(from_a, &slope_a);
        let x_b = self.x_of_sum(from_b, &slope_b);
        if !skip_y {
            let y_a = self.y_of_sum(from_a, &slope_a, &x_a);
            let y_b = self.y_of_sum(from_b, &slope_b, &x_b);
            self.points[to_a].y.store(&y_a);
            self.points[to_b].y.store(&y_b);
        }
        self.points[to_a].x.store(&x_a);
        self.points[to_b].x.store(&x_b);
    }

    #[inline]
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn add_one(
        &mut self,
        (from, to): (usize, usize),
        addition: usize,
        inverses: &mut [Lanes; CHAINS],
        skip_y: bool,
    ) {
        let inverse = self.take_inverse(from, addition, inverses);
        let slope = self.slope(from, &inverse);
        let x = self.x_of_sum(from, &slope);
        if !skip_y {
            let y = self.y_of_sum(from, &slope, &x);
            self.points[to].y.store(&y);
        }
        self.points[to].x.store(&x);
    }

    /// Hands out the finished sums.
    #[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
    fn emit(&mut self, sums: &mut Sums<'_>) {
        let lift = lift_of(self.level);
        for vector in 0..self.vectors {
            let point = &self.points[vector * self.width];
            let x = point.x.load().lift(lift).scalars();
            let y = if sums.wants_y() { point.y.load().lift(lift).scalars() } else { [Fp::ZERO; LANES] };
            let first = self.sums.start + vector * LANES;
            for (lane, place) in (first..self.sums.end.min(first + LANES)).enumerate() {
                sums.put(place, Affine { x: x[lane], y: y[lane] });
            }
        }
        self.finished = true;
    }

    fn redo(&mut self, table: &Table, sums: &mut Sums<'_>) {
        if self.finished {
            return;
        }
        for (i, place) in self.sums.clone().enumerate() {
            let terms = &self.terms[i / LANES * self.width..][..self.width];
            sums.put(place, redo(table, terms.iter().map(|term| term.lane(i % LANES))));
        }
        self.finished = true;
    }
}

/// The pipeline on ready-made terms, for tests of what no operands can bring about.
#[cfg(test)]
#[target_feature(enable = "avx512ifma,avx512vbmi2,avx512vl,bmi2")]
pub(super) fn run_terms(
    table: &Table,
    terms: &[crate::hash::windows::Term],
    width: usize,
    block_sums: usize,
    sums: &mut Sums<'_>,
) {
    let count = sums.len();
    Pipeline::default().drive(table, count, width, block_sums, sums, |block| {
        for i in 0..block.vectors * LANES {
            let sum = (block.sums.start + i).min(count - 1);
            for j in 0..width {
                block.terms[i / LANES * width + j].set_lane(i % LANES, terms[sum * width + j]);
            }
        }
    });
}
