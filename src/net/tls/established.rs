//! An established connection: what its records carry beside plaintext, and the keys of both directions.

use std::mem;
use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, ExtractedSecrets, SupportedCipherSuite,
};

use super::error::{TlsError, TlsErrorKind, alert_kind};
use super::record::{Form, Keys, PLAINTEXT_LEN_MAX, Refused};

// RFC 8446 §4 and §6, RFC 5246 §7.2 and §7.4.
const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const MESSAGE_HEADER_LEN: usize = 4;
const KEY_UPDATE_LEN: usize = MESSAGE_HEADER_LEN + 1;

/// The longest message after the handshake: a ticket has at most 2^16 octets (RFC 8446 §4.6.1), and the rest of its
/// message is short.
const MESSAGE_LEN_MAX: usize = 80 << 10;
/// Records without content in a row. They cost the peer nothing and us a decryption; rustls and BoringSSL allow as
/// many.
const EMPTY_RECORDS_MAX: u8 = 32;
/// Key updates without data between, for the same reason.
const KEY_UPDATES_MAX: u8 = 32;
/// Warnings in a whole connection (TLS 1.2; TLS 1.3 knows one, that nobody needs).
const WARNINGS_MAX: u8 = 4;

/// What rustls still does: it derives the next keys, and a client's keeps the tickets. TLS 1.3 only.
pub(super) enum Kernel {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

impl Kernel {
    fn next_sealing(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Server(kernel) => kernel.update_tx_secret(),
            Self::Client(kernel) => kernel.update_tx_secret(),
        }
    }

    fn next_opening(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Server(kernel) => kernel.update_rx_secret(),
            Self::Client(kernel) => kernel.update_rx_secret(),
        }
    }
}

/// What one record was.
pub(super) enum Content {
    /// Plaintext, in this range of the record. May be empty.
    Data(Range<usize>),
    /// close_notify: nothing that comes after it counts.
    PeerClosed,
    /// It was for TLS itself.
    Nothing,
}

/// Both directions of a connection after its handshake.
pub(super) struct Established {
    opening: Keys,
    sealing: Keys,
    /// How many records one key may seal.
    records_max: u64,
    is_client: bool,
    /// `None` for TLS 1.2.
    kernel: Option<Kernel>,
    /// Begin of a message that goes on in the next record.
    message: Vec<u8>,
    /// close_notify or a fatal alert was sent: nothing may follow it.
    is_ended: bool,
    empty_records: u8,
    key_updates: u8,
    warnings: u8,
    renegotiations: u8,
}

impl Established {
    pub(super) fn new(
        suite: SupportedCipherSuite,
        secrets: &ExtractedSecrets,
        kernel: Kernel,
    ) -> Result<Self, TlsError> {
        let (tls13, records_max) = match suite {
            SupportedCipherSuite::Tls12(suite) => (false, suite.common.confidentiality_limit),
            SupportedCipherSuite::Tls13(suite) => (true, suite.common.confidentiality_limit),
        };
        let keys = |(sequence, secrets): &(u64, ConnectionTrafficSecrets)| {
            Keys::new(tls13, *sequence, secrets).ok_or(TlsError::from(TlsErrorKind::Internal))
        };
        Ok(Self {
            opening: keys(&secrets.rx)?,
            sealing: keys(&secrets.tx)?,
            // The last one is for the key update, or for close_notify. No connection gets near 2^62.
            records_max: records_max.min(1 << 62) - 1,
            is_client: matches!(kernel, Kernel::Client(_)),
            kernel: tls13.then_some(kernel),
            message: Vec::new(),
            is_ended: false,
            empty_records: 0,
            key_updates: 0,
            warnings: 0,
            renegotiations: 0,
        })
    }

    pub(super) fn form(&self) -> Form {
        self.sealing.form()
    }

    pub(super) fn held_octets(&self) -> usize {
        self.message.capacity()
    }

    /// Opens one whole record in place. What TLS answers by itself is appended to `out`; so is the alert of an
    /// error.
    #[inline]
    pub(super) fn open(&mut self, record: &mut [u8], out: &mut Vec<u8>) -> Result<Content, TlsError> {
        let (content, plaintext) = match self.opening.open(record) {
            Ok(opened) => opened,
            Err(refused) => return Err(self.refuse(refused, out)),
        };
        if content == ContentType::ApplicationData && !plaintext.is_empty() && self.message.is_empty() {
            self.empty_records = 0;
            self.key_updates = 0;
            return Ok(Content::Data(plaintext));
        }
        self.control(content, plaintext.clone(), &record[plaintext], out)
    }

    /// Everything but plaintext.
    #[cold]
    fn control(
        &mut self,
        content: ContentType,
        range: Range<usize>,
        octets: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Content, TlsError> {
        // A message in several records is not interrupted, and only plaintext may be empty (RFC 8446 §5.1).
        if !self.message.is_empty() && content != ContentType::Handshake {
            return Err(self.refuse(Refused::Unexpected, out));
        }
        match content {
            ContentType::ApplicationData => {
                self.empty_records += 1;
                if self.empty_records > EMPTY_RECORDS_MAX {
                    return Err(self.refuse(Refused::Unexpected, out));
                }
                Ok(Content::Data(range))
            }
            ContentType::Alert => self.alert(octets, out),
            ContentType::Handshake if !octets.is_empty() => match self.kernel {
                Some(_) => self.messages(octets, out),
                None => self.renegotiation(octets, out),
            },
            _ => Err(self.refuse(Refused::Unexpected, out)),
        }
    }

    fn alert(&mut self, octets: &[u8], out: &mut Vec<u8>) -> Result<Content, TlsError> {
        let &[level, description] = octets else {
            return Err(self.fail(TlsErrorKind::Misbehaved, AlertDescription::DecodeError, out));
        };
        let description = AlertDescription::from(description);
        match (level, description) {
            (_, AlertDescription::CloseNotify) => Ok(Content::PeerClosed),
            (WARNING, AlertDescription::UserCanceled) => self.warned(out),
            (WARNING, _) if self.kernel.is_none() => self.warned(out),
            // Whatever its level says: in TLS 1.3 every other alert ends the connection (RFC 8446 §6).
            _ => {
                self.is_ended = true;
                Err(match alert_kind(description) {
                    // Of a handshake that was done, this is not why.
                    TlsErrorKind::NothingInCommon | TlsErrorKind::Version => {
                        TlsErrorKind::Alert(description.into())
                    }
                    kind => kind,
                }
                .into())
            }
        }
    }

    fn warned(&mut self, out: &mut Vec<u8>) -> Result<Content, TlsError> {
        self.warnings += 1;
        if self.warnings > WARNINGS_MAX {
            return Err(self.refuse(Refused::Unexpected, out));
        }
        Ok(Content::Nothing)
    }

    /// TLS 1.2: the only messages that may come ask for a new handshake, and are declined once.
    fn renegotiation(&mut self, octets: &[u8], out: &mut Vec<u8>) -> Result<Content, TlsError> {
        let asks = if self.is_client { HELLO_REQUEST } else { CLIENT_HELLO };
        self.renegotiations += 1;
        if octets[0] != asks || self.renegotiations > 1 {
            return Err(self.refuse(Refused::Unexpected, out));
        }
        self.send_alert(WARNING, AlertDescription::NoRenegotiation, out);
        Ok(Content::Nothing)
    }

    /// TLS 1.3: key updates, and tickets for a client.
    fn messages(&mut self, octets: &[u8], out: &mut Vec<u8>) -> Result<Content, TlsError> {
        let mut message = mem::take(&mut self.message);
        message.extend_from_slice(octets);
        let mut rest = &message[..];
        while !rest.is_empty() {
            let allowed = rest[0] == KEY_UPDATE || (self.is_client && rest[0] == NEW_SESSION_TICKET);
            if !allowed {
                return Err(self.refuse(Refused::Unexpected, out));
            }
            let Some(&[kind, a, b, c]) = rest.first_chunk::<MESSAGE_HEADER_LEN>() else { break };
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MESSAGE_LEN_MAX || (kind == KEY_UPDATE && len != 1) {
                return Err(self.refuse(Refused::TooLong, out));
            }
            let Some((body, after)) = rest[MESSAGE_HEADER_LEN..].split_at_checked(len) else { break };
            match kind {
                KEY_UPDATE => self.key_update(body[0], after.is_empty(), out)?,
                _ => self.ticket(body, out)?,
            }
            rest = after;
        }
        self.message = rest.to_vec();
        Ok(Content::Nothing)
    }

    /// The peer seals with new keys from here on, and may ask for the same of us (RFC 8446 §4.6.3).
    fn key_update(&mut self, request: u8, is_last: bool, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.key_updates += 1;
        if !is_last || request > UPDATE_REQUESTED || self.key_updates > KEY_UPDATES_MAX {
            return Err(self.refuse(Refused::Unexpected, out));
        }
        let Some(kernel) = &mut self.kernel else { return Err(TlsErrorKind::Internal.into()) };
        let (sequence, secrets) = kernel.next_opening()?;
        self.opening = Keys::new(true, sequence, &secrets).ok_or(TlsErrorKind::Internal)?;
        if request == UPDATE_REQUESTED && !self.is_ended {
            self.update_sealing_keys(UPDATE_NOT_REQUESTED, out)?;
        }
        Ok(())
    }

    fn ticket(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let Some(Kernel::Client(kernel)) = &mut self.kernel else {
            return Err(self.refuse(Refused::Unexpected, out));
        };
        if let Err(error) = kernel.handle_new_session_ticket(body) {
            self.send_alert(FATAL, AlertDescription::DecodeError, out);
            return Err(error.into());
        }
        Ok(())
    }

    /// Sends a key update, sealed with the old keys, and takes the next ones.
    fn update_sealing_keys(&mut self, request: u8, out: &mut Vec<u8>) -> Result<(), TlsError> {
        let Some(kernel) = &mut self.kernel else { return Err(TlsErrorKind::KeysExhausted.into()) };
        let (sequence, secrets) = kernel.next_sealing()?;
        let next = Keys::new(true, sequence, &secrets).ok_or(TlsErrorKind::Internal)?;
        self.send(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, request], out);
        self.sealing = next;
        Ok(())
    }

    /// How long `plain_len` octets become, with a key update that may be due before them.
    #[inline]
    pub(super) fn sealed_len(&self, plain_len: usize) -> usize {
        let records = plain_len.div_ceil(PLAINTEXT_LEN_MAX);
        let updates = if self.sealing.sequence() + records as u64 > self.records_max { 1 } else { 0 };
        let overhead = self.form().overhead();
        plain_len + records * overhead + updates * (KEY_UPDATE_LEN + overhead)
    }

    /// How many of `records` can be sealed before the keys change.
    #[inline]
    pub(super) fn has_keys_for(&self, records: usize) -> bool {
        !self.is_ended && self.sealing.sequence() + records as u64 <= self.records_max
    }

    /// Makes sure that one more record of data may be sealed.
    ///
    /// # Errors
    /// `NotOpen` after `close`; `KeysExhausted` for TLS 1.2, where there is nothing left but to close.
    #[inline]
    pub(super) fn prepare_to_seal(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.has_keys_for(1) {
            return Ok(());
        }
        if self.is_ended {
            return Err(TlsErrorKind::NotOpen.into());
        }
        self.update_sealing_keys(UPDATE_REQUESTED, out)
    }

    /// Seals `record` in place: room for the head, plaintext, room for the tail.
    #[inline]
    pub(super) fn seal(&mut self, record: &mut [u8]) {
        self.sealing.seal(ContentType::ApplicationData, record);
    }

    /// close_notify, once.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) {
        if !self.is_ended {
            self.send_alert(WARNING, AlertDescription::CloseNotify, out);
            self.is_ended = true;
        }
    }

    /// Ends the connection because of what came.
    pub(super) fn refuse(&mut self, refused: Refused, out: &mut Vec<u8>) -> TlsError {
        let kind = match refused {
            Refused::NotARecord | Refused::Unexpected => TlsErrorKind::Misbehaved,
            Refused::TooLong => TlsErrorKind::TooLong,
            Refused::Undecryptable => TlsErrorKind::BadRecord,
        };
        self.fail(kind, refused.alert(), out)
    }

    /// Ends the connection with an alert of ours.
    pub(super) fn fail(
        &mut self,
        kind: TlsErrorKind,
        description: AlertDescription,
        out: &mut Vec<u8>,
    ) -> TlsError {
        if !self.is_ended {
            self.send_alert(FATAL, description, out);
            self.is_ended = true;
        }
        kind.into()
    }

    fn send_alert(&mut self, level: u8, description: AlertDescription, out: &mut Vec<u8>) {
        self.send(ContentType::Alert, &[level, description.into()], out);
    }

    /// Seals one short record.
    pub(super) fn send(&mut self, content: ContentType, plaintext: &[u8], out: &mut Vec<u8>) {
        let (start, form) = (out.len(), self.form());
        out.resize(start + plaintext.len() + form.overhead(), 0);
        out[start + form.head_len()..][..plaintext.len()].copy_from_slice(plaintext);
        self.sealing.seal(content, &mut out[start..]);
    }

    /// A key update that nothing but a test wants.
    #[cfg(test)]
    pub(super) fn renew(&mut self, out: &mut Vec<u8>) {
        self.update_sealing_keys(UPDATE_NOT_REQUESTED, out).expect("TLS 1.3");
    }

    /// For tests of what happens when a key has sealed all that it may.
    #[cfg(test)]
    pub(super) fn set_records_max(&mut self, records_max: u64) {
        self.records_max = records_max;
    }
}
