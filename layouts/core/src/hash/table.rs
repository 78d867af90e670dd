//! The window tables: every multiple that a window can ask for.
//!
//! Built once per process and width, on first use, by whichever thread comes first; others wait.
//! 14-bit windows take 19.0 MiB and 18 + 18 additions per hash, 12-bit windows 5.5 MiB and 21 + 21.
//! Never freed: a table is used for as long as the process hashes.

use super::contribution::Side;
use super::curve::{Affine, PedersenPoints};
use super::field::Fp;
use super::huge::HugeSlice;
use super::platform::prefetch;
use super::width::TableWidth;
use super::windows::{Class, Geometry, OPERAND_BITS, SHORT_WINDOWS, Term};
use std::sync::OnceLock;

/// Montgomery form of the coordinates in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// R = 2^256, for [`Fp`].
    Limbs64,
    /// R = 2^260, for the five 52-bit limbs of the vector backend; packed in 256 bits all the same.
    Limbs52,
}

/// All points of both sides; see [`super::windows`] for their order.
pub(crate) struct Table {
    geometry: Geometry,
    form: Form,
    points: HugeSlice<Affine>,
}

impl Table {
    /// The table shared by the whole process.
    pub(crate) fn shared(form: Form, width: TableWidth) -> &'static Table {
        static TABLES: [[OnceLock<Table>; 2]; 2] = [const { [const { OnceLock::new() }; 2] }; 2];
        TABLES[form as usize][width as usize].get_or_init(|| Table::build(form, Geometry::new(width.bits())))
    }

    pub(crate) fn build(form: Form, geometry: Geometry) -> Table {
        let points = PedersenPoints::new();
        // Shares of the shift point that make P0 together; why they are not 1 and 0 is told in
        // the notes on windows.
        let shares = [points.shift.double(), points.shift.neg()];
        let sides = [0, 1].map(|side| SidePoints::new(&points.bases[side], shares[side]));
        let into_form = |mut piece: Vec<Affine>| {
            if form == Form::Limbs52 {
                piece.iter_mut().for_each(scale_to_limbs52);
            }
            piece
        };
        let windows = (0..2).flat_map(|side| (0..geometry.count()).map(move |window| (side, window)));
        let pieces = windows
            .map(|(side, window)| sides[side].window(geometry, window))
            .chain(sides.iter().map(|side| side.constants(geometry)))
            .map(into_form);
        Table { geometry, form, points: HugeSlice::from_pieces(geometry.table_points(), pieces) }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn points(&self) -> &[Affine] {
        &self.points
    }

    /// Asks for the cache line of a term.
    #[inline(always)]
    pub(crate) fn prefetch(&self, term: Term) {
        prefetch(&self.points, term.index());
    }

    /// The point of a term, in the table's own form. Negation leaves y in (0, p].
    #[inline(always)]
    pub(crate) fn get(&self, term: Term) -> Affine {
        let Affine { x, y } = self.points[term.index()];
        Affine { x, y: if term.negate() { Fp::MODULUS.sub_lazy(&y) } else { y } }
    }

    /// The point of a term in the form of [`Fp`], whatever the table's own form is.
    pub(crate) fn get_limbs64(&self, term: Term) -> Affine {
        let Affine { x, y } = self.points[term.index()];
        let point = match self.form {
            Form::Limbs64 => Affine { x, y },
            Form::Limbs52 => {
                let sixteenth = Fp::from_canonical([16, 0, 0, 0]).invert();
                Affine { x: x.mul(&sixteenth), y: y.mul(&sixteenth) }
            }
        };
        if term.negate() { point.neg() } else { point }
    }
}

/// x·2^256 → x·2^260.
fn scale_to_limbs52(point: &mut Affine) {
    for coordinate in [&mut point.x, &mut point.y] {
        for _ in 0..4 {
            *coordinate = coordinate.add(coordinate);
        }
    }
}

/// The points of single bits of one side.
struct SidePoints {
    /// Q_i for every bit.
    whole: Vec<Affine>,
    /// Q_i / 2 for every bit.
    half: Vec<Affine>,
    share: Affine,
}

impl SidePoints {
    fn new(bases: &[Affine; 2], share: Affine) -> SidePoints {
        let mut points = SidePoints { whole: Vec::new(), half: Vec::new(), share };
        for (base, bits) in [(bases[0], 248), (bases[1], OPERAND_BITS as usize - 248)] {
            let mut point = base;
            points.half.push(base.half());
            for bit in 0..bits {
                points.whole.push(point);
                if bit + 1 < bits {
                    // Half of the next bit's point is this bit's point.
                    points.half.push(point);
                    point = point.double();
                }
            }
        }
        points
    }

    /// Every value of one window, ordered by its digit.
    fn window(&self, geometry: Geometry, window: usize) -> Vec<Affine> {
        let bits = geometry.bits() as usize;
        let low = window * bits;
        let (first, free) = if window + 1 == geometry.count() {
            // The unsigned top window starts from the share and all halves of the signed windows.
            (add_all(self.share, &self.half[..low]), bits)
        } else {
            // Digit zero of the stored half: top bit one, all others minus.
            let minus: Vec<_> = self.half[low..low + bits - 1].iter().map(Affine::neg).collect();
            (add_all(self.half[low + bits - 1], &minus), bits - 1)
        };
        // Setting bit i adds Q_i: from −Q_i/2 to +Q_i/2, or from nothing to Q_i.
        let mut points = Vec::with_capacity(1 << free);
        points.push(first);
        for bit in 0..free {
            append_sums(&mut points, &self.whole[low + bit]);
        }
        points
    }

    /// What zero windows add up to: all of them, then all but the lowest [`SHORT_WINDOWS`].
    fn constants(&self, geometry: Geometry) -> Vec<Affine> {
        const _: () = assert!(Class::Zero as usize == 0 && Class::Short as usize == 1);
        let short_bits = SHORT_WINDOWS * geometry.bits() as usize;
        vec![self.share, add_all(self.share, &self.half[..short_bits])]
    }
}

fn add_all(first: Affine, rest: &[Affine]) -> Affine {
    let sum = super::curve::sum_complete(std::iter::once(first).chain(rest.iter().copied()));
    // UNWRAP: a sum of distinct signed powers of two of one base, below its order, is not zero, and
    // no relation between the bases is known.
    #[expect(clippy::expect_used, reason = "see above")]
    sum.expect("partial sum of table points is finite")
}

/// Appends `step` added to each point, with one shared inversion.
fn append_sums(points: &mut Vec<Affine>, step: &Affine) {
    let count = points.len();
    let mut prefixes = Vec::with_capacity(count);
    let mut product = Fp::ONE;
    for point in points.iter() {
        prefixes.push(product);
        product = product.mul(&step.x.sub(&point.x));
    }
    assert!(!product.is_zero(), "two points of a window share an x");
    let mut inverse = product.invert();
    points.resize(2 * count, Affine::default());
    for i in (0..count).rev() {
        let point = points[i];
        let slope = step.y.sub(&point.y).mul(&inverse.mul(&prefixes[i]));
        inverse = inverse.mul(&step.x.sub(&point.x));
        points[count + i] = point.along(&slope, &step.x);
    }
}

/// All the side labels a table has halves for.
const _: () = assert!(Side::Left as usize == 0 && Side::Right as usize == 1);
