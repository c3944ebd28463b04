//! Results: what a run found out, the files it leaves, and what may be concluded from them.
//!
//! The engine fills [`recorder::Slice`]s, [`collector::Collector`] makes a [`model::RunResult`] of them, and everything
//! after that (verdict, table, files, report, merge, compare) works on the `RunResult` alone: nothing here
//! opens a socket or knows how load is made. Start at [`model`].

pub mod capacity;
pub mod collector;
pub mod compare;
pub mod encode;
pub mod hdr_files;
pub mod merge;
pub mod model;
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
