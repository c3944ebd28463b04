//! DEFLATE for messages (RFC 7692 §7.2): compressors, decompressors, and what connections share of them.
//!
//! The codecs are zlib-rs; docs/deflate.md says why. They are large (a compressor has 0.14 to 0.4 MiB, a
//! decompressor 47 KiB), so all connections of a worker use one set of [`Codecs`] in turn. With context
//! takeover a connection owns its [`History`], which is no longer than the window, and a codec is told of
//! it before each message; a decompressor is lent to it while a message of its peer is unfinished. What
//! connections own for compression, inflated octets among it, is leased from their share of the worker's
//! memory, [`DeflateSettings::memory_bytes_max`], and never beyond it.
//!
//! Nothing here knows of frames or connections. An inflated message never grows past the limits that it is
//! given, and text is looked at piece by piece as it comes out. Inflating stops when the receive has done
//! its [`Work`], anywhere inside a message, and goes on from there in the next.
//!
//! What comes of a message does not depend on where its octets were cut, nor on where inflating stopped:
//! every limit is looked at in places of the message that are the same in all cases.

use std::hint::black_box;

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

use super::buffer::Buffer;
use super::extension::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};
use super::work::Work;
use super::{FrameHeader, ProtocolError};
use crate::memory::{Lease, Meter};

/// What is cut off a compressed message's end, and put back to read it (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
/// An empty message, compressed: the header octet of the block whose rest is [`TAIL`] (RFC 7692 §7.2.3.6).
const EMPTY: [u8; 1] = [0x00];
/// How far back a decompressor can be asked to look, in octets.
const WINDOW_LEN_MAX: usize = 1 << WINDOW_BITS_MAX;
/// How many sizes a compressor's window can have.
const WINDOW_COUNT: usize = (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize;
/// The most octets of a room's batch that are compressed. It is done on the publisher's worker while everybody
/// else there waits, once for each size of window, and 256 KiB take 0.5 ms. A batch is that long only if its
/// messages are, or if somebody floods the room: then octets are not what is short.
const BATCH_LEN_MAX: usize = 256 * 1024;
/// The same as [`Work`]. Short messages take longer: of 64 octets, 240 fit.
const BATCH_WORK: usize = 1 << 20;
/// A message may inflate to this many octets whatever its length: so much is little to have and to do.
const RATIO_FLOOR: usize = 1 << 20;
/// How often the ratio is looked at from there on, in octets inflated.
const RATIO_STEP: usize = 256 * 1024;

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
            ratio_max: 0,
            recompress: false,
        }
    }
}

/// The octets that a decompressor takes, whatever the window.
pub(super) const INFLATER_BYTES: usize = 47 * 1024;
/// The most octets that a compressor takes.
const DEFLATER_BYTES_MAX: usize = 410 * 1024;

/// What the compressed connections of one thread share. One that nothing was compressed with owns nothing.
pub struct Codecs {
    pub(super) compressors: Compressors,
    inflater: Option<Inflater>,
    /// The message that was inflated last.
    pub(super) inflated: Buffer,
    /// The message that was compressed last.
    pub(super) deflated: Buffer,
    /// What the receive that is going on may still do.
    pub(super) work: Work,
    pub(super) meter: Meter,
    /// The part of it that is for compression.
    share: Meter,
}

impl Default for Codecs {
    fn default() -> Self {
        Self::new(DeflateSettings::default())
    }
}

impl Codecs {
    /// Codecs for connections that compress as `settings` say, and whose memory counts nowhere else. Nothing
    /// is allocated yet.
    pub fn new(settings: DeflateSettings) -> Self {
        Self::with_meter(settings, Meter::default())
    }

    /// The same, for connections whose memory counts in `meter`: partial messages, inflated octets, windows.
    pub fn with_meter(settings: DeflateSettings, meter: Meter) -> Self {
        Self {
            compressors: Compressors::new(settings),
            inflater: None,
            inflated: Buffer::shared(&meter),
            deflated: Buffer::shared(&meter),
            work: Work::default(),
            share: meter.share(settings.memory_bytes_max),
            meter,
        }
    }

    /// Where the memory of these connections counts.
    #[inline]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The part of it that is for compression: windows, decompressors, inflated octets. At most
    /// [`DeflateSettings::memory_bytes_max`].
    #[inline]
    pub(super) fn share(&self) -> &Meter {
        &self.share
    }

    /// How they compress.
    #[inline]
    pub fn settings(&self) -> &DeflateSettings {
        self.compressors.settings()
    }

    /// The octets that connections own for compression now.
    pub fn memory_bytes(&self) -> usize {
        self.share.used()
    }

    /// Sets `octets` aside for a connection, if there are so many left of the share.
    pub(super) fn lease(&self, octets: usize) -> Option<Lease> {
        self.share.take(octets)
    }

    /// A decompressor for a message that may refer to `history`.
    pub(super) fn take_inflater(&mut self, history: &[u8]) -> Result<Inflater, ProtocolError> {
        let mut inflater = match self.inflater.take() {
            Some(inflater) => inflater,
            None if has_memory(INFLATER_BYTES) => Inflater::default(),
            None => return Err(ProtocolError::NoMemory),
        };
        inflater.begin(history);
        self.work.inflater_reset(history.len());
        Ok(inflater)
    }

    /// The decompressor that was given back last, with a message that it has not finished.
    pub(super) fn put_down_inflater(&mut self) -> Inflater {
        self.inflater.take().expect("it was just given back")
    }

    /// Gives a decompressor back, for the next message.
    pub(super) fn give_inflater(&mut self, inflater: Inflater) {
        self.inflater = Some(inflater);
    }

    /// Gives back what an unusually long message has left behind.
    #[inline]
    pub(super) fn trim(&mut self) {
        self.inflated.trim();
        self.deflated.trim();
    }
}

/// Whether the allocator has so many octets. The codecs' library panics if it has not.
fn has_memory(octets: usize) -> bool {
    black_box(&mut Vec::<u8>::new()).try_reserve_exact(octets).is_ok()
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

    /// Compresses one message, which may refer to `history`, and returns whether it is to go out so: it is
    /// neither too short nor too long, there is memory, and it became shorter.
    pub(super) fn deflate(
        &mut self,
        window_bits: u8,
        history: &[u8],
        message: &[u8],
        target: &mut Buffer,
        work: &mut Work,
    ) -> bool {
        if message.len() < self.settings.message_len_min || message.len() > self.settings.message_len_max {
            return false;
        }
        let deflater = &mut self.by_window[usize::from(window_bits - WINDOW_BITS_MIN)];
        if deflater.is_none() && !has_memory(DEFLATER_BYTES_MAX) {
            return false;
        }
        let deflater = deflater.get_or_insert_with(|| Deflater::new(&self.settings, window_bits));
        deflater.reset(history);
        work.deflated(message.len(), history.len());
        deflater.deflate(message, target).is_ok() && target.len() < message.len()
    }

    /// `frames`, whole unmasked messages of ours in one frame each, every one compressed by itself where that
    /// is worth it, until it has taken too long. `None` if there are more than 256 KiB of them: then they go out
    /// as they are.
    pub(crate) fn recode(&mut self, window_bits: u8, mut frames: &[u8]) -> Option<Vec<u8>> {
        if frames.len() > BATCH_LEN_MAX {
            return None;
        }
        let mut target = Vec::with_capacity(frames.len() / 2);
        let (mut deflated, mut work) = (Buffer::default(), Work::new(BATCH_WORK));
        while let Some((header, header_len)) = FrameHeader::parse(frames).expect("frames of ours") {
            let (frame, rest) = frames.split_at(header_len + header.payload_len as usize);
            frames = rest;
            if !work.is_done()
                && self.deflate(window_bits, &[], &frame[header_len..], &mut deflated, &mut work)
            {
                target.extend_from_slice(deflated.frame(header.opcode, true).0);
            } else {
                target.extend_from_slice(frame);
            }
        }
        Some(target)
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
    ///
    /// # Errors
    /// There is no memory for it. The stream must be begun anew.
    pub(super) fn deflate(&mut self, message: &[u8], target: &mut Buffer) -> Result<(), ProtocolError> {
        target.clear();
        if message.is_empty() {
            // A second flush in a row would produce nothing.
            return target.append(&EMPTY);
        }
        let mut unread = message;
        loop {
            let free = target.free(usize::MAX)?;
            let free_len = free.len();
            let (read, written) = (self.0.total_in(), self.0.total_out());
            self.0.compress(unread, free, DeflateFlush::SyncFlush).expect("a compressor takes any octets");
            let written = (self.0.total_out() - written) as usize;
            unread = &unread[(self.0.total_in() - read) as usize..];
            target.advance(written);
            if unread.is_empty() && written < free_len {
                break;
            }
        }
        debug_assert!(target.message().ends_with(&TAIL), "a sync flush ends with an empty block");
        target.cut_off(TAIL.len());
        Ok(())
    }
}

/// How far a message may be inflated.
#[derive(Clone, Copy, Debug)]
pub(super) struct InflateLimits {
    /// In octets of the message.
    pub(super) len_max: u64,
    /// [`DeflateSettings::ratio_max`].
    pub(super) ratio_max: usize,
}

/// A decompressor. Its window is always the largest, so it reads whatever was agreed on.
pub(super) struct Inflater {
    inflate: Inflate,
    /// A block with BFINAL set has ended; if more follows, it begins a new stream.
    is_final: bool,
    /// Compressed octets of the message so far.
    read: usize,
}

/// What a decompressor has done.
struct Step {
    read: usize,
    written: usize,
    /// What followed is no DEFLATE.
    has_failed: bool,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { inflate: Inflate::new(false, WINDOW_BITS_MAX), is_final: false, read: 0 }
    }
}

impl Inflater {
    /// Begins a message that may refer to `history`.
    pub(super) fn begin(&mut self, history: &[u8]) {
        self.read = 0;
        self.reset(history);
    }

    /// Begins a new stream that may refer to `history`.
    fn reset(&mut self, history: &[u8]) {
        self.is_final = false;
        self.inflate.reset(false);
        if !history.is_empty() {
            self.inflate.set_dictionary(history).expect("a raw stream takes any history");
        }
    }

    /// Inflates the next part of a message onto the end of `message`, and shows every new piece to `check`.
    /// `history` is what the message may refer to.
    ///
    /// Returns how many octets at the part's end it has not read, because the `work` is done. The next part
    /// must begin with them. 0 says that all of the part is inflated.
    pub(super) fn inflate(
        &mut self,
        mut part: &[u8],
        history: &[u8],
        message: &mut Buffer,
        limits: &InflateLimits,
        work: &mut Work,
        mut check: impl FnMut(&[u8]) -> Result<(), ProtocolError>,
    ) -> Result<usize, ProtocolError> {
        let len_max = usize::try_from(limits.len_max).unwrap_or(usize::MAX);
        loop {
            if self.is_final {
                if part.is_empty() {
                    return Ok(0);
                }
                // RFC 7692 §7.2.3.4: the window goes on.
                work.inflater_reset(self.reset_after(history, message.message()));
            }
            if work.left() == 0 && !part.is_empty() {
                return Ok(part.len());
            }
            if self.is_too_dense(message.len(), limits) {
                // Codes that make no octet belong to what was before them.
                let step = self.step(part, &mut [], InflateFlush::NoFlush);
                part = &part[step.read..];
                if self.is_final {
                    continue;
                }
                if self.is_too_dense(message.len(), limits) {
                    // Without input it shows only if the next code is here, that all codes before it are.
                    let is_certain = !part.is_empty()
                        || step.has_failed
                        || self.step(&[], message.free(1)?, InflateFlush::NoFlush).written > 0;
                    return if is_certain { Err(ProtocolError::InflationRatio) } else { Ok(0) };
                }
            }
            // One octet more than is allowed tells that there is more than is allowed.
            let left = len_max.saturating_sub(message.len());
            let room = left.saturating_add(1).min(to_ratio_mark(message.len()));
            // What needs no more input is a few octets, and must come out: without input nobody would come back.
            let room = if part.is_empty() { room } else { room.min(work.left()) };
            let free = message.free(room)?;
            let free_len = free.len();
            let step = self.step(part, free, InflateFlush::NoFlush);
            part = &part[step.read..];
            let start = message.len();
            message.advance(step.written);
            work.inflated(step.written);
            check(&message.message()[start..start + step.written.min(left)])?;
            if step.written > left {
                return Err(ProtocolError::MessageTooBig);
            }
            let is_full = step.written == free_len && !self.is_final;
            if step.has_failed {
                let is_too_dense = self.is_too_dense(message.len(), limits);
                return Err(if is_too_dense {
                    ProtocolError::InflationRatio
                } else {
                    ProtocolError::Compression
                });
            }
            if part.is_empty() && !is_full {
                return Ok(0);
            }
            debug_assert!(step.read + step.written > 0, "there is input and room for output");
        }
    }

    /// Whether the message, `len` octets by now, has inflated to more than it may. That is looked at in a few
    /// places only, which are the same however it comes.
    fn is_too_dense(&self, len: usize, limits: &InflateLimits) -> bool {
        len > RATIO_FLOOR
            && limits.ratio_max > 0
            && len.is_multiple_of(RATIO_STEP)
            && len - RATIO_FLOOR > self.read.saturating_mul(limits.ratio_max)
    }

    /// Begins a new stream that may refer to `history` and to `message`, which followed it. Returns of how
    /// many octets the decompressor was told.
    #[cold]
    fn reset_after(&mut self, history: &[u8], message: &[u8]) -> usize {
        let message = &message[message.len().saturating_sub(WINDOW_LEN_MAX)..];
        let history = &history[history.len().saturating_sub(WINDOW_LEN_MAX - message.len())..];
        if history.is_empty() {
            self.reset(message);
        } else {
            self.reset(&[history, message].concat());
        }
        history.len() + message.len()
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
        let step = self.step(&octets, &mut [0], InflateFlush::Block);
        if step.has_failed || step.written > 0 || step.read != TAIL.len() || self.is_final {
            return Err(ProtocolError::Compression);
        }
        Ok(())
    }

    fn step(&mut self, octets: &[u8], target: &mut [u8], flush: InflateFlush) -> Step {
        let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(octets, target, flush);
        self.is_final = status == Ok(Status::StreamEnd);
        let read = (self.inflate.total_in() - read) as usize;
        self.read += read;
        let written = (self.inflate.total_out() - written) as usize;
        Step { read, written, has_failed: status.is_err() }
    }
}

/// How many octets there are until the next place where the ratio is looked at.
fn to_ratio_mark(len: usize) -> usize {
    if len < RATIO_FLOOR { RATIO_FLOOR - len } else { RATIO_STEP - len % RATIO_STEP }
}

#[cfg(test)]
#[path = "deflate_tests.rs"]
mod tests;
