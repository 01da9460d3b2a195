//! The service's first process: the launcher, which keeps two workers. One serves; the other has set all up and stands by,
//! and serves from the moment at which the first one dies, for guests wait meanwhile.
//!
//! The socket, the lock and the kernel's events are the launcher's, and outlive each worker. A worker that ends with an
//! error cannot do its work on this host as it is now: then the service ends with it, and whoever supervises the service
//! decides.

use crate::control::{ControlError, Listener, Place};
use crate::host::launcher::desk::{Desk, News, SharedFiles, Turn, WorkerId, attend};
use crate::host::launcher::messages::pair;
use crate::host::uevent::Uevents;
use crate::host::{HostError, check_privilege, program, systemd};
use crate::serve::wake::Wake;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use signal_hook::consts::{SIGCHLD, SIGTERM};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why the service ended.
#[derive(Debug, Error)]
pub enum WorkersError {
    /// Not on this host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is a service already, or no place for the socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The kernel will not tell of errors.
    #[error("cannot listen to the kernel's events (netlink), which tell of errors of devices")]
    Uevents(#[source] io::Error),
    /// No way to hear of what happens.
    #[error("cannot be told of signals and by other threads")]
    Events(#[source] io::Error),
    /// No worker.
    #[error("cannot start a worker, which serves the stubs")]
    Start(#[source] io::Error),
    /// Something has been done to the files by which commands find the service.
    #[error(
        "the socket or the lock of the service was taken away from /run/bulkhead: start the service again"
    )]
    Place,
    /// The worker could not go on.
    #[error("the worker has ended ({0}) and has said why")]
    Worker(ExitStatus),
}

/// How long after a worker has begun to serve the next spare one is started: what was started last has the processor first.
const SETTLED: Duration = Duration::from_secs(1);
/// Between two starts of workers, at least; twice as long after each worker more that dies soon, once so many in a row have.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const EARLY_DEATHS: u32 = 5;
/// A worker that has served so long has not died soon.
const SOUND: Duration = Duration::from_secs(1);
/// How long a worker may take to be set up while nobody serves, and to begin when its turn has come. It is killed then.
const SET_UP: Duration = Duration::from_secs(30);
const BEGIN: Duration = Duration::from_secs(5);
/// How long the service waits for its workers when it ends, and as long for what they have ordered.
const END: Duration = Duration::from_secs(10);
/// Between two looks whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);
/// When a spare worker that could not be set up is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// The exit status of a Rust program whose main thread has panicked.
const PANICKED: i32 = 101;

/// Which worker serves, which one stands by, and when the next is to be started.
#[derive(Debug)]
struct Crew {
    serving: Option<Serving>,
    spare: Option<Spare>,
    /// When to start the next spare one, if there is none.
    start: Instant,
    /// When one was started last.
    started: Option<Instant>,
    /// How many in a row have died soon.
    early_deaths: u32,
    /// True once one has begun to serve.
    has_served: bool,
    next: WorkerId,
}

#[derive(Debug)]
struct Serving {
    worker: WorkerId,
    since: Instant,
    has_begun: bool,
}

#[derive(Debug)]
struct Spare {
    worker: WorkerId,
    since: Instant,
    is_ready: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Start a worker, which is called so.
    Start(WorkerId),
    /// Have this one serve.
    Serve(WorkerId),
    /// Kill this one, which takes too long: another is to take its place.
    Kill(WorkerId),
}

/// Who has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// A spare one, while another serves.
    Spare,
    /// The one that served, or was to be the first or the next to do so.
    Server,
}

impl Crew {
    const fn new(now: Instant) -> Self {
        Self {
            serving: None,
            spare: None,
            start: now,
            started: None,
            early_deaths: 0,
            has_served: false,
            next: 0,
        }
    }

    fn step(&mut self, now: Instant) -> Option<Step> {
        if let Some(worker) = self.late(now) {
            return Some(Step::Kill(worker));
        }
        if self.serving.is_none()
            && let Some(Spare {
                worker,
                is_ready: true,
                ..
            }) = self.spare
        {
            self.serving = Some(Serving {
                worker,
                since: now,
                has_begun: false,
            });
            (self.spare, self.start) = (None, now + SETTLED);
            return Some(Step::Serve(worker));
        }
        if self.spare.is_none() && now >= self.start {
            let worker = self.next;
            self.next += 1;
            self.started = Some(now);
            self.spare = Some(Spare {
                worker,
                since: now,
                is_ready: false,
            });
            return Some(Step::Start(worker));
        }
        None
    }

    /// The worker that guests wait for, and until when they do.
    fn awaited(&self) -> Option<(WorkerId, Instant)> {
        match (&self.serving, &self.spare) {
            (Some(serving), _) => (!serving.has_begun).then(|| (serving.worker, serving.since + BEGIN)),
            (None, Some(spare)) => (!spare.is_ready).then(|| (spare.worker, spare.since + SET_UP)),
            (None, None) => None,
        }
    }

    fn late(&mut self, now: Instant) -> Option<WorkerId> {
        let (worker, _) = self.awaited().filter(|&(_, until)| now >= until)?;
        // Once, for its death is waited for.
        if let Some(serving) = &mut self.serving {
            serving.since = now;
        } else if let Some(spare) = &mut self.spare {
            spare.since = now;
        }
        Some(worker)
    }

    /// How long there is nothing to do, if nothing happens; `None` for ever.
    fn idle(&self, now: Instant) -> Option<Duration> {
        let start = self.spare.is_none().then_some(self.start);
        let late = self.awaited().map(|(_, until)| until);
        let next = start.into_iter().chain(late).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// A worker is set up.
    fn is_ready(&mut self, worker: WorkerId) {
        if let Some(spare) = self.spare.as_mut().filter(|spare| spare.worker == worker) {
            spare.is_ready = true;
        }
    }

    /// A worker has begun to serve.
    fn has_begun(&mut self, worker: WorkerId, now: Instant) {
        if let Some(serving) = self.serving.as_mut().filter(|serving| serving.worker == worker) {
            (serving.has_begun, serving.since) = (true, now);
            self.has_served = true;
        }
    }

    /// A worker has ended, or could not be started.
    fn ended(&mut self, worker: WorkerId, now: Instant) -> Ended {
        if let Some(serving) = self.serving.take_if(|serving| serving.worker == worker) {
            let is_sound = serving.has_begun && now >= serving.since + SOUND;
            self.early_deaths = if is_sound { 0 } else { self.early_deaths + 1 };
        } else {
            let was_ready = self.spare.take().is_some_and(|spare| spare.is_ready);
            if self.serving.is_some() {
                // One that cannot be set up now cannot be so soon.
                self.start = now + if was_ready { SETTLED } else { RETRY };
                return Ended::Spare;
            }
            self.early_deaths += 1;
        }
        let soon = self
            .started
            .map_or(now, |started| now.max(started + self.pause()));
        self.start = soon;
        Ended::Server
    }

    fn pause(&self) -> Duration {
        let doublings = self.early_deaths.saturating_sub(EARLY_DEATHS).min(16);
        (PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
    }
}

/// Runs the service. Returns on errors, and when it is told to end (SIGTERM). One that is `supervised` waits for the end of
/// another that runs.
pub fn run(supervised: bool) -> Result<(), WorkersError> {
    // Away from the terminal and session of the command that started us; already so under systemd.
    let _ = rustix::process::setsid();
    check_privilege()?;
    let (socket, lock) = Listener::bind(supervised)?.into_files();
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
        // Nobody hears of it once the service ends.
        let _ = sender.send(news);
        heard.wake();
    }));
    desk.prepare_spare();
    let mut workers = Workers {
        command: worker,
        crew: Crew::new(Instant::now()),
        processes: BTreeMap::new(),
        waiting: BTreeMap::new(),
        news,
        place: Place::now(),
        desk,
        wake,
        end: signal(SIGTERM).map_err(WorkersError::Events)?,
        children: signal(SIGCHLD).map_err(WorkersError::Events)?,
    };
    let ended = workers.keep();
    workers.close(END);
    ended
}

/// What starts a worker.
fn worker() -> Command {
    let mut command = program::own();
    command.arg("worker");
    command
}

/// Becomes ready at a signal.
fn signal(signal: i32) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal, sender)?;
    Ok(receiver)
}

/// Lets this process and its workers have as many files open as they may: each stub takes six, and one for each device.
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
    processes: BTreeMap<WorkerId, Child>,
    /// The workers that are set up, and wait for their turn.
    waiting: BTreeMap<WorkerId, Turn>,
    news: Receiver<News>,
    place: Place,
    desk: Arc<Desk>,
    wake: Wake,
    /// Ready when the service is to end.
    end: UnixStream,
    /// Ready when a process has ended.
    children: UnixStream,
}

impl Workers {
    /// Keeps the workers until the service is told to end, or cannot go on.
    fn keep(&mut self) -> Result<(), WorkersError> {
        loop {
            while let Ok(news) = self.news.try_recv() {
                self.hear(news);
            }
            self.see_ends()?;
            match self.crew.step(Instant::now()) {
                Some(Step::Start(worker)) => self.start(worker)?,
                Some(Step::Serve(worker)) => self.serve(worker),
                Some(Step::Kill(worker)) => self.kill(worker),
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
            let (ours, theirs) = pair()?;
            // One whose messages make no sense loses its connection, and ends.
            thread::Builder::new().spawn(move || attend(ours, worker, &desk))?;
            command().stdin(Stdio::from(theirs)).spawn()
        };
        match start() {
            Ok(process) => _ = self.processes.insert(worker, process),
            Err(error) => {
                let ended = self.crew.ended(worker, Instant::now());
                if ended == Ended::Server && !self.crew.has_served {
                    return Err(WorkersError::Start(error));
                }
                log::warn!("cannot start a worker: {error}; tried again");
            }
        }
        Ok(())
    }

    fn serve(&mut self, worker: WorkerId) {
        if let Some(turn) = self.waiting.remove(&worker) {
            turn.give();
        }
    }

    fn kill(&mut self, worker: WorkerId) {
        if let Some(process) = self.processes.get_mut(&worker) {
            log::warn!("worker {} does not answer: it is killed", process.id());
            // It may have ended by itself.
            let _ = process.kill();
        }
    }

    /// Takes in which workers have ended.
    fn see_ends(&mut self) -> Result<(), WorkersError> {
        let mut ended = Vec::new();
        for (&worker, process) in &mut self.processes {
            if let Some(status) = process.try_wait().map_err(WorkersError::Events)? {
                ended.push((worker, process.id(), status));
            }
        }
        self.processes
            .retain(|worker, _| !ended.iter().any(|(other, ..)| other == worker));
        for &(worker, process, status) in &ended {
            self.desk.cut(worker);
            self.waiting.remove(&worker);
            match self.crew.ended(worker, Instant::now()) {
                Ended::Server if is_failure(status) => return Err(WorkersError::Worker(status)),
                Ended::Server => {
                    log::warn!("worker {process} has ended: {status}; another one takes its place")
                }
                Ended::Spare => {
                    log::warn!(
                        "worker {process}, which stood by, has ended: {status}; another one is started later"
                    );
                }
            }
        }
        if !ended.is_empty() && Place::now() != self.place {
            return Err(WorkersError::Place);
        }
        Ok(())
    }

    /// Waits for something to do; true if that is to end.
    fn wait(&mut self) -> Result<bool, WorkersError> {
        let idle = self.crew.idle(Instant::now());
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
        // Until it is empty, for what is not read would be ready again at once.
        while (&self.children).read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        self.wake.clear();
        Ok(is_to_end)
    }

    /// Has the workers end, and waits for them, and as long for what they have ordered.
    fn close(&mut self, longest: Duration) {
        for process in self.processes.values() {
            // It may have ended by itself.
            let _ = i32::try_from(process.id())
                .ok()
                .and_then(Pid::from_raw)
                .map(|process| kill_process(process, Signal::TERM));
        }
        let deadline = Instant::now() + longest;
        for process in self.processes.values_mut() {
            while let Ok(None) = process.try_wait()
                && Instant::now() < deadline
            {
                thread::sleep(LOOK);
            }
            // Nothing happens if it has ended.
            let _ = process.kill();
            let _ = process.wait();
        }
        self.desk.close(longest);
    }
}

/// True if a worker has found that it cannot go on; false if it has crashed, or was told to end.
fn is_failure(status: ExitStatus) -> bool {
    !status.success() && status.signal().is_none() && status.code() != Some(PANICKED)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A crew of which the first worker serves since `now`, and the second is ready.
    fn complete(now: Instant) -> Crew {
        let mut crew = Crew::new(now);
        assert_eq!(crew.step(now), Some(Step::Start(0)));
        crew.is_ready(0);
        assert_eq!(crew.step(now), Some(Step::Serve(0)));
        crew.has_begun(0, now);
        assert_eq!(crew.step(now + SETTLED), Some(Step::Start(1)));
        crew.is_ready(1);
        crew
    }

    #[test]
    fn the_first_worker_serves_when_it_is_set_up_and_a_spare_one_follows() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        assert_eq!(crew.idle(now), Some(ms(0)));
        assert_eq!(crew.step(now), Some(Step::Start(0)));
        assert_eq!(crew.step(now), None, "it is not set up yet");
        crew.is_ready(0);
        assert_eq!(crew.step(now), Some(Step::Serve(0)));
        crew.has_begun(0, now);
        assert_eq!((crew.step(now), crew.idle(now)), (None, Some(SETTLED)));
        let later = now + SETTLED;
        assert_eq!(crew.step(later), Some(Step::Start(1)));
        crew.is_ready(1);
        assert_eq!(
            (crew.step(later), crew.idle(later)),
            (None, None),
            "one serves at a time"
        );
    }

    #[test]
    fn a_spare_worker_takes_over_at_once_and_another_stands_by_later() {
        let now = Instant::now();
        let mut crew = complete(now);
        let death = now + ms(5000);
        assert_eq!(crew.ended(0, death), Ended::Server);
        assert_eq!(crew.step(death), Some(Step::Serve(1)));
        assert_eq!(crew.step(death), None);
        assert_eq!(crew.step(death + SETTLED), Some(Step::Start(2)));
    }

    #[test]
    fn a_spare_worker_that_is_not_set_up_yet_takes_over_when_it_is() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        crew.step(now);
        crew.is_ready(0);
        crew.step(now);
        assert_eq!(crew.step(now + SETTLED), Some(Step::Start(1)));
        assert_eq!(crew.ended(0, now + SETTLED), Ended::Server);
        assert_eq!(crew.step(now + SETTLED), None);
        crew.is_ready(1);
        assert_eq!(crew.step(now + SETTLED), Some(Step::Serve(1)));
    }

    #[test]
    fn without_a_spare_worker_one_is_started_but_not_faster_than_so() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        crew.step(now);
        assert_eq!(crew.ended(0, now + ms(30)), Ended::Server, "nobody serves");
        assert_eq!(
            (crew.step(now + ms(30)), crew.idle(now + ms(30))),
            (None, Some(ms(70)))
        );
        assert_eq!(crew.step(now + PAUSE), Some(Step::Start(1)));
        crew.is_ready(1);
        assert_eq!(crew.step(now + PAUSE), Some(Step::Serve(1)));
        assert_eq!(crew.ended(1, now + ms(400)), Ended::Server);
        assert_eq!(
            crew.step(now + ms(400)),
            Some(Step::Start(2)),
            "the last start is long ago"
        );
    }

    #[test]
    fn a_spare_worker_that_dies_is_replaced_later_and_costs_the_other_nothing() {
        let now = Instant::now();
        let death = now + ms(5000);
        let mut crew = complete(now);
        assert_eq!(crew.ended(1, death), Ended::Spare);
        assert_eq!((crew.step(death), crew.idle(death)), (None, Some(SETTLED)));
        assert_eq!(crew.step(death + SETTLED), Some(Step::Start(2)));
        // It could not be set up.
        assert_eq!(crew.ended(2, death + SETTLED), Ended::Spare);
        assert_eq!(crew.idle(death + SETTLED), Some(RETRY));
        assert_eq!(crew.ended(0, death + SETTLED), Ended::Server);
        assert_eq!(
            crew.step(death + SETTLED + PAUSE),
            Some(Step::Start(3)),
            "nobody waits for a retry"
        );
    }

    #[test]
    fn workers_that_die_soon_are_started_more_and_more_slowly_and_one_that_lives_makes_that_good() {
        let mut now = Instant::now();
        let mut crew = Crew::new(now);
        let mut pauses = Vec::new();
        for worker in 0..14 {
            assert_eq!(crew.step(now), Some(Step::Start(worker)));
            crew.is_ready(worker);
            assert_eq!(crew.step(now), Some(Step::Serve(worker)));
            crew.has_begun(worker, now);
            assert_eq!(crew.ended(worker, now), Ended::Server);
            let pause = crew.idle(now).unwrap();
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(
            pauses,
            [
                100, 100, 100, 100, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000
            ]
        );
        crew.step(now);
        crew.is_ready(14);
        crew.step(now);
        crew.has_begun(14, now);
        assert_eq!(crew.ended(14, now + SOUND), Ended::Server);
        assert_eq!(crew.idle(now + SOUND), Some(ms(0)));
    }

    #[test]
    fn a_worker_that_guests_wait_for_in_vain_is_killed_and_another_one_takes_its_place() {
        let now = Instant::now();
        // One that is not set up in time, while nobody serves.
        let mut crew = Crew::new(now);
        crew.step(now);
        assert_eq!(crew.step(now + SET_UP - ms(1)), None);
        assert_eq!(crew.step(now + SET_UP), Some(Step::Kill(0)));
        assert_eq!(
            (crew.step(now + SET_UP), crew.idle(now + SET_UP)),
            (None, Some(SET_UP))
        );
        assert_eq!(crew.ended(0, now + SET_UP), Ended::Server);
        assert_eq!(crew.step(now + SET_UP), Some(Step::Start(1)));
        // One that does not begin when its turn has come.
        let mut crew = complete(now);
        crew.ended(0, now + SETTLED);
        assert_eq!(crew.step(now + SETTLED), Some(Step::Serve(1)));
        assert_eq!(crew.idle(now + SETTLED), Some(SETTLED), "the next spare one");
        assert_eq!(crew.step(now + SETTLED + SETTLED), Some(Step::Start(2)));
        assert_eq!(crew.step(now + SETTLED + BEGIN), Some(Step::Kill(1)));
        crew.is_ready(2);
        assert_eq!(crew.ended(1, now + SETTLED + BEGIN), Ended::Server);
        assert_eq!(crew.step(now + SETTLED + BEGIN), Some(Step::Serve(2)));
        // One that stands by may take its time.
        let mut crew = Crew::new(now);
        crew.step(now);
        crew.is_ready(0);
        crew.step(now);
        crew.has_begun(0, now);
        crew.step(now + SETTLED);
        assert_eq!(
            (crew.step(now + SET_UP * 10), crew.idle(now + SET_UP * 10)),
            (None, None)
        );
    }

    #[test]
    fn only_the_spare_worker_that_says_so_is_ready() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        crew.step(now);
        crew.ended(0, now);
        crew.step(now + PAUSE);
        crew.is_ready(0);
        assert_eq!(
            crew.step(now + PAUSE),
            None,
            "the first one is dead, the second is being set up"
        );
        let mut crew = complete(now);
        crew.is_ready(0);
        assert_eq!(crew.step(now + SETTLED), None, "it serves already");
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
            processes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            news,
            place: Place::now(),
            desk: Arc::new(Desk::new(files, move |news| sender.send(news).unwrap())),
            wake: Wake::new().unwrap(),
            end,
            children: signal(SIGCHLD).unwrap(),
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
        workers.keep().unwrap();
        teller.join().unwrap();
        // At 0, 100, 200, 300 and 400 ms, or later.
        assert!((2..=5).contains(&workers.crew.next), "{}", workers.crew.next);
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
