//! AArch64: NEON, which every such CPU has. Only what differs; the loop is in `kernel`.

use std::arch::aarch64::*;

use super::kernel::{Span, Vector, long};
use super::{Kernel, LongFn, MaskingKey};

/// What short payloads are unmasked with.
pub(super) type Baseline = uint8x16_t;

pub(super) fn kernels() -> [(Kernel, bool); 1] {
    [(Kernel::new("NEON", long_neon as LongFn), true)]
}

/// # Safety
/// As for [`long`].
#[target_feature(enable = "neon")]
unsafe fn long_neon(source: *const u8, target: *mut u8, len: usize, key: MaskingKey) -> bool {
    // SAFETY: passed on to the caller; the feature is that of the vector.
    unsafe { long::<uint8x16_t>(Span { source, target, len, key }) }
}

// SAFETY: a vector register has neither padding nor invalid values.
unsafe impl Vector for uint8x16_t {
    #[inline(always)]
    unsafe fn splat(lane: u32) -> Self {
        // SAFETY: NEON is part of the target; so below.
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(lane)) }
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { veorq_u8(self, other) }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: see `splat`.
        unsafe { vorrq_u8(self, other) }
    }

    #[inline(always)]
    unsafe fn is_ascii(self) -> bool {
        // SAFETY: see `splat`.
        unsafe { vmaxvq_u8(self) < 0x80 }
    }
}
