//! How sure a percentile is: rank intervals from the binomial distribution, with no assumption about the latencies.
//!
//! The number of samples beyond the true quantile q is binomial with n and 1 - q. From its 5 % and 95 % points follow
//! two ranks of the sorted samples which bound the true quantile, each with 95 % confidence. Where the upper rank
//! would be beyond the largest sample there is *no* upper bound: a p99.9 needs 2,995 samples to have one.
//! Samples are taken as independent; latencies that come in bursts carry less information than this says.

use super::recorder::Recorder;

/// Confidence of each of the two bounds on its own.
pub const CONFIDENCE: f64 = 0.95;

/// Above this expected count beyond the percentile the normal approximation is within a rank of the exact sum.
const EXACT_MEAN_MAX: f64 = 500.0;

/// The 95 % point of the standard normal distribution.
const NORMAL_POINT: f64 = 1.644_853_627;

/// The ranks (from 1) of the sorted samples that bound a quantile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankInterval {
    /// Lower bound; `None` where even the smallest sample is none.
    pub low: Option<u64>,
    /// Upper bound; `None` where even the largest sample is none.
    pub high: Option<u64>,
    /// How many samples lie beyond the sample quantile itself.
    pub beyond: u64,
}

/// The rank interval of a quantile from the median upwards among `count` samples.
pub fn rank_interval(count: u64, quantile: f64) -> RankInterval {
    let tail = 1.0 - quantile;
    let expected = count as f64 * tail;
    // With K samples beyond the true quantile, the sample of rank n - k is an upper bound when K > k, that is
    // with probability 1 - P(K <= k); the sample of rank n - k + 1 … is a lower bound when K <= k.
    let (few, many) = if expected > EXACT_MEAN_MAX {
        let half = NORMAL_POINT * (expected * quantile).sqrt();
        (Some((expected - half).floor() as u64), (expected + half).ceil() as u64)
    } else {
        tail_points(count, tail)
    };
    RankInterval {
        low: count.checked_sub(many).filter(|rank| *rank > 0),
        high: few.map(|few| count - few).filter(|rank| *rank > 0),
        beyond: count - ((count as f64 * quantile).ceil() as u64).min(count),
    }
}

/// The fewest samples with which a quantile has an upper bound at all.
pub fn samples_needed(quantile: f64) -> u64 {
    ((1.0 - CONFIDENCE).ln() / quantile.ln()).ceil() as u64
}

/// The bounds of a quantile of a histogram, ns: the values at the ranks of [`rank_interval`].
pub fn quantile_bounds_ns(recorder: &Recorder, quantile: f64) -> (Option<u64>, Option<u64>) {
    let count = recorder.count();
    let ranks = rank_interval(count, quantile);
    let at = |rank: u64| recorder.quantile_ns((rank as f64 - 0.5) / count as f64);
    (ranks.low.map(at), ranks.high.map(at))
}

/// For K binomial(count, tail): the largest k with P(K <= k) <= 5 % (none when even P(K = 0) is above), and the
/// smallest k with P(K <= k) >= 95 %.
fn tail_points(count: u64, tail: f64) -> (Option<u64>, u64) {
    let odds = tail / (1.0 - tail);
    // exp(count * ln(1 - tail)) stays above exp(-700) because the mean is bounded or the count is small.
    let mut probability = (count as f64 * (-tail).ln_1p()).exp();
    let mut cumulated = probability;
    let (mut few, mut k) = (None, 0);
    while k < count {
        if cumulated <= 1.0 - CONFIDENCE {
            few = Some(k);
        }
        if cumulated >= CONFIDENCE {
            break;
        }
        probability *= (count - k) as f64 / (k + 1) as f64 * odds;
        cumulated += probability;
        k += 1;
    }
    (few, k)
}

/// The upper 95 % bound of a share of which `failed` of `count` were seen: Clopper and Pearson's for small shares
/// and up to 500 failures, Wilson's otherwise; 1 when nothing was tried.
pub fn share_upper_bound(failed: u64, count: u64) -> f64 {
    if failed >= count {
        return 1.0;
    }
    let n = count as f64;
    let seen = failed as f64 / n;
    if failed as f64 > EXACT_MEAN_MAX || seen > 0.1 {
        let z2 = NORMAL_POINT * NORMAL_POINT;
        let half = NORMAL_POINT * (seen * (1.0 - seen) / n + z2 / (4.0 * n * n)).sqrt();
        return (seen + z2 / (2.0 * n) + half) / (1.0 + z2 / n);
    }
    let (mut low, mut high) = (seen, 1.0);
    // P(K <= failed) falls as the share rises: bisect to the share where it is 5 %.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if few_cdf(failed, count, middle) > 1.0 - CONFIDENCE { low = middle } else { high = middle }
    }
    high
}

/// P(K <= k) for K binomial(count, share), summed term by term. For k <= 500 the first term underflows only where
/// the whole sum is nothing.
fn few_cdf(k: u64, count: u64, share: f64) -> f64 {
    let odds = share / (1.0 - share);
    let mut probability = (count as f64 * (-share).ln_1p()).exp();
    let mut cumulated = probability;
    for j in 0..k {
        probability *= (count - j) as f64 / (j + 1) as f64 * odds;
        cumulated += probability;
    }
    cumulated
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use statrs::distribution::{Binomial, DiscreteCDF};

    #[test]
    fn p99_9_has_no_upper_bound_below_about_3000_samples() {
        assert_eq!(samples_needed(0.999), 2_995);
        assert_eq!(rank_interval(2_994, 0.999).high, None);
        assert_eq!(rank_interval(2_995, 0.999).high, Some(2_995));
    }

    #[test]
    fn the_rank_band_narrows_as_the_square_root_of_the_samples() {
        let band = |count: u64| {
            let ranks = rank_interval(count, 0.999);
            let share = |rank: Option<u64>| rank.expect("enough samples") as f64 / count as f64 * 100.0;
            (format!("{:.2}", share(ranks.low)), format!("{:.2}", share(ranks.high)))
        };
        assert_eq!(band(10_000), ("99.85".into(), "99.96".into()));
        assert_eq!(band(100_000), ("99.88".into(), "99.92".into()));
    }

    #[test]
    fn no_samples_bound_nothing() {
        assert_eq!(rank_interval(0, 0.99), RankInterval { low: None, high: None, beyond: 0 });
        assert_eq!(share_upper_bound(0, 0), 1.0);
    }

    #[test]
    fn nothing_failed_of_n_bounds_the_share_at_three_by_n() {
        let bound = share_upper_bound(0, 3_000);
        assert!((bound - 0.000_998).abs() < 0.000_003, "{bound}");
    }

    proptest! {
        #[test]
        fn a_share_is_below_its_upper_bound_with_95_percent(failed in 0_u64..900, more in 1_u64..50_000) {
            let count = failed * 11 + more;
            let bound = share_upper_bound(failed, count);
            let cdf = Binomial::new(bound, count).unwrap().cdf(failed);
            let slack = if failed > 500 { 0.01 } else { 1e-6 };
            prop_assert!((cdf - 0.05).abs() < slack, "{cdf}");
        }

        /// The definition, with statrs's distribution as the oracle.
        #[test]
        fn ranks_cover_with_at_least_95_percent(count in 1_u64..20_000, quantile in 0.5_f64..0.9995) {
            let beyond = Binomial::new(1.0 - quantile, count).unwrap();
            let ranks = rank_interval(count, quantile);
            let slack = if count as f64 * (1.0 - quantile) > EXACT_MEAN_MAX { 0.005 } else { 1e-9 };
            if let Some(high) = ranks.high {
                // The sample of rank `high` is above the quantile when more than count - high lie beyond it.
                prop_assert!(1.0 - beyond.cdf(count - high) >= CONFIDENCE - slack);
            } else {
                prop_assert!(beyond.cdf(0) > 1.0 - CONFIDENCE - slack);
            }
            if let Some(low) = ranks.low {
                prop_assert!(beyond.cdf(count - low) >= CONFIDENCE - slack);
            }
        }
    }
}
