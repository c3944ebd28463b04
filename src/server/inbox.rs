//! What reaches a worker from other threads: publications, bounded in octets, and the wish to stop.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::hub::Mail;
use crate::net::Wake;

#[derive(Default)]
struct Contents {
    mail: Vec<Mail>,
    octets: usize,
}

/// One worker's inbox. Any thread may put something in; only its worker takes out.
pub(super) struct Inbox {
    bytes_max: usize,
    contents: Mutex<Contents>,
    stop: AtomicBool,
    /// Its worker waits, or is about to: who puts something in must wake it.
    parked: AtomicBool,
    waker: OnceLock<Arc<dyn Wake>>,
}

impl Inbox {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            contents: Mutex::default(),
            stop: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            waker: OnceLock::new(),
        }
    }

    /// Called once by the worker, before its first turn.
    pub(super) fn set_waker(&self, waker: Arc<dyn Wake>) {
        assert!(self.waker.set(waker).is_ok(), "an inbox has one worker");
    }

    /// Puts `mail` in, unless it is full. An empty inbox takes mail of any length.
    pub(super) fn put(&self, mail: Mail) -> bool {
        {
            let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
            let len = mail.len();
            if contents.octets > 0 && contents.octets + len > self.bytes_max {
                return false;
            }
            contents.octets += len;
            contents.mail.push(mail);
        }
        self.wake();
        true
    }

    /// Takes everything out, into an empty `mail`.
    pub(super) fn take(&self, mail: &mut Vec<Mail>) {
        debug_assert!(mail.is_empty());
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(mail, &mut contents.mail);
        contents.octets = 0;
    }

    /// Asks the worker to drain.
    pub(super) fn stop(&self) {
        self.stop.store(true, SeqCst);
        self.wake();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// Announces that the worker is going to wait. Returns whether it may: not if something is here already.
    pub(super) fn park(&self) -> bool {
        self.parked.store(true, SeqCst);
        !self.is_stopped() && self.contents.lock().unwrap_or_else(PoisonError::into_inner).mail.is_empty()
    }

    pub(super) fn unpark(&self) {
        self.parked.store(false, SeqCst);
    }

    fn wake(&self) {
        if self.parked.swap(false, SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn mail(len: usize) -> Mail {
        Mail::of("/room", vec![0; len])
    }

    #[test]
    fn an_inbox_takes_octets_up_to_its_limit_and_one_mail_of_any_length() {
        let inbox = Inbox::new(10);
        assert!(inbox.put(mail(6)) && inbox.put(mail(4)) && !inbox.put(mail(1)));
        let mut taken = Vec::new();
        inbox.take(&mut taken);
        assert_eq!(taken.len(), 2);
        assert!(inbox.put(mail(1000)) && !inbox.put(mail(1)));
    }

    #[test]
    fn only_a_parked_worker_is_woken_and_only_once() {
        let (inbox, count) = (Inbox::new(100), Arc::new(Count::default()));
        inbox.set_waker(count.clone());
        inbox.put(mail(1));
        assert_eq!(count.0.load(SeqCst), 0);
        assert!(!inbox.park(), "there is mail");
        inbox.take(&mut Vec::new());
        assert!(inbox.park());
        inbox.put(mail(1));
        inbox.put(mail(1));
        assert_eq!(count.0.load(SeqCst), 1);
        inbox.unpark();
        inbox.stop();
        assert!(inbox.is_stopped() && !inbox.park());
    }
}
