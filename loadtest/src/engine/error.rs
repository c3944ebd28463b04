//! Why a run came to nothing: a kind for programs, a line for people.

use super::preflight::Shortage;
use super::socket;
use crate::result::recorder::ErrorKind;

/// Why a run came to nothing. As text it is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The flags make no sense; the URL is one of them.
    #[error(transparent)]
    Flags(anyhow::Error),
    /// This machine has too little of something, known before the first socket was made. At least one entry.
    #[error("this run is impossible here. {}", in_one_line(.0))]
    Impossible(Vec<Shortage>),
    /// The connection that tries the server out found none, or one that cannot be measured.
    #[error(transparent)]
    Server(anyhow::Error),
    /// Connections of the run failed, although the one that tried the server out was good.
    #[error("{failed} of {wanted} connections failed{}", after("; the first: ", .first.as_ref()))]
    Connections {
        /// How many failed.
        failed: u32,
        /// How many were wanted.
        wanted: u32,
        /// The first failure, where one was recorded: its kind, and what happened.
        first: Option<(ErrorKind, String)>,
    },
    /// All connections ended before the measured part.
    #[error("no connection is left{}", after("; the first to end: ", .first.as_ref()))]
    NoConnectionLeft {
        /// The first failure, where one was recorded: its kind, and what happened.
        first: Option<(ErrorKind, String)>,
    },
    /// A load thread could not go on, so what it measured is lost.
    #[error("{0}")]
    LoadThread(String),
    /// Somebody wanted it to end (Ctrl-C) before there was anything to report.
    #[error("ended before {}", .0.name())]
    EndedEarly(Before),
    /// The system refused what every run needs: a thread, a signal handler.
    #[error(transparent)]
    System(anyhow::Error),
}

/// What a run that was ended early did not come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Connections were still being opened.
    Load,
    /// The warm-up was not over.
    MeasuredPart,
}

impl Before {
    fn name(self) -> &'static str {
        match self {
            Before::Load => "the load started",
            Before::MeasuredPart => "the measured part started",
        }
    }
}

fn in_one_line(shortages: &[Shortage]) -> String {
    let each: Vec<String> = shortages.iter().map(ToString::to_string).collect();
    each.join(". Also ")
}

/// The first failure with what to look at, after the words that introduce it.
fn after(words: &str, first: Option<&(ErrorKind, String)>) -> String {
    match first.map(|(kind, what)| (what, socket::hint(*kind))) {
        Some((what, "")) => format!("{words}{what}"),
        Some((what, hint)) => format!("{words}{what}; {hint}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_failed_come_with_the_cure_of_the_first_one() {
        let failed = |first| RunError::Connections { failed: 3, wanted: 10, first }.to_string();
        assert_eq!(failed(None), "3 of 10 connections failed");
        let descriptors = failed(Some((ErrorKind::DescriptorsExhausted, "too many open files".to_owned())));
        assert!(
            descriptors
                .starts_with("3 of 10 connections failed; the first: too many open files; raise nofile")
        );
        let other = failed(Some((ErrorKind::Protocol, "a masked frame".to_owned())));
        assert_eq!(other, "3 of 10 connections failed; the first: a masked frame");
    }

    #[test]
    fn a_cause_below_the_error_is_said_once() {
        let below = anyhow::anyhow!("no such name").context("somewhere could not be looked up");
        let error = anyhow::Error::from(RunError::Flags(below));
        assert_eq!(format!("{error:#}"), "somewhere could not be looked up: no such name");
    }
}
