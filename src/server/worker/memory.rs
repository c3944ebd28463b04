//! What a worker does about memory: it says what it holds, and when all workers together hold too much, it reads no more
//! from those that hold most, and then closes them.
//!
//! Start at [`Worker::mind_memory`].

use std::time::Duration;

use super::{LOG_EVERY, TOLD_MAX, Worker};
use crate::net::{Backend, ConnId};
use crate::proto::CloseCode;
use crate::server::ceiling::{Ceiling, Pressure};
use crate::server::session::Awaits;

/// Who is not read from because memory is short is closed if it is still short after this.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A worker that holds so many octets more or less than when it said so last says so again.
const SETTLE_BYTES: usize = 1 << 20;
/// Who holds less than this, in octets, is not meant when memory is short.
const HOLDER_MIN: usize = 64 << 10;

impl<B: Backend> Worker<B> {
    /// Says what this worker holds, once a tick or when that has changed much (the next turn may be far), and does
    /// something about it if all together hold too much.
    #[inline]
    pub(super) fn mind_memory(&mut self) {
        let (now, held) = (self.deadlines.now(), Ceiling::held_by(&self.meter, self.session_count));
        if now != self.settled_at || held.abs_diff(self.settled_bytes) > SETTLE_BYTES {
            (self.settled_at, self.settled_bytes) = (now, held);
            self.settle_memory();
        }
    }

    fn settle_memory(&mut self) {
        let (before, now) = (self.pressure, self.backend.now());
        self.pressure = self.shared.ceiling.settle(self.index, self.session_count, &self.meter);
        if self.pressure == Pressure::None {
            self.short_since = None;
            for conn in std::mem::take(&mut self.paused) {
                if let Some((id, session)) = &mut self.sessions[conn.index as usize]
                    && *id == conn
                {
                    session.is_paused = false;
                    self.backend.resume(conn);
                }
            }
            return;
        }
        let mut holders = self.holders();
        let since = *self.short_since.get_or_insert(now);
        let is_full = self.pressure == Pressure::Full && before == Pressure::Full;
        if is_full || now.duration_since(since) > PAUSE_MAX {
            // To read no more was not enough.
            let share = self.shared.ceiling.excess() / self.shared.inboxes.len();
            self.close_holders(&holders, share);
        }
        let mean = self.meter.used() / holders.len().max(1);
        holders.retain(|(held, _)| *held >= mean / 2);
        for (_, conn) in holders {
            // Whoever was just closed is read to its end.
            if let Some((_, session)) = &mut self.sessions[conn.index as usize]
                && session.awaits() != Awaits::End
                && !std::mem::replace(&mut session.is_paused, true)
            {
                self.counters.memory_paused_total.add(1);
                self.paused.push(conn);
                self.backend.pause(conn);
            }
        }
        self.log_pressure();
    }

    /// Who holds much, those that hold most first.
    fn holders(&self) -> Vec<(usize, ConnId)> {
        let sessions = self.sessions.iter().flatten();
        let mut holders: Vec<_> = sessions
            .map(|(conn, session)| (self.backend.held_bytes(*conn) + session.held_octets(), *conn))
            .filter(|(held, _)| *held >= HOLDER_MIN)
            .collect();
        holders.sort_unstable_by_key(|(held, _)| std::cmp::Reverse(*held));
        holders
    }

    /// Closes those that hold most, until `share` octets are given back.
    fn close_holders(&mut self, holders: &[(usize, ConnId)], share: usize) {
        let mut given_back = 0;
        for &(held, conn) in holders.iter().take(TOLD_MAX) {
            if given_back >= share {
                break;
            }
            given_back += held;
            self.counters.memory_closed_total.add(1);
            let Some((_, session)) = &self.sessions[conn.index as usize] else { continue };
            if self.backend.held_bytes(conn) >= HOLDER_MIN || session.awaits() != Awaits::Message {
                // A Close would stand behind what waits.
                self.backend.close(conn);
            } else {
                self.fail(conn, CloseCode::TRY_AGAIN_LATER, "memory is short");
            }
        }
    }

    fn log_pressure(&mut self) {
        let now = self.backend.now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_EVERY) {
            self.logged = Some(now);
            let (held, pressure) = (self.shared.ceiling.held(), self.pressure);
            let (worker, paused) = (self.index, self.paused.len());
            tracing::warn!(
                worker,
                held_bytes = held,
                ?pressure,
                paused,
                "memory is short: those that hold most are not read from, then closed; \
                 raise --memory-bytes-max, or lower --message-size-max or --send-queue-bytes-max"
            );
        }
    }
}
