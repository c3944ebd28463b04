//! When the next message is due, and on which connection: an absolute schedule that no response can delay.
//!
//! Due times are `start + k / rate`, computed from `k` and never from "now", so a late generator is late
//! and nothing else; what it does about that is [`Late`]. Fixed arrivals visit the connections of all
//! threads in one round-robin, so that each connection's phase differs from its neighbour's by one period.
//! Poisson arrivals are the superposition of one Poisson process for each connection: exponential gaps at
//! the summed rate, the connection drawn evenly.
//!
//! A step is O(1), without allocation and without reading a clock. Start at [`Schedule::due_ns`].

use super::clock::SECOND_NS;

/// How the gaps between messages are distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrival {
    /// Evenly spaced over the whole run and over all connections.
    #[default]
    Fixed,
    /// Exponential gaps: what many independent users look like.
    Poisson,
}

/// What a generator that is late does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Late {
    /// Sends everything that is due at once; the lag is part of the latency.
    #[default]
    CatchUp,
    /// Leaves out what is late by more than one interval of its connection, and counts it.
    Skip,
}

/// One thread's part in a schedule that all threads share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// This thread's number.
    pub index: u32,
    /// Threads in all.
    pub count: u32,
    /// Connections of all threads that take part. Connection `c` belongs to thread `c % count`.
    pub participants: u32,
}

impl Share {
    /// The participants that belong to this thread.
    pub(super) fn members(&self) -> u32 {
        if self.index >= self.participants {
            0
        } else {
            (self.participants - self.index).div_ceil(self.count)
        }
    }

    /// The number among all connections of the thread's own connection `member`.
    pub(super) fn global(&self, member: u32) -> u32 {
        member * self.count + self.index
    }
}

/// The due times of one thread's messages, in order.
#[derive(Debug)]
pub(super) struct Schedule {
    start_ns: u64,
    end_ns: u64,
    due_ns: u64,
    member: u32,
    members: u32,
    /// A connection's mean interval.
    interval_ns: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Fixed {
        share: Share,
        /// Nanoseconds between two messages of the whole run, times 2^32: after 10^9 messages the
        /// rounding amounts to less than a nanosecond.
        period_fixed_point: u128,
        /// How often the round-robin has gone around all participants.
        round: u64,
        /// How often it goes around in all.
        rounds: u64,
    },
    Poisson {
        rng: fastrand::Rng,
        mean_gap_ns: f64,
        /// Nanoseconds since the start, exact to 10^-4 ns for a day.
        elapsed_ns: f64,
    },
}

impl Schedule {
    /// The thread's part of `rate_per_s` messages a second by all participants, due from `start_ns` to
    /// before `end_ns`.
    pub(super) fn new(
        arrival: Arrival,
        rate_per_s: f64,
        share: Share,
        start_ns: u64,
        end_ns: u64,
        seed: u64,
    ) -> Self {
        assert!(rate_per_s > 0.0 && rate_per_s.is_finite(), "a rate is positive");
        let members = share.members();
        let gap_ns = SECOND_NS as f64 / rate_per_s;
        let interval_ns = (gap_ns * f64::from(share.participants)) as u64;
        let kind = match arrival {
            Arrival::Fixed => {
                let period_fixed_point = (gap_ns * 2f64.powi(32)) as u128;
                Kind::Fixed { share, period_fixed_point, round: 0, rounds: u64::MAX }
            }
            Arrival::Poisson => Kind::Poisson {
                rng: fastrand::Rng::with_seed(seed),
                mean_gap_ns: gap_ns * f64::from(share.participants) / f64::from(members.max(1)),
                elapsed_ns: 0.0,
            },
        };
        let mut schedule = Self { start_ns, end_ns, due_ns: u64::MAX, member: 0, members, interval_ns, kind };
        if members > 0 {
            schedule.settle();
        }
        schedule
    }

    /// Each participant once, at `rate_per_s` from `start_ns` on: how connections are opened.
    pub(super) fn once(rate_per_s: f64, share: Share, start_ns: u64) -> Self {
        let mut schedule = Self::new(Arrival::Fixed, rate_per_s, share, start_ns, u64::MAX, 0);
        if let Kind::Fixed { rounds, .. } = &mut schedule.kind {
            *rounds = 1;
        }
        schedule
    }

    /// When the next message is due, or `u64::MAX` when there is none left.
    #[inline]
    pub(super) fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// The thread's own connection that the next message belongs to.
    #[inline]
    pub(super) fn member(&self) -> u32 {
        self.member
    }

    /// A connection's mean interval in nanoseconds.
    pub(super) fn interval_ns(&self) -> u64 {
        self.interval_ns
    }

    /// Ends the schedule early: nothing is due at `end_ns` or later.
    pub(crate) fn end_at(&mut self, end_ns: u64) {
        self.end_ns = self.end_ns.min(end_ns);
        if self.due_ns >= self.end_ns {
            self.due_ns = u64::MAX;
        }
    }

    /// Goes on to the message after this one.
    #[inline]
    pub(super) fn advance(&mut self) {
        if let Kind::Fixed { round, .. } = &mut self.kind {
            self.member += 1;
            if self.member == self.members {
                self.member = 0;
                *round += 1;
            }
        }
        self.settle();
    }

    /// Works out the due time of the message that the schedule now stands at.
    #[inline]
    fn settle(&mut self) {
        let offset_ns = match &mut self.kind {
            Kind::Fixed { round, rounds, .. } if round == rounds => {
                self.due_ns = u64::MAX;
                return;
            }
            Kind::Fixed { share, period_fixed_point, round, .. } => {
                let position = *round * u64::from(share.participants) + u64::from(share.global(self.member));
                ((u128::from(position) * *period_fixed_point) >> 32) as u64
            }
            Kind::Poisson { rng, mean_gap_ns, elapsed_ns } => {
                self.member = rng.u32(..self.members);
                *elapsed_ns += -(1.0 - rng.f64()).ln() * *mean_gap_ns;
                *elapsed_ns as u64
            }
        };
        let due_ns = self.start_ns.saturating_add(offset_ns);
        self.due_ns = if due_ns < self.end_ns { due_ns } else { u64::MAX };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(index: u32, count: u32, participants: u32) -> Share {
        Share { index, count, participants }
    }

    fn drain(mut schedule: Schedule) -> Vec<(u64, u32)> {
        let mut all = Vec::new();
        while schedule.due_ns() != u64::MAX {
            all.push((schedule.due_ns(), schedule.member()));
            schedule.advance();
        }
        all
    }

    #[test]
    fn fixed_arrivals_are_evenly_spaced_over_all_threads_and_connections() {
        // 5 connections on 2 threads at 1,000 messages a second, for 20 ms.
        let mut all = Vec::new();
        for index in 0..2 {
            let share = share(index, 2, 5);
            let schedule = Schedule::new(Arrival::Fixed, 1000.0, share, 7, 7 + 20_000_000, 0);
            all.extend(drain(schedule).into_iter().map(|(due, member)| (due, share.global(member))));
        }
        all.sort_unstable();
        let expected: Vec<_> = (0..20).map(|k| (7 + k * 1_000_000, (k % 5) as u32)).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_schedule_does_not_drift_over_a_billion_messages() {
        let share = share(0, 1, 1);
        let mut schedule = Schedule::new(Arrival::Fixed, 3_000_000.0, share, 0, u64::MAX, 0);
        let Kind::Fixed { round, .. } = &mut schedule.kind else { unreachable!("fixed was asked for") };
        *round = 2_999_999_999;
        schedule.advance();
        assert!(schedule.due_ns().abs_diff(1_000 * SECOND_NS) <= 1, "{}", schedule.due_ns());
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let dues = drain(Schedule::new(Arrival::Poisson, 10_000.0, share(0, 2, 4), 0, 20 * SECOND_NS, 42));
        let gaps: Vec<f64> = dues.windows(2).map(|pair| (pair[1].0 - pair[0].0) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // Half of 10,000 a second is this thread's: 200 us. Four standard errors of 100,000 samples.
        assert!((mean / 200_000.0 - 1.0).abs() < 0.013, "{mean}");
        assert!((deviation / mean - 1.0).abs() < 0.03, "{deviation}");
        assert!(
            [0, 1]
                .map(|member| dues.iter().filter(|due| due.1 == member).count())
                .iter()
                .all(|&n| n > 45_000)
        );
    }

    #[test]
    fn the_same_seed_makes_the_same_arrivals() {
        let make = |seed| drain(Schedule::new(Arrival::Poisson, 1000.0, share(0, 1, 3), 0, SECOND_NS, seed));
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn a_thread_without_connections_has_nothing_due() {
        assert_eq!(share(3, 4, 2).members(), 0);
        let schedule = Schedule::new(Arrival::Fixed, 1.0, share(3, 4, 2), 0, u64::MAX, 0);
        assert_eq!(schedule.due_ns(), u64::MAX);
    }

    #[test]
    fn each_connection_is_opened_once() {
        let dues = drain(Schedule::once(1000.0, share(1, 2, 5), 0));
        assert_eq!(dues, [(1_000_000, 0), (3_000_000, 1)]);
        assert_eq!(drain(Schedule::once(f64::from(1u32 << 30), share(0, 1, 3), 9)).len(), 3);
    }

    #[test]
    fn an_early_end_leaves_nothing_due_after_it() {
        let mut schedule = Schedule::new(Arrival::Fixed, 1000.0, share(0, 1, 1), 0, SECOND_NS, 0);
        schedule.end_at(1_000_000);
        assert_eq!(schedule.due_ns(), 0);
        schedule.advance();
        assert_eq!(schedule.due_ns(), u64::MAX);
    }

    proptest! {
        #[test]
        fn every_connection_belongs_to_exactly_one_thread(count in 1u32..9, participants in 0u32..200) {
            let mut owned: Vec<u32> = (0..count)
                .flat_map(|index| {
                    let share = share(index, count, participants);
                    (0..share.members()).map(move |member| share.global(member))
                })
                .collect();
            owned.sort_unstable();
            prop_assert_eq!(owned, (0..participants).collect::<Vec<_>>());
        }
    }
}
