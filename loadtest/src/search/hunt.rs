//! The hunt for the knee: which load to try next, and what the answers come to. It makes no load itself.
//!
//! Rounds, then a confirmation. A round grows the load from a start until a step is not good, then bisects
//! between the last good and the first bad one until they are within the precision. Each round ends with a
//! knee of its own, so that knees have a spread. A longer step confirms their median; where it fails, the next
//! lower load is tried. What is limited by the generator or the machine ends the hunt: what is above is unknown,
//! and never held against the server.
//!
//! Everything is behind `measure`, so tests hunt on systems whose knee is known. Start at [`hunt`].

use crate::result::model;

/// How many loads are confirmed at most, each lower than the one before.
const CONFIRMATIONS_MAX: usize = 5;
/// A later round starts this share below the first knee, and grows by this factor.
const ROUND_START: f64 = 0.8;
const ROUND_GROWTH: f64 = 1.2;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    /// The first load tried; nothing below it is.
    pub from: u64,
    /// The highest load tried.
    pub to: u64,
    /// A knee is found when the lowest bad load is at most this share above it.
    pub precision: f64,
    /// How many knees to find.
    pub rounds: u32,
}

/// What a step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Growing until it breaks.
    Grow,
    /// Between a good and a bad load.
    Bisect,
    /// Longer, at the knee.
    Confirm,
}

impl From<Purpose> for model::Purpose {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Grow => model::Purpose::Grow,
            Purpose::Bisect => model::Purpose::Bisect,
            Purpose::Confirm => model::Purpose::Confirm,
        }
    }
}

/// A step to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The load to drive.
    pub load: u64,
    /// What for.
    pub purpose: Purpose,
    /// Which round it belongs to, from 1.
    pub round: u32,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// Every objective was shown to be met.
    Good,
    /// Something of the server, its kernel or its limits gave way.
    Bad,
    /// The generator or the machine made the numbers: they say nothing about the server.
    Unknown,
    /// Ended by a signal.
    Interrupted,
}

/// How a hunt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The knee was found and confirmed.
    Found,
    /// Even the highest load allowed was good.
    EndOfRange,
    /// Even the lowest load was bad.
    NeverGood,
    /// A step was limited by the generator or the machine; a knee is then a lower bound.
    Unknown,
    /// No load could be confirmed: the verdicts contradict each other.
    Unconfirmed,
    /// Ended early.
    Interrupted,
}

/// What a hunt found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarry {
    /// How it ended.
    pub ending: Ending,
    /// The highest load that is confirmed, or, where the hunt ended before that, the highest that was good and is below
    /// every bad one.
    pub knee: Option<u64>,
    /// The knee of each round that was finished.
    pub knees: Vec<u64>,
    /// The step that `knee` rests on, by its number from 0.
    pub knee_step: Option<usize>,
    /// The lowest bad load above the knee of the first round: the step that says what limits.
    pub bad_step: Option<usize>,
}

/// A round's end.
enum Round {
    Knee(u64),
    NeverGood,
    Ended(Ending),
}

struct Hunt<M> {
    aim: Aim,
    measure: M,
    /// Every step so far, with what it came to.
    taken: Vec<(Step, StepOutcome)>,
}

/// Hunts for the highest good load within `aim`.
pub fn hunt(aim: Aim, measure: impl FnMut(Step) -> StepOutcome) -> Quarry {
    let mut hunt = Hunt { aim, measure, taken: Vec::new() };
    let mut knees = Vec::new();
    let mut ending = None;
    for round in 1..=aim.rounds.max(1) {
        let (start, growth) = match knees.first() {
            None => (aim.from, 2.0),
            // Other loads than in the first round, so that it is not the same question again.
            Some(knee) => ((*knee as f64 * ROUND_START).round() as u64, ROUND_GROWTH),
        };
        match hunt.round(round, start.max(aim.from), growth) {
            Round::Knee(knee) => knees.push(knee),
            Round::NeverGood => ending = Some(Ending::NeverGood),
            Round::Ended(early) => ending = Some(early),
        }
        if ending.is_some() {
            break;
        }
    }
    let ending = match ending {
        // In a later round that only says how wide the spread is.
        Some(Ending::NeverGood) if !knees.is_empty() => {
            knees.push(aim.from);
            hunt.confirm(&knees)
        }
        Some(early) => early,
        None => hunt.confirm(&knees),
    };
    hunt.quarry(ending, knees)
}

impl<M: FnMut(Step) -> StepOutcome> Hunt<M> {
    fn take(&mut self, load: u64, purpose: Purpose, round: u32) -> StepOutcome {
        let step = Step { load, purpose, round };
        let outcome = (self.measure)(step);
        self.taken.push((step, outcome));
        outcome
    }

    fn round(&mut self, round: u32, start: u64, growth: f64) -> Round {
        let Aim { from, to, precision, .. } = self.aim;
        let (mut good, mut bad) = (None, None);
        let mut load = start.clamp(from, to);
        // Grows from the start; in a later round it may have to shrink first.
        loop {
            match self.take(load, Purpose::Grow, round) {
                StepOutcome::Good => good = Some(load),
                StepOutcome::Bad => bad = Some(load),
                StepOutcome::Unknown => return Round::Ended(Ending::Unknown),
                StepOutcome::Interrupted => return Round::Ended(Ending::Interrupted),
            }
            load = match (good, bad) {
                (Some(_), Some(_)) => break,
                (Some(good), None) if good >= to => return Round::Knee(to),
                (Some(good), None) => (((good as f64 * growth).ceil() as u64).max(good + 1)).min(to),
                (None, Some(bad)) if bad <= from => return Round::NeverGood,
                (None, Some(bad)) => (((bad as f64 / growth).floor() as u64).min(bad - 1)).max(from),
                (None, None) => unreachable!("a step is good or bad"),
            };
        }
        let (mut good, mut bad) = (good.expect("broken out with both"), bad.expect("broken out with both"));
        while bad - good > 1 && (bad - good) as f64 > precision * good as f64 {
            let middle = good + (bad - good) / 2;
            match self.take(middle, Purpose::Bisect, round) {
                StepOutcome::Good => good = middle,
                StepOutcome::Bad => bad = middle,
                StepOutcome::Unknown => return Round::Ended(Ending::Unknown),
                StepOutcome::Interrupted => return Round::Ended(Ending::Interrupted),
            }
        }
        Round::Knee(good)
    }

    /// Confirms the median knee, or the first lower load that can be.
    fn confirm(&mut self, knees: &[u64]) -> Ending {
        let mut load = median(knees).expect("there is a knee");
        let mut back_off = self.aim.precision;
        for _ in 0..CONFIRMATIONS_MAX {
            match self.take(load, Purpose::Confirm, knees.len() as u32) {
                StepOutcome::Good if load >= self.aim.to => return Ending::EndOfRange,
                StepOutcome::Good => return Ending::Found,
                StepOutcome::Bad => {}
                StepOutcome::Unknown => return Ending::Unknown,
                StepOutcome::Interrupted => return Ending::Interrupted,
            }
            if load <= self.aim.from {
                break;
            }
            load = ((load as f64 * (1.0 - back_off)).floor() as u64).clamp(self.aim.from, load - 1);
            back_off = (back_off * 2.0).min(0.5);
        }
        Ending::Unconfirmed
    }

    fn quarry(self, ending: Ending, knees: Vec<u64>) -> Quarry {
        let with = |wanted: StepOutcome| {
            self.taken.iter().enumerate().filter(move |(_, (_, outcome))| *outcome == wanted)
        };
        // Where verdicts contradict each other only what is below every bad load is claimed.
        let lowest_bad = with(StepOutcome::Bad).map(|(_, (step, _))| step.load).min().unwrap_or(u64::MAX);
        let highest_good = || {
            let below = with(StepOutcome::Good).filter(|(_, (step, _))| step.load < lowest_bad);
            below.max_by_key(|(_, (step, _))| step.load)
        };
        let confirmed = || with(StepOutcome::Good).find(|(_, (step, _))| step.purpose == Purpose::Confirm);
        let knee = match ending {
            Ending::Found | Ending::EndOfRange => confirmed(),
            Ending::Unknown | Ending::Interrupted => confirmed().or_else(highest_good),
            Ending::NeverGood | Ending::Unconfirmed => None,
        };
        let knee_load = knee.map(|(_, (step, _))| step.load);
        let above =
            with(StepOutcome::Bad).filter(|(_, (step, _))| knee_load.is_none_or(|knee| step.load > knee));
        Quarry {
            ending,
            knee: knee_load,
            knees,
            knee_step: knee.map(|(index, _)| index),
            bad_step: above.min_by_key(|(_, (step, _))| step.load).map(|(index, _)| index),
        }
    }
}

/// The middle of some numbers; of an even count the lower of the two.
pub fn median(numbers: &[u64]) -> Option<u64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn aim(from: u64, to: u64, precision: f64) -> Aim {
        Aim { from, to, precision, rounds: 3 }
    }

    /// Hunts, and gives back the steps as well.
    fn on(aim: Aim, mut system: impl FnMut(Step) -> StepOutcome) -> (Quarry, Vec<(Step, StepOutcome)>) {
        let mut taken = Vec::new();
        let quarry = hunt(aim, |step| {
            let outcome = system(step);
            taken.push((step, outcome));
            outcome
        });
        (quarry, taken)
    }

    fn good_if(good: bool) -> StepOutcome {
        if good { StepOutcome::Good } else { StepOutcome::Bad }
    }

    /// Latency of an M/M/1 queue at a percentile, s: exponential with rate mu - lambda.
    fn mm1_quantile_s(service_per_s: f64, load_per_s: f64, quantile: f64) -> f64 {
        if load_per_s >= service_per_s {
            return f64::INFINITY;
        }
        -(1.0 - quantile).ln() / (service_per_s - load_per_s)
    }

    #[test]
    fn a_single_queue_is_found_where_its_formula_says() {
        // p99 = ln(100) / (mu - lambda) < 5 ms  <=>  lambda < mu - ln(100) / 5 ms = 50 000 - 921.
        let (quarry, _) = on(aim(100, 1_000_000, 0.01), |step| {
            good_if(mm1_quantile_s(50_000.0, step.load as f64, 0.99) < 0.005)
        });
        let knee = quarry.knee.expect("there is one") as f64;
        let exact = 50_000.0 - 100_f64.ln() / 0.005;
        assert!(knee <= exact && knee >= exact * 0.99, "{knee} against {exact}");
        assert_eq!((quarry.ending, quarry.knees.len()), (Ending::Found, 3));
    }

    #[test]
    fn a_system_that_is_never_good_has_no_knee() {
        let (quarry, taken) = on(aim(10, 1_000, 0.05), |_| StepOutcome::Bad);
        assert_eq!((quarry.ending, quarry.knee, taken.len()), (Ending::NeverGood, None, 1));
        assert_eq!(quarry.bad_step, Some(0));
    }

    #[test]
    fn a_system_that_is_always_good_ends_the_range() {
        let (quarry, _) = on(aim(10, 1_000, 0.05), |_| StepOutcome::Good);
        assert_eq!((quarry.ending, quarry.knee), (Ending::EndOfRange, Some(1_000)));
        assert_eq!((quarry.knees, quarry.bad_step), (vec![1_000; 3], None));
    }

    #[test]
    fn a_step_limited_by_the_generator_ends_the_hunt_and_what_was_good_is_a_lower_bound() {
        let (quarry, taken) = on(aim(10, 100_000, 0.05), |step| {
            if step.load > 500 { StepOutcome::Unknown } else { StepOutcome::Good }
        });
        assert_eq!((quarry.ending, quarry.knee), (Ending::Unknown, Some(320)));
        assert_eq!(quarry.bad_step, None);
        assert_eq!(taken.iter().filter(|(_, outcome)| *outcome == StepOutcome::Unknown).count(), 1);
    }

    #[test]
    fn an_interrupt_keeps_the_steps_so_far() {
        let mut left = 3;
        let (quarry, taken) = on(aim(10, 100_000, 0.05), |_| {
            left -= 1;
            if left < 0 { StepOutcome::Interrupted } else { StepOutcome::Good }
        });
        assert_eq!((quarry.ending, quarry.knee, taken.len()), (Ending::Interrupted, Some(40), 4));
    }

    #[test]
    fn a_knee_that_only_short_steps_show_is_not_confirmed() {
        let (quarry, taken) = on(aim(10, 100_000, 0.05), |step| {
            good_if(step.purpose != Purpose::Confirm && step.load <= 5_000)
        });
        assert_eq!((quarry.ending, quarry.knee), (Ending::Unconfirmed, None));
        assert_eq!(
            taken.iter().filter(|(step, _)| step.purpose == Purpose::Confirm).count(),
            CONFIRMATIONS_MAX
        );
    }

    #[test]
    fn the_median_of_an_even_count_is_the_lower_one() {
        assert_eq!(median(&[4, 1, 3, 2]), Some(2));
        assert_eq!(median(&[]), None);
    }

    /// A number in -1.0..=1.0 that depends on nothing but its arguments.
    fn noise(seed: u64, number: u64) -> f64 {
        let mut rng = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        rng.f64() * 2.0 - 1.0
    }

    proptest! {
        #[test]
        fn a_steady_knee_is_found_within_the_precision(
            from in 1_u64..100, knee in 1_u64..5_000_000, precision in 0.005_f64..0.3,
        ) {
            let to = 10_000_000;
            let (quarry, taken) = on(aim(from, to, precision), |step| good_if(step.load <= knee));
            if knee < from {
                prop_assert_eq!(quarry.ending, Ending::NeverGood);
            } else {
                let found = quarry.knee.unwrap();
                prop_assert_eq!(quarry.ending, Ending::Found);
                // Each round within the precision; integers allow one more.
                for round in &quarry.knees {
                    prop_assert!(*round <= knee && (knee - round) as f64 <= precision * *round as f64 + 1.0);
                }
                prop_assert_eq!(Some(found), median(&quarry.knees));
                prop_assert!(taken.iter().all(|(step, _)| (from..=to).contains(&step.load)));
                prop_assert!(taken.len() < 150, "{} steps", taken.len());
            }
        }

        /// A noisy system: the knee is where the noise allows it, and a confirmed load was good in a confirming step.
        #[test]
        fn a_noisy_knee_is_found_within_precision_and_noise(
            knee in 1_000_u64..1_000_000, amplitude in 0.0_f64..0.15, seed: u64,
        ) {
            let mut number = 0;
            let aim = Aim { from: 10, to: 100_000_000, precision: 0.05, rounds: 3 };
            let (quarry, taken) = on(aim, |step| {
                number += 1;
                good_if((step.load as f64) < knee as f64 * (1.0 + amplitude * noise(seed, number)))
            });
            for round in &quarry.knees {
                let ratio = *round as f64 / knee as f64;
                prop_assert!(ratio <= 1.0 + amplitude && ratio >= (1.0 - amplitude) / 1.06, "{ratio}");
            }
            if let Some(index) = quarry.knee_step {
                let (step, outcome) = taken[index];
                prop_assert_eq!((Some(step.load), step.purpose), (quarry.knee, Purpose::Confirm));
                prop_assert_eq!(outcome, StepOutcome::Good);
            }
        }

        /// Whatever the verdicts, it ends, within bounds, and never claims a load that was not good.
        #[test]
        fn flapping_verdicts_end_and_nothing_is_claimed_that_was_not_seen(
            seed: u64, good_share in 0.0_f64..1.0, unknown_share in 0.0_f64..0.1,
        ) {
            let mut number = 0;
            let mut seen: HashMap<u64, bool> = HashMap::new();
            let (quarry, taken) = on(aim(5, 50_000, 0.02), |step| {
                number += 1;
                let drawn = (noise(seed, number) + 1.0) / 2.0;
                if drawn < unknown_share {
                    return StepOutcome::Unknown;
                }
                let good = (noise(!seed, number) + 1.0) / 2.0 < good_share;
                *seen.entry(step.load).or_default() |= good;
                good_if(good)
            });
            prop_assert!(taken.len() <= 200, "{} steps", taken.len());
            prop_assert!(taken.iter().all(|(step, _)| (5..=50_000).contains(&step.load)));
            if let Some(knee) = quarry.knee {
                prop_assert_eq!(seen.get(&knee), Some(&true));
                let bad = taken.iter().filter(|(_, outcome)| *outcome == StepOutcome::Bad).map(|(step, _)| step.load).min();
                prop_assert!(quarry.ending != Ending::Unknown || bad.is_none_or(|bad| knee < bad));
            }
            let unknown = taken.iter().filter(|(_, outcome)| *outcome == StepOutcome::Unknown).count();
            prop_assert_eq!(unknown, usize::from(quarry.ending == Ending::Unknown));
        }
    }
}
