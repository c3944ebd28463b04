//! Flags, then [`resound::server::Server`]; nothing else.

fn main() {}
