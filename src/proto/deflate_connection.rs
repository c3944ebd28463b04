//! The part of a [`Connection`] that speaks permessage-deflate (RFC 7692 §6, §7.2).
//!
//! A compressed message that arrived whole is inflated from the receive buffer into the shared codecs'; one
//! that arrives in pieces is inflated piece by piece, so that bad text and bombs end it at once. An echo of
//! a message that its sender compressed by itself is the octets that came: they were just proved to be what
//! any peer must be able to read, and nothing is compressed. Start at
//! [`Connection::whole_message_with_deflate`] and [`Connection::read_deflated`].

use std::fmt;

use super::super::deflate::{Buffer, Deflater, Inflated, Inflater, Lease};
use super::super::{Compressors, DeflateParams, deflater_bytes, inflater_bytes};
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

/// Codecs that remember earlier messages. Each is made for the first message that needs it.
struct Takeover {
    deflater: Option<Deflater>,
    inflater: Option<Inflater>,
    /// For both of them, whether made or not.
    _lease: Lease,
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Takeover").finish_non_exhaustive()
    }
}

/// A compressed message that arrives in pieces.
pub(super) struct Inflating {
    /// As much of it as is there.
    message: Inflated,
    /// Without context takeover: the decompressor, until the message is complete.
    lent: Option<(Inflater, Lease)>,
    /// The compressed octets are kept, too, because they can be the reply.
    keeps_octets: bool,
}

impl fmt::Debug for Inflating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflating").field("len", &self.message.len()).finish_non_exhaustive()
    }
}

impl Compression {
    fn our_takeover(&self, role: Role) -> bool {
        match role {
            Role::Server => !self.params.server_no_context_takeover,
            Role::Client => !self.params.client_no_context_takeover,
        }
    }

    fn peer_takeover(&self, role: Role) -> bool {
        match role {
            Role::Server => !self.params.client_no_context_takeover,
            Role::Client => !self.params.server_no_context_takeover,
        }
    }

    fn our_window_bits(&self, role: Role) -> u8 {
        match role {
            Role::Server => self.params.server_window_bits(),
            Role::Client => self.params.client_window_bits(),
        }
    }

    /// Whether the octets of a compressed message can be echoed: it refers to no other message, looks no
    /// further back than we may, and our own compressor has no history that it would be missing in.
    fn can_return(&self) -> bool {
        let params = &self.params;
        params.server_no_context_takeover
            && params.client_no_context_takeover
            && params.client_window_bits() <= params.server_window_bits()
    }

    /// The decompressor with the peer's history, if it has one.
    fn inflater(&mut self, role: Role) -> Option<&mut Inflater> {
        let has_history = self.peer_takeover(role);
        let takeover = self.takeover.as_deref_mut().filter(|_| has_history)?;
        Some(takeover.inflater.get_or_insert_default())
    }

    /// Compresses a message of ours into `codecs.deflated`, and returns whether it is to be sent so.
    fn deflate(
        &mut self,
        role: Role,
        message: &[u8],
        compressors: &mut Compressors,
        deflated: &mut Buffer,
    ) -> bool {
        let window_bits = self.our_window_bits(role);
        if !self.our_takeover(role) {
            return compressors.deflate(window_bits, message, deflated);
        }
        let settings = compressors.settings();
        if message.len() < settings.message_len_min {
            return false;
        }
        let takeover = self.takeover.as_deref_mut().expect("context takeover was agreed on");
        let deflater = takeover.deflater.get_or_insert_with(|| Deflater::new(settings, window_bits));
        // The history has the message in it now, so it must be sent like this however long it came out.
        deflater.deflate(message, deflated);
        true
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
        let mut octets = 0;
        if compression.our_takeover(self.role) {
            let window_bits = compression.our_window_bits(self.role);
            octets += deflater_bytes(window_bits, codecs.settings().memory_level);
        }
        if compression.peer_takeover(self.role) {
            octets += inflater_bytes();
        }
        if octets > 0 {
            let Some(lease) = codecs.lease(octets) else { return false };
            compression.takeover = Some(Box::new(Takeover { deflater: None, inflater: None, _lease: lease }));
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
        if self.report_inflated(opcode, codecs, handler) == Reply::Echo {
            if !payload.is_empty() && self.can_return(codecs) {
                let header = FrameHeader { rsv1: true, ..FrameHeader::message(opcode, payload.len()) };
                header.write(&mut input.buffer[frame.clone()]);
                input.replies.range.end = frame.end;
            } else {
                self.reply_inflated(opcode, codecs, input);
            }
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
        let mut inflater = compression.inflater(self.role);
        let partial = self.partial.get_or_insert_with(Partial::new);
        let is_first = partial.message.is_empty() && partial.inflating.is_none();
        if is_first {
            let lent = match inflater {
                Some(_) => None,
                None => codecs.lease(inflater_bytes()).map(|lease| (codecs.take_inflater(), lease)),
            };
            if inflater.is_some() || lent.is_some() {
                let message = Inflated::default();
                partial.inflating = Some(Box::new(Inflating { message, lent, keeps_octets }));
            }
        }
        let message_size_max = limits.message_size_max;
        let octets_len = partial.message.len() + len;
        match partial.inflating.as_deref_mut() {
            Some(Inflating { message, lent, keeps_octets }) => {
                let inflater = inflater.take().or(lent.as_mut().map(|(inflater, _)| inflater));
                let inflater = inflater.expect("it is the connection's, or lent to it");
                let is_text = self.message == Some(Opcode::Text);
                inflater.inflate(piece, message, message_size_max, |text| {
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
                codecs.inflated = inflating.message;
                let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
                match inflating.lent {
                    Some((mut inflater, _lease)) => {
                        inflater.finish()?;
                        codecs.give_inflater(inflater);
                    }
                    None => compression.inflater(self.role).expect("it is the connection's").finish()?,
                }
            }
            None => {
                let deflated = octets.get(HEADROOM..).unwrap_or_default();
                self.inflate_whole(opcode, deflated, limits, codecs)?;
            }
        }
        self.utf8.finish()?;
        if self.report_inflated(opcode, codecs, handler) == Reply::Echo {
            if !octets.is_empty() && self.can_return(codecs) {
                let header = FrameHeader::message(opcode, octets.len() - HEADROOM);
                let start = HEADROOM - header.encoded_len();
                FrameHeader { rsv1: true, ..header }.write(&mut octets[start..]);
                input.push(octets, start);
            } else {
                self.reply_inflated(opcode, codecs, input);
            }
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
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
        let mut utf8 = self.utf8;
        let mut inflate = |inflater: &mut Inflater, inflated: &mut Inflated| {
            inflater.inflate(deflated, inflated, limits.message_size_max, |text| {
                if opcode == Opcode::Text { utf8.push(text, false) } else { Ok(()) }
            })?;
            inflater.finish()?;
            utf8.finish()
        };
        match compression.inflater(self.role) {
            Some(inflater) => inflate(inflater, &mut codecs.inflated),
            None => {
                let mut inflater = codecs.take_inflater();
                let result = inflate(&mut inflater, &mut codecs.inflated);
                codecs.give_inflater(inflater);
                result
            }
        }
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

    /// Whether the message in `codecs.inflated` can go back as it came.
    fn can_return(&self, codecs: &Codecs) -> bool {
        let settings = codecs.settings();
        !settings.recompress
            && codecs.inflated.len() >= settings.message_len_min
            && self.compression.as_ref().is_some_and(|compression| compression.can_return())
    }

    /// Replies with the message in `codecs.inflated`.
    fn reply_inflated(&mut self, opcode: Opcode, codecs: &mut Codecs, input: &mut Input<'_>) {
        let Codecs { compressors, inflated, deflated, .. } = codecs;
        let compression = self.compression.as_deref_mut().expect("RSV1 was agreed on");
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
