//! `resound-load search`: the highest load that meets the objectives, and what stops it there.
pub mod hunt;
pub mod usl;
