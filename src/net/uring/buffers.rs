//! The receive buffers of one ring: memory that the kernel fills and hands over, piece by piece.
//!
//! A buffer belongs to the kernel, to whoever has its [`Buffer`], or to nobody until [`Buffers::post`] hands
//! it to the kernel. Memory that was never received into is never touched, so large buffers cost addresses,
//! not memory, and small messages touch the front of each only.
//!
//! The kernel fills buffers in turn, so all that it has pass through the caches. Therefore it has no more
//! than are likely to fit there, by what receives have brought lately, and those that were used last.
//!
//! Each connection that has something needs a buffer in the same turn, so there are many; but only [`KEPT`] of them
//! keep all their memory. The others keep [`OTHERS_LEN`], and give back the rest as soon as they are released.

use std::collections::VecDeque;
use std::io;
use std::ptr::{self, NonNull};

use super::ring::{Done, Ring};

const PAGE: usize = 4096;
/// Buffers that are used before all others, and keep their memory.
const KEPT: u16 = 64;
/// What the other buffers keep, in octets. Where receives usually bring more, the kernel has no more than [`KEPT`]
/// buffers, and the others are not used: so no load gives memory back, and takes it again, for each message.
const OTHERS_LEN: usize = HOT_LEN / KEPT as usize;
/// The octets received that shall stay in a core's second-level cache until they are sent.
const HOT_LEN: usize = 1 << 20;
/// The kernel gets this many buffers however much each of them holds.
const POSTED_MIN: u16 = 4;
/// Where a turn is to be short, the kernel may fill twice of a buffer what receives have brought lately, and at least
/// this many octets. One
/// connection can fill 32 buffers in one pass of the kernel: with all of each buffer that would hold up all others.
const OFFERED_MIN: usize = 32 << 10;
/// Between buffers, so that their fronts, which are all that small messages touch, do not share one set of
/// the caches: an odd number of cache lines.
const GAP: usize = 17 * 64;

/// See the module.
pub(super) struct Buffers {
    memory: NonNull<u8>,
    memory_len: usize,
    count: u16,
    buffer_len: usize,
    /// From one buffer to the next.
    stride: usize,
    /// How many of them the kernel has, if all its completions were taken.
    posted: u16,
    /// Nobody's, the one used last at the end: of those that keep their memory, and of the others.
    spare: Vec<u16>,
    spare_others: Vec<u16>,
    /// What a receive brings, in octets: a sliding mean.
    typical_len: usize,
}

/// A buffer that belongs to us. To be given back with [`Buffers::release`].
#[derive(Debug)]
pub(super) struct Buffer {
    index: u16,
    pub(super) len: u32,
}

/// Connections whose octets wait for a buffer, in the order in which they are to have one.
///
/// One that always has more could take all buffers in every turn. So whoever had one in the turn in which there were
/// no more goes behind all others; and those that are known to have much stand in a line of their own, of which one
/// is taken for every three of the other.
#[derive(Debug)]
pub(super) struct Starved<T> {
    waiting: VecDeque<T>,
    greedy: VecDeque<T>,
    fed: Vec<T>,
    turn: u32,
    taken: u32,
}

impl<T> Starved<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new(), greedy: VecDeque::new(), fed: Vec::new(), turn: 1, taken: 0 }
    }

    /// The number of this turn, for connections to remember when they had a buffer. Wraps.
    #[inline]
    pub(super) fn turn(&self) -> u32 {
        self.turn
    }

    /// There was no buffer for a connection, which had its last one in the turn `fed_in`.
    pub(super) fn push(&mut self, connection: T, fed_in: u32) {
        if fed_in == self.turn {
            self.fed.push(connection);
        } else {
            self.waiting.push_back(connection);
        }
    }

    /// A connection that is known to have much is to have a buffer in its turn.
    pub(super) fn push_greedy(&mut self, connection: T) {
        self.greedy.push_back(connection);
    }

    /// Begins a turn.
    pub(super) fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.waiting.extend(self.fed.drain(..));
    }

    /// How many connections wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.greedy.len()
    }

    /// Whether anybody waits who is known to have much.
    pub(super) fn has_greedy(&self) -> bool {
        !self.greedy.is_empty()
    }

    /// The connection that is to have the next buffer.
    pub(super) fn pop(&mut self) -> Option<T> {
        self.taken = self.taken.wrapping_add(1);
        if self.taken.is_multiple_of(4) {
            self.greedy.pop_front().or_else(|| self.waiting.pop_front())
        } else {
            self.waiting.pop_front().or_else(|| self.greedy.pop_front())
        }
    }
}

impl Buffers {
    /// `count`, a power of two, buffers of `buffer_len` octets each, registered with `ring`.
    ///
    /// # Errors
    /// What the kernel said: EINVAL before Linux 5.19, ENOMEM.
    ///
    /// # Safety
    /// They are dropped after the ring is closed, or after all its operations have ended.
    pub(super) unsafe fn new(ring: &mut impl Ring, count: u16, buffer_len: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel wants a power of two");
        let stride = buffer_len.next_multiple_of(64) + GAP;
        let memory_len = usize::from(count) * stride;
        // SAFETY: a new mapping, that overlaps nothing.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                memory_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast::<u8>()).expect("mmap does not map page 0");
        let mut buffers = Self {
            memory,
            memory_len,
            count,
            buffer_len,
            stride,
            posted: 0,
            spare: (0..count.min(KEPT)).rev().collect(),
            spare_others: (KEPT..count).rev().collect(),
            typical_len: 0,
        };
        ring.register_buffers(count)?;
        // SAFETY: as the caller promises.
        unsafe { buffers.post(ring, false) };
        Ok(buffers)
    }

    /// The memory that `count` buffers of `len` octets keep, in octets.
    pub(super) fn kept(count: u16, len: usize) -> usize {
        usize::from(count.min(KEPT)) * len
            + usize::from(count.saturating_sub(KEPT)) * len.min(OTHERS_LEN + PAGE)
    }

    /// The buffer that a completion hands over, if it does.
    #[inline]
    pub(super) fn take(&mut self, done: &Done) -> Option<Buffer> {
        let index = done.buffer?;
        assert!(index < self.count, "the kernel knows our buffers only");
        self.posted -= 1;
        let len = done.result.max(0) as u32;
        self.typical_len = self.typical_len - self.typical_len / 16 + len as usize / 16;
        Some(Buffer { index, len })
    }

    /// What was received into `buffer`.
    #[inline]
    pub(super) fn octets(&mut self, buffer: &Buffer) -> &mut [u8] {
        assert!(buffer.len as usize <= self.buffer_len);
        // SAFETY: the buffer is inside of the mapping, initialised (a mapping is zero where the kernel wrote
        // nothing), and ours alone while its `Buffer` exists: the kernel gets it back only after `release`.
        unsafe { std::slice::from_raw_parts_mut(self.address(buffer.index), buffer.len as usize) }
    }

    /// Gives `buffer` back.
    #[inline]
    pub(super) fn release(&mut self, buffer: Buffer) {
        if buffer.index < KEPT {
            return self.spare.push(buffer.index);
        }
        self.spare_others.push(buffer.index);
        if buffer.len as usize > OTHERS_LEN {
            self.forget(buffer.index);
        }
    }

    /// Gives a buffer's memory back to the kernel, but for [`OTHERS_LEN`] at its front.
    #[cold]
    fn forget(&mut self, index: u16) {
        let start = self.address(index) as usize;
        let (from, to) =
            ((start + OTHERS_LEN).next_multiple_of(PAGE), (start + self.buffer_len) & !(PAGE - 1));
        if from < to {
            // SAFETY: these pages are inside of the buffer, which is nobody's. If it fails they stay, which harms nobody.
            unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        }
    }

    /// Hands the kernel as many buffers as it shall have; less of each if the turn is to be short. To be called before
    /// it may need one.
    ///
    /// # Safety
    /// `ring` is the one that they were made with.
    pub(super) unsafe fn post(&mut self, ring: &mut impl Ring, is_short: bool) {
        let fit = (HOT_LEN / self.typical_len.max(1)).min(usize::from(self.count)) as u16;
        let goal = fit.max(POSTED_MIN.min(self.count));
        let offered = if is_short { (2 * self.typical_len).max(OFFERED_MIN) } else { self.buffer_len };
        let offered = offered.min(self.buffer_len) as u32;
        while self.posted < goal
            && let Some(index) = self.spare.pop().or_else(|| self.spare_others.pop())
        {
            // SAFETY: the buffer is inside of the mapping and nobody's, and is not looked at before it comes back.
            unsafe { ring.provide(index, self.address(index), offered) };
            self.posted += 1;
        }
        ring.publish();
    }

    /// Octets in each of them.
    pub(super) fn len(&self) -> usize {
        self.buffer_len
    }

    /// How many buffers the kernel has, if all its completions were taken.
    pub(super) fn posted_count(&self) -> usize {
        usize::from(self.posted)
    }

    #[inline]
    fn address(&self, index: u16) -> *mut u8 {
        debug_assert!(index < self.count);
        // SAFETY: the mapping holds `count` buffers.
        unsafe { self.memory.as_ptr().add(usize::from(index) * self.stride) }
    }

    #[cfg(test)]
    pub(super) fn resident_pages(&self) -> usize {
        let mut pages = vec![0u8; self.memory_len.div_ceil(PAGE)];
        // SAFETY: the mapping has this length, and there is an octet for each of its pages.
        let result =
            unsafe { libc::mincore(self.memory.as_ptr().cast(), self.memory_len, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    /// Leaves the memory mapped for ever.
    pub(super) fn leak(&mut self) {
        self.memory_len = 0;
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.memory_len > 0 {
            // SAFETY: it is the mapping that `new` made; no slice of it is borrowed any more, and the kernel
            // does not use it, as the caller of `new` promised.
            unsafe { libc::munmap(self.memory.as_ptr().cast(), self.memory_len) };
        }
    }
}
