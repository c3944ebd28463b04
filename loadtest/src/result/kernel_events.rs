//! What the kernel counted during a run.

use std::collections::BTreeMap;

use super::model::KernelEvidence;

impl KernelEvidence {
    /// By how much a counter rose.
    pub fn delta(&self, name: &str) -> u64 {
        let before = self.counters_before.get(name).copied().unwrap_or(0);
        self.counters_after.get(name).map_or(0, |after| after.saturating_sub(before))
    }

    /// Every counter that moved, with by how much.
    pub fn deltas(&self) -> BTreeMap<&str, u64> {
        let moved = self.counters_after.keys().map(|name| (name.as_str(), self.delta(name)));
        moved.filter(|(_, delta)| *delta > 0).collect()
    }
}
