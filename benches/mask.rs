//! What unmasking costs beside copying the same octets: per size, per kernel, in place, down and appended.
//!
//! Two ways to read it:
//!
//! - `cargo bench --bench mask -- table` prints one table per operation in a few seconds. Copy and
//!   kernels take turns, so that noise hits all alike, and the medians are compared. The aim: a ratio of at
//!   most 1.2 from 64 octets up, and more than 60 GB/s (10^9 octets) where the data fits L1. A ratio far
//!   below 1 is the copy's trouble, not our merit: glibc's falls tenfold at some lengths and alignments.
//! - `cargo bench --bench mask -- [FILTER]` measures the same work with criterion, with its history.
//!
//! A run goes through a row of frames, as they lie in a receive buffer. One buffer unmasked again and again
//! would measure how the CPU forwards stores to loads instead.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use resound::mask::{self, Kernel, MaskingKey};

/// Payload lengths in octets.
const LENS: [usize; 11] = [4, 16, 20, 64, 125, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
/// A row of frames has about this many octets if a frame is not longer: half of a small L1 data cache holds it.
const ROW_LEN: usize = 8 << 10;
/// The payload of a masked frame with a 16-bit length begins here, that of the reply four octets earlier.
const FROM: usize = 8;
const TO: usize = 4;

#[derive(Clone, Copy)]
enum Operation {
    InPlace,
    Down,
    Append,
}

impl Operation {
    const ALL: [Self; 3] = [Self::InPlace, Self::Down, Self::Append];

    fn name(self) -> &'static str {
        match self {
            Self::InPlace => "in_place",
            Self::Down => "down_by_4",
            Self::Append => "append",
        }
    }

    fn copy_name(self) -> &'static str {
        match self {
            Self::InPlace => "copy_from_slice",
            Self::Down => "copy_within",
            Self::Append => "extend_from_slice",
        }
    }
}

/// Who does the work.
#[derive(Clone, Copy)]
enum Contender {
    /// The copy that unmasking is compared with.
    Copy,
    /// The module's functions, as the protocol calls them.
    Chosen,
    One(Kernel),
}

impl Contender {
    fn all() -> Vec<Self> {
        let kernels = Kernel::available().into_iter().map(Self::One);
        [Self::Copy, Self::Chosen].into_iter().chain(kernels).collect()
    }

    fn name(self, operation: Operation) -> &'static str {
        match self {
            Self::Copy => operation.copy_name(),
            Self::Chosen => "unmask",
            Self::One(kernel) => kernel.name(),
        }
    }
}

/// Frames of one length one after the other, and somewhere to copy them to.
struct Row {
    octets: Vec<u8>,
    copies: Vec<u8>,
    appended: Vec<u8>,
    len: usize,
    count: usize,
}

impl Row {
    fn new(len: usize) -> Self {
        let count = (ROW_LEN / (FROM + len)).max(1);
        let row_len = count * (FROM + len);
        Self {
            octets: (0..row_len).map(|index| (index * 7) as u8).collect(),
            copies: vec![0; row_len],
            appended: Vec::with_capacity(len),
            len,
            count,
        }
    }

    /// Does the whole row once.
    #[inline(never)]
    fn run(&mut self, operation: Operation, contender: Contender) {
        // Opaque, lest a constant length or key make a copy or a kernel that no server would get.
        let len = black_box(self.len);
        let key = MaskingKey::from_wire(black_box([0x37, 0xfa, 0x21, 0x3d]));
        let frames = (0..self.count).map(|index| index * (FROM + len));
        let Self { octets, copies, appended, .. } = self;
        macro_rules! each {
            (|$at:ident| $work:expr) => {
                for $at in frames {
                    black_box($work);
                }
            };
        }
        match (operation, contender) {
            (Operation::InPlace, Contender::Copy) => each!(|at| {
                let (from, to) = (at + FROM, at + FROM + len);
                copies[from..to].copy_from_slice(&octets[from..to])
            }),
            (Operation::InPlace, Contender::Chosen) => {
                each!(|at| mask::unmask_in_place(&mut octets[at + FROM..at + FROM + len], key))
            }
            (Operation::InPlace, Contender::One(kernel)) => {
                each!(|at| kernel.unmask_in_place(&mut octets[at + FROM..at + FROM + len], key))
            }
            (Operation::Down, Contender::Copy) => {
                each!(|at| octets.copy_within(at + FROM..at + FROM + len, at + TO))
            }
            (Operation::Down, Contender::Chosen) => {
                each!(|at| mask::unmask_down(octets, at + FROM, at + TO, len, key))
            }
            (Operation::Down, Contender::One(kernel)) => {
                each!(|at| kernel.unmask_down(octets, at + FROM, at + TO, len, key))
            }
            (Operation::Append, Contender::Copy) => each!(|at| {
                appended.clear();
                appended.extend_from_slice(&octets[at + FROM..at + FROM + len])
            }),
            (Operation::Append, Contender::Chosen) => each!(|at| {
                appended.clear();
                mask::unmask_append(appended, &octets[at + FROM..at + FROM + len], key)
            }),
            (Operation::Append, Contender::One(kernel)) => each!(|at| {
                appended.clear();
                kernel.unmask_append(appended, &octets[at + FROM..at + FROM + len], key)
            }),
        }
        black_box((octets, copies, appended));
    }
}

/// The medians, in nanoseconds a payload, of runs in which the contenders take turns.
fn interleaved_medians(operation: Operation, len: usize, contenders: &[Contender]) -> Vec<f64> {
    const TURNS: usize = 201;
    const TURN: Duration = Duration::from_micros(60);
    let mut row = Row::new(len);
    let mut time = |contender: Contender, repeats: usize| {
        let start = Instant::now();
        for _ in 0..repeats {
            row.run(operation, contender);
        }
        start.elapsed()
    };
    let repeats: Vec<usize> = contenders
        .iter()
        .map(|&contender| {
            let once = time(contender, 64) / 64;
            (TURN.as_nanos() / once.as_nanos().max(1)).max(1) as usize
        })
        .collect();
    let mut turns = vec![Vec::with_capacity(TURNS); contenders.len()];
    for _ in 0..TURNS {
        for (index, &contender) in contenders.iter().enumerate() {
            turns[index].push(time(contender, repeats[index]));
        }
    }
    let payloads = row.count as f64;
    let median = |(turns, &repeats): (&mut Vec<Duration>, &usize)| {
        turns.sort_unstable();
        turns[TURNS / 2].as_nanos() as f64 / (repeats as f64 * payloads)
    };
    turns.iter_mut().zip(&repeats).map(median).collect()
}

fn print_tables() {
    let contenders = Contender::all();
    println!(
        "kernel: {}; medians, ns a payload; GB/s = 10^9 octets of payload a second",
        Kernel::chosen().name()
    );
    for operation in Operation::ALL {
        let copy = operation.copy_name();
        print!("\n{:>9} | octets | {copy:>17} | unmask | ratio |   GB/s |", operation.name());
        for contender in &contenders[2..] {
            print!(" {:>7}", contender.name(operation));
        }
        println!();
        for len in LENS {
            let medians = interleaved_medians(operation, len, &contenders);
            let (copy, unmask) = (medians[0], medians[1]);
            let rate = len as f64 / unmask;
            let digits = if copy < 1000.0 { 2 } else { 0 };
            print!(
                "{:>9} | {len:>7} | {copy:>17.digits$} | {unmask:>6.digits$} | {:>5.2} | {rate:>6.1} |",
                "",
                unmask / copy
            );
            for median in &medians[2..] {
                print!(" {median:>7.digits$}");
            }
            println!();
        }
    }
}

fn with_criterion() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(20)
        .configure_from_args();
    for operation in Operation::ALL {
        let mut group = criterion.benchmark_group(format!("mask/{}", operation.name()));
        for len in LENS {
            let mut row = Row::new(len);
            group.throughput(Throughput::Bytes((row.count * len) as u64));
            for contender in Contender::all() {
                let id = BenchmarkId::new(contender.name(operation), len);
                group.bench_function(id, |bencher| bencher.iter(|| row.run(operation, contender)));
            }
        }
    }
    criterion.final_summary();
}

fn main() {
    if std::env::args().skip(1).any(|argument| argument == "table") {
        print_tables();
    } else {
        with_criterion();
    }
}
