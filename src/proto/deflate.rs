//! DEFLATE for messages (RFC 7692 §7.2): compressors, decompressors, and what connections share of them.
//!
//! The codecs are zlib-rs; docs/deflate.md says why. They are large (a compressor has 0.14 to 0.4 MiB, a
//! decompressor 47 KiB), so all connections of a worker use one set of [`Codecs`] in turn. With context
//! takeover a connection owns its [`History`], which is no longer than the window, and a codec is told of
//! it before each message; a decompressor is lent to it while a message of its peer is unfinished. What
//! connections own is counted against [`DeflateSettings::memory_bytes_max`], and never beyond it.
//!
//! Nothing here knows of frames or connections. An inflated message never grows past the limit that it is
//! given, and text is looked at piece by piece as it comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

use crate::memory::Meter;

use super::extension::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};
use super::frame::HEADER_LEN_MAX;
use super::{FrameHeader, Opcode, ProtocolError};

/// What is cut off a compressed message's end, and put back to read it (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
/// An empty message, compressed: the header octet of the block whose rest is [`TAIL`] (RFC 7692 §7.2.3.6).
const EMPTY: [u8; 1] = [0x00];
/// How far back a decompressor can be asked to look, in octets.
const WINDOW_LEN_MAX: usize = 1 << WINDOW_BITS_MAX;
/// How many sizes a compressor's window can have.
const WINDOW_COUNT: usize = (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize;
/// Output grows by as much as there is of it, and by this many octets at least.
const GROW_LEN_MIN: usize = 16 * 1024;
/// A shared buffer that has grown beyond this many octets is given back after the message.
const BUFFER_KEPT_MAX: usize = 1 << 20;

/// How we compress, and how much memory connections may take for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateSettings {
    /// 1 (fast) to 9 (small).
    pub level: u8,
    /// 1 (little memory) to 9 (fast).
    pub memory_level: u8,
    /// Messages with fewer octets go out as they are.
    pub message_len_min: usize,
    /// Messages with more octets go out as they are.
    pub message_len_max: usize,
    /// The most octets that the connections sharing one [`Codecs`] may own for compression.
    pub memory_bytes_max: usize,
    /// How many times its compressed length a message may inflate to, beyond its first MiB. 0: any.
    pub ratio_max: usize,
    /// Compress an echo anew even if the octets that came could go back.
    pub recompress: bool,
}

impl Default for DeflateSettings {
    fn default() -> Self {
        Self {
            level: 1,
            memory_level: 8,
            message_len_min: 64,
            message_len_max: 1 << 20,
            memory_bytes_max: 256 << 20,
            ratio_max: 200,
            recompress: false,
        }
    }
}

/// The octets that a decompressor takes, whatever the window.
pub(super) const INFLATER_BYTES: usize = 47 * 1024;

/// What the compressed connections of one thread share. One that nothing was compressed with owns nothing.
#[derive(Default)]
pub struct Codecs {
    pub(super) compressors: Compressors,
    inflater: Option<Inflater>,
    /// The message that was inflated last.
    pub(super) inflated: Inflated,
    /// The message that was compressed last.
    pub(super) deflated: Buffer,
    used: Arc<AtomicUsize>,
    meter: Meter,
}

impl Codecs {
    /// Codecs for connections that compress as `settings` say. Nothing is allocated yet.
    pub fn new(settings: DeflateSettings) -> Self {
        Self { compressors: Compressors::new(settings), ..Self::default() }
    }

    /// The same, for connections whose memory counts in `meter`.
    pub fn with_meter(settings: DeflateSettings, meter: Meter) -> Self {
        Self { compressors: Compressors::new(settings), meter, ..Self::default() }
    }

    /// Where the memory of these connections counts.
    #[inline]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// How they compress.
    #[inline]
    pub fn settings(&self) -> &DeflateSettings {
        self.compressors.settings()
    }

    /// The octets that connections own now.
    pub fn memory_bytes(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Sets `octets` aside for a connection, if there are so many left.
    pub(super) fn lease(&self, octets: usize) -> Option<Lease> {
        let used = self.memory_bytes() + octets;
        if used > self.settings().memory_bytes_max {
            return None;
        }
        self.used.store(used, Relaxed);
        Some(Lease { used: self.used.clone(), octets })
    }

    /// A decompressor for a message that may refer to `history`.
    pub(super) fn take_inflater(&mut self, history: &[u8]) -> Inflater {
        let mut inflater = self.inflater.take().unwrap_or_default();
        inflater.reset(history);
        inflater
    }

    /// Gives a decompressor back, for the next message.
    pub(super) fn give_inflater(&mut self, inflater: Inflater) {
        self.inflater = Some(inflater);
    }

    /// Gives back what an unusually long message has left behind.
    pub(super) fn trim(&mut self) {
        if self.inflated.0.octets.len() > BUFFER_KEPT_MAX {
            self.inflated = Inflated::default();
        }
        if self.deflated.octets.len() > BUFFER_KEPT_MAX {
            self.deflated = Buffer::default();
        }
    }
}

/// Octets set aside in [`Codecs`] until this is dropped. Only its own thread counts; the counter is shared
/// so that a lease may outlive the codecs.
#[derive(Debug)]
pub(super) struct Lease {
    used: Arc<AtomicUsize>,
    octets: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.used.store(self.used.load(Relaxed) - self.octets, Relaxed);
    }
}

/// The messages that the next one may refer to: as much of their end as the window has room for.
#[derive(Default)]
pub(super) struct History(Vec<u8>);

impl History {
    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }

    /// Adds a message that was compressed.
    pub(super) fn push(&mut self, message: &[u8], window_bits: u8) {
        let window_len = 1 << window_bits;
        if self.0.capacity() == 0 {
            self.0.reserve_exact(window_len);
        }
        let message = &message[message.len().saturating_sub(window_len)..];
        let excess = (self.0.len() + message.len()).saturating_sub(window_len);
        self.0.drain(..excess);
        self.0.extend_from_slice(message);
    }
}

/// Compressors: one for each size of window, made when it is first used.
#[derive(Default)]
pub struct Compressors {
    settings: DeflateSettings,
    by_window: [Option<Deflater>; WINDOW_COUNT],
}

impl Compressors {
    /// Compressors as `settings` say.
    pub fn new(settings: DeflateSettings) -> Self {
        Self { settings, by_window: Default::default() }
    }

    #[inline]
    pub(super) fn settings(&self) -> &DeflateSettings {
        &self.settings
    }

    /// Compresses one message, which may refer to `history`, and returns whether it was worth it: it is long
    /// enough, and became shorter.
    pub(super) fn deflate(
        &mut self,
        window_bits: u8,
        history: &[u8],
        message: &[u8],
        target: &mut Buffer,
    ) -> bool {
        if message.len() < self.settings.message_len_min {
            return false;
        }
        let deflater = self.by_window[usize::from(window_bits - WINDOW_BITS_MIN)]
            .get_or_insert_with(|| Deflater::new(&self.settings, window_bits));
        deflater.reset(history);
        deflater.deflate(message, target);
        target.message().len() < message.len()
    }

    /// Appends `frames`, whole unmasked messages of ours in one frame each, to `target`, every one
    /// compressed by itself where that is worth it.
    pub(crate) fn recode(&mut self, window_bits: u8, mut frames: &[u8], target: &mut Vec<u8>) {
        let mut deflated = Buffer::default();
        while let Some((header, header_len)) = FrameHeader::parse(frames).expect("frames of ours") {
            let (frame, rest) = frames.split_at(header_len + header.payload_len as usize);
            frames = rest;
            if self.deflate(window_bits, &[], &frame[header_len..], &mut deflated) {
                target.extend_from_slice(deflated.frame(header.opcode, true).0);
            } else {
                target.extend_from_slice(frame);
            }
        }
    }
}

/// A message with room for a frame header in front of it, in memory that is cleared once and then used again.
#[derive(Default)]
pub(super) struct Buffer {
    /// The room, the message, and what is free.
    octets: Vec<u8>,
    /// The message's length.
    len: usize,
}

impl Buffer {
    pub(super) fn message(&self) -> &[u8] {
        match self.len {
            0 => &[],
            len => &self.octets[HEADER_LEN_MAX..HEADER_LEN_MAX + len],
        }
    }

    /// What may be written behind the message: at least one octet, and no more than `limit`.
    fn free(&mut self, limit: usize) -> &mut [u8] {
        let end = HEADER_LEN_MAX + self.len;
        if self.octets.len() <= end {
            self.octets.resize(end + self.len.max(GROW_LEN_MIN).min(limit), 0);
        }
        let end_max = self.octets.len().min(end.saturating_add(limit));
        &mut self.octets[end..end_max]
    }

    /// The message as one unmasked frame, and the length of its header.
    pub(super) fn frame(&mut self, opcode: Opcode, is_deflated: bool) -> (&[u8], usize) {
        if self.octets.is_empty() {
            self.octets.resize(HEADER_LEN_MAX, 0);
        }
        let header = FrameHeader { rsv1: is_deflated, ..FrameHeader::message(opcode, self.len) };
        let header_len = header.encoded_len();
        let start = HEADER_LEN_MAX - header_len;
        header.write(&mut self.octets[start..]);
        (&self.octets[start..HEADER_LEN_MAX + self.len], header_len)
    }
}

/// A compressor.
pub(super) struct Deflater(Deflate);

impl Deflater {
    pub(super) fn new(settings: &DeflateSettings, window_bits: u8) -> Self {
        Self(Deflate::new_with_config(DeflateConfig {
            level: settings.level.into(),
            window_bits: -i32::from(window_bits), // negative: no zlib header
            mem_level: settings.memory_level.into(),
            ..DeflateConfig::default()
        }))
    }

    /// Begins a new stream that may refer to `history`.
    fn reset(&mut self, history: &[u8]) {
        self.0.reset();
        if !history.is_empty() {
            self.0.set_dictionary(history).expect("a raw stream takes any history");
        }
    }

    /// Compresses the next message into `target` (RFC 7692 §7.2.1).
    pub(super) fn deflate(&mut self, message: &[u8], target: &mut Buffer) {
        target.len = 0;
        if message.is_empty() {
            // A second flush in a row would produce nothing.
            target.free(usize::MAX)[..EMPTY.len()].copy_from_slice(&EMPTY);
            target.len = EMPTY.len();
            return;
        }
        let mut unread = message;
        loop {
            let free = target.free(usize::MAX);
            let free_len = free.len();
            let (read, written) = (self.0.total_in(), self.0.total_out());
            self.0.compress(unread, free, DeflateFlush::SyncFlush).expect("a compressor takes any octets");
            let written = (self.0.total_out() - written) as usize;
            unread = &unread[(self.0.total_in() - read) as usize..];
            target.len += written;
            if unread.is_empty() && written < free_len {
                break;
            }
        }
        debug_assert!(target.message().ends_with(&TAIL), "a sync flush ends with an empty block");
        target.len -= TAIL.len();
    }
}

/// A message while it is inflated.
#[derive(Default)]
pub(super) struct Inflated(pub(super) Buffer);

impl Inflated {
    /// Begins a new message.
    pub(super) fn clear(&mut self) {
        self.0.len = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.0.len
    }
}

/// A decompressor. Its window is always the largest, so it reads whatever was agreed on.
pub(super) struct Inflater {
    inflate: Inflate,
    /// A block with BFINAL set has ended; if more follows, it begins a new stream.
    is_final: bool,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { inflate: Inflate::new(false, WINDOW_BITS_MAX), is_final: false }
    }
}

impl Inflater {
    /// Begins a new stream that may refer to `history`.
    fn reset(&mut self, history: &[u8]) {
        self.is_final = false;
        self.inflate.reset(false);
        if !history.is_empty() {
            self.inflate.set_dictionary(history).expect("a raw stream takes any history");
        }
    }

    /// Inflates the next part of a message onto the end of `message`, which may reach `limit` octets in all,
    /// and shows every new piece to `check`. `history` is what the message may refer to.
    pub(super) fn inflate(
        &mut self,
        mut part: &[u8],
        history: &[u8],
        message: &mut Inflated,
        limit: u64,
        mut check: impl FnMut(&[u8]) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        loop {
            if self.is_final {
                if part.is_empty() {
                    return Ok(());
                }
                // RFC 7692 §7.2.3.4: the window goes on.
                self.reset_after(history, message.0.message());
            }
            // One octet more than is allowed tells that there is more than is allowed.
            let left = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(message.len());
            let (read, written, has_more) =
                self.step(part, message.0.free(left.saturating_add(1)), InflateFlush::NoFlush)?;
            if written > left {
                return Err(ProtocolError::MessageTooBig);
            }
            let start = message.len();
            message.0.len += written;
            check(&message.0.message()[start..])?;
            part = &part[read..];
            if part.is_empty() && !has_more {
                return Ok(());
            }
            debug_assert!(read + written > 0, "there is input and room for output");
        }
    }

    /// Begins a new stream that may refer to `history` and to `message`, which followed it.
    #[cold]
    fn reset_after(&mut self, history: &[u8], message: &[u8]) {
        let message = &message[message.len().saturating_sub(WINDOW_LEN_MAX)..];
        let history = &history[history.len().saturating_sub(WINDOW_LEN_MAX - message.len())..];
        if history.is_empty() {
            self.reset(message);
        } else {
            self.reset(&[history, message].concat());
        }
    }

    /// The message is complete (RFC 7692 §7.2.2): it must have ended where a block does.
    pub(super) fn finish(&mut self) -> Result<(), ProtocolError> {
        // The tail completes the block that the message has left open. With `Block` the decompressor stops
        // there; in the middle of anything else it would read on into the octet that follows.
        let mut octets = [0; TAIL.len() + 1];
        octets[..TAIL.len()].copy_from_slice(&TAIL);
        if self.is_final {
            // RFC 7692 §7.2.3.4: the octet that begins another block is missing.
            return Err(ProtocolError::Compression);
        }
        match self.step(&octets, &mut [0], InflateFlush::Block)? {
            (read, 0, _) if read == TAIL.len() && !self.is_final => Ok(()),
            _ => Err(ProtocolError::Compression),
        }
    }

    /// How much was read and written, and whether there may be more to write without reading any.
    fn step(
        &mut self,
        octets: &[u8],
        target: &mut [u8],
        flush: InflateFlush,
    ) -> Result<(usize, usize, bool), ProtocolError> {
        let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
        let status =
            self.inflate.decompress(octets, target, flush).map_err(|_| ProtocolError::Compression)?;
        self.is_final = status == Status::StreamEnd;
        let read = (self.inflate.total_in() - read) as usize;
        let written = (self.inflate.total_out() - written) as usize;
        Ok((read, written, written == target.len() && !self.is_final))
    }
}

#[cfg(test)]
#[path = "deflate_tests.rs"]
mod tests;
