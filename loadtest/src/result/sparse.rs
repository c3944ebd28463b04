//! A histogram of one interval, kept small: only the buckets that hold something.
//!
//! A [`Recorder`] takes 216 KiB whatever it holds, which an hour of seconds and metrics would make gigabytes; a second's
//! values lie in a few hundred buckets. Nothing is lost: the same buckets, the same percentiles.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::recorder::Recorder;

/// The buckets of a histogram that hold something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sparse {
    /// The largest value of each bucket (ns) and its count, ascending.
    buckets: Vec<(u64, u64)>,
    count: u64,
    saturated_count: u64,
}

impl From<&Recorder> for Sparse {
    fn from(recorder: &Recorder) -> Self {
        let recorded = recorder.histogram().iter_recorded();
        let buckets = recorded.map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value())).collect();
        Sparse { buckets, count: recorder.count(), saturated_count: recorder.saturated_count() }
    }
}

impl Sparse {
    /// The whole histogram again.
    pub fn recorder(&self) -> Recorder {
        Recorder::from_buckets(&self.buckets, self.saturated_count)
    }

    /// The largest value of each bucket (ns) and its count, ascending.
    pub fn buckets(&self) -> &[(u64, u64)] {
        &self.buckets
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The exact quantile (above 0, up to 1), ns; 0 when empty.
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let rank = ((quantile * self.count as f64).ceil() as u64).max(1);
        let mut cumulated = 0;
        let at_rank = self.buckets.iter().find(|(_, count)| {
            cumulated += count;
            cumulated >= rank
        });
        at_rank.map_or(self.max_ns(), |(value, _)| *value)
    }

    /// Largest value, ns (0 when empty).
    pub fn max_ns(&self) -> u64 {
        self.buckets.last().map_or(0, |(value, _)| *value)
    }

    /// Adds everything another holds.
    pub fn merge(&mut self, other: &Sparse) {
        let mut merged = Vec::with_capacity(self.buckets.len() + other.buckets.len());
        let (mut mine, mut theirs) = (self.buckets.as_slice(), other.buckets.as_slice());
        while let ([a, rest_of_mine @ ..], [b, rest_of_theirs @ ..]) = (mine, theirs) {
            match a.0.cmp(&b.0) {
                Ordering::Less => {
                    merged.push(*a);
                    mine = rest_of_mine;
                }
                Ordering::Greater => {
                    merged.push(*b);
                    theirs = rest_of_theirs;
                }
                Ordering::Equal => {
                    merged.push((a.0, a.1 + b.1));
                    (mine, theirs) = (rest_of_mine, rest_of_theirs);
                }
            }
        }
        merged.extend_from_slice(mine);
        merged.extend_from_slice(theirs);
        self.buckets = merged;
        self.count += other.count;
        self.saturated_count += other.saturated_count;
    }
}

impl Serialize for Sparse {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.recorder().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sparse {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Sparse::from(&Recorder::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn recorder(values: &[u64]) -> Recorder {
        let mut recorder = Recorder::new();
        values.iter().for_each(|value| recorder.record(*value));
        recorder
    }

    proptest! {
        // Few cases: each handles whole histograms.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn nothing_is_lost_and_merging_is_the_same(
            a in prop::collection::vec(0_u64..200_000_000_000, 0..40),
            b in prop::collection::vec(0_u64..2_000_000, 0..40),
        ) {
            let (mut a, b) = (recorder(&a), recorder(&b));
            let (mut sparse, other) = (Sparse::from(&a), Sparse::from(&b));
            prop_assert_eq!(&sparse.recorder(), &a);
            for quantile in [0.001, 0.25, 0.5, 0.9, 0.99, 1.0] {
                prop_assert_eq!(sparse.quantile_ns(quantile), a.quantile_ns(quantile));
            }
            a.merge(&b);
            sparse.merge(&other);
            prop_assert_eq!(sparse.recorder(), a);
        }
    }
}
