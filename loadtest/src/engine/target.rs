//! The server: its URL, and the address it stands for.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};

/// Where the connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The URL as it was given.
    pub url: String,
    /// Host and port as the Host header wants them (RFC 6455 §4.1).
    pub authority: String,
    /// Path and query (RFC 6455 §3, the resource name).
    pub resource: String,
    /// The first address that the name stands for.
    pub address: SocketAddr,
}

impl Target {
    /// Parses a `ws` URL and looks up its host; of several addresses it takes the first one that `fits`.
    ///
    /// # Errors
    /// One line that says what is wrong with the URL, or that the name is unknown.
    pub(super) fn resolve(url: &str, fits: impl Fn(&SocketAddr) -> bool) -> anyhow::Result<Self> {
        let uri: http::Uri =
            url.parse().with_context(|| format!("{url:?} is no URL (ws://HOST:PORT/PATH)"))?;
        match uri.scheme_str() {
            Some("ws") => {}
            Some("wss") => bail!("{url}: wss is not supported yet; put a TLS terminator in front, or use ws"),
            Some(scheme) => bail!("{url}: the scheme is {scheme}, ws is needed (ws://HOST:PORT/PATH)"),
            None => bail!("{url:?} has no scheme (ws://HOST:PORT/PATH)"),
        }
        if url.contains('#') {
            bail!("{url}: a ws URL has no fragment (RFC 6455 §3)");
        }
        let host =
            uri.host().filter(|host| !host.is_empty()).with_context(|| format!("{url} names no host"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            bail!("{url}: user and password do not belong in a ws URL; use --header 'Authorization: …'");
        }
        let port = uri.port_u16();
        if port.is_none() && uri.authority().is_some_and(|authority| authority.as_str() != host) {
            bail!("{url}: the port is not a number from 1 to 65535");
        }
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let port_or_default = port.unwrap_or(80);
        let all: Vec<SocketAddr> = (bare_host, port_or_default)
            .to_socket_addrs()
            .with_context(|| format!("{host} could not be looked up"))?
            .collect();
        let Some(address) = all.iter().copied().find(|address| fits(address)) else {
            bail!("{host} has no address that the --source addresses can reach (IPv4 against IPv6)");
        };
        Ok(Self {
            url: url.to_owned(),
            authority: port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            resource: uri.path_and_query().map_or("/", |resource| resource.as_str()).to_owned(),
            address,
        })
    }

    /// Whether the server is on this machine's loopback.
    pub(super) fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str) -> anyhow::Result<Target> {
        Target::resolve(url, |_| true)
    }

    #[test]
    fn a_url_becomes_address_host_header_and_resource() {
        let target = resolve("ws://127.0.0.1:9001/chat?room=1").unwrap();
        assert_eq!(target.address, "127.0.0.1:9001".parse().unwrap());
        assert_eq!((target.authority.as_str(), target.resource.as_str()), ("127.0.0.1:9001", "/chat?room=1"));
        let target = resolve("ws://[::1]").unwrap();
        assert_eq!(target.address, "[::1]:80".parse().unwrap());
        assert_eq!((target.authority.as_str(), target.resource.as_str()), ("[::1]", "/"));
    }

    #[test]
    fn what_is_no_ws_url_is_refused_in_one_line() {
        for url in [
            "",
            "127.0.0.1:9001",
            "http://127.0.0.1/",
            "wss://127.0.0.1/",
            "ws://",
            "ws:///chat",
            "ws://127.0.0.1:99999/",
            "ws://127.0.0.1:x/",
            "ws://user:secret@127.0.0.1/",
            "ws://127.0.0.1/#top",
            "ws://127.0.0.1/a b",
            "ws://[::1/",
        ] {
            let error = resolve(url).expect_err(url);
            assert!(!format!("{error:#}").contains('\n'), "{error:#}");
        }
    }
}
