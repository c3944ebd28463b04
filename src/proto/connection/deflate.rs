//! The part of a [`Connection`] that speaks permessage-deflate (RFC 7692 §6, §7.2).
//!
//! A compressed message that arrived whole is inflated from the receive buffer into the shared codecs'; one
//! that arrives in pieces is inflated piece by piece, so that bad text and bombs end it at once. What is
//! too much work for one receive is [suspended](Connection::suspend), and arrives in pieces from there on, as
//! far as anybody can tell.
//!
//! An echo is
//! the octets that came wherever they mean the same in our direction: they were just proved to be what any
//! peer must be able to read, and nothing is compressed. Start at
//! [`Connection::whole_message_with_deflate`] and [`Connection::read_deflated`].

use std::fmt;

use super::super::buffer::Buffer;
use super::super::deflate::{History, INFLATER_BYTES, InflateLimits, Inflater};
use super::super::{DeflateParams, WINDOW_BITS_MIN};
use super::*;
use crate::memory::{Lease, Meter};

/// A compressed message that waits to be inflated, or to go back as it came, is kept while it is no longer
/// than what it stands for and this many octets: compression adds less.
const DEFLATED_EXCESS_MAX: usize = 1024;

/// What one connection agreed on, and what it owns for that.
#[derive(Debug)]
pub(super) struct Compression {
    params: DeflateParams,
    /// There only with context takeover on either side.
    takeover: Option<Box<Takeover>>,
}

/// What messages may refer to, in both directions. Empty without context takeover in that direction.
struct Takeover {
    received: History,
    sent: History,
    /// Every compressed message went back as it came, and nothing else was sent compressed: to both ends,
    /// one history is as good as the other.
    is_in_step: bool,
    /// For both histories at their longest.
    lease: Lease,
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Takeover").field("is_in_step", &self.is_in_step).finish_non_exhaustive()
    }
}

/// A compressed message that arrives in pieces.
pub(super) struct Inflating {
    /// As much of it as is there.
    message: Buffer,
    /// Until the message is complete.
    inflater: Inflater,
    /// For the inflater. The message has its own.
    lease: Lease,
    /// The compressed octets are kept, too, because they can be the reply.
    keeps_octets: bool,
}

impl fmt::Debug for Inflating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflating").field("len", &self.message.len()).finish_non_exhaustive()
    }
}

impl Inflating {
    /// `lease` is for the inflater.
    fn new(inflater: Inflater, lease: Lease, share: &Meter, keeps_octets: bool) -> Box<Self> {
        Box::new(Self { message: Buffer::owned(share), inflater, lease, keeps_octets })
    }

    pub(super) fn held_octets(&self) -> usize {
        self.lease.octets() + self.message.leased()
    }

    /// Whether the compressed octets are still kept now that there are `len`; once they are not, they never are.
    pub(super) fn keeps_octets(&mut self, len: usize) -> bool {
        self.keeps_octets &= len <= self.message.len() + DEFLATED_EXCESS_MAX;
        self.keeps_octets
    }
}

impl Compression {
    pub(super) fn held_octets(&self) -> usize {
        self.takeover.as_ref().map_or(0, |takeover| takeover.lease.octets())
    }

    /// The size of the window that our messages share, as a power of two, if they share one.
    fn our_takeover(&self, role: Role) -> Option<u8> {
        match role {
            Role::Server => (!self.params.server_no_context_takeover).then(|| self.our_window_bits(role)),
            Role::Client => (!self.params.client_no_context_takeover).then(|| self.our_window_bits(role)),
        }
    }

    /// The size of the window that the peer's messages share, as a power of two, if they share one.
    fn peer_takeover(&self, role: Role) -> Option<u8> {
        let DeflateParams { server_no_context_takeover, client_no_context_takeover, .. } = self.params;
        match role {
            Role::Server => (!client_no_context_takeover).then(|| self.params.client_window_bits()),
            Role::Client => (!server_no_context_takeover).then(|| self.params.server_window_bits()),
        }
        // Whoever agrees to 8 may be a zlib that uses 9.
        .map(|bits| bits.max(WINDOW_BITS_MIN))
    }

    fn our_window_bits(&self, role: Role) -> u8 {
        match role {
            Role::Server => self.params.server_window_bits(),
            Role::Client => self.params.client_window_bits(),
        }
    }

    /// Whether the octets of the client's next compressed message can be echoed: they look no further back
    /// than we may, and what they refer to is what our own would.
    fn can_return(&self) -> bool {
        let params = &self.params;
        let is_self_contained = params.client_no_context_takeover;
        let is_in_step = !params.server_no_context_takeover
            && self.takeover.as_ref().is_some_and(|takeover| takeover.is_in_step);
        params.client_window_bits() <= params.server_window_bits() && (is_self_contained || is_in_step)
    }

    /// What the peer's next message may refer to.
    fn received(&self) -> &[u8] {
        self.takeover.as_ref().map_or(&[], |takeover| takeover.received.octets())
    }

    /// Remembers a message that was received compressed.
    fn push_received(&mut self, message: &[u8], role: Role) {
        if let (Some(bits), Some(takeover)) = (self.peer_takeover(role), &mut self.takeover) {
            takeover.received.push(message, bits);
        }
    }

    /// Remembers a message that was sent compressed.
    fn push_sent(&mut self, message: &[u8], role: Role) {
        if let (Some(bits), Some(takeover)) = (self.our_takeover(role), &mut self.takeover) {
            takeover.sent.push(message, bits);
        }
    }

    /// From now on the histories differ.
    fn lose_step(&mut self) {
        if let Some(takeover) = &mut self.takeover {
            takeover.is_in_step = false;
        }
    }

    /// Compresses a message of ours into `deflated`, and returns whether it is to be sent so; then it must be.
    fn deflate(
        &mut self,
        role: Role,
        message: &[u8],
        compressors: &mut Compressors,
        deflated: &mut Buffer,
        work: &mut Work,
    ) -> bool {
        let history = self.takeover.as_ref().map_or(&[][..], |takeover| takeover.sent.octets());
        let is_worth_it = compressors.deflate(self.our_window_bits(role), history, message, deflated, work);
        if is_worth_it {
            self.push_sent(message, role);
            self.lose_step();
        }
        is_worth_it
    }
}

impl Connection {
    /// From now on messages may be compressed, as agreed in the opening handshake. To be called before
    /// anything is received or sent. Returns whether it can be had: context takeover needs memory of the
    /// connection's own, and `codecs` may have none left. Then nothing has changed, and something else must
    /// be agreed on; without context takeover it always can be had.
    #[must_use]
    pub fn agree_on_deflate(&mut self, params: DeflateParams, codecs: &Codecs) -> bool {
        let mut compression = Box::new(Compression { params, takeover: None });
        let windows = [compression.our_takeover(self.role), compression.peer_takeover(self.role)];
        let octets: usize = windows.into_iter().flatten().map(|bits| 1 << bits).sum();
        if octets > 0 {
            let Some(lease) = codecs.lease(octets) else { return false };
            compression.takeover = Some(Box::new(Takeover {
                received: History::default(),
                sent: History::default(),
                is_in_step: true,
                lease,
            }));
        }
        self.compression = Some(compression);
        true
    }

    /// Appends a message of ours to `target` as one frame: compressed if that was agreed on and is worth it,
    /// masked if we are the client. Does nothing unless the connection is open. A text must be UTF-8.
    ///
    /// # Panics
    /// If `opcode` is not [`Opcode::Text`] or [`Opcode::Binary`].
    pub fn send(&mut self, opcode: Opcode, message: &[u8], codecs: &mut Codecs, target: &mut Vec<u8>) {
        assert!(matches!(opcode, Opcode::Text | Opcode::Binary), "a message is text or binary");
        if self.state != State::Open {
            return;
        }
        if self.compression.is_some() && self.deflate(message, codecs) {
            let deflated = codecs.deflated.message();
            let header = FrameHeader { rsv1: true, ..FrameHeader::message(opcode, deflated.len()) };
            self.write_frame(header, deflated, target);
        } else {
            self.write_frame(FrameHeader::message(opcode, message.len()), message, target);
        }
    }

    /// No message is read or sent any more: what was kept for that goes.
    pub(super) fn forget_messages(&mut self) {
        if let Some(compression) = &mut self.compression {
            compression.takeover = None;
        }
    }

    /// A message that is all here, compressed or not, on a connection that agreed on compression.
    #[inline(never)] // so that the way without compression stays short
    pub(super) fn whole_message_with_deflate<H: Handler>(
        &mut self,
        header: FrameHeader, // by value: on the other way it stays in registers
        input: &mut Input<'_>,
        limits: &Limits,
        codecs: &mut Codecs,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let opcode = header.opcode;
        let (frame, header_len, is_ascii) = decode(&header, input);
        let payload = frame.start + header_len..frame.end;
        if !header.rsv1 {
            if opcode == Opcode::Text {
                utf8::validate(&input.buffer[payload.clone()], is_ascii)?;
            }
            if self.state != State::Open {
                return Ok(());
            }
            FrameHeader::message(opcode, payload.len()).write(&mut input.buffer[frame.clone()]);
            let message = Message::new(&input.buffer[frame.clone()], header_len, opcode);
            if handler.message(message) == Reply::Echo {
                if self.deflate(&input.buffer[payload], codecs) {
                    return self.push_message(opcode, codecs, input);
                }
                input.replies.range.end = frame.end;
            }
            return Ok(());
        }
        if self.state != State::Open {
            return Ok(());
        }
        let unread = self.inflate_whole(opcode, &input.buffer[payload.clone()], limits, codecs)?;
        if unread > 0 {
            return self.suspend(&header, payload, unread, input, codecs);
        }
        let can_return = self.end_inflated(payload.len(), codecs);
        let mut result = Ok(());
        if self.report_inflated(opcode, codecs, handler) == Reply::Echo {
            if can_return {
                self.push_returned(codecs);
                let header = FrameHeader { rsv1: true, ..FrameHeader::message(opcode, payload.len()) };
                header.write(&mut input.buffer[frame.clone()]);
                input.replies.range.end = frame.end;
            } else {
                result = self.reply_inflated(opcode, codecs, input);
            }
        } else {
            self.lose_step();
        }
        codecs.trim();
        result
    }

    /// A message that is all here is inflated only as far as is in `codecs.inflated`: the work of this receive
    /// is done. From here on it is one that arrives in pieces, whose last `unread` octets have not been read.
    /// `payload` is where it was decoded to.
    #[cold]
    fn suspend(
        &mut self,
        header: &FrameHeader,
        payload: Range<usize>,
        unread: usize,
        input: &mut Input<'_>,
        codecs: &mut Codecs,
    ) -> Result<(), ProtocolError> {
        let read = payload.len() - unread;
        let inflater = codecs.put_down_inflater();
        let lease = codecs.lease(INFLATER_BYTES).ok_or(ProtocolError::NoMemory)?;
        let keeps_octets = self.keeps_octets(codecs);
        let mut inflating = Inflating::new(inflater, lease, codecs.share(), keeps_octets);
        inflating.message.append(codecs.inflated.message())?;
        codecs.trim();
        self.begin_frame(header);
        let partial = self.partial.get_or_insert_with(|| Partial::new(codecs.meter()));
        partial.inflating = Some(inflating);
        let ahead = Ahead { left: unread as u64, is_last: true };
        partial.keep_octets(&input.buffer[payload.start..payload.start + read], ahead)?;
        // The rest goes back to where it was, as it was.
        let rest = input.read - unread..input.read;
        input.buffer.copy_within(payload.start + read..payload.end, rest.start);
        input.read -= payload.len();
        self.advance(read, input);
        mask::unmask_in_place(&mut input.buffer[rest], self.masking_key);
        Ok(())
    }

    /// Whether the compressed octets of the message that begins are to be kept, because they can be the reply.
    fn keeps_octets(&self, codecs: &Codecs) -> bool {
        self.compression.as_ref().is_some_and(|compression| compression.can_return())
            && !codecs.settings().recompress
    }

    /// Takes the next `len` octets of a compressed message, or as many of them as this receive has work left
    /// for, and returns how many.
    #[inline(never)]
    pub(super) fn read_deflated(
        &mut self,
        frame: Unfinished,
        input: &mut Input<'_>,
        len: usize,
        limits: &Limits,
        codecs: &mut Codecs,
    ) -> Result<usize, ProtocolError> {
        if self.state != State::Open {
            self.partial = None; // the message will not be reported
            return Ok(len);
        }
        let piece = &mut input.buffer[input.read..input.read + len];
        mask::unmask_in_place(piece, self.masking_key);
        let keeps_octets = self.keeps_octets(codecs);
        let inflate_limits = inflate_limits(limits, codecs);
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        let partial = self.partial.get_or_insert_with(|| Partial::new(codecs.meter()));
        let is_first = partial.message.is_empty() && partial.inflating.is_none();
        if is_first && let Some(lease) = codecs.lease(INFLATER_BYTES) {
            let inflater = codecs.take_inflater(compression.received())?;
            partial.inflating = Some(Inflating::new(inflater, lease, codecs.share(), keeps_octets));
        }
        let mut read = len;
        if let Some(Inflating { message, inflater, .. }) = partial.inflating.as_deref_mut() {
            let is_text = self.message == Some(Opcode::Text);
            let (history, work) = (compression.received(), &mut codecs.work);
            read -= inflater.inflate(piece, history, message, &inflate_limits, work, |text| {
                if is_text { self.utf8.push(text, false) } else { Ok(()) }
            })?;
            // What was not read goes back as it was.
            mask::unmask_in_place(&mut piece[read..], self.masking_key.advanced(read));
        } else if (partial.message.len() + len) as u64
            > limits.message_size_max.saturating_add(DEFLATED_EXCESS_MAX as u64)
        {
            // No memory for another decompressor: it has to wait, and may be no longer than a message.
            return Err(ProtocolError::MessageTooBig);
        }
        let ahead = Ahead { left: self.payload_left - read as u64, is_last: frame.fin };
        partial.keep_octets(&piece[..read], ahead)?;
        Ok(read)
    }

    /// A compressed message that arrived in pieces is complete now.
    #[inline(never)]
    pub(super) fn end_deflated<H: Handler>(
        &mut self,
        opcode: Opcode,
        input: &mut Input<'_>,
        limits: &Limits,
        codecs: &mut Codecs,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let partial = self.partial.take();
        if self.state != State::Open {
            self.utf8 = Utf8::default();
            return Ok(());
        }
        let (octets, inflating) =
            partial.map_or_else(Default::default, |partial| (partial.message, partial.inflating));
        let Some(inflating) = inflating else {
            let deflated = octets.get(HEADROOM..).unwrap_or_default();
            if self.inflate_whole(opcode, deflated, limits, codecs)? > 0 {
                // It would have to be suspended, and waited because there is no memory for that.
                return Err(ProtocolError::NoMemory);
            }
            return self.answer_inflated(opcode, octets, input, codecs, handler);
        };
        let Inflating { message, mut inflater, .. } = *inflating;
        inflater.finish()?;
        codecs.give_inflater(inflater);
        self.utf8.finish()?;
        let shared = std::mem::replace(&mut codecs.inflated, message);
        let result = self.answer_inflated(opcode, octets, input, codecs, handler);
        codecs.inflated = shared;
        result
    }

    /// Reports the message in `codecs.inflated`, and replies. `octets` are [`HEADROOM`] and those in which it
    /// came, if they can be the reply.
    fn answer_inflated<H: Handler>(
        &mut self,
        opcode: Opcode,
        mut octets: Vec<u8>,
        input: &mut Input<'_>,
        codecs: &mut Codecs,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let can_return = self.end_inflated(octets.len().saturating_sub(HEADROOM), codecs);
        let mut result = Ok(());
        if self.report_inflated(opcode, codecs, handler) == Reply::Echo {
            if can_return {
                self.push_returned(codecs);
                let header = FrameHeader::message(opcode, octets.len() - HEADROOM);
                let start = HEADROOM - header.encoded_len();
                FrameHeader { rsv1: true, ..header }.write(&mut octets[start..]);
                input.push(octets, start);
            } else {
                drop(octets);
                result = self.reply_inflated(opcode, codecs, input);
            }
        } else {
            self.lose_step();
        }
        codecs.trim();
        result
    }

    /// Inflates a message that is all here into `codecs.inflated`, and validates it if it is text. Returns how
    /// many octets at its end are not read, because this receive has done its work.
    fn inflate_whole(
        &mut self,
        opcode: Opcode,
        deflated: &[u8],
        limits: &Limits,
        codecs: &mut Codecs,
    ) -> Result<usize, ProtocolError> {
        codecs.inflated.clear();
        if deflated.is_empty() {
            // Not even an empty block (RFC 7692 §7.2.3.6), but there is no doubt about what it says.
            return Ok(0);
        }
        let inflate_limits = inflate_limits(limits, codecs);
        let history = self.compression.as_ref().expect("RSV1 was agreed on").received();
        let mut inflater = codecs.take_inflater(history)?;
        let mut utf8 = self.utf8;
        let (inflated, work) = (&mut codecs.inflated, &mut codecs.work);
        let mut result = inflater.inflate(deflated, history, inflated, &inflate_limits, work, |text| {
            if opcode == Opcode::Text { utf8.push(text, false) } else { Ok(()) }
        });
        if result == Ok(0) {
            result = inflater.finish().and_then(|()| utf8.finish()).map(|()| 0);
        }
        codecs.give_inflater(inflater);
        self.utf8 = utf8;
        result
    }

    /// The message in `codecs.inflated` is whole. Returns whether it can go back in the `len` octets in which
    /// it came.
    fn end_inflated(&mut self, len: usize, codecs: &Codecs) -> bool {
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        let settings = codecs.settings();
        let can_return = len > 0
            && !settings.recompress
            && codecs.inflated.len() >= settings.message_len_min
            && compression.can_return();
        compression.push_received(codecs.inflated.message(), self.role);
        can_return
    }

    /// The message in `codecs.inflated` goes back as it came.
    fn push_returned(&mut self, codecs: &Codecs) {
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        compression.push_sent(codecs.inflated.message(), self.role);
    }

    fn lose_step(&mut self) {
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        compression.lose_step();
    }

    /// Tells the handler the message in `codecs.inflated`.
    fn report_inflated<H: Handler>(&mut self, opcode: Opcode, codecs: &mut Codecs, handler: &mut H) -> Reply {
        let (frame, header_len) = codecs.inflated.frame(opcode, false);
        let reply = handler.message(Message::new(frame, header_len, opcode));
        debug_assert!(
            reply == Reply::Nothing || self.role == Role::Server,
            "a client's echo would have to be masked"
        );
        reply
    }

    /// Replies with the message in `codecs.inflated`.
    fn reply_inflated(
        &mut self,
        opcode: Opcode,
        codecs: &mut Codecs,
        input: &mut Input<'_>,
    ) -> Result<(), ProtocolError> {
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        compression.lose_step();
        let Codecs { compressors, inflated, deflated, work, meter, .. } = codecs;
        let is_shorter = compression.deflate(self.role, inflated.message(), compressors, deflated, work);
        let (frame, _) =
            if is_shorter { deflated.frame(opcode, true) } else { inflated.frame(opcode, false) };
        input.push_frame(frame, meter)
    }

    /// Compresses a message of ours into `codecs.deflated`, and returns whether it is to be sent so.
    pub(super) fn deflate(&mut self, message: &[u8], codecs: &mut Codecs) -> bool {
        let Codecs { compressors, deflated, work, .. } = codecs;
        let compression = self.compression.as_deref_mut().expect("asked only where it was agreed on");
        compression.deflate(self.role, message, compressors, deflated, work)
    }

    /// Replies with the message in `codecs.deflated`.
    pub(super) fn push_message(
        &mut self,
        opcode: Opcode,
        codecs: &mut Codecs,
        input: &mut Input<'_>,
    ) -> Result<(), ProtocolError> {
        let result = input.push_frame(codecs.deflated.frame(opcode, true).0, &codecs.meter);
        codecs.trim();
        result
    }
}

/// How far a message may be inflated.
fn inflate_limits(limits: &Limits, codecs: &Codecs) -> InflateLimits {
    InflateLimits { len_max: limits.message_size_max, ratio_max: codecs.settings().ratio_max }
}

/// Decodes a whole message's payload to where its reply would have it: the place of that frame in the
/// buffer, the length of its header, which is not written yet, and whether the payload is all ASCII.
fn decode(header: &FrameHeader, input: &mut Input<'_>) -> (Range<usize>, usize, bool) {
    let len = header.payload_len as usize;
    let header_len = FrameHeader::message(header.opcode, len).encoded_len();
    let payload_at = input.read;
    input.read += len;
    let (frame_at, is_ascii) = match header.masking_key {
        Some(key) => {
            let frame_at = input.replies.range.end;
            (frame_at, mask::unmask_down(input.buffer, payload_at, frame_at + header_len, len, key))
        }
        // Nothing to decode: the message stays where it is.
        None => (payload_at - header_len, false),
    };
    (frame_at..frame_at + header_len + len, header_len, is_ascii)
}

impl Input<'_> {
    /// Replies with this frame, in place if it fits over what has been read. If not, `meter` must have room for
    /// a copy, which the send queue counts from then on.
    fn push_frame(&mut self, frame: &[u8], meter: &Meter) -> Result<(), ProtocolError> {
        let at = self.replies.range.end;
        if at + frame.len() <= self.read {
            self.buffer[at..at + frame.len()].copy_from_slice(frame);
            self.replies.range.end += frame.len();
            return Ok(());
        }
        let mut octets = Vec::new();
        if meter.take(frame.len()).is_none() || octets.try_reserve_exact(frame.len()).is_err() {
            return Err(ProtocolError::NoMemory);
        }
        octets.extend_from_slice(frame);
        self.push(octets, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
