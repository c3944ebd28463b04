//! Counters: one writer each (its worker), any number of readers, who add up over workers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts up. Only its own worker may call [`Counter::add`]: it is a load and a store, no locked operation.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// How many so far.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What one worker has counted since it started.
        #[derive(Debug, Default)]
        #[repr(align(128))] // Two cache lines: no worker's counters share one with another's.
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        impl Counters {
            /// Every counter's name and value.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.value()),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Connections accepted.
    accepted_total,
    /// Connections that have ended.
    closed_total,
    /// Times that accepting paused for want of descriptors or memory.
    accept_pauses_total,
    /// Times that a receive had to wait because every receive buffer of the ring was in use (io_uring only).
    receive_starved_total,
    /// Receives whose rest was held for the next turn, because inflating had used the connection's share of this one.
    receives_held_total,
    /// Connections refused because of `connections_max`, with 503 unless they are counted below too.
    refused_total,
    /// Of these, the ones closed at once without an answer, because too many others were still being refused.
    refused_at_once_total,
    /// Opening handshakes completed.
    upgraded_total,
    /// TLS handshakes completed.
    tls_handshakes_total,
    /// Of these, the ones that resumed an earlier session.
    tls_resumed_total,
    /// TLS handshakes that failed, also because the peer ended or spoke something else.
    tls_handshakes_failed_total,
    /// Connections closed because too many TLS handshakes were in progress.
    tls_handshakes_refused_total,
    /// Established TLS connections that the peer broke.
    tls_errors_total,
    /// Peers that ended without close_notify.
    tls_truncated_total,
    /// Plain HTTP requests answered, refused handshakes among them.
    http_requests_total,
    /// Octets received.
    received_bytes_total,
    /// Messages received.
    messages_total,
    /// Opening handshakes that agreed on permessage-deflate.
    deflate_agreed_total,
    /// Of these, the ones that got no context takeover because of `deflate_memory_bytes_max`.
    deflate_takeover_refused_total,
    /// Connections failed because the peer broke the protocol or a limit of it.
    protocol_errors_total,
    /// Connections closed because the handshake took too long.
    handshake_timeouts_total,
    /// Connections closed because the peer was silent.
    idle_timeouts_total,
    /// Connections cut off because they took nothing of what waited for them.
    send_stalls_total,
    /// Connections closed because a message took too long from its first octet to its last.
    message_timeouts_total,
    /// Times that a connection was not read from because memory was short and it held much.
    memory_paused_total,
    /// Connections closed because memory was short and they held most.
    memory_closed_total,
    /// Connections whose closing took too long.
    close_timeouts_total,
    /// Connections that ended by an error of the transport.
    transport_errors_total,
    /// Messages published to a room.
    published_total,
    /// Messages handed to a room's members on this worker, counted for each member; also those that were
    /// dropped from its queue again.
    delivered_total,
    /// Messages that a member missed because its send queue was full, counted for each member.
    slow_consumer_dropped_total,
    /// Members closed with 1013 because their send queue was full.
    slow_consumer_closed_total,
    /// Messages that a whole worker's members missed because its inbox was full.
    inbox_dropped_total,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, value) in self.values().filter(|&(_, value)| value > 0) {
            write!(f, "{separator}{name}={value}")?;
            separator = " ";
        }
        Ok(())
    }
}
