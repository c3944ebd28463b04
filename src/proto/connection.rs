//! One WebSocket connection after its opening handshake: octets in, messages and replies out.
//!
//! It is fed the buffer that was just received, cut anywhere, and works in place. A client's frame header
//! is at least four octets longer than the reply's, so a server's replies are written over their own
//! requests and form one contiguous range of the buffer, [`Replies::range`]. Only what cannot be in place
//! (a message that was cut by a read or sent in fragments) is an allocation of its own.
//!
//! Start at [`Connection::receive`]. It must never do I/O, read a clock or panic on what a peer sent.

mod deflate;
mod partial;

use std::ops::Range;

use super::frame::{CONTROL_LEN_MAX, HEADER_LEN_MAX};
use super::utf8::{self, Utf8};
use super::work::Work;
use super::{
    CloseCode, Codecs, Compressors, FrameHeader, Handler, Message, Opcode, ProtocolError, Reply, close,
};
use crate::mask::{self, MaskingKey};
use crate::replies::Replies;
use deflate::Compression;
use partial::{Ahead, Partial};

/// Octets left free in front of a message that is put together, for the header of its reply.
const HEADROOM: usize = HEADER_LEN_MAX;
/// Who we are on this connection (RFC 6455 §5.1: a client masks, a server does not).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We accepted it.
    Server,
    /// We opened it.
    Client,
}

/// Where the connection is in its life (RFC 6455 §4, §7). CONNECTING is not here: a [`Connection`] exists
/// only once the opening handshake is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Messages flow both ways.
    Open,
    /// We have sent a Close and wait for the peer's; what else it sends is read and dropped.
    Closing,
    /// Both Close frames have passed, or we failed the connection: whatever else arrives is ignored.
    Closed,
}

/// What one peer may ask of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest message in octets; a longer one is refused with 1009 from its frame header alone, and if
    /// it is compressed, as soon as so much of it is inflated.
    pub message_size_max: u64,
    /// The most frames a message may be cut into; more are refused with 1008.
    pub fragments_max: u32,
    /// The most octets that one [`Connection::receive`] inflates before it stops, about: so that one peer's
    /// bombs do not hold up all others. At most twice as many, and at most a MiB more, if that ends a message.
    pub inflate_octets_max: usize,
}

impl Default for Limits {
    /// What the server's flags say by default.
    fn default() -> Self {
        Self { message_size_max: 32 << 20, fragments_max: 1 << 20, inflate_octets_max: 1 << 20 }
    }
}

/// A frame whose payload has not all arrived.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    opcode: Opcode,
    fin: bool,
}

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Connection {
    /// There only while a message or control frame is incomplete.
    partial: Option<Box<Partial>>,
    /// There only if permessage-deflate was agreed on.
    compression: Option<Box<Compression>>,
    /// Octets of the unfinished frame's payload that are still to come.
    payload_left: u64,
    /// Frames of the message in progress so far.
    fragments: u32,
    /// The unfinished frame's key, rotated to its next octet. All zero if it is not masked.
    masking_key: MaskingKey,
    /// Where the next masking key of ours comes from (client role only).
    key_state: u32,
    utf8: Utf8,
    /// The start of a frame header that was cut by a read.
    head: [u8; HEADER_LEN_MAX],
    head_len: u8,
    frame: Option<Unfinished>,
    /// The opcode of the message in progress, from its first frame to its last.
    message: Option<Opcode>,
    /// The message in progress is compressed.
    is_deflated: bool,
    role: Role,
    state: State,
}

impl Connection {
    /// A server's side of a new connection.
    pub fn server() -> Self {
        Self::new(Role::Server, 0)
    }

    /// A client's side of a new connection. The masking keys of its control frames are a sequence that
    /// follows from `key_seed`: enough for measuring, not the strong entropy that §10.3 wants of a browser.
    pub fn client(key_seed: u32) -> Self {
        Self::new(Role::Client, key_seed | 1)
    }

    fn new(role: Role, key_state: u32) -> Self {
        Self {
            partial: None,
            compression: None,
            payload_left: 0,
            fragments: 0,
            masking_key: MaskingKey::default(),
            key_state,
            utf8: Utf8::default(),
            head: [0; HEADER_LEN_MAX],
            head_len: 0,
            frame: None,
            message: None,
            is_deflated: false,
            role,
            state: State::Open,
        }
    }

    /// Where it is in its life.
    #[inline]
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes in `buffer[at..]`, tells `handler` every whole message in it, and leaves in `replies` what goes
    /// back: echoes, pongs, Close frames. What is left of the buffer outside of [`Replies::range`] is
    /// garbage afterwards, save for what is returned. `codecs` are the same in every call, and shared with
    /// other connections.
    ///
    /// Returns how many octets at the buffer's end it has not looked at, because it has worked enough
    /// ([`Limits::inflate_octets_max`]): nearly always 0, and without compression always. The next call must
    /// begin with exactly these octets, before anything newer. It needs nothing newer to go on.
    ///
    /// # Errors
    /// The peer broke a rule. The Close frame for it is among the replies, and the connection is
    /// [`State::Closed`].
    #[inline]
    pub fn receive<H: Handler>(
        &mut self,
        buffer: &mut [u8],
        at: usize,
        limits: &Limits,
        codecs: &mut Codecs,
        replies: &mut Replies,
        handler: &mut H,
    ) -> Result<usize, ProtocolError> {
        replies.clear(at);
        let mut input = Input { buffer, read: at, replies };
        if self.compression.is_some() {
            codecs.work = Work::new(limits.inflate_octets_max);
        }
        let result = self.receive_frames(&mut input, limits, codecs, handler);
        if let Err(error) = result {
            self.fail(error, &mut input);
            codecs.trim();
        }
        result
    }

    /// The octets that it holds beyond its own size, all of them leased from the codecs' meter.
    #[inline]
    pub fn held_octets(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.held_octets());
        partial + self.compression.as_ref().map_or(0, |compression| compression.held_octets())
    }

    /// Whether a frame header, a frame or a message has begun and is not complete.
    #[inline]
    pub fn is_in_message(&self) -> bool {
        self.message.is_some() || self.frame.is_some() || self.head_len > 0
    }

    /// Starts the closing handshake: appends a Close frame with `code` to `target`. What the peer sends
    /// until its own Close is dropped. Does nothing unless the connection is open.
    ///
    /// # Panics
    /// If `reason` has more than 123 octets (RFC 6455 §5.5).
    pub fn close(&mut self, code: CloseCode, reason: &str, target: &mut Vec<u8>) {
        if self.state == State::Open {
            self.state = State::Closing;
            self.forget_messages();
            // What has arrived of a message will not be reported.
            if let Some(partial) = &mut self.partial {
                partial.drop_message();
                partial.inflating = None;
            }
            self.write_control(
                Opcode::Close,
                &[&code.to_wire().to_be_bytes(), reason.as_bytes()].concat(),
                target,
            );
        }
    }

    /// Appends a Ping to `target`, unless a Close was sent.
    ///
    /// # Panics
    /// If `payload` has more than 125 octets (RFC 6455 §5.5).
    pub fn ping(&mut self, payload: &[u8], target: &mut Vec<u8>) {
        if self.state == State::Open {
            self.write_control(Opcode::Ping, payload, target);
        }
    }

    fn receive_frames<H: Handler>(
        &mut self,
        input: &mut Input<'_>,
        limits: &Limits,
        codecs: &mut Codecs,
        handler: &mut H,
    ) -> Result<usize, ProtocolError> {
        while self.state != State::Closed {
            let frame = match self.frame {
                Some(frame) => frame,
                None if input.unread_len() == 0 => return Ok(0),
                None => {
                    if let Some(header) = self.read_small_header(input, limits) {
                        self.whole_message(&header, input, handler)?;
                        continue;
                    }
                    let Some(header) = self.read_header(input)? else { return Ok(0) };
                    self.check_header(&header, limits)?;
                    if self.is_whole_message(&header, input) {
                        match self.compression {
                            None => self.whole_message(&header, input, handler)?,
                            Some(_) => {
                                self.whole_message_with_deflate(header, input, limits, codecs, handler)?;
                                if codecs.work.is_done() {
                                    return Ok(input.unread_len() as usize);
                                }
                            }
                        }
                        continue;
                    }
                    if header.opcode.is_control() && header.payload_len <= input.unread_len() {
                        self.whole_control(&header, input, handler)?;
                        continue;
                    }
                    self.begin_frame(&header)
                }
            };
            self.read_payload(frame, input, limits, codecs)?;
            if self.payload_left > 0 {
                return Ok(input.unread_len() as usize);
            }
            self.frame = None;
            if frame.opcode.is_control() {
                self.end_control(frame.opcode, input, handler)?;
            } else if frame.fin {
                self.end_message(input, limits, codecs, handler)?;
                if self.compression.is_some() && codecs.work.is_done() {
                    return Ok(input.unread_len() as usize);
                }
            }
        }
        Ok(0)
    }

    /// The header of what nearly every frame is: a whole message of at most 125 octets, all of it here, on a
    /// connection that compresses nothing. Anything else, good or bad, is `None` and left to
    /// [`read_header`](Self::read_header) and what follows it, which would do the same with this:
    /// `fuzz_targets/frame.rs` and the tests that cut their input take both ways.
    #[inline(always)]
    fn read_small_header(&self, input: &mut Input<'_>, limits: &Limits) -> Option<FrameHeader> {
        let unread = &input.buffer[input.read..];
        let (first, len, masking_key, rest) = match (self.role, unread) {
            (Role::Server, &[first, second, k0, k1, k2, k3, ref rest @ ..]) => {
                let len = second.checked_sub(0x80)?; // not masked
                (first, len, Some(MaskingKey::from_wire([k0, k1, k2, k3])), rest)
            }
            // A masked one would have more than 125 octets.
            (Role::Client, &[first, len, ref rest @ ..]) => (first, len, None, rest),
            _ => return None,
        };
        let opcode = match first {
            0x81 => Opcode::Text, // FIN and the opcode (RFC 6455 §5.2)
            0x82 => Opcode::Binary,
            _ => return None,
        };
        let len = usize::from(len);
        let is_small = len <= CONTROL_LEN_MAX && len <= rest.len() && len as u64 <= limits.message_size_max;
        let is_idle = self.head_len == 0 && self.message.is_none();
        if !is_small || !is_idle || self.compression.is_some() {
            return None;
        }
        input.read += unread.len() - rest.len();
        Some(FrameHeader { masking_key, ..FrameHeader::message(opcode, len) })
    }

    /// The next frame's header, or `None` if the buffer ends inside it.
    fn read_header(&mut self, input: &mut Input<'_>) -> Result<Option<FrameHeader>, ProtocolError> {
        let unread = &input.buffer[input.read..];
        if self.head_len == 0 {
            if let Some((header, len)) = FrameHeader::parse(unread)? {
                input.read += len;
                return Ok(Some(header));
            }
            // Shorter than a header: it waits here for its rest.
            self.head[..unread.len()].copy_from_slice(unread);
            self.head_len = unread.len() as u8;
            return Ok(None);
        }
        let kept = usize::from(self.head_len);
        let taken = unread.len().min(HEADER_LEN_MAX - kept);
        self.head[kept..kept + taken].copy_from_slice(&unread[..taken]);
        match FrameHeader::parse(&self.head[..kept + taken])? {
            Some((header, len)) => {
                self.head_len = 0;
                input.read += len - kept;
                Ok(Some(header))
            }
            None => {
                self.head_len += taken as u8;
                Ok(None)
            }
        }
    }

    /// The rules that a header must keep given what came before it (RFC 6455 §5.1, §5.2, §5.4).
    fn check_header(&self, header: &FrameHeader, limits: &Limits) -> Result<(), ProtocolError> {
        match (self.role, header.masking_key) {
            (Role::Server, None) => return Err(ProtocolError::NotMasked),
            (Role::Client, Some(_)) => return Err(ProtocolError::Masked),
            _ => {}
        }
        if header.rsv1 && (self.compression.is_none() || header.opcode == Opcode::Continuation) {
            return Err(ProtocolError::ReservedBit); // RFC 7692 §6.1
        }
        if header.opcode.is_control() {
            return Ok(());
        }
        match (header.opcode, self.message) {
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => return Err(ProtocolError::ExpectedContinuation),
            (Opcode::Continuation, Some(_)) if self.fragments >= limits.fragments_max => {
                return Err(ProtocolError::TooManyFragments);
            }
            _ => {}
        }
        if header.payload_len > limits.message_size_max.saturating_sub(self.message_len() as u64)
            && !self.belongs_to_deflated(header.opcode, header.rsv1)
        {
            return Err(ProtocolError::MessageTooBig);
        }
        Ok(())
    }

    /// Octets of the message in progress that have arrived.
    #[inline]
    fn message_len(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.message.len().saturating_sub(HEADROOM))
    }

    /// Whether this data frame's payload is compressed: then its length says nothing about the message's.
    #[cold]
    fn belongs_to_deflated(&self, opcode: Opcode, rsv1: bool) -> bool {
        rsv1 || (opcode == Opcode::Continuation && self.is_deflated)
    }

    /// Whether this is a message in one frame that is all here, with room for its reply in front of it.
    #[inline]
    fn is_whole_message(&self, header: &FrameHeader, input: &Input<'_>) -> bool {
        header.fin
            && matches!(header.opcode, Opcode::Text | Opcode::Binary)
            && header.payload_len <= input.unread_len()
            && input.replies.range.end
                + FrameHeader::message(header.opcode, header.payload_len as usize).encoded_len()
                <= input.read
    }

    /// The hot path: decodes a message over its own request and offers it to the handler.
    #[inline(always)]
    fn whole_message<H: Handler>(
        &mut self,
        header: &FrameHeader,
        input: &mut Input<'_>,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let len = header.payload_len as usize;
        let reply = FrameHeader::message(header.opcode, len);
        let (header_len, payload_at) = (reply.encoded_len(), input.read);
        input.read += len;
        let (frame_at, is_ascii) = match header.masking_key {
            Some(key) => {
                let frame_at = input.replies.range.end;
                (frame_at, mask::unmask_down(input.buffer, payload_at, frame_at + header_len, len, key))
            }
            // Nothing to decode: the message stays where it is.
            None => (payload_at - header_len, false),
        };
        let frame = &mut input.buffer[frame_at..frame_at + header_len + len];
        if header.opcode == Opcode::Text {
            utf8::validate(&frame[header_len..], is_ascii)?;
        }
        if self.state == State::Open {
            reply.write(frame);
            if handler.message(Message::new(frame, header_len, header.opcode)) == Reply::Echo {
                debug_assert_eq!(self.role, Role::Server, "a client's echo would have to be masked");
                input.replies.range.end = frame_at + header_len + len;
            }
        }
        Ok(())
    }

    fn begin_frame(&mut self, header: &FrameHeader) -> Unfinished {
        let frame = Unfinished { opcode: header.opcode, fin: header.fin };
        self.frame = Some(frame);
        self.payload_left = header.payload_len;
        self.masking_key = header.masking_key.unwrap_or_default();
        match header.opcode {
            Opcode::Text | Opcode::Binary => {
                self.message = Some(header.opcode);
                self.is_deflated = header.rsv1;
                self.fragments = 1;
            }
            Opcode::Continuation => self.fragments += 1,
            _ => {}
        }
        frame
    }

    /// Takes what is here of the unfinished frame's payload, and validates it if it is text.
    fn read_payload(
        &mut self,
        frame: Unfinished,
        input: &mut Input<'_>,
        limits: &Limits,
        codecs: &mut Codecs,
    ) -> Result<(), ProtocolError> {
        let unread = &input.buffer[input.read..];
        let len = self.payload_left.min(unread.len() as u64) as usize;
        if len == 0 {
            return Ok(());
        }
        if self.is_deflated && !frame.opcode.is_control() {
            let read = self.read_deflated(frame, input, len, limits, codecs)?;
            self.advance(read, input);
            return Ok(());
        }
        if frame.opcode.is_control() {
            let partial = self.partial.get_or_insert_with(|| Partial::new(codecs.meter()));
            let at = usize::from(partial.control_len);
            let target = &mut partial.control[at..at + len];
            target.copy_from_slice(&unread[..len]);
            mask::unmask_in_place(target, self.masking_key);
            partial.control_len += len as u8;
        } else if self.state == State::Open {
            let partial = self.partial.get_or_insert_with(|| Partial::new(codecs.meter()));
            partial.reserve(len, Ahead { left: self.payload_left - len as u64, is_last: frame.fin })?;
            let at = partial.message.len();
            let is_ascii = mask::unmask_append(&mut partial.message, &unread[..len], self.masking_key);
            if self.message == Some(Opcode::Text) {
                self.utf8.push(&partial.message[at..], is_ascii)?;
            }
        } else {
            // It will not be reported, but must be right.
            let piece = &mut input.buffer[input.read..][..len];
            let is_ascii = mask::unmask_in_place(piece, self.masking_key);
            if self.message == Some(Opcode::Text) {
                self.utf8.push(piece, is_ascii)?;
            }
        }
        self.advance(len, input);
        Ok(())
    }

    fn advance(&mut self, len: usize, input: &mut Input<'_>) {
        self.masking_key = self.masking_key.advanced(len);
        self.payload_left -= len as u64;
        input.read += len;
    }

    /// A message that did not arrive whole in one read is complete now.
    #[inline(never)]
    fn end_message<H: Handler>(
        &mut self,
        input: &mut Input<'_>,
        limits: &Limits,
        codecs: &mut Codecs,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let opcode = self.message.take().expect("a data frame belongs to a message");
        if self.is_deflated {
            return self.end_deflated(opcode, input, limits, codecs, handler);
        }
        self.utf8.finish()?;
        let partial = self.partial.take();
        if self.state != State::Open {
            return Ok(());
        }
        let mut octets = match partial {
            Some(partial) if !partial.message.is_empty() => partial.message,
            _ => vec![0; HEADROOM],
        };
        let header = FrameHeader::message(opcode, octets.len() - HEADROOM);
        let header_len = header.encoded_len();
        let start = HEADROOM - header_len;
        header.write(&mut octets[start..]);
        if handler.message(Message::new(&octets[start..], header_len, opcode)) == Reply::Echo {
            if self.compression.is_some() && self.deflate(&octets[HEADROOM..], codecs) {
                drop(octets);
                return self.push_message(opcode, codecs, input);
            }
            input.push(octets, start);
        }
        Ok(())
    }

    fn whole_control<H: Handler>(
        &mut self,
        header: &FrameHeader,
        input: &mut Input<'_>,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let mut payload = [0; CONTROL_LEN_MAX];
        let payload = &mut payload[..header.payload_len as usize];
        payload.copy_from_slice(&input.buffer[input.read..input.read + payload.len()]);
        mask::unmask_in_place(payload, header.masking_key.unwrap_or_default());
        input.read += payload.len();
        self.control(header.opcode, payload, input, handler)
    }

    /// A control frame that was cut by a read is complete now.
    fn end_control<H: Handler>(
        &mut self,
        opcode: Opcode,
        input: &mut Input<'_>,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        let mut payload = [0; CONTROL_LEN_MAX];
        let mut len = 0;
        if let Some(partial) = &mut self.partial {
            len = usize::from(std::mem::take(&mut partial.control_len));
            payload[..len].copy_from_slice(&partial.control[..len]);
            if partial.message.is_empty() && partial.inflating.is_none() {
                self.partial = None;
            }
        }
        self.control(opcode, &payload[..len], input, handler)
    }

    fn control<H: Handler>(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        input: &mut Input<'_>,
        handler: &mut H,
    ) -> Result<(), ProtocolError> {
        match opcode {
            Opcode::Ping if self.state == State::Open => self.push_control(Opcode::Pong, payload, input),
            Opcode::Ping => {}
            Opcode::Pong => handler.pong(payload),
            _ => {
                let code = close::parse(payload)?;
                if self.state == State::Open {
                    let code = code.map(|code| code.to_wire().to_be_bytes());
                    self.push_control(Opcode::Close, code.as_ref().map_or(&[], |octets| &octets[..]), input);
                }
                self.shut();
            }
        }
        Ok(())
    }

    /// Fails the connection (RFC 6455 §7.1.7).
    #[cold]
    fn fail(&mut self, error: ProtocolError, input: &mut Input<'_>) {
        if self.state == State::Open {
            self.push_control(Opcode::Close, &error.close_code().to_wire().to_be_bytes(), input);
        }
        self.shut();
    }

    /// Nothing more is read: what was kept for it goes.
    fn shut(&mut self) {
        self.state = State::Closed;
        self.partial = None;
        self.frame = None;
        self.message = None;
        self.head_len = 0;
        self.forget_messages();
    }

    /// Replies with a control frame, in place if it fits over what has been read.
    fn push_control(&mut self, opcode: Opcode, payload: &[u8], input: &mut Input<'_>) {
        let at = input.replies.range.end;
        let header = FrameHeader::message(opcode, payload.len());
        let len = header.encoded_len() + payload.len();
        if self.role == Role::Server && at + len <= input.read {
            let target = &mut input.buffer[at..at + len];
            let header_len = header.write(target);
            target[header_len..].copy_from_slice(payload);
            input.replies.range.end += len;
        } else {
            let mut octets = Vec::with_capacity(HEADER_LEN_MAX + payload.len());
            self.write_control(opcode, payload, &mut octets);
            input.push(octets, 0);
        }
    }

    fn write_control(&mut self, opcode: Opcode, payload: &[u8], target: &mut Vec<u8>) {
        assert!(payload.len() <= CONTROL_LEN_MAX, "a control frame holds at most {CONTROL_LEN_MAX} octets");
        self.write_frame(FrameHeader::message(opcode, payload.len()), payload, target);
    }

    /// Appends a frame of ours, masked if we are the client.
    fn write_frame(&mut self, header: FrameHeader, payload: &[u8], target: &mut Vec<u8>) {
        let masking_key = match self.role {
            Role::Server => None,
            Role::Client => Some(self.next_key()),
        };
        let header = FrameHeader { masking_key, ..header };
        let mut octets = [0; HEADER_LEN_MAX];
        let header_len = header.write(&mut octets);
        target.extend_from_slice(&octets[..header_len]);
        mask::unmask_append(target, payload, masking_key.unwrap_or_default());
    }

    /// The next of a sequence of masking keys (xorshift32).
    fn next_key(&mut self) -> MaskingKey {
        self.key_state ^= self.key_state << 13;
        self.key_state ^= self.key_state >> 17;
        self.key_state ^= self.key_state << 5;
        MaskingKey::from_wire(self.key_state.to_le_bytes())
    }
}

/// The buffer of one receive: replies at its front, the frames that are not read yet at its end.
struct Input<'a> {
    buffer: &'a mut [u8],
    /// How far it has been read. Invariant: never before the end of `replies.range`.
    read: usize,
    replies: &'a mut Replies,
}

impl Input<'_> {
    #[inline]
    fn unread_len(&self) -> u64 {
        (self.buffer.len() - self.read) as u64
    }

    fn push(&mut self, octets: Vec<u8>, start: usize) {
        self.replies.push(octets, start);
    }
}

#[cfg(test)]
mod tests;
