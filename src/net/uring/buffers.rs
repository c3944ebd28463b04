//! The receive buffers of one ring: memory that the kernel fills and hands over, piece by piece.
//!
//! A buffer belongs either to the kernel or to whoever has its [`Buffer`]; only [`Buffers::release`] gives
//! it back. Memory that was never received into is never touched, so large buffers cost addresses, not
//! memory, and small messages touch the front of each only.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::cqueue;
use io_uring::types::BufRingEntry;

use super::ring::Ring;

/// A ring has one group of buffers.
pub(super) const GROUP: u16 = 0;
const PAGE: usize = 4096;
/// Between buffers, so that their fronts, which are all that small messages touch, do not share one set of
/// the caches: an odd number of cache lines.
const GAP: usize = 17 * 64;

/// See the module.
pub(super) struct Buffers {
    /// The entries that tell the kernel which buffers it has, then the buffers.
    memory: NonNull<u8>,
    memory_len: usize,
    first_at: usize,
    count: u16,
    buffer_len: usize,
    /// From one buffer to the next.
    stride: usize,
    /// Counts the entries ever written. Wraps.
    tail: u16,
    /// How many buffers we have, and the kernel does not.
    out: u16,
}

/// A buffer that belongs to us. To be given back with [`Buffers::release`].
#[derive(Debug)]
pub(super) struct Buffer {
    index: u16,
    pub(super) len: u32,
}

impl Buffers {
    /// `count`, a power of two, buffers of `buffer_len` octets each, registered with `ring`.
    ///
    /// # Errors
    /// What the kernel said: EINVAL before Linux 5.19, ENOMEM.
    ///
    /// # Safety
    /// They are dropped after the ring is closed, or after all its operations have ended.
    pub(super) unsafe fn new(ring: &Ring, count: u16, buffer_len: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel wants a power of two");
        let first_at = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(PAGE);
        let stride = buffer_len.next_multiple_of(64) + GAP;
        let memory_len = first_at + usize::from(count) * stride;
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
        let mut buffers =
            Self { memory, memory_len, first_at, count, buffer_len, stride, tail: 0, out: count };
        let address = memory.as_ptr() as u64;
        // SAFETY: the mapping is page-aligned, long enough for the entries, and outlives the registration,
        // as the caller promises.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0) }?;
        for index in 0..count {
            buffers.release(Buffer { index, len: 0 });
        }
        Ok(buffers)
    }

    /// The buffer that a completion hands over, if it does.
    #[inline]
    pub(super) fn take(&mut self, completion: &cqueue::Entry) -> Option<Buffer> {
        let index = cqueue::buffer_select(completion.flags())?;
        assert!(index < self.count, "the kernel knows our buffers only");
        self.out += 1;
        Some(Buffer { index, len: completion.result().max(0) as u32 })
    }

    /// What was received into `buffer`.
    #[inline]
    pub(super) fn octets(&mut self, buffer: &Buffer) -> &mut [u8] {
        assert!(buffer.len as usize <= self.buffer_len);
        // SAFETY: the buffer is inside of the mapping, initialised (a mapping is zero where the kernel wrote
        // nothing), and ours alone while its `Buffer` exists: the kernel gets it back only by `release`.
        unsafe { std::slice::from_raw_parts_mut(self.address(buffer.index), buffer.len as usize) }
    }

    /// Gives `buffer` back to the kernel.
    #[inline]
    pub(super) fn release(&mut self, buffer: Buffer) {
        let Buffer { index, .. } = buffer;
        let address = self.address(index) as u64;
        let entries = self.memory.cast::<BufRingEntry>().as_ptr();
        // SAFETY: the place is inside of the mapping and aligned, and the kernel does not look at it before
        // the tail has moved past it: no more than `count` buffers are ever in the ring.
        let entry = unsafe { &mut *entries.add(usize::from(self.tail & (self.count - 1))) };
        entry.set_addr(address);
        entry.set_len(self.buffer_len as u32);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is an aligned u16 inside of the mapping, that only we write.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
        self.out -= 1;
    }

    /// How many buffers the kernel has, if all its completions were taken.
    pub(super) fn free_count(&self) -> usize {
        usize::from(self.count - self.out)
    }

    #[inline]
    fn address(&self, index: u16) -> *mut u8 {
        debug_assert!(index < self.count);
        // SAFETY: the mapping holds `count` buffers from `first_at` on.
        unsafe { self.memory.as_ptr().add(self.first_at + usize::from(index) * self.stride) }
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
