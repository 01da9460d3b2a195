//! One worker: it is tied to its launcher, set up and confined. It stands by until no other worker serves, then serves.

use super::service::Service;
use crate::serve::confine::confine;
use crate::serve::error::ServeError;
use landlock::RulesetStatus;
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::set_name;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

/// Name of a worker in a list of processes, as long as it is being set up.
const STARTING: &CStr = c"bulkhead-start";

/// Serves all stubs of this host as a worker of the launcher at the other end of `socket`: sets all up, and waits until no
/// other worker serves. Returns on errors, and when it is told to end (SIGTERM).
pub fn work(socket: OwnedFd) -> Result<(), ServeError> {
    // A worker must not outlive the launcher: it has a copy of the service's lock, and no other service could start.
    // If the launcher has died before this call, its end of the socket is closed, and the first order fails.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| ServeError::Tie(error.into()))?;
    // No other process of the same user can attach to it, or read its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| ServeError::Tie(error.into()))?;
    let _ = set_name(STARTING);
    let mut service = Service::new(socket)?;
    // What needs more rights is open by now. What follows handles what guests and stubs write.
    match confine()? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            log::info!(
                "this kernel's landlock knows less than is asked of it: files are out of reach, signals may not be"
            );
        }
        RulesetStatus::NotEnforced => {
            log::warn!(
                "this kernel has no landlock: only the unit's bounds keep this process from files of root"
            );
        }
    }
    if service.wait_for_turn()? {
        service.serve()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::control::Reply;
    use crate::handover::reclaim::Released;
    use crate::host::launcher::{Launcher, Order};
    use crate::serve::clients;
    use crate::serve::confine::tests::confined;
    use crate::serve::jobs::Jobs;
    use crate::serve::wake::{Wake, signal};
    use crate::status::process::ProcessStats;
    use rustix::event::{PollFd, PollFlags, poll};
    use signal_hook::consts::SIGTERM;
    use std::io;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::thread;

    /// All that the service does besides its work on devices, under the filters that it serves with.
    #[test]
    fn all_that_the_service_waits_for_works_when_it_is_confined() {
        let wake = Wake::new().unwrap();
        let end = signal(SIGTERM).unwrap();
        let (mut launcher, launchers) = Launcher::to_a_thread();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut ours, b"{\"request\":\"follow\",\"stub\":4}\n").unwrap();
        let done = confined(move || {
            let mut jobs = Jobs::new(wake.clone());
            jobs.reclaim(4, Released::default)
                .map_err(|error| format!("job: {error}"))?;
            let requests = clients::tests::attend_in_thread(theirs, &wake);
            let asked = requests.recv().map_err(|error| format!("request: {error}"))?;
            asked.client.finish(|| Reply::Followed);
            let mut fds = [
                PollFd::new(&wake, PollFlags::IN),
                PollFd::new(&end, PollFlags::IN),
            ];
            let waited = poll(&mut fds, None).map_err(|error| format!("poll: {error}"))?;
            wake.clear();
            launcher
                .tell_alive()
                .map_err(|error| format!("a sign of life: {error}"))?;
            let mut other = launcher.connect().map_err(|error| format!("launcher: {error}"))?;
            let refused = other.run(Order::DestroyDomain { domid: 32_751 });
            drop((launcher, other));
            while jobs.ended().is_none() {
                thread::yield_now();
            }
            ProcessStats::read(Path::new("/proc/self")).map_err(|error| format!("holdings: {error}"))?;
            Ok::<_, String>((waited, refused.is_err()))
        });
        assert_eq!(done, Ok((1, true)));
        launchers.join().unwrap();
        let mut answer = String::new();
        io::Read::read_to_string(&mut ours, &mut answer).unwrap();
        assert_eq!(answer, "{\"reply\":\"followed\"}\n");
    }
}
