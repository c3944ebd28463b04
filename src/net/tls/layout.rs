//! Where plaintext lies: pieces to be sealed as one, small ones moved together, large ones moved apart.

use std::ops::{Deref, Range};

use super::record::PLAINTEXT_LEN_MAX;

/// Makes `next` and what is before it one range, by moving the smaller of the two.
#[inline]
pub(super) fn join(joined: &mut Range<usize>, next: Range<usize>, octets: &mut [u8]) {
    if joined.start == joined.end {
        *joined = next;
    } else if next.len() <= joined.len() {
        let len = next.len();
        octets.copy_within(next, joined.end);
        joined.end += len;
    } else {
        let start = next.start - joined.len();
        octets.copy_within(joined.clone(), start);
        *joined = start..next.end;
    }
}

/// Moves each record's part of `plaintext` to its place: the first to `to`, the others behind it, `gap` octets
/// apart.
#[inline]
pub(super) fn spread(octets: &mut [u8], plaintext: Range<usize>, to: usize, gap: usize) {
    let count = plaintext.len().div_ceil(PLAINTEXT_LEN_MAX);
    let place = |index: usize| {
        let from = plaintext.start + index * PLAINTEXT_LEN_MAX;
        (from..plaintext.end.min(from + PLAINTEXT_LEN_MAX), to + index * (PLAINTEXT_LEN_MAX + gap))
    };
    // Those that go down from the first on, those that go up from the last on: none meets one that still waits.
    let down = (0..count).take_while(|index| place(*index).1 < place(*index).0.start).count();
    for index in (0..down).chain((down..count).rev()) {
        let (from, to) = place(index);
        if from.start != to {
            octets.copy_within(from, to);
        }
    }
}

/// Plaintext in pieces, taken from the front.
pub(super) struct Pieces<'a, P> {
    pieces: &'a [P],
    /// Octets of the first piece that are taken already.
    taken: usize,
    /// Octets in all.
    pub(super) left: usize,
}

impl<'a, P: Deref<Target = [u8]>> Pieces<'a, P> {
    pub(super) fn new(pieces: &'a [P]) -> Self {
        Self { pieces, taken: 0, left: pieces.iter().map(|piece| piece.len()).sum() }
    }

    /// The next `len` octets, piece by piece.
    #[inline]
    pub(super) fn take(&mut self, mut len: usize, mut each: impl FnMut(&'a [u8])) {
        self.left -= len;
        while len > 0 {
            let piece = &self.pieces[0][self.taken..];
            let part = &piece[..len.min(piece.len())];
            each(part);
            len -= part.len();
            self.taken += part.len();
            if part.len() == piece.len() {
                self.pieces = &self.pieces[1..];
                self.taken = 0;
            }
        }
    }
}
