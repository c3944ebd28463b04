//! The negotiation of permessage-deflate (RFC 7692 §7.1), both sides, as pure functions.
//!
//! A server asks [`DeflatePolicy::answer`] about a client's offers; a client writes a [`DeflateOffer`] and
//! checks the answer with [`DeflateOffer::verify`]. Both end with the same [`DeflateParams`], whose
//! `Display` is the answer. An offer that breaks a rule is declined and the next one is looked at: nothing
//! here fails a handshake.

use std::fmt;

use super::handshake::{Extension, extensions};

/// The extension's registered name (RFC 7692 §9.1).
const NAME: &str = "permessage-deflate";
/// Windows have 2^8 to 2^15 octets (RFC 7692 §7.1.2).
const WINDOW_BITS: std::ops::RangeInclusive<u8> = 8..=WINDOW_BITS_MAX;
/// The largest window, which is the one where nothing else is said.
pub const WINDOW_BITS_MAX: u8 = 15;
/// The smallest window that we can compress with. zlib and its kin take 8 for 9 without a word, and a peer
/// with a window of 8 could not read that, so we never agree to it for our own direction.
pub const WINDOW_BITS_MIN: u8 = 9;

/// What both sides agreed on, in the words of RFC 7692 §7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateParams {
    /// The server compresses each message by itself.
    pub server_no_context_takeover: bool,
    /// The client compresses each message by itself.
    pub client_no_context_takeover: bool,
    /// The server's window is at most two to the power of this many octets; `None` is 15, unsaid.
    pub server_max_window_bits: Option<u8>,
    /// The client's window is at most two to the power of this many octets; `None` is 15, unsaid.
    pub client_max_window_bits: Option<u8>,
}

impl DeflateParams {
    /// The size of the server's window, as a power of two.
    pub fn server_window_bits(&self) -> u8 {
        self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// The size of the client's window, as a power of two.
    pub fn client_window_bits(&self) -> u8 {
        self.client_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }
}

/// The value of `Sec-WebSocket-Extensions` that says so in a server's answer.
impl fmt::Display for DeflateParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server_no_context_takeover, client_no_context_takeover, server_max_window_bits, .. } =
            *self;
        write_common(f, server_no_context_takeover, client_no_context_takeover, server_max_window_bits)?;
        if let Some(bits) = self.client_max_window_bits {
            write!(f, "; client_max_window_bits={bits}")?;
        }
        Ok(())
    }
}

/// The name, and the parameters that offers and answers write alike.
fn write_common(
    f: &mut fmt::Formatter<'_>,
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
) -> fmt::Result {
    f.write_str(NAME)?;
    if server_no_context_takeover {
        f.write_str("; server_no_context_takeover")?;
    }
    if client_no_context_takeover {
        f.write_str("; client_no_context_takeover")?;
    }
    server_max_window_bits.map_or(Ok(()), |bits| write!(f, "; server_max_window_bits={bits}"))
}

/// What a server wants beyond what its clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflatePolicy {
    /// Answer `server_no_context_takeover` whether it was asked for or not.
    pub server_no_context_takeover: bool,
    /// Answer `client_no_context_takeover` whether it was hinted at or not.
    pub client_no_context_takeover: bool,
    /// The largest window of either side, as a power of two. Clients are held to it where they let us.
    pub window_bits_max: u8,
}

impl DeflatePolicy {
    /// The first offer that can be met, as it is to be answered; `None` if there is none.
    pub fn answer<'a>(&self, offers: impl IntoIterator<Item = Extension<'a>>) -> Option<DeflateParams> {
        offers.into_iter().find_map(|offer| self.answer_one(&offer))
    }

    fn answer_one(&self, offer: &Extension<'_>) -> Option<DeflateParams> {
        let offer = Offered::read(offer)?;
        // A window of 8 is more than we can promise.
        if offer.server_max_window_bits.is_some_and(|bits| bits < WINDOW_BITS_MIN) {
            return None;
        }
        // §7.1.2.1: who asks is answered, even if that changes nothing.
        let limit = (self.window_bits_max < WINDOW_BITS_MAX).then_some(self.window_bits_max);
        let server_max_window_bits = match offer.server_max_window_bits {
            Some(bits) => Some(bits.min(self.window_bits_max)),
            None => limit,
        };
        // §7.1.2.2: only a client that named the parameter may be held to a window. The value that it named
        // is its own, smaller or equal; ours reads any window.
        let client_max_window_bits = match offer.client_max_window_bits {
            None => None,
            Some(None) => limit,
            Some(Some(hint)) => Some(hint.min(self.window_bits_max)),
        };
        Some(DeflateParams {
            server_no_context_takeover: self.server_no_context_takeover || offer.server_no_context_takeover,
            client_no_context_takeover: self.client_no_context_takeover || offer.client_no_context_takeover,
            server_max_window_bits,
            client_max_window_bits,
        })
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeflateOffer {
    /// Ask the server to compress each message by itself.
    pub server_no_context_takeover: bool,
    /// Say that we would compress each message by itself.
    pub client_no_context_takeover: bool,
    /// Ask the server for a window of at most two to the power of this many octets, 8 to 15.
    pub server_max_window_bits: Option<u8>,
    /// Let the server limit our window; with a value, 8 to 15, it is no larger than that anyway.
    pub client_max_window_bits: Option<Option<u8>>,
}

/// The value of `Sec-WebSocket-Extensions` with which a client asks.
impl fmt::Display for DeflateOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server_no_context_takeover, client_no_context_takeover, server_max_window_bits, .. } =
            *self;
        write_common(f, server_no_context_takeover, client_no_context_takeover, server_max_window_bits)?;
        match self.client_max_window_bits {
            None => Ok(()),
            Some(None) => f.write_str("; client_max_window_bits"),
            Some(Some(bits)) => write!(f, "; client_max_window_bits={bits}"),
        }
    }
}

/// A server's answer that a client must not go on with (RFC 7692 §5.1, §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum DeflateAnswerError {
    #[error("the server's permessage-deflate has an unknown, repeated or ill-formed parameter")]
    Malformed,
    #[error("the server did not agree to server_no_context_takeover")]
    ServerContextTakeover,
    #[error("the server did not agree to server_max_window_bits, or to a larger value")]
    ServerWindow,
    #[error("the server limits client_max_window_bits, which was not offered")]
    ClientWindowNotOffered,
    #[error("the server limits our window to 256 octets, with which zlib cannot compress")]
    ClientWindowTooSmall,
}

impl DeflateOffer {
    /// Checks the server's answer, a well-formed value of `Sec-WebSocket-Extensions`: what was agreed on, or
    /// `None` if the server declined.
    ///
    /// # Errors
    /// The first rule that the answer breaks; the client must then fail the connection.
    pub fn verify(&self, answer: &str) -> Result<Option<DeflateParams>, DeflateAnswerError> {
        let mut chosen = extensions(answer.as_bytes()).flatten().filter(|extension| extension.name == NAME);
        let Some(answer) = chosen.next() else { return Ok(None) };
        if chosen.next().is_some() {
            return Err(DeflateAnswerError::Malformed);
        }
        let answer = Offered::read(&answer).ok_or(DeflateAnswerError::Malformed)?;
        if self.server_no_context_takeover && !answer.server_no_context_takeover {
            return Err(DeflateAnswerError::ServerContextTakeover);
        }
        if let Some(asked) = self.server_max_window_bits
            && answer.server_max_window_bits.is_none_or(|answered| answered > asked)
        {
            return Err(DeflateAnswerError::ServerWindow);
        }
        let allowed = match answer.client_max_window_bits {
            None => None,
            Some(None) => return Err(DeflateAnswerError::Malformed),
            Some(Some(_)) if self.client_max_window_bits.is_none() => {
                return Err(DeflateAnswerError::ClientWindowNotOffered);
            }
            Some(Some(bits)) => Some(bits),
        };
        let promised = self.client_max_window_bits.flatten();
        let client_max_window_bits = allowed.into_iter().chain(promised).min();
        if client_max_window_bits.is_some_and(|bits| bits < WINDOW_BITS_MIN) {
            return Err(DeflateAnswerError::ClientWindowTooSmall);
        }
        Ok(Some(DeflateParams {
            server_no_context_takeover: answer.server_no_context_takeover,
            // Whoever said it would is held to it (§7.1.1.2).
            client_no_context_takeover: answer.client_no_context_takeover || self.client_no_context_takeover,
            server_max_window_bits: answer.server_max_window_bits,
            client_max_window_bits,
        }))
    }
}

/// The parameters of one permessage-deflate in a header field: each at most once, with a value where one
/// belongs.
#[derive(Default)]
struct Offered {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    client_max_window_bits: Option<Option<u8>>,
}

impl Offered {
    /// `None` if it is another extension, or breaks a rule of §7.1.
    fn read(extension: &Extension<'_>) -> Option<Self> {
        if extension.name != NAME {
            return None;
        }
        let mut read = Self::default();
        for (name, value) in extension.params() {
            let value = value.as_deref();
            let is_new = match (name, value) {
                ("server_no_context_takeover", None) => {
                    !std::mem::replace(&mut read.server_no_context_takeover, true)
                }
                ("client_no_context_takeover", None) => {
                    !std::mem::replace(&mut read.client_no_context_takeover, true)
                }
                ("server_max_window_bits", Some(value)) => {
                    read.server_max_window_bits.replace(window_bits(value)?).is_none()
                }
                ("client_max_window_bits", None) => read.client_max_window_bits.replace(None).is_none(),
                ("client_max_window_bits", Some(value)) => {
                    read.client_max_window_bits.replace(Some(window_bits(value)?)).is_none()
                }
                _ => false,
            };
            if !is_new {
                return None;
            }
        }
        Some(read)
    }
}

/// A decimal integer without leading zeros between 8 and 15 (§7.1.2).
fn window_bits(value: &str) -> Option<u8> {
    let is_decimal = value.bytes().all(|octet| octet.is_ascii_digit()) && !value.starts_with('0');
    value.parse().ok().filter(|bits| is_decimal && WINDOW_BITS.contains(bits))
}

#[cfg(test)]
#[path = "extension_tests.rs"]
mod tests;
