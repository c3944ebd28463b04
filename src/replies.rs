//! What goes back for one receive: a range of the receive buffer, with owned pieces standing between.
//!
//! `proto` fills it and `net` sends it, and neither knows the other. Nearly always there are no owned pieces, and
//! all replies to one receive are one range.

use std::ops::Range;

/// The replies to one receive, in order.
#[derive(Debug, Default)]
pub struct Replies {
    pub(crate) range: Range<usize>,
    /// In the order of their places.
    pub(crate) owned: Vec<Owned>,
}

/// A piece in an allocation of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Owned {
    /// The position in the receive buffer before which it is to be sent.
    pub at: usize,
    /// The piece, from `start` on.
    pub octets: Vec<u8>,
    /// How many octets at the front of `octets` are no part of the piece.
    pub start: usize,
}

impl Replies {
    /// All of the next `len` octets of a buffer, as they stand.
    pub fn all(len: usize) -> Self {
        Self { range: 0..len, owned: Vec::new() }
    }

    /// Empties it, for replies that begin at `at` in the next buffer.
    #[inline]
    pub fn clear(&mut self, at: usize) {
        self.range = at..at;
        self.owned.clear();
    }

    /// Makes the next `len` octets of the buffer part of the replies, as they stand.
    #[inline]
    pub fn extend(&mut self, len: usize) {
        self.range.end += len;
    }

    /// Adds an owned piece behind all replies so far.
    pub fn push(&mut self, octets: Vec<u8>, start: usize) {
        self.owned.push(Owned { at: self.range.end, octets, start });
    }

    /// Puts an owned piece before all replies.
    pub fn push_front(&mut self, octets: Vec<u8>) {
        self.owned.insert(0, Owned { at: self.range.start, octets, start: 0 });
    }

    /// Moves all places by `count` octets: what was a buffer is a part of a longer one, `count` octets in.
    pub fn advance(&mut self, count: usize) {
        self.range = self.range.start + count..self.range.end + count;
        self.owned.iter_mut().for_each(|owned| owned.at += count);
    }

    /// The replies that stand in the receive buffer.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Whether the receive buffer holds all of them.
    #[inline]
    pub fn is_in_place(&self) -> bool {
        self.owned.is_empty()
    }

    /// How many owned pieces there are.
    #[inline]
    pub fn owned_count(&self) -> usize {
        self.owned.len()
    }

    /// Whether nothing goes back.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty() && self.owned.is_empty()
    }

    /// All pieces in the order in which they are to be sent. Some may be empty.
    pub fn pieces<'a>(&'a self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut at = self.range.start;
        self.owned
            .iter()
            .map(|owned| (owned.at, &owned.octets[owned.start..]))
            .chain([(self.range.end, &[][..])])
            .flat_map(move |(before, octets)| [&buffer[std::mem::replace(&mut at, before)..before], octets])
    }

    /// The same, and takes the owned pieces out: what stands in the buffer is borrowed, what is owned is given away.
    pub fn take_pieces(&mut self, buffer: &[u8], mut take: impl FnMut(Piece<'_>)) {
        let mut at = self.range.start;
        for Owned { at: before, octets, start } in self.owned.drain(..) {
            take(Piece::Borrowed(&buffer[at..before]));
            take(Piece::Owned { octets, start });
            at = before;
        }
        take(Piece::Borrowed(&buffer[at..self.range.end]));
        self.range.start = self.range.end;
    }

    /// All octets in the order in which they are to be sent; a copy, for tests and for small drivers.
    pub fn to_vec(&self, buffer: &[u8]) -> Vec<u8> {
        self.pieces(buffer).flatten().copied().collect()
    }
}

/// One piece of [`Replies::take_pieces`].
#[derive(Debug)]
pub enum Piece<'a> {
    /// A part of the receive buffer.
    Borrowed(&'a [u8]),
    /// An allocation of its own, from `start` on.
    Owned {
        /// The octets.
        octets: Vec<u8>,
        /// How many at the front are no part of it.
        start: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_pieces_stand_before_the_octet_that_they_name() {
        let buffer = b"abcdef";
        let mut replies = Replies::default();
        replies.clear(1);
        replies.push(b"1".to_vec(), 0);
        replies.extend(2);
        replies.push(b"__2".to_vec(), 2);
        replies.push(b"3".to_vec(), 0);
        replies.extend(1);
        replies.push_front(b"0".to_vec());
        assert_eq!(replies.to_vec(buffer), b"01bc23d");
        let mut taken = Vec::new();
        replies.take_pieces(buffer, |piece| match piece {
            Piece::Borrowed(octets) => taken.extend_from_slice(octets),
            Piece::Owned { octets, start } => taken.extend_from_slice(&octets[start..]),
        });
        assert_eq!((taken.as_slice(), replies.is_empty()), (&b"01bc23d"[..], true));
    }
}
