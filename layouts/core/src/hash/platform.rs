//! Which instructions this machine has, asked once.

use std::sync::OnceLock;

/// A backend that this machine can run.
///
/// A value of this type is proof that the backend's instructions were seen here: there is no other way
/// to get one than to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Platform(Backend);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    /// Plain 64-bit integer code.
    Portable,
    /// Eight elements at a time with AVX-512 and its 52-bit multiply-add.
    #[cfg(target_arch = "x86_64")]
    Ifma,
}

impl Platform {
    /// The backend that every machine has.
    pub const PORTABLE: Platform = Platform(Backend::Portable);

    /// The fastest backend here. `--cfg flagstone_force_portable` makes it the portable one.
    pub fn detect() -> Platform {
        static DETECTED: OnceLock<Platform> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            if cfg!(flagstone_force_portable) { Platform::PORTABLE } else { Platform(best()) }
        })
    }

    /// Every backend that can run here, slowest first: for tests and comparisons.
    pub fn available() -> Vec<Platform> {
        let mut all = vec![Platform::PORTABLE];
        all.extend([Platform::detect()].into_iter().filter(|&fastest| fastest != Platform::PORTABLE));
        all
    }

    /// A short name for logs and benches.
    pub fn name(self) -> &'static str {
        match self.0 {
            Backend::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Backend::Ifma => "avx512-ifma",
        }
    }

    pub(crate) fn backend(self) -> Backend {
        self.0
    }
}

/// Asks for the cache lines of an item, if it is there.
#[inline(always)]
pub(crate) fn prefetch<T>(items: &[T], index: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const CACHE_LINE_BYTES: usize = 64;
        let first = items.as_ptr().wrapping_add(index).cast::<i8>();
        for line in 0..size_of::<T>().div_ceil(CACHE_LINE_BYTES) {
            // SAFETY: a prefetch reads nothing the program can see and cannot fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(line * CACHE_LINE_BYTES)) };
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (items, index);
}

#[cfg(target_arch = "x86_64")]
fn best() -> Backend {
    let ifma = is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("bmi2");
    if ifma && !cfg!(miri) { Backend::Ifma } else { Backend::Portable }
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Backend {
    Backend::Portable
}
