//! x86-64: SSE2, which every such CPU has, AVX2 and AVX-512. Only what differs; the loop is in `kernel`.

use std::arch::x86_64::*;

use super::kernel::{Span, Vector, long};
use super::{Kernel, LongFn, MaskingKey};

/// What short payloads are unmasked with.
pub(super) type Baseline = __m128i;

/// The preferred one first, and whether this CPU has it.
pub(super) fn kernels() -> [(Kernel, bool); 3] {
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let mut kernels = [
        (Kernel::new("AVX2", long_avx2 as LongFn), is_x86_feature_detected!("avx2")),
        (Kernel::new("AVX-512", long_avx512 as LongFn), avx512),
        (Kernel::new("SSE2", long_sse2 as LongFn), true),
    ];
    if prefers_avx512() {
        kernels.swap(0, 1);
    }
    kernels
}

/// Whether 512-bit vectors are worth their width. Not on Zen 4, which executes them in halves: by
/// `benches/mask.rs` AVX2 is some 15% faster there when a payload slides down, and about even otherwise. Not
/// on the first CPUs that had them, which lower their clock for them: VBMI2 came after those. That later
/// ones gain is their makers' word, not measured here.
fn prefers_avx512() -> bool {
    const AMD_ZEN_3_AND_4: u32 = 0x19;
    let vendor = __cpuid(0);
    let is_amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
    let signature = __cpuid(1).eax;
    let family = ((signature >> 8) & 0xf) + ((signature >> 20) & 0xff);
    is_x86_feature_detected!("avx512vbmi2") && !(is_amd && family == AMD_ZEN_3_AND_4)
}

macro_rules! instantiate {
    ($name:ident, $features:literal, $vector:ty) => {
        /// # Safety
        /// As for [`long`].
        #[target_feature(enable = $features)]
        unsafe fn $name(source: *const u8, target: *mut u8, len: usize, key: MaskingKey) -> bool {
            // SAFETY: passed on to the caller; the features are those of the vector.
            unsafe { long::<$vector>(Span { source, target, len, key }) }
        }
    };
}
instantiate!(long_avx512, "avx512f,avx512bw", __m512i);
instantiate!(long_avx2, "avx2", __m256i);
instantiate!(long_sse2, "sse2", __m128i);

macro_rules! vector {
    ($vector:ty, $splat:ident, $xor:ident, $or:ident, $top_bits:ident) => {
        // SAFETY: a vector register has neither padding nor invalid values.
        unsafe impl Vector for $vector {
            #[inline(always)]
            unsafe fn splat(lane: u32) -> Self {
                // SAFETY: the caller has made sure of the CPU feature; so below.
                unsafe { $splat(lane as i32) }
            }

            #[inline(always)]
            unsafe fn xor(self, other: Self) -> Self {
                // SAFETY: see `splat`.
                unsafe { $xor(self, other) }
            }

            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                // SAFETY: see `splat`.
                unsafe { $or(self, other) }
            }

            #[inline(always)]
            unsafe fn is_ascii(self) -> bool {
                // SAFETY: see `splat`.
                unsafe { $top_bits(self) == 0 }
            }
        }
    };
}
vector!(__m512i, _mm512_set1_epi32, _mm512_xor_si512, _mm512_or_si512, _mm512_movepi8_mask);
vector!(__m256i, _mm256_set1_epi32, _mm256_xor_si256, _mm256_or_si256, _mm256_movemask_epi8);
vector!(__m128i, _mm_set1_epi32, _mm_xor_si128, _mm_or_si128, _mm_movemask_epi8);
