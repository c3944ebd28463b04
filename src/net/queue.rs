//! The queue of one connection: octets that its socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;

use crate::memory::Lease;
use crate::replies::{Piece, Replies};

/// Octets to be sent whole and in order.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// An allocation of the chunk's own, to be sent from `start` on.
    Owned {
        /// The octets.
        octets: Vec<u8>,
        /// How many at the front are not part of it.
        start: usize,
    },
    /// Octets that many connections send.
    Shared(Rc<Publication>),
    /// Short publications that were put together, because each by itself costs [`CHUNK_COST`].
    Merged {
        /// Whole frames.
        octets: Vec<u8>,
        /// How many messages those are.
        messages: u32,
    },
}

/// What a room's members get in one turn.
#[derive(Debug)]
pub struct Publication {
    /// Whole frames. Shared between workers; each wraps it in its own [`Rc`].
    pub octets: Arc<Vec<u8>>,
    /// How many messages those are.
    pub messages: u32,
    /// For its octets, as long as anybody has them.
    pub lease: Lease,
}

impl Chunk {
    /// What is to be sent.
    #[inline]
    pub fn octets(&self) -> &[u8] {
        match self {
            Self::Owned { octets, start } => &octets[*start..],
            Self::Shared(publication) => &publication.octets,
            Self::Merged { octets, .. } => octets,
        }
    }

    /// The memory that keeping it takes, in octets. What is shared is counted by whoever shares it.
    fn cost(&self) -> usize {
        match self {
            Self::Owned { octets, .. } | Self::Merged { octets, .. } => CHUNK_COST + octets.capacity(),
            Self::Shared(_) => CHUNK_COST,
        }
    }

    /// How many messages are lost when it is dropped; `None` if it must not be.
    fn droppable(&self) -> Option<u32> {
        match self {
            Self::Owned { .. } => None,
            Self::Shared(publication) => Some(publication.messages),
            Self::Merged { messages, .. } => Some(*messages),
        }
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(octets: Vec<u8>) -> Self {
        Self::Owned { octets, start: 0 }
    }
}

/// What a chunk takes in memory beside its octets: its place in the queue, which grows by doubling, and its share of
/// what stands behind it (measured: 164 octets for a publication of 2).
pub(super) const CHUNK_COST: usize = 160;
/// Chunks up to this length are put together with the one before them...
const MERGED_LEN_MAX: usize = 1024;
/// ...while that is not longer than this.
const MERGE_UP_TO: usize = 4096;
/// The most chunks handed to the kernel in one call.
pub(super) const SLICES_MAX: usize = 64;
/// A connection that catches up sends this many octets, or little more, before others have their turn.
pub(super) const FLUSH_LEN_MAX: usize = 256 << 10;

/// How far [`SendQueue::flush`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// The queue is empty.
    All,
    /// The socket takes no more.
    Blocked,
    /// The socket may take more, but it is the turn of others.
    Share,
}

/// What is still to be sent. Never empty: a connection with nothing to send has no queue.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    /// Oldest first. Only the front chunk may be partly sent.
    chunks: VecDeque<Chunk>,
    /// Octets of the front chunk already sent. Invariant: less than its length.
    progress: usize,
    /// Octets still to be sent, in all chunks.
    len: usize,
    /// The sum of the chunks' costs.
    cost: usize,
}

impl SendQueue {
    /// What waits, as limits count it: octets to be sent, and for each chunk what keeping it takes beside them.
    pub(super) fn weight(&self) -> usize {
        self.len + self.chunks.len() * CHUNK_COST
    }

    /// The memory that it takes, in octets.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Appends a chunk of which `sent` octets have been sent already (only if the queue is empty).
    pub(super) fn push(&mut self, chunk: Chunk, sent: usize) {
        let left = chunk.octets().len() - sent;
        debug_assert!(sent == 0 || self.is_empty());
        if left == 0 {
            return;
        }
        self.len += left;
        let is_first = self.is_empty();
        if is_first {
            self.progress = sent;
        } else if self.merge(&chunk) {
            return;
        }
        self.cost += chunk.cost();
        self.chunks.push_back(chunk);
    }

    /// Appends a short chunk's octets to the last chunk, if both are short and of one kind.
    fn merge(&mut self, chunk: &Chunk) -> bool {
        let octets = chunk.octets();
        let is_begun = self.chunks.len() == 1 && self.progress > 0;
        let Some(last) = self.chunks.back_mut() else { return false };
        if octets.len() > MERGED_LEN_MAX || last.octets().len() + octets.len() > MERGE_UP_TO {
            return false;
        }
        let before = last.cost();
        match (&mut *last, chunk.droppable()) {
            (Chunk::Owned { octets: target, .. }, None) => target.extend_from_slice(octets),
            // What was begun is never dropped, so nothing is added to it that may be.
            (_, Some(_)) if is_begun => return false,
            (Chunk::Merged { octets: target, messages }, Some(more)) => {
                target.extend_from_slice(octets);
                *messages += more;
            }
            (Chunk::Shared(first), Some(more)) => {
                let messages = first.messages + more;
                *last = Chunk::Merged { octets: [&first.octets[..], octets].concat(), messages };
            }
            _ => return false,
        }
        self.cost = self.cost + last.cost() - before;
        true
    }

    /// Puts a chunk before all others, none of which was begun. `sent` octets of it have been sent already,
    /// not all.
    pub(super) fn push_front(&mut self, chunk: Chunk, sent: usize) {
        assert!(self.progress == 0 && sent < chunk.octets().len(), "a chunk is sent whole and once");
        self.len += chunk.octets().len() - sent;
        self.cost += chunk.cost();
        self.progress = sent;
        self.chunks.push_front(chunk);
    }

    /// Appends what is left of `replies` when `sent` octets of them have been sent already (only if there is no queue).
    /// Makes the queue, if anything is left.
    #[cold]
    pub(super) fn push_replies(
        queue: &mut Option<Box<Self>>,
        buffer: &[u8],
        replies: &mut Replies,
        mut sent: usize,
    ) {
        replies.take_pieces(buffer, |piece| {
            let len = match &piece {
                Piece::Borrowed(octets) => octets.len(),
                Piece::Owned { octets, start } => octets.len() - start,
            };
            let skip = sent.min(len);
            sent -= skip;
            if skip < len {
                let chunk = match piece {
                    Piece::Borrowed(octets) => octets[skip..].to_vec().into(),
                    Piece::Owned { octets, start } => Chunk::Owned { octets, start: start + skip },
                };
                queue.get_or_insert_default().push(chunk, 0);
            }
        });
    }

    /// Hands the front of the queue to `send` until all of it is sent, no more is taken, or the connection has had its
    /// share of the turn. `send` returns how many octets were taken.
    pub(super) fn flush(
        &mut self,
        mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Flushed> {
        let mut left = FLUSH_LEN_MAX;
        while !self.is_empty() {
            if left == 0 {
                return Ok(Flushed::Share);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let (mut count, mut len) = (0, 0);
            for (slice, octets) in slices.iter_mut().zip(self.slices()) {
                let octets = &octets[..octets.len().min(left - len)];
                *slice = IoSlice::new(octets);
                len += octets.len();
                count += 1;
                if len == left {
                    break;
                }
            }
            match send(&slices[..count]) {
                Ok(0) => return Ok(Flushed::Blocked),
                Ok(sent) => {
                    self.advance(sent);
                    left -= sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Flushed::All)
    }

    /// What is to be sent, front first.
    pub(super) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut progress = self.progress;
        self.chunks.iter().map(move |chunk| &chunk.octets()[std::mem::take(&mut progress)..])
    }

    /// So many octets at the front are sent.
    pub(super) fn advance(&mut self, mut sent: usize) {
        self.len -= sent;
        while let Some(front) = self.chunks.front() {
            let left = front.octets().len() - self.progress;
            if sent < left {
                self.progress += sent;
                return;
            }
            sent -= left;
            self.progress = 0;
            self.cost -= front.cost();
            self.chunks.pop_front();
        }
        debug_assert_eq!(sent, 0, "more sent than was queued");
    }

    /// See [`Backend::drop_oldest`](super::Backend::drop_oldest).
    pub(super) fn drop_oldest(&mut self, target: usize) -> u32 {
        let begun = usize::from(self.progress > 0);
        let (mut messages, mut excess) = (0, self.weight().saturating_sub(target));
        let (len, cost) = (&mut self.len, &mut self.cost);
        let mut index = 0;
        // One pass: taking chunks out one by one would move all that follow, each time.
        self.chunks.retain(|chunk| {
            index += 1;
            let Some(dropped) = chunk.droppable().filter(|_| excess > 0 && index > begun) else {
                return true;
            };
            let octets = chunk.octets().len();
            messages += dropped;
            excess = excess.saturating_sub(octets + CHUNK_COST);
            *len -= octets;
            *cost -= chunk.cost();
            false
        });
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shared(octets: &[u8]) -> Chunk {
        let octets = Arc::new(octets.to_vec());
        Chunk::Shared(Rc::new(Publication { octets, messages: 1, lease: Lease::default() }))
    }

    fn sent(queue: &mut SendQueue, budgets: &[usize]) -> Vec<u8> {
        let mut all = Vec::new();
        for &budget in budgets {
            let mut left = budget;
            let _ = queue.flush(|slices| {
                let before = all.len();
                for slice in slices {
                    let take = left.min(slice.len());
                    all.extend_from_slice(&slice[..take]);
                    left -= take;
                }
                if all.len() == before {
                    Err(io::ErrorKind::WouldBlock.into())
                } else {
                    Ok(all.len() - before)
                }
            });
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_queued_is_sent_once_and_in_order(
            chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), any::<bool>()), 0..100),
            budgets in prop::collection::vec(0usize..40, 0..40),
            already in 0usize..20,
        ) {
            let mut queue = SendQueue::default();
            let mut expected = Vec::new();
            for (octets, is_shared) in &chunks {
                let sent = if queue.is_empty() { already.min(octets.len()) } else { 0 };
                expected.extend_from_slice(&octets[sent..]);
                queue.push(if *is_shared { shared(octets) } else { octets.clone().into() }, sent);
            }
            prop_assert_eq!(queue.len, expected.len());
            let mut all = sent(&mut queue, &budgets);
            prop_assert_eq!(queue.len, expected.len() - all.len());
            let costs: usize = queue.chunks.iter().map(Chunk::cost).sum();
            prop_assert_eq!(queue.cost, costs);
            all.extend(sent(&mut queue, &[usize::MAX]));
            prop_assert!(queue.is_empty());
            prop_assert_eq!((queue.len, queue.cost), (0, 0));
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn only_publications_that_were_not_begun_are_dropped() {
        let mut queue = SendQueue::default();
        queue.push(shared(b"begun"), 2);
        queue.push(Chunk::from(b"pong".to_vec()), 0);
        queue.push(shared(&[1; 2000]), 0);
        queue.push(shared(&[2; 2000]), 0);
        assert_eq!(queue.drop_oldest(queue.weight() - 1), 1);
        assert_eq!(sent(&mut queue, &[7]), b"gunpong");
        assert_eq!((queue.len, queue.drop_oldest(0), queue.len, queue.cost), (2000, 1, 0, 0));
    }

    #[test]
    fn short_publications_are_put_together_and_dropped_with_their_count() {
        let mut queue = SendQueue::default();
        for _ in 0..10_000 {
            queue.push(shared(b"ab"), 0);
        }
        assert_eq!(queue.len, 20_000);
        assert!(queue.weight() < 25_000 && queue.cost() < 60_000, "{} {}", queue.weight(), queue.cost());
        let dropped = queue.drop_oldest(10_000);
        assert_eq!(queue.len, 2 * (10_000 - dropped as usize));
        assert!(queue.weight() <= 10_000 && dropped < 8_000);
    }

    #[test]
    fn a_reply_is_never_put_together_with_a_publication() {
        let mut queue = SendQueue::default();
        queue.push(shared(b"one"), 0);
        queue.push(Chunk::from(b"pong".to_vec()), 0);
        queue.push(Chunk::from(b"pong".to_vec()), 0);
        queue.push(shared(b"two"), 0);
        assert_eq!(queue.chunks.len(), 3);
        assert_eq!(queue.drop_oldest(0), 2);
        assert_eq!(sent(&mut queue, &[100]), b"pongpong");
    }

    #[test]
    fn a_connection_that_catches_up_leaves_others_their_turn() {
        let mut queue = SendQueue::default();
        queue.push(Chunk::from(vec![1; 4 * FLUSH_LEN_MAX + 1]), 0);
        let mut turns = 0;
        while queue.flush(|slices| Ok(slices[0].len().min(100_000))).unwrap() == Flushed::Share {
            turns += 1;
        }
        assert_eq!((turns, queue.is_empty()), (4, true));
    }
}
