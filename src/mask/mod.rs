//! Masking and unmasking (RFC 6455 §5.3): the only loop that touches every octet of every message.
//!
//! XOR is its own inverse, so the same functions mask what a client sends. Each also tells whether all
//! the octets it *wrote* are ASCII: that costs one OR a vector, and spares ASCII text the whole UTF-8 pass.
//!
//! Start at [`unmask_down`]. Short payloads are unmasked inline; for longer ones a [`Kernel`] is chosen
//! once, at the first call. The loop is in `kernel`, what differs per architecture in a file of its name,
//! and `scalar` is the oracle of the tests. Nothing here may read or write outside the given slices.

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;
mod kernel;
mod portable;
#[cfg(test)]
mod scalar;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use kernel::{SHORT_LEN_MAX, Span, short};

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use arch::Baseline;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use portable::Baseline;

/// The four octets of RFC 6455 §5.3, in wire order, rotated so that the next octet to unmask meets `key[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MaskingKey([u8; 4]);

impl MaskingKey {
    /// The key as it stands in a frame header.
    pub const fn from_wire(octets: [u8; 4]) -> Self {
        Self(octets)
    }

    /// The four octets, for a frame header.
    pub const fn to_wire(self) -> [u8; 4] {
        self.0
    }

    /// The key for the octets that follow after `count` octets of payload.
    #[must_use]
    pub const fn advanced(self, count: usize) -> Self {
        Self(u32::from_le_bytes(self.0).rotate_right(8 * (count & 3) as u32).to_le_bytes())
    }
}

/// Unmasks all of `buffer` where it stands. Returns whether the result is all ASCII.
#[inline]
pub fn unmask_in_place(buffer: &mut [u8], key: MaskingKey) -> bool {
    unmask_in_place_with(|| *CHOSEN, buffer, key)
}

/// Unmasks `buffer[from..from + len]` into `buffer[to..to + len]`, where `to <= from`: the payload slides
/// down over its own mask and header in the same pass. Octets outside the destination keep their values,
/// save those of the source that the destination covers. Returns whether the result is all ASCII.
///
/// # Panics
/// If `to > from` or the source does not lie within `buffer`.
#[inline]
pub fn unmask_down(buffer: &mut [u8], from: usize, to: usize, len: usize, key: MaskingKey) -> bool {
    unmask_down_with(|| *CHOSEN, buffer, from, to, len, key)
}

/// Appends `source`, unmasked, to `target`, in one pass. Returns whether what was appended is all ASCII.
#[inline]
pub fn unmask_append(target: &mut Vec<u8>, source: &[u8], key: MaskingKey) -> bool {
    unmask_append_with(|| *CHOSEN, target, source, key)
}

/// One way to unmask payloads that are too long for the inlined path. For benchmarks, tests and logs: the
/// functions of this module use [`Kernel::chosen`].
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    name: &'static str,
    long: LongFn,
}

/// Source, target, length in octets, key: the parts of a [`Span`], which as arguments stay in registers.
type LongFn = unsafe fn(*const u8, *mut u8, usize, MaskingKey) -> bool;

static CHOSEN: LazyLock<Kernel> = LazyLock::new(|| Kernel::available()[0]);

impl Kernel {
    const fn new(name: &'static str, long: LongFn) -> Self {
        Self { name, long }
    }

    /// The kernel that the functions of this module use: the best that this CPU has.
    pub fn chosen() -> Self {
        *CHOSEN
    }

    /// The kernels that this CPU can run, best first.
    pub fn available() -> Vec<Self> {
        Self::all().filter(|&(_, is_available)| is_available).map(|(kernel, _)| kernel).collect()
    }

    /// Every kernel of this architecture, and whether this CPU can run it.
    fn all() -> impl Iterator<Item = (Self, bool)> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let simd = arch::kernels();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let simd = [];
        simd.into_iter().chain([(portable::kernel(), true)])
    }

    /// The instructions it is made of, for people.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// [`unmask_in_place`] with this kernel.
    #[inline]
    pub fn unmask_in_place(self, buffer: &mut [u8], key: MaskingKey) -> bool {
        unmask_in_place_with(|| self, buffer, key)
    }

    /// [`unmask_down`] with this kernel.
    ///
    /// # Panics
    /// As [`unmask_down`].
    #[inline]
    pub fn unmask_down(self, buffer: &mut [u8], from: usize, to: usize, len: usize, key: MaskingKey) -> bool {
        unmask_down_with(|| self, buffer, from, to, len, key)
    }

    /// [`unmask_append`] with this kernel.
    #[inline]
    pub fn unmask_append(self, target: &mut Vec<u8>, source: &[u8], key: MaskingKey) -> bool {
        unmask_append_with(|| self, target, source, key)
    }
}

#[inline(always)]
fn unmask_in_place_with(kernel: impl FnOnce() -> Kernel, buffer: &mut [u8], key: MaskingKey) -> bool {
    let target = buffer.as_mut_ptr();
    // SAFETY: source and target are the whole of one slice that we hold exclusively.
    unsafe { unmask_span(kernel, Span { source: target, target, len: buffer.len(), key }) }
}

#[inline(always)]
fn unmask_down_with(
    kernel: impl FnOnce() -> Kernel,
    buffer: &mut [u8],
    from: usize,
    to: usize,
    len: usize,
    key: MaskingKey,
) -> bool {
    assert!(to <= from && from <= buffer.len() && len <= buffer.len() - from);
    let base = buffer.as_mut_ptr();
    // SAFETY: just asserted: both ends lie within the slice that we hold exclusively, and `to <= from`.
    unsafe { unmask_span(kernel, Span { source: base.add(from), target: base.add(to), len, key }) }
}

#[inline(always)]
fn unmask_append_with(
    kernel: impl FnOnce() -> Kernel,
    target: &mut Vec<u8>,
    source: &[u8],
    key: MaskingKey,
) -> bool {
    let len = source.len();
    target.reserve(len);
    let spare = target.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    // SAFETY: `reserve` made room for `len` octets, and a shared slice cannot overlap an exclusive vector.
    let is_ascii = unsafe { unmask_span(kernel, Span { source: source.as_ptr(), target: spare, len, key }) };
    // SAFETY: there is room, and those `len` octets have just been written.
    unsafe { target.set_len(target.len() + len) };
    is_ascii
}

/// # Safety
/// [`Span`]'s promise, and this CPU can run the kernel.
#[inline(always)]
unsafe fn unmask_span(kernel: impl FnOnce() -> Kernel, span: Span) -> bool {
    if span.len <= SHORT_LEN_MAX {
        // SAFETY: the caller's promise; every CPU of this architecture has the baseline's instructions.
        unsafe { short::<Baseline>(span) }
    } else {
        // SAFETY: the caller's promise; callers hold kernels from `available` only, so this CPU has it.
        unsafe { (kernel().long)(span.source, span.target, span.len, span.key) }
    }
}
