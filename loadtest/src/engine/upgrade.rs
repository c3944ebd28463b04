//! Our side of the opening handshake, connection by connection.

use resound::proto::handshake::{ClientRequest, HandshakeLimits, HeadScanner, Response};
use resound::proto::{DeflateOffer, DeflateParams};

use super::args::RunArgs;
use super::target::Target;

/// What every upgrade request of a run has in common.
#[derive(Clone, Debug)]
pub(super) struct Upgrade {
    host: String,
    resource: String,
    subprotocols: Vec<String>,
    origin: Option<String>,
    headers: Vec<(String, String)>,
    deflate: Option<DeflateOffer>,
}

/// An upgrade that waits for its response.
#[derive(Debug)]
pub(super) struct Pending {
    nonce: [u8; 16],
    scanner: HeadScanner,
    /// What has arrived of a response that was cut by a read.
    head: Vec<u8>,
}

/// What a good response said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upgraded {
    /// How many of the octets just received belong to the response; frames follow.
    pub taken: usize,
    /// How messages are compressed, if they may be.
    pub deflate: Option<DeflateParams>,
}

impl Upgrade {
    /// Requests as the flags say.
    ///
    /// # Errors
    /// A header or subprotocol that cannot stand in a request.
    pub(super) fn new(target: &Target, args: &RunArgs) -> anyhow::Result<Self> {
        let is_origin = |name: &str| name.eq_ignore_ascii_case("origin");
        let (origins, headers): (Vec<_>, Vec<_>) =
            args.header.iter().cloned().partition(|(name, _)| is_origin(name));
        if origins.len() > 1 {
            anyhow::bail!("--header: a request has one Origin at most");
        }
        let upgrade = Self {
            host: target.authority.clone(),
            resource: target.resource.clone(),
            subprotocols: args.subprotocol.clone(),
            origin: origins.into_iter().next().map(|(_, value)| value),
            headers,
            // As browsers do: the server may limit our window.
            deflate: args
                .deflate
                .then(|| DeflateOffer { client_max_window_bits: Some(None), ..DeflateOffer::default() }),
        };
        upgrade.with_request([0; 16], |request| request.write(&mut Vec::new()))?;
        Ok(upgrade)
    }

    /// Appends a request to `target`.
    pub(super) fn begin(&self, rng: &mut fastrand::Rng, target: &mut Vec<u8>) -> Pending {
        let mut nonce = [0; 16];
        rng.fill(&mut nonce);
        self.with_request(nonce, |request| request.write(target))
            .expect("the request was tried at the start");
        Pending { nonce, scanner: HeadScanner::default(), head: Vec::new() }
    }

    /// Takes in octets of the response. `None` if more are to come.
    ///
    /// # Errors
    /// What is wrong with the response, in words.
    pub(super) fn receive(&self, pending: &mut Pending, octets: &[u8]) -> Result<Option<Upgraded>, String> {
        self.read(pending, octets, |_| ())
    }

    /// [`Self::receive`], with a look at the response.
    ///
    /// # Errors
    /// What is wrong with the response, in words.
    pub(super) fn read(
        &self,
        pending: &mut Pending,
        octets: &[u8],
        look: impl FnOnce(&Response<'_>),
    ) -> Result<Option<Upgraded>, String> {
        let before = pending.head.len();
        let head = if before == 0 {
            octets
        } else {
            pending.head.extend_from_slice(octets);
            &pending.head
        };
        match Response::parse(head, &mut pending.scanner, &HandshakeLimits::default()) {
            Ok(Some((response, len))) => {
                look(&response);
                let deflate = self.with_request(pending.nonce, |request| {
                    let agreed = response.verify(request).map_err(|error| error.to_string())?;
                    match (&self.deflate, agreed.extensions) {
                        (Some(offer), Some(answer)) => {
                            offer.verify(answer).map_err(|error| error.to_string())
                        }
                        _ => Ok(None),
                    }
                })?;
                if self.deflate.is_some() && deflate.is_none() {
                    return Err(
                        "the server declines permessage-deflate; leave out --deflate, or turn it on there"
                            .into(),
                    );
                }
                Ok(Some(Upgraded { taken: len - before, deflate }))
            }
            Ok(None) => {
                if before == 0 {
                    pending.head.extend_from_slice(octets);
                }
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn with_request<T>(&self, nonce: [u8; 16], then: impl FnOnce(&ClientRequest<'_>) -> T) -> T {
        let subprotocols: Vec<&str> = self.subprotocols.iter().map(String::as_str).collect();
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let extensions = self.deflate.map(|offer| offer.to_string());
        then(&ClientRequest {
            host: &self.host,
            target: &self.resource,
            nonce,
            subprotocols: &subprotocols,
            extensions: extensions.as_deref(),
            origin: self.origin.as_deref(),
            headers: &headers,
        })
    }
}
