//! How long messages are: one size, a range, or a weighted list.

use std::fmt;
use std::str::FromStr;

/// The longest message that can be asked for, in octets: three of them fill a thread's working set.
pub(super) const SIZE_MAX: usize = 64 << 20;

/// A distribution of message sizes in octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Every message has this size.
    Fixed(usize),
    /// Evenly distributed, both ends included.
    Range(usize, usize),
    /// Size and weight, in the order given.
    Weighted(Vec<(usize, u32)>),
}

impl Sizes {
    /// The smallest size that can come up.
    pub fn min(&self) -> usize {
        match self {
            Self::Fixed(size) | Self::Range(size, _) => *size,
            Self::Weighted(list) => list.iter().map(|entry| entry.0).min().expect("a list is not empty"),
        }
    }

    /// The largest size that can come up.
    pub fn max(&self) -> usize {
        match self {
            Self::Fixed(size) | Self::Range(_, size) => *size,
            Self::Weighted(list) => list.iter().map(|entry| entry.0).max().expect("a list is not empty"),
        }
    }

    /// Draws a size.
    #[inline]
    pub fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        match self {
            Self::Fixed(size) => *size,
            Self::Range(min, max) => rng.usize(*min..=*max),
            Self::Weighted(list) => {
                let total: u32 = list.iter().map(|entry| entry.1).sum();
                let mut ticket = rng.u32(..total);
                for &(size, weight) in list {
                    if ticket < weight {
                        return size;
                    }
                    ticket -= weight;
                }
                unreachable!("a ticket is below the sum of the weights")
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// `512`, `64-1400`, or `64:9,16KiB:1` (nine of 64 octets for each one of 16 KiB).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') || text.contains(',') {
            let list = text.split(',').map(weighted).collect::<Result<Vec<_>, _>>()?;
            let total = list.iter().try_fold(0u32, |sum, entry| sum.checked_add(entry.1));
            return match total {
                None => Err("the weights add up to more than 4294967295".into()),
                Some(0) => Err("the weights add up to 0".into()),
                Some(_) => Ok(Self::Weighted(list)),
            };
        }
        if let Some((min, max)) = text.split_once('-') {
            let (min, max) = (octets(min)?, octets(max)?);
            if min > max {
                return Err(format!("{min}-{max}: the smaller size comes first"));
            }
            return Ok(Self::Range(min, max));
        }
        octets(text).map(Self::Fixed)
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Range(min, max) => write!(f, "{min}-{max}"),
            Self::Weighted(list) => {
                let entries: Vec<_> = list.iter().map(|(size, weight)| format!("{size}:{weight}")).collect();
                f.write_str(&entries.join(","))
            }
        }
    }
}

fn weighted(entry: &str) -> Result<(usize, u32), String> {
    match entry.split_once(':') {
        Some((size, weight)) => {
            let weight = weight.trim().parse().map_err(|_| format!("{weight:?} is not a weight"))?;
            Ok((octets(size)?, weight))
        }
        None => Ok((octets(entry)?, 1)),
    }
}

/// A number of octets, with an optional KiB, MiB, k or M.
fn octets(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[digits..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "k" | "kB" => 1000,
        "M" | "MB" => 1_000_000,
        unit => return Err(format!("{unit:?} is not a unit; B, kB, KiB, MB and MiB are")),
    };
    let number: usize = text[..digits].parse().map_err(|_| format!("{text:?} is not a number of octets"))?;
    match number.checked_mul(factor) {
        Some(size) if size <= SIZE_MAX => Ok(size),
        _ => Err(format!("{text} is more than the {SIZE_MAX} octets a message may have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_a_number_a_range_or_a_weighted_list() {
        assert_eq!("20".parse(), Ok(Sizes::Fixed(20)));
        assert_eq!("16KiB".parse(), Ok(Sizes::Fixed(16384)));
        assert_eq!("64-1400".parse(), Ok(Sizes::Range(64, 1400)));
        assert_eq!("64:9,1k".parse(), Ok(Sizes::Weighted(vec![(64, 9), (1000, 1)])));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "x", "-5", "9-3", "1TiB", "99999999999", "64:0", "64:1,,", "18446744073709551615KiB"]
        {
            assert!(text.parse::<Sizes>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_come_up_as_often_as_their_weights_say() {
        let sizes: Sizes = "30:3,50:1".parse().unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        let small = (0..40_000).filter(|_| sizes.draw(&mut rng) == 30).count();
        assert!(small.abs_diff(30_000) < 400, "{small}");
        assert_eq!((sizes.min(), sizes.max()), (30, 50));
    }

    #[test]
    fn a_distribution_prints_as_it_is_written() {
        for text in ["20", "64-1400", "64:9,1000:1"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
    }
}
