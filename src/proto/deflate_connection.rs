//! The part of a [`Connection`] that speaks permessage-deflate (RFC 7692 §6, §7.2).
//!
//! A compressed message that arrived whole is inflated from the receive buffer into the shared codecs'; one
//! that arrives in pieces is inflated piece by piece, so that bad text and bombs end it at once. An echo is
//! the octets that came wherever they mean the same in our direction: they were just proved to be what any
//! peer must be able to read, and nothing is compressed. Start at
//! [`Connection::whole_message_with_deflate`] and [`Connection::read_deflated`].

use std::fmt;

use super::super::deflate::{Buffer, History, INFLATER_BYTES, Inflated, Inflater, Lease};
use super::super::{DeflateParams, WINDOW_BITS_MIN};
use super::*;

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
    _lease: Lease,
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Takeover").field("is_in_step", &self.is_in_step).finish_non_exhaustive()
    }
}

/// A compressed message that arrives in pieces.
pub(super) struct Inflating {
    /// As much of it as is there.
    message: Inflated,
    /// Until the message is complete.
    inflater: Inflater,
    _lease: Lease,
    /// The compressed octets are kept, too, because they can be the reply.
    keeps_octets: bool,
}

impl fmt::Debug for Inflating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflating").field("len", &self.message.len()).finish_non_exhaustive()
    }
}

impl Compression {
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
    ) -> bool {
        let history = self.takeover.as_ref().map_or(&[][..], |takeover| takeover.sent.octets());
        let is_worth_it = compressors.deflate(self.our_window_bits(role), history, message, deflated);
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
                _lease: lease,
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
    pub(super) fn whole_message_with_deflate<H: Handler>(
        &mut self,
        header: &FrameHeader,
        input: &mut Input<'_>,
        limits: &Limits,
        codecs: &mut Codecs,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let opcode = header.opcode;
        let (frame, header_len, is_ascii) = decode(header, input);
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
                    self.push_message(opcode, codecs, input);
                } else {
                    input.replies.range.end = frame.end;
                }
            }
            return Ok(());
        }
        if self.state != State::Open {
            return Ok(());
        }
        self.inflate_whole(opcode, &input.buffer[payload.clone()], limits, codecs)?;
        let can_return = self.end_inflated(payload.len(), codecs);
        if self.report_inflated(opcode, codecs, handler) == Reply::Echo {
            if can_return {
                self.push_returned(codecs);
                let header = FrameHeader { rsv1: true, ..FrameHeader::message(opcode, payload.len()) };
                header.write(&mut input.buffer[frame.clone()]);
                input.replies.range.end = frame.end;
            } else {
                self.reply_inflated(opcode, codecs, input);
            }
        } else {
            self.lose_step();
        }
        codecs.trim();
        Ok(())
    }

    /// Takes the next `len` octets of a compressed message.
    pub(super) fn read_deflated(
        &mut self,
        input: &mut Input<'_>,
        len: usize,
        limits: &Limits,
        codecs: &mut Codecs,
    ) -> Result<(), ProtocolError> {
        if self.state != State::Open {
            self.partial = None; // the message will not be reported
            return Ok(());
        }
        let piece = &mut input.buffer[input.read..input.read + len];
        mask::unmask_in_place(piece, self.masking_key);
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        let keeps_octets = compression.can_return() && !codecs.settings().recompress;
        let partial = self.partial.get_or_insert_with(Partial::new);
        let is_first = partial.message.is_empty() && partial.inflating.is_none();
        if is_first && let Some(lease) = codecs.lease(INFLATER_BYTES) {
            let inflater = codecs.take_inflater(compression.received());
            let message = Inflated::default();
            partial.inflating = Some(Box::new(Inflating { message, inflater, _lease: lease, keeps_octets }));
        }
        let message_size_max = limits.message_size_max;
        let octets_len = partial.message.len() + len;
        match partial.inflating.as_deref_mut() {
            Some(Inflating { message, inflater, keeps_octets, .. }) => {
                let is_text = self.message == Some(Opcode::Text);
                inflater.inflate(piece, compression.received(), message, message_size_max, |text| {
                    if is_text { self.utf8.push(text, false) } else { Ok(()) }
                })?;
                *keeps_octets &= octets_len <= message.len() + DEFLATED_EXCESS_MAX;
                if !*keeps_octets {
                    partial.message = Vec::new();
                    return Ok(());
                }
            }
            // No memory for another decompressor: it has to wait, and may be no longer than a message.
            None if octets_len as u64 > message_size_max.saturating_add(DEFLATED_EXCESS_MAX as u64) => {
                return Err(ProtocolError::MessageTooBig);
            }
            None => {}
        }
        let octets = &mut partial.message;
        if octets.is_empty() {
            octets.resize(HEADROOM, 0);
        }
        octets.extend_from_slice(piece);
        Ok(())
    }

    /// A compressed message that arrived in pieces is complete now.
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
            return Ok(());
        }
        let (mut octets, inflating) =
            partial.map_or_else(Default::default, |partial| (partial.message, partial.inflating));
        match inflating {
            Some(inflating) => {
                let Inflating { message, mut inflater, .. } = *inflating;
                codecs.inflated = message;
                inflater.finish()?;
                codecs.give_inflater(inflater);
            }
            None => {
                let deflated = octets.get(HEADROOM..).unwrap_or_default();
                self.inflate_whole(opcode, deflated, limits, codecs)?;
            }
        }
        self.utf8.finish()?;
        let can_return = self.end_inflated(octets.len().saturating_sub(HEADROOM), codecs);
        if self.report_inflated(opcode, codecs, handler) == Reply::Echo {
            if can_return {
                self.push_returned(codecs);
                let header = FrameHeader::message(opcode, octets.len() - HEADROOM);
                let start = HEADROOM - header.encoded_len();
                FrameHeader { rsv1: true, ..header }.write(&mut octets[start..]);
                input.push(octets, start);
            } else {
                self.reply_inflated(opcode, codecs, input);
            }
        } else {
            self.lose_step();
        }
        codecs.trim();
        Ok(())
    }

    /// Inflates a message that is all here into `codecs.inflated`, and validates it if it is text.
    fn inflate_whole(
        &mut self,
        opcode: Opcode,
        deflated: &[u8],
        limits: &Limits,
        codecs: &mut Codecs,
    ) -> Result<(), ProtocolError> {
        codecs.inflated.clear();
        if deflated.is_empty() {
            // Not even an empty block (RFC 7692 §7.2.3.6), but there is no doubt about what it says.
            return Ok(());
        }
        let history = self.compression.as_ref().expect("RSV1 was agreed on").received();
        let mut inflater = codecs.take_inflater(history);
        let mut utf8 = self.utf8;
        let result =
            inflater.inflate(deflated, history, &mut codecs.inflated, limits.message_size_max, |text| {
                if opcode == Opcode::Text { utf8.push(text, false) } else { Ok(()) }
            });
        let result = result.and_then(|()| inflater.finish());
        codecs.give_inflater(inflater);
        result.and_then(|()| utf8.finish())
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
        compression.push_received(codecs.inflated.0.message(), self.role);
        can_return
    }

    /// The message in `codecs.inflated` goes back as it came.
    fn push_returned(&mut self, codecs: &Codecs) {
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        compression.push_sent(codecs.inflated.0.message(), self.role);
    }

    fn lose_step(&mut self) {
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        compression.lose_step();
    }

    /// Tells the handler the message in `codecs.inflated`.
    fn report_inflated<H: Handler>(&mut self, opcode: Opcode, codecs: &mut Codecs, handler: &mut H) -> Reply {
        let (frame, header_len) = codecs.inflated.0.frame(opcode, false);
        let reply = handler.message(Message::new(frame, header_len, opcode));
        debug_assert!(
            reply == Reply::Nothing || self.role == Role::Server,
            "a client's echo would have to be masked"
        );
        reply
    }

    /// Replies with the message in `codecs.inflated`.
    fn reply_inflated(&mut self, opcode: Opcode, codecs: &mut Codecs, input: &mut Input<'_>) {
        let Codecs { compressors, inflated, deflated, .. } = codecs;
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        compression.lose_step();
        let frame = if compression.deflate(self.role, inflated.0.message(), compressors, deflated) {
            deflated.frame(opcode, true).0
        } else {
            inflated.0.frame(opcode, false).0
        };
        input.push_frame(frame);
    }

    /// Compresses a message of ours into `codecs.deflated`, and returns whether it is to be sent so.
    pub(super) fn deflate(&mut self, message: &[u8], codecs: &mut Codecs) -> bool {
        let Codecs { compressors, deflated, .. } = codecs;
        let compression = self.compression.as_deref_mut().expect("asked only where it was agreed on");
        compression.deflate(self.role, message, compressors, deflated)
    }

    /// Replies with the message in `codecs.deflated`.
    pub(super) fn push_message(&mut self, opcode: Opcode, codecs: &mut Codecs, input: &mut Input<'_>) {
        input.push_frame(codecs.deflated.frame(opcode, true).0);
        codecs.trim();
    }
}

impl Input<'_> {
    /// Replies with this frame, in place if it fits over what has been read.
    fn push_frame(&mut self, frame: &[u8]) {
        let at = self.replies.range.end;
        if at + frame.len() <= self.read {
            self.buffer[at..at + frame.len()].copy_from_slice(frame);
            self.replies.range.end += frame.len();
        } else {
            self.push(frame.to_vec(), 0);
        }
    }
}

#[cfg(test)]
#[path = "deflate_connection_tests.rs"]
mod tests;
