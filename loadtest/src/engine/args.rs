//! The flags of `resound-load run`.

/// The flags of `resound-load run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {}
