//! Work that takes long, each piece in a thread of its own: devices that are taken back, with the end of their stub, and
//! resets after errors. Linux waits up to a minute for a device that does not come back from its reset.
//!
//! One attachment has one job at a time. If the service dies in the middle, the record is still there, and the next service
//! does the work again.

use super::clients::Client;
use super::wake::Wake;
use crate::control::Request;
use crate::handover::reclaim::Released;
use crate::host::sysfs::Sysfs;
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;
use xen::xenctrl::DomId;

/// How a job has ended.
#[derive(Debug)]
pub enum Outcome {
    /// Devices were taken back, as far as that was possible.
    Reclaimed(Released),
    /// A device was reset after an error, or could not be.
    Reset(Bdf, Result<(), String>),
}

struct Running {
    what: String,
    since: Instant,
    /// True if nothing else may be done for the attachment meanwhile.
    alone: bool,
}

/// The jobs that run, and the requests that wait for their end.
pub struct Jobs {
    running: BTreeMap<DomId, Running>,
    outcomes: Receiver<(DomId, Outcome)>,
    sender: Sender<(DomId, Outcome)>,
    waiting: Vec<(DomId, Request, Client)>,
    wake: Wake,
}

impl Jobs {
    /// No jobs yet. The end of each will call `wake`.
    pub fn new(wake: Wake) -> Self {
        let (sender, outcomes) = channel();
        Self {
            running: BTreeMap::new(),
            outcomes,
            sender,
            waiting: Vec::new(),
            wake,
        }
    }

    /// True while a job runs for the attachment of this stub.
    pub fn is_busy(&self, stub: DomId) -> bool {
        self.running.contains_key(&stub)
    }

    /// True while a job runs that allows nothing else to be done for the attachment.
    pub fn is_closed(&self, stub: DomId) -> bool {
        self.running.get(&stub).is_some_and(|running| running.alone)
    }

    /// What runs for it, in words, for the status.
    pub fn status(&self, stub: DomId) -> Option<String> {
        let Running { what, since, .. } = self.running.get(&stub)?;
        Some(format!("{what}, for {} s so far", since.elapsed().as_secs()))
    }

    /// Takes devices of an attachment back. Nothing else is done for it meanwhile.
    pub fn reclaim(
        &mut self,
        stub: DomId,
        work: impl FnOnce() -> Released + Send + 'static,
    ) -> io::Result<()> {
        let what = "its devices are taken back".to_owned();
        let failed = Released {
            problems: vec!["the thread that takes the devices back has failed: try again".into()],
            ..Released::default()
        };
        self.start(stub, what, true, Outcome::Reclaimed(failed), || {
            Outcome::Reclaimed(work())
        })
    }

    /// Resets a device. Its stub is served meanwhile.
    pub fn reset(&mut self, stub: DomId, bdf: Bdf) -> io::Result<()> {
        let failed = Outcome::Reset(bdf, Err("the thread that resets it has failed".into()));
        let what = format!("{bdf} is reset after an error");
        self.start(stub, what, false, failed, move || {
            let reset = Sysfs::host().reset(bdf);
            Outcome::Reset(
                bdf,
                reset.map_err(|error| format!("{:#}", anyhow::Error::from(error))),
            )
        })
    }

    fn start(
        &mut self,
        stub: DomId,
        what: String,
        alone: bool,
        failed: Outcome,
        work: impl FnOnce() -> Outcome + Send + 'static,
    ) -> io::Result<()> {
        // The callers ask first. Two jobs for one attachment would work on the same devices.
        if self.is_busy(stub) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let end = JobEnd {
            stub,
            outcome: Some(failed),
            sender: self.sender.clone(),
            wake: self.wake.clone(),
        };
        thread::Builder::new()
            .name(format!("job {stub}"))
            .spawn(move || {
                let mut end = end;
                // Until then `end` says that the thread has failed, which is what a panic leaves.
                end.outcome = Some(work());
                drop(end);
            })?;
        // After the thread has started: without one nothing runs, and nothing would end it.
        let since = Instant::now();
        self.running.insert(stub, Running { what, since, alone });
        Ok(())
    }

    /// Has a request wait for the end of what runs.
    pub fn wait(&mut self, stub: DomId, request: Request, client: Client) {
        self.waiting.push((stub, request, client));
    }

    /// The stubs about which requests wait.
    pub fn waited_for(&self) -> Vec<DomId> {
        self.waiting.iter().map(|&(stub, ..)| stub).collect()
    }

    /// The requests about a stub that have waited.
    pub fn waited(&mut self, stub: DomId) -> Vec<(Request, Client)> {
        let all = std::mem::take(&mut self.waiting);
        let (now, waiting) = all.into_iter().partition(|&(other, ..)| other == stub);
        self.waiting = waiting;
        now.into_iter()
            .map(|(_, request, client)| (request, client))
            .collect()
    }

    /// A job that has ended.
    pub fn ended(&mut self) -> Option<(DomId, Outcome)> {
        let (stub, outcome) = self.outcomes.try_recv().ok()?;
        self.running.remove(&stub);
        Some((stub, outcome))
    }
}

/// Tells of a job's end, a panic included.
struct JobEnd {
    stub: DomId,
    outcome: Option<Outcome>,
    sender: Sender<(DomId, Outcome)>,
    wake: Wake,
}

impl Drop for JobEnd {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            // Fails only if the main thread has ended.
            let _ = self.sender.send((self.stub, outcome));
        }
        self.wake.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn end(jobs: &mut Jobs) -> (DomId, Outcome) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match jobs.ended() {
                Some(ended) => return ended,
                None if Instant::now() > deadline => panic!("it has not ended"),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    #[test]
    fn one_attachment_has_one_job_at_a_time_and_others_have_theirs() {
        let mut jobs = Jobs::new(Wake::new().unwrap());
        let (go_on, wait) = channel::<()>();
        let slow = move || {
            wait.recv().unwrap();
            Released::default()
        };
        jobs.reclaim(4, slow).unwrap();
        assert!(jobs.reclaim(4, Released::default).is_err());
        assert!(jobs.is_closed(4) && !jobs.is_busy(5));
        assert_eq!(
            jobs.status(4).unwrap(),
            "its devices are taken back, for 0 s so far"
        );
        jobs.reclaim(5, Released::default).unwrap();
        assert!(matches!(end(&mut jobs), (5, Outcome::Reclaimed(_))));
        assert!(jobs.ended().is_none());
        go_on.send(()).unwrap();
        assert!(matches!(end(&mut jobs), (4, Outcome::Reclaimed(_))));
        assert!(!jobs.is_busy(4));
        assert_eq!(jobs.status(4), None);
    }

    #[test]
    fn a_job_that_panics_ends_with_a_problem() {
        let mut jobs = Jobs::new(Wake::new().unwrap());
        jobs.reclaim(4, || panic!("as ordered")).unwrap();
        let (stub, Outcome::Reclaimed(released)) = end(&mut jobs) else {
            panic!("another job's end");
        };
        assert_eq!(stub, 4);
        assert_eq!(released.problems.len(), 1);
        assert!(!jobs.is_busy(4));
    }

    #[test]
    fn a_reset_leaves_the_stub_served_and_tells_why_it_failed() {
        let mut jobs = Jobs::new(Wake::new().unwrap());
        // There is no such device.
        let bdf = "fffe:ff:1f.7".parse().unwrap();
        jobs.reset(4, bdf).unwrap();
        assert!(jobs.is_busy(4) && !jobs.is_closed(4));
        assert!(matches!(end(&mut jobs), (4, Outcome::Reset(at, Err(_))) if at == bdf));
    }
}
