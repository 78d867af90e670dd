//! A buffer that lives on huge pages where the system gives them.
//!
//! Window tables are read at random over some twenty megabytes. On 4 KiB pages nearly every read also
//! misses the address translation cache, which costs 10 to 25 % of the hashing time; on 2 MiB pages the
//! whole table fits that cache. The advice may be refused, and nothing but speed depends on it.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;

/// Page size asked for; also the alignment of the buffer.
const HUGE_PAGE: usize = 2 << 20;

/// An owned slice, aligned to [`HUGE_PAGE`].
pub(crate) struct HugeSlice<T: Copy> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer is owned and only ever shared as `&[T]`, so it moves and shares like `Vec<T>`.
unsafe impl<T: Copy + Send> Send for HugeSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for HugeSlice<T> {}

impl<T: Copy> HugeSlice<T> {
    /// Fills a new buffer of `len` entries, piece by piece, in the order the pieces come.
    ///
    /// # Panics
    /// If the pieces together are not exactly `len` long, or `len` entries take no space.
    pub(crate) fn from_pieces(len: usize, pieces: impl Iterator<Item = Vec<T>>) -> HugeSlice<T> {
        let layout = Self::layout(len);
        assert!(layout.size() > 0);
        // SAFETY: the layout has a non-zero size, asserted above.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // The advice has to come before the first write, which is what picks the page size.
        advise(start, layout.size());
        let slice = HugeSlice { start: start.cast::<T>(), len };
        let mut filled = 0;
        for piece in pieces {
            assert!(piece.len() <= len - filled, "more entries than the buffer was made for");
            // SAFETY: `filled + piece.len() <= len` was just asserted, and the new buffer cannot
            // overlap the piece.
            unsafe {
                slice.start.add(filled).copy_from_nonoverlapping(NonNull::from(&*piece).cast(), piece.len())
            };
            filled += piece.len();
        }
        assert_eq!(filled, len, "fewer entries than the buffer was made for");
        slice
    }

    fn layout(len: usize) -> Layout {
        // UNWRAP: fails only for sizes near the address space; tables are some megabytes.
        #[expect(clippy::expect_used, reason = "see above")]
        let layout =
            Layout::array::<T>(len).and_then(|array| array.align_to(HUGE_PAGE)).expect("table too large");
        layout.pad_to_align()
    }
}

impl<T: Copy> Deref for HugeSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `from_pieces` returned only after writing all `len` entries.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Copy> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `from_pieces` with the same layout; `T: Copy` has nothing to drop.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) }
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
fn advise(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the range is one live allocation, aligned to and padded to whole pages, so no page of
    // it belongs to anyone else; this advice changes no contents. A refusal is harmless.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise(_start: NonNull<u8>, _bytes: usize) {}
