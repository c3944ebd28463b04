//! The Universal Scalability Law: X(N) = g N / (1 + a (N - 1) + b N (N - 1)).
//!
//! N is closed-loop concurrency (messages in flight), X the throughput, g the throughput of one, a contention,
//! b coherence. Divided through, N / X = 1/g + a/g (N - 1) + b/g N (N - 1) is linear in three coefficients, so the fit
//! needs no starting values and has one optimum: a least-squares problem with 0 <= a, b <= 1, solved exactly by
//! trying each bound as active. Residuals are weighted to be shares of X, as the noise of throughputs is.
//!
//! A law is refused without evidence: fewer than six levels of N, or no curvature that an F test shows.

use statrs::distribution::{ContinuousCDF, FisherSnedecor};

use super::model::{Estimate, Fit, Law, Point, Prediction};

/// The fewest levels of concurrency that a curve may be drawn through.
pub const LEVELS_MIN: usize = 6;
/// Bootstrap resamples for the intervals.
const RESAMPLES: usize = 2_000;
/// What chance may do once in so many fits for curvature to be shown.
const CURVATURE_P_MAX: f64 = 0.05;
/// The throughput at the highest N must be below this share of a straight line's, or there is no bend to speak of.
const CURVATURE_SHARE_MAX: f64 = 0.95;
/// Predictions beyond so many times the highest N measured are refused: the bend there was never seen.
const REACH_MAX: f64 = 10.0;

impl Law {
    /// Throughput at concurrency `n`, messages/s.
    pub fn at(&self, n: f64) -> f64 {
        self.gamma_msgs_per_s * n / (1.0 + self.alpha * (n - 1.0) + self.beta * n * (n - 1.0))
    }
}

/// Fits the law to `points`, and predicts the throughput at each of `targets`.
///
/// # Errors
/// Why there is no law in these points, in a sentence.
pub fn fit(points: &[Point], targets: &[f64], seed: u64) -> Result<Fit, String> {
    let points: Vec<Point> = points.iter().copied().filter(|point| point.n >= 1.0).collect();
    if let Some(point) =
        points.iter().find(|point| !(point.x_msgs_per_s.is_finite() && point.x_msgs_per_s > 0.0))
    {
        return Err(format!("at N = {} nothing came back", point.n));
    }
    let mut levels: Vec<f64> = points.iter().map(|point| point.n).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    if levels.len() < LEVELS_MIN {
        return Err(format!(
            "{} levels of concurrency are too few for a curve: it takes {LEVELS_MIN}",
            levels.len()
        ));
    }
    let n_max = levels[levels.len() - 1];
    if let Some(target) = targets.iter().find(|target| **target > REACH_MAX * n_max || **target < 1.0) {
        return Err(format!(
            "N = {target} is out of reach: predictions go from 1 to {REACH_MAX} times the highest N measured ({n_max})"
        ));
    }
    let law = least_squares(&points);
    let residuals: Vec<f64> = points.iter().map(|point| point.x_msgs_per_s / law.at(point.n) - 1.0).collect();
    let curvature_p = curvature(&points, &residuals);
    let straight = law.gamma_msgs_per_s * n_max;
    if curvature_p > CURVATURE_P_MAX || law.at(n_max) > CURVATURE_SHARE_MAX * straight {
        return Err(format!(
            "no evidence of curvature up to N = {n_max} (p = {curvature_p:.2}, {:.0} % of a straight line): the law \
             would be made up beyond it; go on to higher concurrency",
            100.0 * law.at(n_max) / straight
        ));
    }
    let laws = resample(&points, law, &residuals, seed);
    let interval = |value: f64, of: &dyn Fn(&Law) -> f64| {
        let mut all: Vec<f64> = laws.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share).round() as usize];
        Estimate { value, low: at(0.025).min(value), high: at(0.975).max(value) }
    };
    let square_sum: f64 = residuals.iter().map(|residual| residual * residual).sum();
    Ok(Fit {
        law,
        gamma_msgs_per_s: interval(law.gamma_msgs_per_s, &|law| law.gamma_msgs_per_s),
        alpha: interval(law.alpha, &|law| law.alpha),
        beta: interval(law.beta, &|law| law.beta),
        residual_ratio: (square_sum / residuals.len() as f64).sqrt(),
        curvature_p,
        predictions: targets
            .iter()
            .map(|n| Prediction { n: *n, x_msgs_per_s: interval(law.at(*n), &|law| law.at(*n)) })
            .collect(),
        points,
    })
}

/// The chance that points on a straight line through the origin would bend as much as these.
fn curvature(points: &[Point], residuals: &[f64]) -> f64 {
    // The best straight line for relative residuals: the harmonic-like mean of X / N.
    let slopes: Vec<f64> = points.iter().map(|point| point.x_msgs_per_s / point.n).collect();
    let line = slopes.iter().map(|slope| 1.0 / slope).sum::<f64>()
        / slopes.iter().map(|slope| 1.0 / (slope * slope)).sum::<f64>();
    let line = 1.0 / line;
    let straight: f64 = slopes.iter().map(|slope| (slope.recip() * line - 1.0).powi(2)).sum();
    let bent: f64 = residuals.iter().map(|residual| residual * residual).sum();
    let freedom = (points.len() - 3) as f64;
    if straight <= f64::EPSILON {
        return 1.0;
    }
    let f = ((straight - bent).max(0.0) / 2.0) / (bent / freedom).max(f64::MIN_POSITIVE);
    let distribution = FisherSnedecor::new(2.0, freedom).expect("degrees of freedom are positive");
    if f.is_finite() { 1.0 - distribution.cdf(f.min(1e12)) } else { 0.0 }
}

/// Laws fitted to the best fit with its residuals dealt out anew.
fn resample(points: &[Point], law: Law, residuals: &[f64], seed: u64) -> Vec<Law> {
    let mut rng = fastrand::Rng::with_seed(seed);
    // Three parameters have taken that much out of the residuals.
    let count = residuals.len() as f64;
    let inflation = (count / (count - 3.0)).sqrt();
    let mut drawn = points.to_vec();
    (0..RESAMPLES)
        .map(|_| {
            for point in &mut drawn {
                let residual = residuals[rng.usize(..residuals.len())] * inflation;
                point.x_msgs_per_s = law.at(point.n) * (1.0 + residual).max(0.01);
            }
            least_squares(&drawn)
        })
        .collect()
}

/// What a coefficient is held at.
#[derive(Clone, Copy, PartialEq)]
enum Bound {
    Free,
    Zero,
    One,
}

/// The exact optimum: among all choices of active bounds, the feasible one with the smallest sum of squares.
fn least_squares(points: &[Point]) -> Law {
    const BOUNDS: [Bound; 3] = [Bound::Free, Bound::Zero, Bound::One];
    let mut best: Option<(f64, Law)> = None;
    for alpha in BOUNDS {
        for beta in BOUNDS {
            let Some((square_sum, law)) = solve(points, alpha, beta) else { continue };
            if best.is_none_or(|(least, _)| square_sum < least) {
                best = Some((square_sum, law));
            }
        }
    }
    best.expect("with both bounds active there is always a solution").1
}

/// The least squares with these bounds active; `None` where that breaks another bound.
fn solve(points: &[Point], alpha: Bound, beta: Bound) -> Option<(f64, Law)> {
    // Columns: 1, N - 1, N (N - 1); a coefficient held at one joins the first column.
    let mut columns = vec![];
    let row = |point: &Point| {
        let (n, weight) = (point.n, point.x_msgs_per_s / point.n);
        let (contention, coherence) = (n - 1.0, n * (n - 1.0));
        let mut first = 1.0;
        if alpha == Bound::One {
            first += contention;
        }
        if beta == Bound::One {
            first += coherence;
        }
        [first * weight, contention * weight, coherence * weight]
    };
    columns.push(0);
    columns.extend((alpha == Bound::Free).then_some(1));
    columns.extend((beta == Bound::Free).then_some(2));
    let rows: Vec<[f64; 3]> = points.iter().map(row).collect();
    let solution = orthogonal_least_squares(&rows, &columns)?;
    let mut coefficients = [0.0; 3];
    for (column, value) in columns.iter().zip(&solution) {
        coefficients[*column] = *value;
    }
    let inverse = coefficients[0];
    if inverse <= 0.0 {
        return None;
    }
    let held = |bound, free: f64| match bound {
        Bound::Free => free / inverse,
        Bound::Zero => 0.0,
        Bound::One => 1.0,
    };
    let law = Law {
        gamma_msgs_per_s: 1.0 / inverse,
        alpha: held(alpha, coefficients[1]),
        beta: held(beta, coefficients[2]),
    };
    let feasible = (0.0..=1.0).contains(&law.alpha) && (0.0..=1.0).contains(&law.beta);
    let square_sum = rows
        .iter()
        .map(|row| (1.0 - row.iter().zip(&coefficients).map(|(a, c)| a * c).sum::<f64>()).powi(2))
        .sum();
    feasible.then_some((square_sum, law))
}

/// Least squares of `columns` of `rows` against ones, by modified Gram-Schmidt, which does not square the condition
/// number as normal equations do; `None` where columns depend on each other.
fn orthogonal_least_squares(rows: &[[f64; 3]], columns: &[usize]) -> Option<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut basis: Vec<Vec<f64>> =
        columns.iter().map(|column| rows.iter().map(|row| row[*column]).collect()).collect();
    let mut right = vec![1.0; rows.len()];
    let count = columns.len();
    let mut triangle = vec![vec![0.0; count]; count];
    let mut projected = vec![0.0; count];
    for i in 0..count {
        let before = dot(&basis[i], &basis[i]).sqrt();
        for j in 0..i {
            let share = dot(&basis[j], &basis[i]);
            triangle[j][i] = share;
            let (done, rest) = basis.split_at_mut(i);
            rest[0].iter_mut().zip(&done[j]).for_each(|(value, unit)| *value -= share * unit);
        }
        let norm = dot(&basis[i], &basis[i]).sqrt();
        if norm <= 1e-12 * before || norm == 0.0 {
            return None;
        }
        triangle[i][i] = norm;
        basis[i].iter_mut().for_each(|value| *value /= norm);
        projected[i] = dot(&basis[i], &right);
        right.iter_mut().zip(&basis[i]).for_each(|(value, unit)| *value -= projected[i] * unit);
    }
    let mut solution = vec![0.0; count];
    for i in (0..count).rev() {
        let known: f64 = (i + 1..count).map(|j| triangle[i][j] * solution[j]).sum();
        solution[i] = (projected[i] - known) / triangle[i][i];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEVELS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

    /// Points of a law with noise of `sigma` (a share of X), three at each level.
    fn points(law: Law, levels: &[f64], sigma: f64, seed: u64) -> Vec<Point> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let levels = levels.iter().flat_map(|n| [*n; 3]);
        // The sum of twelve uniform numbers is normal enough.
        let mut normal = move || (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
        levels.map(|n| Point { n, x_msgs_per_s: law.at(n) * (1.0 + sigma * normal()) }).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-6 * b.abs().max(1e-6)
    }

    #[test]
    fn a_straight_line_has_no_law() {
        let line = Law { gamma_msgs_per_s: 900.0, alpha: 0.0, beta: 0.0 };
        for sigma in [0.0, 0.02] {
            let refused = fit(&points(line, &LEVELS, sigma, 3), &[], 1).unwrap_err();
            assert!(refused.contains("no evidence of curvature"), "{refused}");
        }
    }

    #[test]
    fn five_levels_are_too_few_however_many_points() {
        let law = Law { gamma_msgs_per_s: 900.0, alpha: 0.1, beta: 0.001 };
        let refused = fit(&points(law, &LEVELS[..5], 0.01, 3), &[], 1).unwrap_err();
        assert!(refused.contains("5 levels"), "{refused}");
        assert!(fit(&points(law, &LEVELS[..6], 0.01, 3), &[], 1).is_ok());
    }

    #[test]
    fn what_lies_far_beyond_the_points_is_not_predicted() {
        let law = Law { gamma_msgs_per_s: 900.0, alpha: 0.1, beta: 0.001 };
        let refused = fit(&points(law, &LEVELS, 0.01, 3), &[10_000.0], 1).unwrap_err();
        assert!(refused.contains("out of reach"), "{refused}");
    }

    #[test]
    fn a_level_at_which_nothing_came_back_is_named() {
        let mut some = points(Law { gamma_msgs_per_s: 900.0, alpha: 0.1, beta: 0.0 }, &LEVELS, 0.0, 1);
        some[4].x_msgs_per_s = 0.0;
        assert_eq!(fit(&some, &[], 1).unwrap_err(), "at N = 2 nothing came back");
    }

    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_say() {
        let law = Law { gamma_msgs_per_s: 12_000.0, alpha: 0.06, beta: 0.000_4 };
        let held = (0..30)
            .filter(|seed| {
                let fit = fit(&points(law, &LEVELS, 0.03, *seed), &[256.0], *seed).expect("it bends");
                let x = fit.predictions[0].x_msgs_per_s;
                (x.low..=x.high).contains(&law.at(256.0))
            })
            .count();
        // 95 % of 30 is 28; with 22 or fewer the intervals would be too narrow by far.
        assert!(held >= 23, "{held} of 30");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn known_parameters_come_back_exactly_without_noise(
            gamma in 1.0_f64..1e6, alpha in 0.01_f64..0.99, beta in 0.0_f64..0.1,
        ) {
            let law = Law { gamma_msgs_per_s: gamma, alpha, beta };
            let found = least_squares(&points(law, &LEVELS, 0.0, 1));
            prop_assert!(close(found.gamma_msgs_per_s, gamma), "{found:?}");
            prop_assert!((found.alpha - alpha).abs() < 1e-6 && (found.beta - beta).abs() < 1e-6, "{found:?}");
        }

        #[test]
        fn parameters_stay_within_their_bounds_whatever_the_points(
            xs in prop::collection::vec(1.0_f64..1e5, 8),
        ) {
            let points: Vec<Point> =
                LEVELS.iter().zip(&xs).map(|(n, x)| Point { n: *n, x_msgs_per_s: *x }).collect();
            let law = least_squares(&points);
            prop_assert!(law.gamma_msgs_per_s > 0.0);
            prop_assert!((0.0..=1.0).contains(&law.alpha) && (0.0..=1.0).contains(&law.beta), "{law:?}");
        }

        /// No neighbour of the optimum is better: it is one.
        #[test]
        fn the_fit_is_a_least_squares_optimum(
            gamma in 10.0_f64..1e5, alpha in 0.0_f64..1.0, beta in 0.0_f64..0.05, seed: u64,
        ) {
            let points = points(Law { gamma_msgs_per_s: gamma, alpha, beta }, &LEVELS, 0.1, seed);
            let loss = |law: Law| -> f64 {
                points.iter().map(|point| (point.x_msgs_per_s / law.at(point.n) - 1.0).powi(2)).sum()
            };
            let best = least_squares(&points);
            for (da, db, dg) in [(1e-4, 0.0, 1.0), (-1e-4, 0.0, 1.0), (0.0, 1e-6, 1.0), (0.0, -1e-6, 1.0), (0.0, 0.0, 1.001), (0.0, 0.0, 0.999)] {
                let near = Law {
                    gamma_msgs_per_s: best.gamma_msgs_per_s * dg,
                    alpha: (best.alpha + da).clamp(0.0, 1.0),
                    beta: (best.beta + db).clamp(0.0, 1.0),
                };
                prop_assert!(loss(near) >= loss(best) * (1.0 - 1e-9), "{near:?} beats {best:?}");
            }
        }
    }
}
