//! The thread that drives no load: it starts the others, takes in what they record, watches the machine,
//! shows how it goes, and ends the run on time or at Ctrl-C.
//!
//! Start at [`conduct`].

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::{Mode, RunArgs};
use super::control::NOT_YET;
use super::error::{Before, RunError};
use super::hiccup::HiccupMeter;
use super::host;
use super::kernel::{Process, ProcessUse, Snapshot};
use super::live::Live;
use super::probe::Found;
use super::publications::{Gathering, Seen};
use super::worker::{self, Report, Shared};
use crate::result::collector::Collector;
use crate::result::model::{
    KernelEvidence, Manifest, Phase, Plan as PlanModel, RunResult, Sample, ServerInfo, ThreadUse,
};
use crate::result::recorder::{Metric, Slice};

/// From an announcement to the time it is about, in ns: every thread reads it in between.
const LEAD_NS: u64 = 50_000_000;
/// How often the conductor looks up from its inbox.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Runs the load, and collects its result.
///
/// # Errors
/// Nothing could be measured, and why.
pub(super) fn conduct(args: &RunArgs, shared: &Arc<Shared>, found: Found) -> Result<RunResult, RunError> {
    let signals = Signals::catch().map_err(RunError::System)?;
    let (reports_sender, reports) = channel();
    let began_ns = shared.clock.now_ns();
    let mut threads = Vec::new();
    let mut recycled = Vec::new();
    for index in 0..shared.plan.threads {
        let (sender, receiver) = channel();
        // What a thread fills is allocated before it runs.
        for _ in 0..2 {
            let _ = sender.send(Box::<Slice>::default());
        }
        let (shared, reports) = (Arc::clone(shared), reports_sender.clone());
        let core = core_of(args, index);
        let thread = std::thread::Builder::new().name(format!("load-{index}")).spawn(move || {
            if let Some(id) = core {
                core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            worker::run(shared, index, began_ns, &reports, receiver);
        });
        threads.push(thread.context("no thread for the load").map_err(RunError::System)?);
        recycled.push(sender);
    }
    drop(reports_sender);
    let conductor = Conductor {
        model: shared.plan.model(args),
        live: Live::new(args.quiet, Duration::from_nanos(shared.plan.warmup_ns + shared.plan.duration_ns)),
        watch: Watch::new(args.server_pid).map_err(RunError::Flags)?,
        hiccup: HiccupMeter::start().context("no thread for the hiccup meter").map_err(RunError::System)?,
        collector: Collector::new(threads.len()),
        inbox: threads.iter().map(|_| VecDeque::new()).collect(),
        done: vec![false; threads.len()],
        ready_count: 0,
        open_count: 0,
        measured_cpu_ns: vec![0; threads.len()],
        gathering: Gathering::default(),
        beside: Box::default(),
        closed_ns: began_ns,
        interrupted: false,
        failure: None,
        shared: Arc::clone(shared),
        recycled,
    };
    let outcome = conductor.conduct(&reports, &signals);
    for thread in threads {
        if thread.join().is_err() {
            return Err(RunError::LoadThread("a load thread panicked; what it measured is lost".to_owned()));
        }
    }
    let (mut result, manifest) = outcome?;
    result.manifest = Manifest {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        argv: std::env::args().collect(),
        seed: args.seed,
        host: host::describe(Path::new("/")),
        server: ServerInfo { header: found.server_header, ..manifest.server },
        ..manifest
    };
    Ok(result)
}

/// The CPU that load thread `index` is pinned to: one of those given, or counted from the last one.
fn core_of(args: &RunArgs, index: u32) -> Option<usize> {
    let pin = args.pin.as_ref()?;
    let index = index as usize;
    if let Some(core) = pin.get(index % pin.len().max(1)) {
        return Some(*core);
    }
    let cores = core_affinity::get_core_ids()?;
    cores.len().checked_sub(1 + index % cores.len().max(1)).map(|place| cores[place].id)
}

/// Ctrl-C: the first one ends the run, the second one the process.
struct Signals {
    caught: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Signals {
    fn catch() -> anyhow::Result<Self> {
        let caught = Arc::new(AtomicBool::new(false));
        let mut ids = Vec::new();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the flag is not yet set when the first signal asks whether to exit.
            let exit =
                signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&caught));
            ids.push(exit.context("signals")?);
            ids.push(signal_hook::flag::register(signal, Arc::clone(&caught)).context("signals")?);
        }
        Ok(Self { caught, ids })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

/// What a thread recorded until a point in time.
struct Part {
    until_ns: u64,
    slice: Box<Slice>,
    publications: Vec<Seen>,
}

struct Conductor {
    shared: Arc<Shared>,
    model: PlanModel,
    live: Live,
    watch: Watch,
    hiccup: HiccupMeter,
    collector: Collector,
    /// What each thread handed over and the others have not yet.
    inbox: Vec<VecDeque<Part>>,
    done: Vec<bool>,
    ready_count: usize,
    open_count: u32,
    measured_cpu_ns: Vec<u64>,
    gathering: Gathering,
    /// An empty slice for what the conductor itself records.
    beside: Box<Slice>,
    /// The end of the last interval, in ns.
    closed_ns: u64,
    interrupted: bool,
    failure: Option<RunError>,
    recycled: Vec<Sender<Box<Slice>>>,
}

impl Conductor {
    fn conduct(
        mut self,
        reports: &Receiver<Report>,
        signals: &Signals,
    ) -> Result<(RunResult, Manifest), RunError> {
        let mut asked = false;
        loop {
            match reports.recv_timeout(LOOK_UP) {
                Ok(report) => self.take_in(report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while self.is_interval_complete() {
                self.close_interval();
            }
            if signals.caught.load(Ordering::Relaxed) && !std::mem::replace(&mut asked, true) {
                self.live.say(
                    "ending: the connections are closed, the result so far follows (again: end at once)",
                );
                self.end_early();
            }
        }
        self.live.end();
        self.finish()
    }

    fn take_in(&mut self, report: Report) {
        match report {
            Report::Slice { thread, until_ns, slice, publications } => {
                self.inbox[thread as usize].push_back(Part { until_ns, slice, publications });
            }
            Report::Ready { open } => {
                self.ready_count += 1;
                self.open_count += open;
                if self.ready_count == self.done.len() {
                    self.start();
                }
            }
            Report::Done { thread } => self.done[thread as usize] = true,
            Report::Failed { thread, reason } => {
                self.done[thread as usize] = true;
                self.failure.get_or_insert(RunError::LoadThread(reason));
                self.end_early();
            }
        }
    }

    /// All connections are open: announces the load.
    fn start(&mut self) {
        let plan = &self.shared.plan;
        let failed = if plan.mode == Mode::Connect { 0 } else { plan.connections - self.open_count };
        if failed > 0 {
            let first = self.shared.control.first_failure();
            let error = RunError::Connections { failed, wanted: plan.connections, first };
            if self.open_count == 0 {
                self.failure = Some(error);
                return self.end_early();
            }
            self.live.say(&error.to_string());
        }
        let start_ns = self.shared.clock.now_ns() + LEAD_NS;
        let end_ns = start_ns.saturating_add(plan.warmup_ns).saturating_add(plan.duration_ns);
        self.shared.control.start(start_ns, end_ns, self.open_count);
    }

    fn end_early(&mut self) {
        let end_ns = self.shared.clock.now_ns() + LEAD_NS;
        if end_ns < self.shared.control.end_ns() {
            self.interrupted = true;
            self.shared.control.end_at(end_ns);
        }
    }

    /// Whether every thread that goes on has handed over its part of the next interval.
    fn is_interval_complete(&self) -> bool {
        let mut threads = self.inbox.iter().zip(&self.done);
        self.inbox.iter().any(|parts| !parts.is_empty())
            && threads.all(|(parts, done)| *done || !parts.is_empty())
    }

    fn close_interval(&mut self) {
        let mut until_ns = 0;
        let parts: Vec<Option<Part>> = self.inbox.iter_mut().map(VecDeque::pop_front).collect();
        for part in parts.iter().flatten() {
            until_ns = until_ns.max(part.until_ns);
        }
        let phase = self.phase(until_ns);
        let subscribers = self.shared.control.subscribers();
        for (thread, part) in parts.into_iter().enumerate() {
            let Some(Part { mut slice, publications, .. }) = part else { continue };
            self.collector.absorb(thread, &slice);
            if phase == Phase::Measure {
                self.measured_cpu_ns[thread] += slice.cpu_ns;
            }
            slice.reset();
            // It fails only if the thread has ended.
            let _ = self.recycled[thread].send(slice);
            for seen in &publications {
                if let Some(spread_ns) = self.gathering.add(seen, subscribers) {
                    self.beside.record(Metric::Spread, spread_ns);
                }
            }
        }
        self.collector.absorb_beside(&self.beside);
        let empty = std::mem::take(&mut self.beside);
        self.beside = self.hiccup.take(empty);
        self.collector.absorb_beside(&self.beside);
        self.beside.reset();

        let length_ns = until_ns - self.closed_ns;
        let sample = self.watch.sample(length_ns);
        if until_ns == self.measure_ns() {
            self.watch.mark_before();
        }
        if phase == Phase::Measure {
            self.watch.mark_after();
        }
        let start_ms = (self.closed_ns / 1_000_000) as i64;
        let interval = self.collector.close_interval(phase, start_ms, length_ns / 1_000_000, sample);
        let start_ns = self.shared.control.start_ns();
        if length_ns >= 200_000_000 {
            let done = Duration::from_nanos(until_ns.saturating_sub(start_ns));
            self.live.show(interval, self.model.headline(), done);
        }
        let all_gone = interval.connections_open == 0 && self.shared.plan.mode != Mode::Connect;
        if all_gone && matches!(phase, Phase::Warmup | Phase::Measure) && !self.interrupted {
            let error = RunError::NoConnectionLeft { first: self.shared.control.first_failure() };
            self.live.say(&format!("ending: {error}"));
            if phase == Phase::Warmup {
                self.failure.get_or_insert(error);
            }
            self.end_early();
        }
        self.closed_ns = until_ns;
    }

    fn measure_ns(&self) -> u64 {
        self.shared.control.start_ns().saturating_add(self.shared.plan.warmup_ns)
    }

    /// The part of the run that ends at, or goes on after, `until_ns`.
    fn phase(&self, until_ns: u64) -> Phase {
        let control = &self.shared.control;
        match until_ns {
            _ if until_ns > control.end_ns() => Phase::Drain,
            _ if until_ns <= control.start_ns() => Phase::Ramp,
            _ if until_ns <= self.measure_ns() => Phase::Warmup,
            _ => Phase::Measure,
        }
    }

    fn finish(self) -> Result<(RunResult, Manifest), RunError> {
        self.hiccup.stop();
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.done.iter().any(|done| !done) {
            return Err(RunError::LoadThread("a load thread ended without its report".to_owned()));
        }
        let control = &self.shared.control;
        let start_ns = control.start_ns();
        if start_ns == NOT_YET {
            return Err(RunError::EndedEarly(Before::Load));
        }
        let measure_ns = start_ns.saturating_add(self.shared.plan.warmup_ns);
        if control.end_ns() <= measure_ns {
            return Err(RunError::EndedEarly(Before::MeasuredPart));
        }
        let measured_ns = control.end_ns() - measure_ns;
        let mut collected = self.collector.finish();
        for interval in &mut collected.intervals {
            interval.start_ms -= (measure_ns / 1_000_000) as i64;
        }
        let threads = self.measured_cpu_ns.iter().enumerate().map(|(index, cpu_ns)| ThreadUse {
            name: format!("load-{index}"),
            cpu_percent: 100.0 * *cpu_ns as f64 / measured_ns as f64,
        });
        let started = self.shared.clock.started_at + Duration::from_nanos(measure_ns);
        let manifest = Manifest {
            started_unix_ms: started.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64),
            server: self.watch.server_info(),
            ..Manifest::default()
        };
        let mut result = collected.into_result(
            Manifest::default(),
            self.model,
            measured_ns as f64 / 1e9,
            threads.collect(),
            self.watch.evidence(),
        );
        result.interrupted = self.interrupted;
        Ok((result, manifest))
    }
}

/// Watches the kernel's counters and the server's process.
struct Watch {
    last: Snapshot,
    before: Snapshot,
    after: Snapshot,
    server: Option<(u32, Process, ProcessUse, Option<String>)>,
}

impl Watch {
    fn new(server_pid: Option<u32>) -> anyhow::Result<Self> {
        let server = server_pid
            .map(|pid| {
                let process = Process::new(Path::new("/proc"), pid);
                let first = process
                    .sample()
                    .with_context(|| format!("--server-pid {pid}: there is no such process"))?;
                let command = process.command();
                anyhow::Ok((pid, process, first, command))
            })
            .transpose()?;
        let last = Snapshot::read(Path::new("/proc"));
        Ok(Self { before: last.clone(), after: last.clone(), last, server })
    }

    /// What has changed in the `length_ns` since the last call.
    fn sample(&mut self, length_ns: u64) -> Sample {
        let now = Snapshot::read(Path::new("/proc"));
        let mut sample = Sample {
            kernel_deltas: now.deltas(&self.last),
            kernel_levels: now.levels.clone(),
            ..Sample::default()
        };
        self.last = now;
        if let Some((_, process, last, _)) = &mut self.server
            && let Some(used) = process.sample()
        {
            sample.server_cpu_percent = Some(process.cpu_percent(*last, used, length_ns));
            sample.server_rss_octets = Some(used.rss_octets);
            *last = used;
        }
        sample
    }

    fn mark_before(&mut self) {
        self.before = self.last.clone();
    }

    fn mark_after(&mut self) {
        self.after = self.last.clone();
    }

    fn server_info(&self) -> ServerInfo {
        match &self.server {
            Some((pid, _, _, command)) => {
                ServerInfo { header: None, pid: Some(*pid), command: command.clone() }
            }
            None => ServerInfo::default(),
        }
    }

    fn evidence(self) -> KernelEvidence {
        KernelEvidence {
            counters_before: self.before.counters,
            counters_after: self.after.counters,
            levels_before: self.before.levels,
            levels_after: self.after.levels,
        }
    }
}
