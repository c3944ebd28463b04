//! Records of an established connection: sealed and opened where they lie (RFC 8446 §5, RFC 5246 §6).
//!
//! rustls makes the handshake and hands over the keys (`rustls::kernel`). Its own record layer copies every
//! plaintext: once into an allocation when it opens, twice when it seals. Here a record is opened where it was
//! received and sealed where it is sent from. Framing, nonces and sequence numbers are ours; the cipher is
//! ring, the same that rustls uses.

use std::ops::Range;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{AlertDescription, ConnectionTrafficSecrets, ContentType};

/// The longest plaintext of a record, in octets (RFC 8446 §5.1).
pub const PLAINTEXT_LEN_MAX: usize = 1 << 14;
/// Type, version and length.
pub(super) const HEADER_LEN: usize = 5;
/// What a header may announce at most: the larger expansion that TLS 1.2 allows (RFC 5246 §6.2.3).
const BODY_LEN_MAX: usize = PLAINTEXT_LEN_MAX + 2048;
const TAG_LEN: usize = 16;
const NONCE_LEN: usize = 12;
/// The part of the nonce that TLS 1.2 sends with each AES-GCM record (RFC 5288 §3).
const EXPLICIT_NONCE_LEN: usize = 8;
const LEGACY_VERSION: [u8; 2] = [3, 3];

/// The whole length of the record that begins with `octets`, or `None` if that is not known yet.
///
/// # Errors
/// This cannot be the begin of a record.
pub(super) fn record_len(octets: &[u8]) -> Result<Option<usize>, Refused> {
    let Some(header) = octets.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
    match header {
        [20..=24, 3, ..] if body <= BODY_LEN_MAX => Ok(Some(HEADER_LEN + body)),
        [20..=24, 3, ..] => Err(Refused::TooLong),
        _ => Err(Refused::NotARecord),
    }
}

/// Why a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    NotARecord,
    TooLong,
    Undecryptable,
    /// Well sealed, but not what may come now.
    Unexpected,
}

impl Refused {
    pub(super) fn alert(self) -> AlertDescription {
        match self {
            Self::NotARecord => AlertDescription::DecodeError,
            Self::TooLong => AlertDescription::RecordOverflow,
            Self::Undecryptable => AlertDescription::BadRecordMac,
            Self::Unexpected => AlertDescription::UnexpectedMessage,
        }
    }
}

/// How a record is laid out around its plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Header; plaintext, type, tag.
    Tls13,
    /// Header, explicit nonce; plaintext, tag.
    Tls12Gcm,
    /// Header; plaintext, tag.
    Tls12ChaCha,
}

impl Form {
    /// Octets before the plaintext.
    pub(super) const fn head_len(self) -> usize {
        match self {
            Self::Tls13 | Self::Tls12ChaCha => HEADER_LEN,
            Self::Tls12Gcm => HEADER_LEN + EXPLICIT_NONCE_LEN,
        }
    }

    /// Octets behind the plaintext.
    pub(super) const fn tail_len(self) -> usize {
        match self {
            Self::Tls13 => 1 + TAG_LEN,
            Self::Tls12Gcm | Self::Tls12ChaCha => TAG_LEN,
        }
    }

    pub(super) const fn overhead(self) -> usize {
        self.head_len() + self.tail_len()
    }
}

/// The keys of one direction, and how many records they have treated.
pub(super) struct Keys {
    form: Form,
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Invariant: never used twice with one key.
    sequence: u64,
}

impl Keys {
    /// From what rustls agreed on. `None` for a cipher that we do not know; we offer none such.
    pub(super) fn new(tls13: bool, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        let (algorithm, key, iv, tls12) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv, Form::Tls12Gcm),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv, Form::Tls12Gcm),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&CHACHA20_POLY1305, key, iv, Form::Tls12ChaCha)
            }
            _ => return None,
        };
        Some(Self {
            form: if tls13 { Form::Tls13 } else { tls12 },
            key: LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?),
            iv: iv.as_ref().try_into().ok()?,
            sequence,
        })
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Records that these keys have treated.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Opens one whole record in place: its type, and where its plaintext is.
    #[inline]
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, Range<usize>), Refused> {
        let (head, tail) = (self.form.head_len(), self.form.tail_len());
        let Some(len) = record.len().checked_sub(head + tail) else { return Err(Refused::Undecryptable) };
        match self.form {
            Form::Tls13 => self.open_tls13(record),
            Form::Tls12Gcm | Form::Tls12ChaCha => self.open_tls12(record, head, len),
        }
    }

    fn open_tls13(&mut self, record: &mut [u8]) -> Result<(ContentType, Range<usize>), Refused> {
        let (header, body) = record.split_first_chunk_mut::<HEADER_LEN>().ok_or(Refused::Undecryptable)?;
        // A change_cipher_spec or an alert in plain text has no place behind the handshake (RFC 8446 §5).
        if header[0] != u8::from(ContentType::ApplicationData) {
            return Err(Refused::Unexpected);
        }
        // A record may be padded, but not beyond 2^14 octets and its type (RFC 8446 §5.2, §5.4).
        if body.len() > PLAINTEXT_LEN_MAX + 256 {
            return Err(Refused::TooLong);
        }
        let nonce = self.nonce();
        let inner =
            self.key.open_in_place(nonce, Aad::from(*header), body).map_err(|_| Refused::Undecryptable)?;
        self.sequence += 1;
        if inner.len() > PLAINTEXT_LEN_MAX + 1 {
            return Err(Refused::TooLong);
        }
        let len = inner.iter().rposition(|octet| *octet != 0).ok_or(Refused::Unexpected)?;
        Ok((ContentType::from(inner[len]), HEADER_LEN..HEADER_LEN + len))
    }

    fn open_tls12(
        &mut self,
        record: &mut [u8],
        head: usize,
        len: usize,
    ) -> Result<(ContentType, Range<usize>), Refused> {
        let mut nonce = self.nonce_octets();
        // The peer's choice, whatever it is: only its uniqueness matters, and only to the sender.
        nonce[NONCE_LEN - (head - HEADER_LEN)..].copy_from_slice(&record[HEADER_LEN..head]);
        let aad = self.aad_tls12(record[0], len);
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key
            .open_in_place(nonce, Aad::from(aad), &mut record[head..])
            .map_err(|_| Refused::Undecryptable)?;
        self.sequence += 1;
        if len > PLAINTEXT_LEN_MAX {
            return Err(Refused::TooLong);
        }
        Ok((ContentType::from(record[0]), head..head + len))
    }

    /// Seals one whole record in place: `record` has room for head and tail, and the plaintext between.
    #[inline]
    pub(super) fn seal(&mut self, content: ContentType, record: &mut [u8]) {
        let (head, tail) = (self.form.head_len(), self.form.tail_len());
        let len = record.len() - head - tail;
        let (nonce, aad) = self.begin(content, record, len);
        let (before_tag, tag) = record.split_at_mut(record.len() - TAG_LEN);
        if self.form == Form::Tls13 {
            before_tag[head + len] = content.into();
        }
        let made = self
            .key
            .seal_in_place_separate_tag(nonce, aad, &mut before_tag[head..])
            .expect("a record is never too long for its cipher");
        tag.copy_from_slice(made.as_ref());
    }

    /// Writes what stands before the ciphertext, and takes the next sequence number.
    #[inline]
    fn begin(&mut self, content: ContentType, record: &mut [u8], len: usize) -> (Nonce, Aad<AadOctets>) {
        assert!(len <= PLAINTEXT_LEN_MAX, "a record of {len} octets");
        let body = (record.len() - HEADER_LEN) as u16;
        let outer = if self.form == Form::Tls13 { ContentType::ApplicationData } else { content };
        record[0] = outer.into();
        record[1..3].copy_from_slice(&LEGACY_VERSION);
        record[3..HEADER_LEN].copy_from_slice(&body.to_be_bytes());
        let nonce = self.nonce_octets();
        let aad = match self.form {
            Form::Tls13 => AadOctets::header(record),
            Form::Tls12Gcm | Form::Tls12ChaCha => self.aad_tls12(content.into(), len),
        };
        if self.form == Form::Tls12Gcm {
            record[HEADER_LEN..][..EXPLICIT_NONCE_LEN]
                .copy_from_slice(&nonce[NONCE_LEN - EXPLICIT_NONCE_LEN..]);
        }
        self.sequence += 1;
        (Nonce::assume_unique_for_key(nonce), Aad::from(aad))
    }

    fn nonce(&self) -> Nonce {
        Nonce::assume_unique_for_key(self.nonce_octets())
    }

    /// The IV, and the sequence number in its last octets, XORed (RFC 8446 §5.3, RFC 7905 §2; RFC 5288 leaves it
    /// to us).
    #[inline]
    fn nonce_octets(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (octet, sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *octet ^= sequence;
        }
        nonce
    }

    /// RFC 5246 §6.2.3.3.
    #[inline]
    fn aad_tls12(&self, content: u8, len: usize) -> AadOctets {
        let mut octets = [0; AadOctets::LEN_MAX];
        octets[..8].copy_from_slice(&self.sequence.to_be_bytes());
        octets[8] = content;
        octets[9..11].copy_from_slice(&LEGACY_VERSION);
        octets[11..].copy_from_slice(&(len as u16).to_be_bytes());
        AadOctets { octets, len: AadOctets::LEN_MAX }
    }
}

/// What is authenticated beside the plaintext.
struct AadOctets {
    octets: [u8; Self::LEN_MAX],
    len: usize,
}

impl AadOctets {
    const LEN_MAX: usize = 13;

    #[inline]
    fn header(record: &[u8]) -> Self {
        let mut octets = [0; Self::LEN_MAX];
        octets[..HEADER_LEN].copy_from_slice(&record[..HEADER_LEN]);
        Self { octets, len: HEADER_LEN }
    }
}

impl AsRef<[u8]> for AadOctets {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}
