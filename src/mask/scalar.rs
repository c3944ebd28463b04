//! The plain twin of every kernel: one octet at a time, obviously right.

use super::MaskingKey;

pub(super) fn unmask_down(buffer: &mut [u8], from: usize, to: usize, len: usize, key: MaskingKey) -> bool {
    let key = key.to_wire();
    let mut any = 0;
    for index in 0..len {
        let octet = buffer[from + index] ^ key[index & 3];
        buffer[to + index] = octet;
        any |= octet;
    }
    any < 0x80
}
