//! Masking and unmasking (RFC 6455 §5.3): the only loop that touches every octet of every message.
//!
//! XOR is its own inverse, so the same functions mask what a client sends. Each also tells whether all
//! the octets it *wrote* are ASCII: that costs one OR a vector, and spares ASCII text the whole UTF-8 pass.
//!
//! Start at [`unmask_down`]. The kernels are chosen once, at the first call; [`scalar`] is their oracle.

mod scalar;

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
pub fn unmask_in_place(buffer: &mut [u8], key: MaskingKey) -> bool {
    let len = buffer.len();
    unmask_down(buffer, 0, 0, len, key)
}

/// Unmasks `buffer[from..from + len]` into `buffer[to..to + len]`, where `to <= from`: the payload slides
/// down over its own mask and header in the same pass. Octets outside the destination keep their values,
/// save those of the source that the destination covers. Returns whether the result is all ASCII.
///
/// # Panics
/// If `to > from` or the source does not lie within `buffer`.
pub fn unmask_down(buffer: &mut [u8], from: usize, to: usize, len: usize, key: MaskingKey) -> bool {
    assert!(to <= from && from <= buffer.len() && len <= buffer.len() - from);
    scalar::unmask_down(buffer, from, to, len, key)
}

/// Appends `source`, unmasked, to `target`, in one pass. Returns whether what was appended is all ASCII.
pub fn unmask_append(target: &mut Vec<u8>, source: &[u8], key: MaskingKey) -> bool {
    let start = target.len();
    target.extend_from_slice(source);
    unmask_in_place(&mut target[start..], key)
}
