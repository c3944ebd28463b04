//! `resound-load`: the load generator. It drives any WebSocket echo or broadcast server and records latency in HdrHistograms.

use clap::Parser;

/// Drive a WebSocket echo or broadcast server and record its latency.
#[derive(Parser)]
#[command(version)]
struct Args {}

fn main() {
    Args::parse();
}
