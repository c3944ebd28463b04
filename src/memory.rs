//! stub
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
/// m
#[derive(Clone, Debug, Default)]
pub struct Meter {
    used: Arc<AtomicUsize>,
}
/// l
#[derive(Debug)]
pub struct Lease {
    meter: Meter,
    octets: usize,
}
impl Meter {
    /// u
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
    /// f
    pub fn force(&self, octets: usize) -> Lease {
        let mut l = Lease { meter: self.clone(), octets: 0 };
        l.force(octets);
        l
    }
}
impl Lease {
    /// o
    pub fn octets(&self) -> usize {
        self.octets
    }
    /// f
    pub fn force(&mut self, octets: usize) {
        self.meter.used.store(self.meter.used() + octets - self.octets, Relaxed);
        self.octets = octets;
    }
}
impl Drop for Lease {
    fn drop(&mut self) {
        self.force(0)
    }
}
