//! Results: what a run found out, the files it leaves, and what may be concluded from them.
//!
//! The engine fills [`recorder::Slice`]s, and [`collector::Collector`] makes a [`model::RunResult`] of them. Everything
//! after that (verdict, table, files, report, merge, compare) works on the `RunResult` alone. Nothing here opens a
//! socket or knows how load is made. Start at [`model`]; nothing uses a module that uses it in turn.

pub mod capacity;
pub mod collector;
pub mod compare;
pub mod encode;
pub mod hdr_files;
pub mod kernel_events;
pub mod merge;
pub mod model;
pub mod rates;
pub mod recorder;
pub mod report;
pub mod slo;
pub mod sparse;
pub mod store;
pub mod storm;
pub mod sufficiency;
pub mod surface;
pub mod table;
pub mod units;
pub mod usl;
pub mod verdict;
