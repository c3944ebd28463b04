//! [`TlsLink`]: TLS for one connection, without I/O. Octets in, plaintext and octets out.

use std::mem;
use std::ops::{Deref, Range};
use std::sync::Arc;

use rustls::client::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::server::ServerConfig;

use super::error::{TlsError, TlsErrorKind};
use super::established::{Content, Established};
use super::handshake::{Handshake, Handshaken};
use super::layout::{Pieces, join, spread};
use super::record::{HEADER_LEN, PLAINTEXT_LEN_MAX, Refused, record_len};

/// Up to this many octets are moved to lie beside their neighbours. Moving 1 KiB costs less than the 22 octets
/// and one pass of the cipher that a record of its own costs the reply; moving 16 KiB costs more.
const MOVED_LEN_MAX: usize = 1 << 10;
/// A kept record may hold this many times what has arrived of it, so that announcing takes no memory.
const RESERVE_FACTOR: usize = 8;

/// TLS of one connection, in either role.
///
/// The transport hands every receive to [`open`](Self::open), and passes what leaves through one of the `seal`
/// calls. What `open` and [`close`](Self::close) append to their `out` is sealed already: it goes out behind
/// everything that was sealed before, and before everything that is sealed later.
///
/// An idle connection owns its keys and nothing else: about 2 KiB, see `tests/tls_memory.rs`.
pub struct TlsLink {
    phase: Phase,
    /// The begin of a record that was cut by a receive. Empty, without an allocation, between records.
    kept: Vec<u8>,
    peer: Peer,
}

enum Phase {
    /// A server before the first whole record: no state of rustls yet, and a peer that may not speak TLS.
    Fresh(Arc<ServerConfig>),
    /// The peer's first record has not come yet, if `is_first`.
    Handshake {
        handshake: Box<Handshake>,
        is_first: bool,
    },
    Established(Box<Established>),
    /// Failed, and the failure is to be told; or it has been.
    Failed(Option<TlsError>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Sending,
    /// close_notify came; the driver does not know it yet.
    Closing,
    Closed,
}

/// What a receive brought next: see [`TlsLink::open`].
#[derive(Debug)]
pub enum Opened {
    /// Plaintext, where it was received.
    Plaintext {
        /// Where in the octets that were given.
        plaintext: Range<usize>,
        /// The octets around it that nobody needs any more: the driver may write here, and
        /// [`TlsLink::seal_in_place`] does. It contains `plaintext`.
        room: Range<usize>,
    },
    /// Plaintext of one record that more than one receive brought, in an allocation of its own.
    Kept {
        /// The record; all of it may be written to.
        octets: Vec<u8>,
        /// Where its plaintext is.
        plaintext: Range<usize>,
    },
    /// The handshake is done; from here on the link seals.
    Handshaken(Handshaken),
    /// The peer sent close_notify: it sends no more, and all that it sent has been opened.
    PeerClosed,
    /// Nothing is left of this receive.
    Drained,
}

/// The next record of a receive.
enum Record {
    /// Whole, where it was received.
    Here(Range<usize>),
    /// Completed by this receive.
    Kept(Vec<u8>),
}

impl TlsLink {
    /// The server's end. Nothing is allocated before the client's first record is whole.
    pub(super) fn server(config: Arc<ServerConfig>) -> Self {
        Self { phase: Phase::Fresh(config), kept: Vec::new(), peer: Peer::Sending }
    }

    /// The client's end; its ClientHello is appended to `out`.
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        out: &mut Vec<u8>,
    ) -> Result<Self, TlsError> {
        let mut handshake = Box::new(Handshake::client(config, name)?);
        handshake.advance(&[], out)?;
        let phase = Phase::Handshake { handshake, is_first: true };
        Ok(Self { phase, kept: Vec::new(), peer: Peer::Sending })
    }

    /// Whether the handshake is still to be done. Nothing can be sealed until then.
    pub fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::Fresh(_) | Phase::Handshake { .. })
    }

    /// Opens what has just been received, in place, from `octets[*at]` on, and says what that brought next. To
    /// be called, with `*at` as this left it, until it says [`Opened::Drained`].
    ///
    /// The plaintexts of small records are moved together, so that sixteen small messages of one receive are
    /// one range, their replies one record, and that one send. A record of more than 1 KiB stays where it is:
    /// what is small moves to its side, and two large ones are two ranges.
    ///
    /// A record that ends beyond `octets` is copied and kept; the next receive completes it, and its plaintext
    /// comes out as [`Opened::Kept`], before that of the others.
    ///
    /// What TLS has to answer (the handshake, a key update, an alert) is appended to `out`, also in the case of
    /// an error.
    ///
    /// # Errors
    /// The connection cannot go on, told once. Send `out`, and close; whatever else arrives is ignored. For
    /// [`TlsErrorKind::PlainHttp`] nothing was written to `out`: a server may answer in plain text.
    pub fn open(&mut self, octets: &mut [u8], at: &mut usize, out: &mut Vec<u8>) -> Result<Opened, TlsError> {
        debug_assert!(*at <= octets.len());
        match &mut self.phase {
            Phase::Established(_) => self.open_established(octets, at, out),
            Phase::Failed(failure) => {
                *at = octets.len();
                failure.take().map_or(Ok(Opened::Drained), Err)
            }
            Phase::Fresh(_) | Phase::Handshake { .. } => {
                let opened = self.shake(octets, at, out);
                if opened.is_err() {
                    self.phase = Phase::Failed(None);
                    self.kept = Vec::new();
                }
                opened
            }
        }
    }

    /// The transport came to the peer's FIN.
    ///
    /// # Errors
    /// No close_notify came before it: [`TlsErrorKind::Truncated`], or `EndedInHandshake`. Not if the link has failed or
    /// was closed in its handshake: then there is nothing more to tell.
    pub fn eof(&self) -> Result<(), TlsError> {
        match self.peer {
            Peer::Sending if matches!(self.phase, Phase::Failed(_)) => Ok(()),
            Peer::Sending if self.is_handshaking() => Err(TlsErrorKind::EndedInHandshake.into()),
            Peer::Sending => Err(TlsErrorKind::Truncated.into()),
            Peer::Closing | Peer::Closed => Ok(()),
        }
    }

    /// Appends close_notify to `out`, once; nothing can be sealed after it. What the peer still sends is opened.
    /// In a handshake, nothing is appended: no plaintext can have been cut off. The rest of it is ignored.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        match &mut self.phase {
            Phase::Established(established) => established.close(out),
            _ => {
                self.phase = Phase::Failed(None);
                self.kept = Vec::new();
            }
        }
    }

    /// Octets that this link has allocated beside its keys: a record that is not whole, and what a handshake has
    /// collected. 0 when idle.
    pub fn held_octets(&self) -> usize {
        self.kept.capacity()
            + match &self.phase {
                Phase::Handshake { handshake, .. } => handshake.held_octets(),
                Phase::Established(established) => established.held_octets(),
                Phase::Fresh(_) | Phase::Failed(_) => 0,
            }
    }

    /// How long `plain_len` octets are when sealed: what [`seal`](Self::seal) appends to its target.
    pub fn sealed_len(&self, plain_len: usize) -> usize {
        match &self.phase {
            Phase::Established(established) => established.sealed_len(plain_len),
            _ => 0,
        }
    }

    /// Seals `pieces`, as if they were one, and appends the records to `target`. Each record but the last has
    /// 16 KiB of plaintext, wherever pieces end. The plaintext is copied to `target` and sealed there.
    ///
    /// # Errors
    /// `NotOpen`: in the handshake, after `close`, after an error. `KeysExhausted`: TLS 1.2, after 2^24 records;
    /// `close`.
    pub fn seal<P: Deref<Target = [u8]>>(
        &mut self,
        pieces: &[P],
        target: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        let established = self.established()?;
        let mut pieces = Pieces::new(pieces);
        let (head_len, tail_len) = (established.form().head_len(), established.form().tail_len());
        target.reserve(established.sealed_len(pieces.left));
        while pieces.left > 0 {
            established.prepare_to_seal(target)?;
            let start = target.len();
            let len = pieces.left.min(PLAINTEXT_LEN_MAX);
            target.extend_from_slice(&[0; 32][..head_len]);
            pieces.take(len, |piece| target.extend_from_slice(piece));
            target.extend_from_slice(&[0; 32][..tail_len]);
            established.seal(&mut target[start..]);
        }
        Ok(())
    }

    /// Seals `octets[plaintext]` within `room`, where it is if head and tail have room there: the range of the
    /// sealed records. `None` if they do not fit in `room`, or the link cannot seal now: then nothing was changed,
    /// and `seal` does it or says why not.
    ///
    /// An echo always fits: its reply is shorter than what it answers, which had heads and tails too. Of more
    /// than 16 KiB, all but the first record move behind the tail of the one before.
    pub fn seal_in_place(
        &mut self,
        octets: &mut [u8],
        plaintext: Range<usize>,
        room: Range<usize>,
    ) -> Option<Range<usize>> {
        let established = self.established().ok()?;
        let form = established.form();
        let count = plaintext.len().div_ceil(PLAINTEXT_LEN_MAX);
        let len = plaintext.len() + count * form.overhead();
        if len > room.len() || !established.has_keys_for(count) {
            return None;
        }
        let start = plaintext.start.saturating_sub(form.head_len()).clamp(room.start, room.end - len);
        spread(octets, plaintext, start + form.head_len(), form.overhead());
        for record in octets[start..start + len].chunks_mut(PLAINTEXT_LEN_MAX + form.overhead()) {
            established.seal(record);
        }
        Some(start..start + len)
    }

    /// For tests that send what no driver may.
    #[cfg(test)]
    pub(super) fn inner(&mut self) -> &mut Established {
        self.established().expect("the handshake is done")
    }

    #[inline]
    fn established(&mut self) -> Result<&mut Established, TlsError> {
        match &mut self.phase {
            Phase::Established(established) => Ok(established),
            _ => Err(TlsErrorKind::NotOpen.into()),
        }
    }

    /// Records of the handshake, until something is to be told.
    fn shake(&mut self, octets: &mut [u8], at: &mut usize, out: &mut Vec<u8>) -> Result<Opened, TlsError> {
        loop {
            let record = match self.next_record(octets, at) {
                Ok(record) => record,
                Err(refused) => return Err(self.not_a_record(refused, &octets[*at..], out)),
            };
            let done = match record {
                Some(Record::Here(range)) => self.advance(&octets[range], out)?,
                Some(Record::Kept(record)) => self.advance(&record, out)?,
                None => return Ok(Opened::Drained),
            };
            if done {
                let Phase::Handshake { handshake, .. } = mem::replace(&mut self.phase, Phase::Failed(None))
                else {
                    unreachable!("only a handshake can be done");
                };
                let (established, handshaken) = handshake.finish()?;
                self.phase = Phase::Established(Box::new(established));
                return Ok(Opened::Handshaken(handshaken));
            }
        }
    }

    fn advance(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<bool, TlsError> {
        if let Phase::Fresh(config) = &self.phase {
            let handshake = Box::new(Handshake::server(config.clone())?);
            self.phase = Phase::Handshake { handshake, is_first: true };
        }
        match &mut self.phase {
            Phase::Handshake { handshake, is_first } => {
                *is_first = false;
                handshake.advance(record, out)
            }
            _ => Err(TlsErrorKind::NotOpen.into()),
        }
    }

    /// What came instead of a record of the handshake. An alert goes only to those who have spoken TLS before.
    fn not_a_record(&mut self, refused: Refused, rest: &[u8], out: &mut Vec<u8>) -> TlsError {
        let is_first = match &self.phase {
            Phase::Fresh(_) => true,
            Phase::Handshake { is_first, .. } => *is_first,
            _ => false,
        };
        let head: Vec<u8> = self.kept.iter().chain(rest).copied().take(HEADER_LEN).collect();
        if is_first && is_http(&head) {
            return TlsErrorKind::PlainHttp.into();
        }
        // In plain text, since a handshake that is not done may have no keys: RFC 8446 §6.
        out.extend_from_slice(&[21, 3, 3, 0, 2, 2, refused.alert().into()]);
        match refused {
            Refused::TooLong => TlsErrorKind::TooLong.into(),
            _ if is_first => TlsErrorKind::NotTls.into(),
            _ => TlsErrorKind::Misbehaved.into(),
        }
    }

    fn open_established(
        &mut self,
        octets: &mut [u8],
        at: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<Opened, TlsError> {
        if self.peer != Peer::Sending {
            return Ok(self.after_close(octets, at));
        }
        let start = *at;
        let mut joined = start..start;
        while !self.must_stop(&joined, octets, *at) {
            let record = match self.next_record(octets, at) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(refused) => {
                    let failure = self.established()?.refuse(refused, out);
                    return self.failed(failure, joined, start, octets, at);
                }
            };
            match record {
                Record::Here(range) => {
                    let from = range.start;
                    match self.established()?.open(&mut octets[range], out) {
                        Ok(Content::Data(data)) => {
                            join(&mut joined, from + data.start..from + data.end, octets);
                        }
                        Ok(Content::Nothing) => {}
                        Ok(Content::PeerClosed) => {
                            self.peer = Peer::Closing;
                            break;
                        }
                        Err(failure) => return self.failed(failure, joined, start, octets, at),
                    }
                }
                // Always the first of its receive: nothing has been joined yet.
                Record::Kept(mut record) => match self.established()?.open(&mut record, out) {
                    Ok(Content::Data(plaintext)) if plaintext.is_empty() => {}
                    Ok(Content::Data(plaintext)) => return Ok(Opened::Kept { octets: record, plaintext }),
                    Ok(Content::Nothing) => {}
                    Ok(Content::PeerClosed) => {
                        self.peer = Peer::Closing;
                        break;
                    }
                    Err(failure) => return self.failed(failure, joined, start, octets, at),
                },
            }
        }
        if !joined.is_empty() {
            return Ok(Opened::Plaintext { plaintext: joined, room: start..*at });
        }
        Ok(if self.peer == Peer::Sending { Opened::Drained } else { self.after_close(octets, at) })
    }

    /// What comes behind close_notify is ignored (RFC 8446 §6.1).
    fn after_close(&mut self, octets: &[u8], at: &mut usize) -> Opened {
        if self.peer == Peer::Closing {
            self.peer = Peer::Closed;
            return Opened::PeerClosed;
        }
        *at = octets.len();
        Opened::Drained
    }

    /// The plaintext before the failure is told first.
    fn failed(
        &mut self,
        failure: TlsError,
        joined: Range<usize>,
        start: usize,
        octets: &[u8],
        at: &mut usize,
    ) -> Result<Opened, TlsError> {
        self.kept = Vec::new();
        let end = mem::replace(at, octets.len());
        if joined.is_empty() {
            self.phase = Phase::Failed(None);
            return Err(failure);
        }
        self.phase = Phase::Failed(Some(failure));
        Ok(Opened::Plaintext { plaintext: joined, room: start..end })
    }

    /// Whether the next record is to be a range of its own, because joining it would move too much.
    #[inline]
    fn must_stop(&self, joined: &Range<usize>, octets: &[u8], at: usize) -> bool {
        joined.len() > MOVED_LEN_MAX
            && matches!(record_len(&octets[at..]), Ok(Some(len)) if len > MOVED_LEN_MAX && len <= octets.len() - at)
    }

    /// Takes the next whole record from `octets[*at..]`, and keeps one that goes on beyond their end.
    #[inline]
    fn next_record(&mut self, octets: &[u8], at: &mut usize) -> Result<Option<Record>, Refused> {
        if self.kept.is_empty() {
            let rest = &octets[*at..];
            if rest.is_empty() {
                return Ok(None);
            }
            if let Some(len) = record_len(rest)?
                && len <= rest.len()
            {
                let start = *at;
                *at += len;
                return Ok(Some(Record::Here(start..*at)));
            }
        }
        self.keep(octets, at)
    }

    /// Adds to the kept record what it lacks.
    #[cold]
    fn keep(&mut self, octets: &[u8], at: &mut usize) -> Result<Option<Record>, Refused> {
        loop {
            let wanted = record_len(&self.kept)?.unwrap_or(HEADER_LEN);
            let rest = &octets[*at..];
            let taken = rest.len().min(wanted - self.kept.len());
            if taken == 0 {
                return Ok(None);
            }
            let len = self.kept.len() + taken;
            if len > self.kept.capacity() {
                // A header and a little more, then by what has come.
                let reserved = wanted.max(64).min(len * RESERVE_FACTOR);
                self.kept.reserve_exact(reserved - self.kept.len());
            }
            self.kept.extend_from_slice(&rest[..taken]);
            *at += taken;
            if record_len(&self.kept)? == Some(len) {
                return Ok(Some(Record::Kept(mem::take(&mut self.kept))));
            }
        }
    }
}

/// Whether this is how HTTP begins: a request's method, the preface of HTTP/2, or a response.
fn is_http(head: &[u8]) -> bool {
    const BEGINS: [&[u8]; 11] =
        [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"CONN", b"OPTI", b"TRAC", b"PATC", b"PRI ", b"HTTP"];
    BEGINS.iter().any(|begin| head.starts_with(begin))
}
