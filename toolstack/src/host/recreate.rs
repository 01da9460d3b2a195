//! Creates a stub anew, with the number that it had. The service's launcher runs a short-lived process for it
//! (`bulkhead recreate`), so that libxl's processes, signals and memory stay out of the launcher.

use crate::host::{domid_history, program};
use crate::say;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;
use xen::xenctrl::{self, DomId, DomainState, Xenctrl, XenctrlError};
use xen::xenlight::{Xenlight, XenlightError};

/// The domain that is to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewStub {
    /// The number of the domain.
    pub domid: DomId,
    /// Its configuration, as `xl list -l` prints it.
    pub config: Value,
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recreated {
    domid: DomId,
    /// Time until the old domain was gone.
    waited: Duration,
    /// Time from then until the new domain was there.
    took: Duration,
    attempts: u32,
}

impl fmt::Display for Recreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domid,
            waited,
            took,
            attempts,
        } = self;
        write!(
            f,
            "domain {domid}: the old one was gone after {} ms, the new one was there {} ms later, by attempt {attempts}",
            waited.as_millis(),
            took.as_millis()
        )
    }
}

/// Why the domain was not created.
#[derive(Debug, Error)]
pub enum RecreateError {
    /// The order cannot be parsed.
    #[error("cannot read the order")]
    Order(#[source] io::Error),
    /// The lock cannot be had.
    #[error("cannot lock {LOCK}")]
    Lock(#[source] io::Error),
    /// The configuration has no `c_info`.
    #[error("the stub's configuration was kept without `c_info`")]
    Config,
    /// Xen's version cannot be read.
    #[error("cannot read Xen's version")]
    Version(#[source] io::Error),
    /// Xen's control interface cannot be opened.
    #[error(transparent)]
    Xenctrl(#[from] XenctrlError),
    /// Xen did not tell the domain's state.
    #[error("cannot ask Xen about domain {domid}")]
    DomainState {
        /// The domain.
        domid: DomId,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another domain has the number, or something keeps the old one.
    #[error("domain {domid} is still there: {state:?}")]
    Taken {
        /// The number.
        domid: DomId,
        /// The domain's state, by Xen.
        state: DomainState,
    },
    /// libxl failed.
    #[error(transparent)]
    Xenlight(#[from] XenlightError),
}

/// Locked, shared, by each process that creates a stub.
const LOCK: &str = "/run/bulkhead/recreate.lock";
/// Limit for Xen to let go of the old domain. The guest that waits for the new one has two seconds in all.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Interval of the checks whether it has.
const POLL: Duration = Duration::from_millis(2);
/// Limit of attempts by libxl. Xen may refuse a number for a moment after the domain has gone.
const ATTEMPTS: u32 = 5;
/// Delay before a spare process is started, after the last order.
const SPARE_DELAY: Duration = Duration::from_secs(2);
/// Number of last lines of libxl's messages that are shown.
const LINES_SHOWN: usize = 4;
/// Number of attempts for which only this number is removed from libxl's list of recent ones. Later attempts clear
/// the list.
const STRIKES: u32 = 2;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A process that is ready to create a domain, with libxl loaded, so that guests do not wait for that. It ends with
/// the process that holds it.
#[derive(Debug, Default)]
pub struct Spare(Mutex<Option<Child>>);

impl Spare {
    /// Starts the process after [`SPARE_DELAY`], if there is none. What was started last has the processor first.
    pub fn prepare_soon(self: &Arc<Self>) {
        let spare = Arc::clone(self);
        thread::spawn(move || {
            thread::sleep(SPARE_DELAY);
            let mut spare = spare.lock();
            if spare.is_none() {
                // Without one, the next order starts its own, and says what is wrong.
                *spare = start().ok();
            }
        });
    }

    /// Ends the process, and waits for its end.
    pub fn end(&self) {
        if let Some(mut process) = self.lock().take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn take(&self) -> io::Result<Child> {
        let spare = self.lock().take();
        spare.map_or_else(start, Ok)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start() -> io::Result<Child> {
    let mut command = program::own();
    command.arg("recreate").stdout(Stdio::null());
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Has a process create the domain, and waits for it.
pub fn run(domain: &NewStub, spare: &Spare) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot run `bulkhead recreate`: {error}");
    let mut process = spare.take().map_err(failed)?;
    // The process sees the end of its input when this is dropped.
    let told = process
        .stdin
        .take()
        .map(|mut input| input.write_all(&json!(domain).to_string().into_bytes()));
    let output = process.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        // The process prints how long it took, and libxl's complaints.
        say::progress(said.trim_end());
        return Ok(());
    }
    let lines: Vec<_> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match (lines.as_slice(), told) {
        ([], Some(Err(error))) => Err(failed(error)),
        ([], _) => Err(failed(io::Error::other(output.status.to_string()))),
        (lines, _) => Err(lines[lines.len().saturating_sub(LINES_SHOWN)..].join("; ")),
    }
}

/// The process itself: creates the domain that comes in by `input`, paused, after what is left of the last one with its
/// number is destroyed.
pub fn recreate(input: &mut impl Read) -> Result<Recreated, RecreateError> {
    // Slow things come first: the order may come much later.
    let xen = Xenctrl::open()?;
    let mut xenlight = Xenlight::open(&xenctrl::version().map_err(RecreateError::Version)?)?;
    let order: NewStub =
        serde_json::from_reader(input).map_err(|error| RecreateError::Order(error.into()))?;
    // The lock is held until the process ends: a service that finds the domain half made knows that it is not done.
    let _lock = lock(FlockOperation::LockShared).map_err(RecreateError::Lock)?;
    let domid = order.domid;
    let config = numbered(order.config, domid).ok_or(RecreateError::Config)?;
    if let DomainState::ShutDown(_) = domain_state(&xen, domid)? {
        // Another process may be destroying it too. Only its end counts.
        let _ = xenlight.destroy(domid);
    }
    let began = Instant::now();
    let deadline = began + TIMEOUT;
    let mut attempts = 0;
    let mut gone = None;
    loop {
        match domain_state(&xen, domid)? {
            DomainState::Absent => {
                gone.get_or_insert_with(Instant::now);
            }
            state if Instant::now() >= deadline || state == DomainState::Alive => {
                return Err(RecreateError::Taken { domid, state });
            }
            _ => {
                thread::sleep(POLL);
                continue;
            }
        }
        attempts += 1;
        // The numbers of other domains stay refused, unless this libxl keeps its list in another place or form.
        if attempts > STRIKES || domid_history::strike(domid).is_err() {
            xenlight.forget_numbers()?;
        }
        match xenlight.create(&config) {
            Ok(_) => {
                let gone = gone.unwrap_or(began);
                return Ok(Recreated {
                    domid,
                    waited: gone.duration_since(began),
                    took: gone.elapsed(),
                    attempts,
                });
            }
            Err(_) if attempts < ATTEMPTS && Instant::now() < deadline => thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until no process creates a stub. One that a launcher of before has started goes on after the launcher's
/// death.
pub fn wait_for_all() -> io::Result<()> {
    lock(FlockOperation::LockExclusive).map(drop)
}

fn lock(operation: FlockOperation) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(LOCK)?;
    flock(&file, operation)?;
    Ok(file)
}

fn domain_state(xen: &Xenctrl, domid: DomId) -> Result<DomainState, RecreateError> {
    xen.domain_state(domid)
        .map_err(|source| RecreateError::DomainState { domid, source })
}

/// The configuration with the number that the domain is to have, and without network interfaces: these come when it serves
/// (`serve::revive::network`).
fn numbered(mut config: Value, domid: DomId) -> Option<String> {
    config.as_object_mut()?.remove("nics");
    let info = config.get_mut("c_info")?.as_object_mut()?;
    info.insert("domid".into(), json!(domid));
    Some(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_gets_the_number_and_keeps_the_rest_but_for_the_network() {
        let config = json!({ "c_info": { "name": "web-bulkhead", "domid": 9 }, "b_info": { "max_vcpus": 1 }, "nics": [{}] });
        let text = numbered(config, 4).unwrap();
        let expected =
            json!({ "c_info": { "name": "web-bulkhead", "domid": 4 }, "b_info": { "max_vcpus": 1 } });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        for nonsense in [json!({}), json!([]), json!({ "c_info": 5 }), json!(null)] {
            assert_eq!(numbered(nonsense, 4), None);
        }
    }
}
