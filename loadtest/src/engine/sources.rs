//! The addresses that connections come from. On loopback all of 127.0.0.0/8 is there without any set-up,
//! and each address brings its own range of ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The most addresses one range may have: more than 65,536 times 28,232 ports cannot be held anyway.
const RANGE_LEN_MAX: u128 = 65_536;

/// Consecutive addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRange {
    first: IpAddr,
    last: IpAddr,
}

impl SourceRange {
    /// All addresses of the range, in order.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.first.is_ipv4();
        (number(self.first)..=number(self.last)).map(move |number| {
            if v4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
        })
    }

    /// Whether these are IPv4 addresses.
    pub fn is_ipv4(self) -> bool {
        self.first.is_ipv4()
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl FromStr for SourceRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse =
            |text: &str| text.trim().parse::<IpAddr>().map_err(|_| format!("{text:?} is no IP address"));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (parse(first)?, parse(last)?);
        if first.is_ipv4() != last.is_ipv4() {
            return Err(format!("{first} and {last} are of different families"));
        }
        if number(first) > number(last) {
            return Err(format!("{first}-{last}: the lower address comes first"));
        }
        let span = number(last) - number(first);
        if span >= RANGE_LEN_MAX {
            return Err(format!("{first}-{last} has more than {RANGE_LEN_MAX} addresses"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for SourceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_its_ends() {
        let range: SourceRange = "127.0.0.254-127.0.1.1".parse().unwrap();
        let all: Vec<_> = range.addresses().map(|address| address.to_string()).collect();
        assert_eq!(all, ["127.0.0.254", "127.0.0.255", "127.0.1.0", "127.0.1.1"]);
        assert_eq!(range.to_string(), "127.0.0.254-127.0.1.1");
        assert_eq!("::1".parse::<SourceRange>().unwrap().addresses().count(), 1);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in
            ["", "localhost", "127.0.0.9-127.0.0.1", "127.0.0.1-::1", "10.0.0.0-10.255.255.255", "::-ffff::"]
        {
            assert!(text.parse::<SourceRange>().is_err(), "{text:?}");
        }
    }
}
