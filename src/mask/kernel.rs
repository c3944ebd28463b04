//! The kernel, written once over [`Vector`] and instantiated per vector width by the architecture's file.
//!
//! One rule makes sliding down over the payload's own source safe, and must never be broken: **no octet is
//! stored before every source octet that store could cover has been loaded**. Where a length is no multiple
//! of the vector, the last vectors overlap the ones before them; they are loaded first and stored last.
//!
//! Start at [`short`] and [`long`]; both are built from [`ends`] and [`stride`].

use super::MaskingKey;

/// The longest payload, in octets, unmasked inline by [`short`]: no call through a pointer.
pub(super) const SHORT_LEN_MAX: usize = 64;

/// A register full of octets. Lanes of four, so a splat masking key meets every octet of the vector.
///
/// # Safety
/// The methods may only be called on a CPU that has the instructions they are made of. They are all
/// `inline(always)`: code is generated with the features of the `#[target_feature]` function around them.
/// `Self` has no invalid bit patterns and no padding, and its size is a power of two of at least four.
pub(super) unsafe trait Vector: Copy {
    const LEN: usize = size_of::<Self>();

    unsafe fn splat(lane: u32) -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    /// Whether the top bit of every octet is clear.
    unsafe fn is_ascii(self) -> bool;
}

/// What to unmask, and where to.
///
/// Promise of whoever makes one, relied on by every function here: `source..source + len` can be read,
/// `target..target + len` can be written, and either the two do not overlap or `target <= source`.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) source: *const u8,
    pub(super) target: *mut u8,
    pub(super) len: usize,
    pub(super) key: MaskingKey,
}

impl Span {
    /// The key as a lane for the octets from `offset` on.
    #[inline(always)]
    fn lane(self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.key.advanced(offset).to_wire())
    }

    /// Loads and unmasks `N` vectors from `offset` on.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`, and `offset + N * V::LEN <= len`.
    #[inline(always)]
    unsafe fn load<V: Vector, const N: usize>(self, offset: usize, key: V) -> [V; N] {
        let mut block = [key; N];
        for (index, vector) in block.iter_mut().enumerate() {
            // SAFETY: the caller keeps the read within the source; `read_unaligned` asks for no alignment.
            unsafe {
                let octets = self.source.add(offset + index * V::LEN).cast::<V>().read_unaligned();
                *vector = octets.xor(key);
            }
        }
        block
    }

    /// Stores `N` vectors from `offset` on. Returns the OR of them all.
    ///
    /// # Safety
    /// As for [`Span::load`]; and the source octets this covers have been loaded, if they are still needed.
    #[inline(always)]
    unsafe fn store<V: Vector, const N: usize>(self, offset: usize, block: [V; N]) -> V {
        let mut seen = block[0];
        for (index, vector) in block.into_iter().enumerate() {
            // SAFETY: the caller keeps the write within the target; `write_unaligned` asks for no alignment.
            unsafe {
                self.target.add(offset + index * V::LEN).cast::<V>().write_unaligned(vector);
                seen = seen.or(vector);
            }
        }
        seen
    }
}

/// Unmasks up to [`SHORT_LEN_MAX`] octets, with `V` of 16 octets. Returns whether they are all ASCII.
///
/// # Safety
/// [`Span`]'s promise, the CPU has the instructions of `V`, and `len <= SHORT_LEN_MAX`.
#[inline(always)]
pub(super) unsafe fn short<V: Vector>(span: Span) -> bool {
    const { assert!(V::LEN == 16 && SHORT_LEN_MAX == 4 * V::LEN) };
    debug_assert!(span.len <= SHORT_LEN_MAX);
    // SAFETY: every branch calls `ends` with a vector it allows for that length.
    unsafe {
        match span.len {
            33.. => ends::<V, 2>(span),
            16.. => ends::<V, 1>(span),
            8.. => ends::<u64, 1>(span),
            4.. => ends::<u32, 1>(span),
            1.. => up_to_three(span),
            0 => true,
        }
    }
}

/// Unmasks more than [`SHORT_LEN_MAX`] octets. Returns whether they are all ASCII.
///
/// # Safety
/// [`Span`]'s promise, the CPU has the instructions of `V`, and `len > SHORT_LEN_MAX`.
#[inline(always)]
pub(super) unsafe fn long<V: Vector>(span: Span) -> bool {
    const { assert!(V::LEN <= SHORT_LEN_MAX) };
    debug_assert!(span.len > SHORT_LEN_MAX);
    // SAFETY: every branch is taken for the lengths its callee asks for. The first can only be reached by
    // vectors so wide that two of them hold more than a short payload; it vanishes for the others.
    unsafe {
        if 2 * V::LEN > SHORT_LEN_MAX && span.len <= 2 * V::LEN {
            ends::<V, 1>(span)
        } else if 4 * V::LEN > SHORT_LEN_MAX && span.len <= 4 * V::LEN {
            ends::<V, 2>(span)
        } else if span.len <= 8 * V::LEN {
            ends::<V, 4>(span)
        } else {
            stride::<V>(span)
        }
    }
}

/// `N` vectors from the front and `N` up to the end, which overlap unless they meet. No loop, no alignment.
///
/// # Safety
/// [`Span`]'s promise, the CPU has the instructions of `V`, and `N * V::LEN <= len <= 2 * N * V::LEN`.
#[inline(always)]
unsafe fn ends<V: Vector, const N: usize>(span: Span) -> bool {
    debug_assert!(N * V::LEN <= span.len && span.len <= 2 * N * V::LEN);
    let rest = span.len - N * V::LEN;
    // SAFETY: both blocks lie within `len`, and both are loaded before the first store.
    unsafe {
        let head = span.load::<V, N>(0, V::splat(span.lane(0)));
        let tail = span.load::<V, N>(rest, V::splat(span.lane(rest)));
        let seen = span.store(0, head);
        span.store(rest, tail).or(seen).is_ascii()
    }
}

/// Four vectors a turn, stores aligned: a store that crosses a cache line costs more than such a load.
///
/// # Safety
/// [`Span`]'s promise, the CPU has the instructions of `V`, and `len > 4 * V::LEN`.
#[inline(always)]
unsafe fn stride<V: Vector>(span: Span) -> bool {
    debug_assert!(span.len > 4 * V::LEN);
    let tail_at = span.len - 4 * V::LEN;
    let mut at = V::LEN - span.target.addr() % V::LEN; // 1..=V::LEN, so that head and first turn meet
    // SAFETY: a turn begins before `tail_at`, so it ends before `len`; head and tail lie within `len` by the
    // caller's promise. The head and the tail are loaded before the first store. A turn's stores cover only
    // source octets before its own end, since `target <= source`, and those have been loaded.
    unsafe {
        let [head] = span.load::<V, 1>(0, V::splat(span.lane(0)));
        let tail = span.load::<V, 4>(tail_at, V::splat(span.lane(tail_at)));
        let key = V::splat(span.lane(at));
        let mut seen = head;
        while at < tail_at {
            let block = span.load::<V, 4>(at, key);
            seen = span.store(at, block).or(seen);
            at += 4 * V::LEN;
        }
        span.store(0, [head]);
        span.store(tail_at, tail).or(seen).is_ascii()
    }
}

/// One to three octets: the first, the middle and the last, which may be the same.
///
/// # Safety
/// [`Span`]'s promise, and `1 <= len <= 3`.
#[inline(always)]
unsafe fn up_to_three(span: Span) -> bool {
    debug_assert!((1..=3).contains(&span.len));
    let (middle, last) = (span.len / 2, span.len - 1);
    let key = span.key.to_wire();
    // SAFETY: the three offsets are below `len`, and all are loaded before the first store.
    unsafe {
        let a = span.source.read() ^ key[0];
        let b = span.source.add(middle).read() ^ key[middle];
        let c = span.source.add(last).read() ^ key[last];
        span.target.write(a);
        span.target.add(middle).write(b);
        span.target.add(last).write(c);
        (a | b | c) < 0x80
    }
}

/// Integers as vectors: the ends of short payloads everywhere, and all of it where there is no SIMD.
macro_rules! integer_vector {
    ($($integer:ty),*) => {$(
        // SAFETY: integers have neither padding nor invalid values; these operations need no CPU feature.
        unsafe impl Vector for $integer {
            #[inline(always)]
            unsafe fn splat(lane: u32) -> Self {
                <$integer>::MAX / (u32::MAX as $integer) * (lane as $integer)
            }

            #[inline(always)]
            unsafe fn xor(self, other: Self) -> Self {
                self ^ other
            }

            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                self | other
            }

            #[inline(always)]
            unsafe fn is_ascii(self) -> bool {
                self & (<$integer>::MAX / 0xff * 0x80) == 0
            }
        }
    )*};
}
integer_vector!(u32, u64, u128);
