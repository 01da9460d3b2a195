//! The service's first process, the launcher, keeps two workers. One serves. The other one is set up and stands by: it serves
//! from the moment when the first one dies, because guests wait meanwhile.
//!
//! The control socket, the lock and the kernel's events belong to the launcher, and outlive each worker. A worker that ends with
//! an error cannot do its work on this host as it is now. Then the service ends too, and its supervisor decides what follows.

use crate::control::{ControlError, Listener, ServiceFiles};
use crate::host::launcher::desk::{Desk, News, ReadyWorker, SharedFiles, WorkerId, attend};
use crate::host::launcher::messages::{ServiceHistory, pair};
use crate::host::systemd::{self, Watchdog};
use crate::host::thread_state::ThreadState;
use crate::host::uevent::Uevents;
use crate::host::{HostError, check_privilege, program};
use crate::serve::crew::{Activity, Crew, CrewAction, Role, Sighting};
use crate::serve::wake::{Wake, signal};
use bulkhead_config::declaration::DIRECTORY;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use signal_hook::consts::{SIGCHLD, SIGTERM};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use thiserror::Error;

/// Why the service ended.
#[derive(Debug, Error)]
pub enum WorkersError {
    /// This is no host that can be served.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is a service already, or the socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Errors of devices could not be heard of.
    #[error("cannot listen to the kernel's events (netlink), which tell of errors of devices")]
    Uevents(#[source] io::Error),
    /// Signals or other threads could not be heard.
    #[error("cannot be woken by signals and other threads")]
    Events(#[source] io::Error),
    /// The first worker cannot be started.
    #[error("cannot start a worker, which serves the stubs")]
    Start(#[source] io::Error),
    /// The files by which commands find the service have been replaced or removed.
    #[error(
        "the socket or the lock of the service was taken away from /run/bulkhead: start the service again"
    )]
    Files,
    /// A worker could not do its work.
    #[error("the worker has ended ({0}): its own message says why")]
    Worker(ExitStatus),
}

/// At its end the service waits so long for its workers, and then so long for what they have ordered.
const END: Duration = Duration::from_secs(10);
/// Interval at which the end of a process is polled.
const POLL: Duration = Duration::from_millis(20);
/// The exit status of a Rust program whose main thread has panicked.
const PANICKED: i32 = 101;

/// Runs the service. Returns on errors, and when it is told to end (SIGTERM). If another service runs, this one waits for its
/// end if it is `supervised`, and fails otherwise.
pub fn run(supervised: bool) -> Result<(), WorkersError> {
    // Away from the terminal and the session of the command that started this process. Fails under systemd, which has done
    // so already.
    let _ = rustix::process::setsid();
    check_privilege()?;
    let (socket, lock) = Listener::bind(supervised)?.into_files();
    make_declarations_directory();
    let uevents = Uevents::listen().map_err(WorkersError::Uevents)?;
    raise_file_limit();
    let wake = Wake::new().map_err(WorkersError::Events)?;
    let (sender, news) = channel();
    let heard = wake.clone();
    let files = SharedFiles {
        socket,
        lock,
        uevents,
    };
    let desk = Arc::new(Desk::new(files, move |news| {
        // Fails only when the service ends.
        let _ = sender.send(news);
        heard.wake();
    }));
    // Before any stub dies, for its guest waits then.
    desk.prepare_spare();
    let mut workers = Workers {
        command: worker,
        crew: Crew::new(Instant::now()),
        history: begin_history(),
        hanging: None,
        processes: BTreeMap::new(),
        waiting: BTreeMap::new(),
        news,
        files: ServiceFiles::now(),
        desk,
        wake,
        end: signal(SIGTERM).map_err(WorkersError::Events)?,
        children: signal(SIGCHLD).map_err(WorkersError::Events)?,
        watchdog: Watchdog::of_unit(Instant::now()),
    };
    let ended = workers.keep();
    // Without a supervisor nobody waits for it.
    let _ = systemd::notify_stopping();
    workers.close(END);
    ended
}

/// Makes the directory of declarations, for a worker can only read one that exists when it confines itself. Below systemd the
/// directory is read-only, and was made by the installation.
fn make_declarations_directory() {
    if let Err(error) = std::fs::create_dir_all(DIRECTORY)
        && !Path::new(DIRECTORY).is_dir()
    {
        log::warn!(
            "no guest can be declared, for there is no directory {DIRECTORY}, and it cannot be made: {error}"
        );
    }
}

/// The history of a service that is started now. A clock that is wrong by decades counts as 0.
fn begin_history() -> ServiceHistory {
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    ServiceHistory {
        started: started.unwrap_or_default().as_secs(),
        ..ServiceHistory::default()
    }
}

/// The command that is a worker.
fn worker() -> Command {
    let mut command = program::own();
    command.arg("worker");
    command
}

/// Raises the limit of open files of this process and its workers as far as possible. Each stub takes six files, and one for
/// each device.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot have more than {:?} files open: {error}", limit.current);
    }
}

struct Workers {
    command: fn() -> Command,
    crew: Crew,
    history: ServiceHistory,
    /// The worker that was killed last.
    hanging: Option<WorkerId>,
    processes: BTreeMap<WorkerId, Child>,
    /// The turns of the workers that are set up.
    waiting: BTreeMap<WorkerId, ReadyWorker>,
    news: Receiver<News>,
    files: ServiceFiles,
    desk: Arc<Desk>,
    wake: Wake,
    /// Ready when the service is to end.
    end: UnixStream,
    /// Ready when a process has ended.
    children: UnixStream,
    watchdog: Watchdog,
}

impl Workers {
    /// Keeps the workers until the service is told to end, or cannot go on.
    fn keep(&mut self) -> Result<(), WorkersError> {
        loop {
            while let Ok(news) = self.news.try_recv() {
                self.hear(news);
            }
            self.see_ends()?;
            if self.watchdog.is_due(Instant::now())
                && let Err(error) = systemd::notify_alive()
            {
                log::warn!("cannot tell systemd that the service does not hang: {error}");
            }
            match self.crew.step(Instant::now()) {
                Some(CrewAction::Start(worker)) => self.start(worker)?,
                Some(CrewAction::Serve(worker)) => self.serve(worker),
                Some(CrewAction::Kill(worker)) => self.kill(worker),
                Some(CrewAction::Look(worker)) => self.look(worker),
                None if self.wait()? => return Ok(()),
                None => {}
            }
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Ready(turn) => {
                self.crew.is_ready(turn.worker);
                self.waiting.insert(turn.worker, turn);
            }
            News::Began(worker) => {
                self.crew.has_begun(worker, Instant::now());
                if let Err(error) = systemd::notify_ready() {
                    log::warn!("cannot tell systemd that the service is ready: {error}");
                }
            }
        }
    }

    fn start(&mut self, worker: WorkerId) -> Result<(), WorkersError> {
        let (desk, command) = (Arc::clone(&self.desk), self.command);
        let start = || {
            // If the process does not start, its end of the pair is dropped, and the thread ends too.
            let (ours, theirs) = pair()?;
            // A worker whose messages make no sense loses its connection, and ends.
            thread::Builder::new().spawn(move || attend(ours, worker, &desk))?;
            command().stdin(Stdio::from(theirs)).spawn()
        };
        match start() {
            Ok(process) => _ = self.processes.insert(worker, process),
            Err(error) => {
                let ended = self.crew.ended(worker, Instant::now());
                // Before any worker has served, the host cannot run one; later it is short of something for a while.
                if ended == Role::Server && !self.crew.has_served {
                    return Err(WorkersError::Start(error));
                }
                log::warn!("cannot start a worker: {error}; tried again");
            }
        }
        Ok(())
    }

    fn serve(&mut self, worker: WorkerId) {
        if let Some(turn) = self.waiting.remove(&worker) {
            turn.give(self.history.clone());
        }
    }

    fn kill(&mut self, worker: WorkerId) {
        if let Some(process) = self.processes.get_mut(&worker) {
            log::warn!("worker {} does not answer, or hangs: it is killed", process.id());
            // It may have ended by itself.
            let _ = process.kill();
            self.hanging = Some(worker);
        }
    }

    /// Looks at the worker that serves.
    fn look(&mut self, worker: WorkerId) {
        let process = self.processes.get(&worker).map(Child::id);
        // A process that is gone shows nothing, and its end is seen soon.
        let thread = process.and_then(ThreadState::of_main).unwrap_or_default();
        let seen = Sighting {
            has_told: self.desk.take_alive(worker),
            activity: match thread.state {
                'T' | 't' => Activity::Stopped,
                'R' => Activity::Runs,
                _ => Activity::Waits,
            },
            queued: thread.queued,
        };
        self.crew.saw(worker, Instant::now(), seen);
    }

    /// Reaps the workers that have ended.
    fn see_ends(&mut self) -> Result<(), WorkersError> {
        let mut ended = Vec::new();
        // Each worker by its number: the desk has children of its own, and waits for those.
        for (&worker, process) in &mut self.processes {
            if let Some(status) = process.try_wait().map_err(WorkersError::Events)? {
                ended.push((worker, process.id(), status));
            }
        }
        self.processes
            .retain(|worker, _| !ended.iter().any(|(other, ..)| other == worker));
        for &(worker, process, status) in &ended {
            // Its orders go on. Whoever has a copy of its connections cannot give new ones.
            self.desk.cut(worker);
            self.waiting.remove(&worker);
            match self.crew.ended(worker, Instant::now()) {
                Role::Server if is_failure(status) => return Err(WorkersError::Worker(status)),
                Role::Server => {
                    if self.hanging == Some(worker) {
                        self.history.hung += 1;
                    } else {
                        self.history.died += 1;
                    }
                    log::warn!("worker {process} has ended: {status}; another one takes its place");
                }
                Role::Spare => {
                    log::warn!(
                        "worker {process}, which stood by, has ended: {status}; another one is started later"
                    );
                }
            }
        }
        // Checked when a worker has ended: one that was taken over may have removed or replaced the files.
        if !ended.is_empty() && ServiceFiles::now() != self.files {
            return Err(WorkersError::Files);
        }
        Ok(())
    }

    /// Waits for something to do. Returns true if the service is told to end.
    fn wait(&mut self) -> Result<bool, WorkersError> {
        let now = Instant::now();
        let idle = self
            .crew
            .idle(now)
            .into_iter()
            .chain(self.watchdog.idle(now))
            .min();
        let idle = idle.and_then(|idle| Timespec::try_from(idle).ok());
        let mut fds = [
            PollFd::new(&self.end, PollFlags::IN),
            PollFd::new(&self.children, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        match poll(&mut fds, idle.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(WorkersError::Events(error.into())),
        }
        let is_to_end = fds[0].revents().contains(PollFlags::IN);
        // Read until it is empty: a byte that stays would end the next wait at once.
        while (&self.children).read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        self.wake.clear();
        Ok(is_to_end)
    }

    /// Ends the workers, and waits for them for this time at most, and as long again for what they have ordered.
    fn close(&mut self, longest: Duration) {
        for process in self.processes.values() {
            // It may have ended by itself.
            let _ = i32::try_from(process.id())
                .ok()
                .and_then(Pid::from_raw)
                .map(|process| kill_process(process, Signal::TERM));
        }
        // All were told to end before, so that they end side by side.
        let deadline = Instant::now() + longest;
        for process in self.processes.values_mut() {
            while let Ok(None) = process.try_wait()
                && Instant::now() < deadline
            {
                thread::sleep(POLL);
            }
            // Nothing happens if it has ended.
            let _ = process.kill();
            let _ = process.wait();
        }
        self.desk.close(longest);
    }
}

/// True if a worker has ended with an error; false if it has crashed, or was told to end.
fn is_failure(status: ExitStatus) -> bool {
    !status.success() && status.signal().is_none() && status.code() != Some(PANICKED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A service whose workers are this command, and what tells it to end.
    fn service(command: fn() -> Command) -> (Workers, UnixStream) {
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        let files = SharedFiles {
            socket: file(),
            lock: file(),
            uevents: file(),
        };
        let (sender, news) = channel();
        let (end, ender) = UnixStream::pair().unwrap();
        let workers = Workers {
            command,
            crew: Crew::new(Instant::now()),
            history: begin_history(),
            hanging: None,
            processes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            news,
            files: ServiceFiles::now(),
            desk: Arc::new(Desk::new(files, move |news| sender.send(news).unwrap())),
            wake: Wake::new().unwrap(),
            end,
            children: signal(SIGCHLD).unwrap(),
            watchdog: Watchdog::within(None, Instant::now()),
        };
        (workers, ender)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_worker_that_cannot_go_on_ends_the_service() {
        let (mut workers, _ender) = service(|| shell("exit 1"));
        assert!(matches!(workers.keep(), Err(WorkersError::Worker(status)) if status.code() == Some(1)));
    }

    #[test]
    fn workers_that_crash_are_started_again_until_the_service_is_told_to_end() {
        let (mut workers, mut ender) = service(|| shell("kill -KILL $$"));
        let teller = thread::spawn(move || {
            thread::sleep(ms(450));
            io::Write::write_all(&mut ender, b"x").unwrap();
        });
        let began = Instant::now();
        workers.keep().unwrap();
        teller.join().unwrap();
        // At 0, 100, 200, 300 and 400 ms, or later. A busy machine may tell it to end later too.
        let most = 1 + began.elapsed().as_millis() / 100;
        let started = u128::from(workers.crew.next);
        assert!((2..=most).contains(&started), "{started} of {most}");
        // The last one may still run.
        let died = u128::from(workers.history.died);
        assert!(died == started || died + 1 == started, "{died} of {started}");
        assert_eq!(workers.history.hung, 0);
    }

    #[test]
    fn a_worker_that_does_not_end_is_killed_and_waited_for() {
        let (mut workers, mut ender) = service(|| shell("trap '' TERM; while :; do sleep 1; done"));
        io::Write::write_all(&mut ender, b"x").unwrap();
        workers.keep().unwrap();
        // Until the shell is deaf.
        thread::sleep(ms(200));
        workers.close(ms(100));
        let process = workers.processes.values_mut().next().unwrap();
        assert_eq!(process.try_wait().unwrap().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_worker_that_cannot_go_on_is_told_from_one_that_has_crashed() {
        let failed = ExitStatus::from_raw(1 << 8);
        let (panicked, killed) = (ExitStatus::from_raw(PANICKED << 8), ExitStatus::from_raw(9));
        let told = ExitStatus::from_raw(0);
        assert_eq!(
            [failed, panicked, killed, told].map(is_failure),
            [true, false, false, false]
        );
    }
}
