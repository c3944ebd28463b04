//! No SIMD: pairs of machine words. Every machine has it, and tests and Miri run it next to the others.

use super::kernel::{Span, long};
use super::{Kernel, LongFn, MaskingKey};

/// What short payloads are unmasked with where there is no SIMD.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) type Baseline = u128;

pub(super) fn kernel() -> Kernel {
    Kernel::new("words", long_words as LongFn)
}

/// # Safety
/// As for [`long`].
unsafe fn long_words(source: *const u8, target: *mut u8, len: usize, key: MaskingKey) -> bool {
    // SAFETY: passed on to the caller; integers need no CPU feature.
    unsafe { long::<u128>(Span { source, target, len, key }) }
}
