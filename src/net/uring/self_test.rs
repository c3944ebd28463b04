//! Whether this kernel does what the driver needs, tried on a socket pair.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::Socket;

use super::ring::{KernelRing, Ring as _};
use super::{Op, UringDriver, join};

/// How long the kernel may take to bring one octet from one end of a socket pair to the other.
const SELF_TEST_WAIT: Duration = Duration::from_secs(1);

impl UringDriver<KernelRing> {
    /// Receives one octet and an end, as the driver will, in both ways.
    pub(super) fn self_test(&mut self) -> io::Result<()> {
        for once in [false, true] {
            let (receiver, mut sender) = UnixStream::pair()?;
            let receiver = Socket::from(OwnedFd::from(receiver));
            sender.write_all(b"x")?;
            let mut sender = Some(sender);
            for expected in [1, 0] {
                let user_data = join(Op::Receive, 0, 0);
                // SAFETY: it is the ring that they were made with.
                unsafe { self.buffers.post(&mut self.ring, false) };
                match once {
                    true => self.ring.receive_once(&receiver, 1, user_data),
                    false if expected == 1 => self.ring.receive(&receiver, user_data),
                    false => {}
                }
                self.ring.enter(Some(SELF_TEST_WAIT))?;
                let done = self.ring.next().ok_or(io::ErrorKind::TimedOut)?;
                if let Some(buffer) = self.buffers.take(&done) {
                    self.buffers.release(buffer);
                }
                match done.result {
                    result if result < 0 => return Err(io::Error::from_raw_os_error(-result)),
                    // One shot only, or not into our buffers.
                    result if result != expected || done.more != (expected == 1 && !once) => {
                        return Err(io::Error::from_raw_os_error(libc::EINVAL));
                    }
                    _ => sender = None,
                }
            }
            drop(sender);
        }
        Ok(())
    }
}
