//! Decides which of the service's workers serves, which one stands by, and when the next is started. Time is an argument.
//! [`super::workers`] carries the decisions out.

use crate::host::launcher::desk::WorkerId;
use std::time::{Duration, Instant};

/// Delay from the moment when a spare worker takes over to the start of the next spare one. A new process would take the
/// processor from the worker that guests wait for.
const SPARE_DELAY: Duration = Duration::from_secs(1);
/// Shortest time between two starts of workers. After [`EARLY_DEATHS`] in a row it doubles with each further one, up to
/// [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const EARLY_DEATHS: u32 = 5;
/// A worker that dies later than this after it began to serve has not died early.
const SOUND: Duration = Duration::from_secs(1);
/// A worker is killed if it takes longer to be set up while nobody serves, or to begin when its turn has come.
const SET_UP: Duration = Duration::from_secs(30);
const BEGIN: Duration = Duration::from_secs(5);
/// Delay after a spare worker that could not be set up.
const RETRY: Duration = Duration::from_secs(10);
/// Interval at which the launcher looks at the worker that serves. The worker tells as often that its loop goes on.
pub const LOOK: Duration = Duration::from_secs(2);
/// A worker that serves is killed after a silence of this length in which it runs: it has a loop without an end.
const SILENCE: Duration = Duration::from_secs(40);
/// A worker that was stopped (SIGSTOP) is killed after this time. Nothing else than a stop looks like one.
const STOPPED: Duration = Duration::from_secs(5);
/// One look counts for no more than this. A launcher that looks late has waited for a processor itself, and its worker had
/// none either.
const LONGEST_LOOK: Duration = Duration::from_secs(4);

/// Which worker serves, which one stands by, and when the next is to be started.
#[derive(Debug)]
pub struct Crew {
    serving: Option<ServingWorker>,
    spare: Option<SpareWorker>,
    /// When to start the next spare worker, if there is none.
    start: Instant,
    /// When a worker was started last.
    started: Option<Instant>,
    /// Workers in a row that have died early.
    early_deaths: u32,
    /// True once one has begun to serve.
    pub has_served: bool,
    /// Number of the next worker.
    pub next: WorkerId,
}

#[derive(Debug)]
struct ServingWorker {
    worker: WorkerId,
    since: Instant,
    has_begun: bool,
    silence: Silence,
}

/// How long the worker that serves has told nothing.
#[derive(Debug)]
struct Silence {
    looked: Instant,
    /// What its main thread had waited for a processor by then.
    queued: Duration,
    /// Time that counts against it.
    silent: Duration,
    stopped: Duration,
}

impl Silence {
    const fn new(now: Instant) -> Self {
        Self {
            looked: now,
            queued: Duration::ZERO,
            silent: Duration::ZERO,
            stopped: Duration::ZERO,
        }
    }

    fn add(&mut self, now: Instant, seen: Sighting) {
        let passed = now.saturating_duration_since(self.looked).min(LONGEST_LOOK);
        let queued = seen.queued.saturating_sub(self.queued);
        (self.looked, self.queued) = (now, seen.queued);
        self.stopped = match seen.activity {
            Activity::Stopped if !seen.has_told => self.stopped + passed,
            _ => Duration::ZERO,
        };
        self.silent = match seen.activity {
            _ if seen.has_told => Duration::ZERO,
            // A kill does not end a wait for the kernel, or for xenstored, which the next worker would wait for too. The wait's end
            // does, and the worker is sound then. Its links serve guests meanwhile.
            Activity::Waits => self.silent,
            Activity::Stopped | Activity::Runs => self.silent + passed.saturating_sub(queued),
        };
    }

    fn is_too_long(&self) -> bool {
        self.silent >= SILENCE || self.stopped >= STOPPED
    }
}

/// What the launcher sees of the worker that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// True if it has told since the last look that its loop goes on.
    pub has_told: bool,
    /// What its main thread does.
    pub activity: Activity,
    /// How long its main thread has waited for a processor, in all.
    pub queued: Duration,
}

/// What a thread does, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It was stopped by a signal or a debugger.
    Stopped,
    /// It waits for something other than a processor.
    Waits,
    /// It runs, or waits for a processor.
    Runs,
}

#[derive(Debug)]
struct SpareWorker {
    worker: WorkerId,
    since: Instant,
    is_ready: bool,
}

/// What has to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum CrewAction {
    /// Start a worker with this number.
    Start(WorkerId),
    /// Have this worker serve.
    Serve(WorkerId),
    /// Kill this worker, which takes too long or hangs. Another one takes its place.
    Kill(WorkerId),
    /// Look at this worker, which serves, and tell by [`Crew::saw`].
    Look(WorkerId),
}

/// Role of a worker that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It stood by, or was being set up, while another one serves.
    Spare,
    /// It served, or was the one to serve next while no other did.
    Server,
}

impl Crew {
    /// A crew without a worker. The first one is to be started now.
    pub const fn new(now: Instant) -> Self {
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

    /// The next action, which counts as done; `None` if there is nothing to do before a worker tells something, or before
    /// [`Self::idle`] is over.
    pub fn step(&mut self, now: Instant) -> Option<CrewAction> {
        if let Some(worker) = self.late(now) {
            return Some(CrewAction::Kill(worker));
        }
        if self.serving.is_none()
            && let Some(SpareWorker {
                worker,
                is_ready: true,
                ..
            }) = self.spare
        {
            self.serving = Some(ServingWorker {
                worker,
                since: now,
                has_begun: false,
                silence: Silence::new(now),
            });
            (self.spare, self.start) = (None, now + SPARE_DELAY);
            return Some(CrewAction::Serve(worker));
        }
        // While a spare worker is being set up, no further one is started, whatever the times say.
        if self.spare.is_none() && now >= self.start {
            let worker = self.next;
            self.next += 1;
            self.started = Some(now);
            self.spare = Some(SpareWorker {
                worker,
                since: now,
                is_ready: false,
            });
            return Some(CrewAction::Start(worker));
        }
        self.look(now).map(CrewAction::Look)
    }

    /// The worker that serves, if it is time to look at it.
    fn look(&mut self, now: Instant) -> Option<WorkerId> {
        let serving = self.serving.as_ref().filter(|serving| serving.has_begun)?;
        (now >= serving.silence.looked + LOOK).then_some(serving.worker)
    }

    /// Takes in what the launcher sees of the worker that serves.
    pub fn saw(&mut self, worker: WorkerId, now: Instant, seen: Sighting) {
        if let Some(serving) = self.serving.as_mut().filter(|serving| serving.worker == worker) {
            serving.silence.add(now, seen);
        }
    }

    /// The worker that guests wait for, and when it is given up.
    fn awaited(&self) -> Option<(WorkerId, Instant)> {
        match (&self.serving, &self.spare) {
            // While one serves, nobody waits for a spare one that is being set up.
            (Some(serving), _) => (!serving.has_begun).then(|| (serving.worker, serving.since + BEGIN)),
            (None, Some(spare)) => (!spare.is_ready).then(|| (spare.worker, spare.since + SET_UP)),
            (None, None) => None,
        }
    }

    /// A worker that is to be killed now.
    fn late(&mut self, now: Instant) -> Option<WorkerId> {
        if let Some(serving) = self.serving.as_mut()
            && serving.has_begun
            && serving.silence.is_too_long()
        {
            // As below: it is killed once, until its end is seen or it goes on for as long.
            (serving.silence.silent, serving.silence.stopped) = (Duration::ZERO, Duration::ZERO);
            return Some(serving.worker);
        }
        let (worker, _) = self.awaited().filter(|&(_, until)| now >= until)?;
        // The time starts again: the next call must not kill it once more before its end is seen.
        if let Some(serving) = &mut self.serving {
            serving.since = now;
        } else if let Some(spare) = &mut self.spare {
            spare.since = now;
        }
        Some(worker)
    }

    /// Time until the next action, if no worker tells anything; `None` if there is none.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        let start = self.spare.is_none().then_some(self.start);
        let late = self.awaited().map(|(_, until)| until);
        let serving = self.serving.as_ref().filter(|serving| serving.has_begun);
        let look = serving.map(|serving| serving.silence.looked + LOOK);
        let next = start.into_iter().chain(late).chain(look).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// A worker is set up.
    pub fn is_ready(&mut self, worker: WorkerId) {
        if let Some(spare) = self.spare.as_mut().filter(|spare| spare.worker == worker) {
            spare.is_ready = true;
        }
    }

    /// A worker has begun to serve.
    pub fn has_begun(&mut self, worker: WorkerId, now: Instant) {
        if let Some(serving) = self.serving.as_mut().filter(|serving| serving.worker == worker) {
            (serving.has_begun, serving.since) = (true, now);
            serving.silence = Silence::new(now);
            self.has_served = true;
        }
    }

    /// A worker has ended, or could not be started.
    pub fn ended(&mut self, worker: WorkerId, now: Instant) -> Role {
        if let Some(serving) = self.serving.take_if(|serving| serving.worker == worker) {
            let is_sound = serving.has_begun && now >= serving.since + SOUND;
            self.early_deaths = if is_sound { 0 } else { self.early_deaths + 1 };
        } else {
            let was_ready = self.spare.take().is_some_and(|spare| spare.is_ready);
            if self.serving.is_some() {
                // A worker that stood by has crashed; the next one may do better soon. What kept one from being set up
                // lasts longer.
                self.start = now + if was_ready { SPARE_DELAY } else { RETRY };
                return Role::Spare;
            }
            self.early_deaths += 1;
        }
        // From the last start, not from the death: one that has lived long enough is replaced at once.
        let soon = self
            .started
            .map_or(now, |started| now.max(started + self.pause()));
        self.start = soon;
        Role::Server
    }

    fn pause(&self) -> Duration {
        // The exponent is bounded, so that the power cannot overflow.
        let doublings = self.early_deaths.saturating_sub(EARLY_DEATHS).min(16);
        (PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
    }
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
        assert_eq!(crew.step(now), Some(CrewAction::Start(0)));
        crew.is_ready(0);
        assert_eq!(crew.step(now), Some(CrewAction::Serve(0)));
        crew.has_begun(0, now);
        assert_eq!(crew.step(now + SPARE_DELAY), Some(CrewAction::Start(1)));
        crew.is_ready(1);
        crew
    }

    #[test]
    fn the_first_worker_serves_when_it_is_set_up_and_a_spare_one_follows() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        assert_eq!(crew.idle(now), Some(ms(0)));
        assert_eq!(crew.step(now), Some(CrewAction::Start(0)));
        assert_eq!(crew.step(now), None, "it is not set up yet");
        crew.is_ready(0);
        assert_eq!(crew.step(now), Some(CrewAction::Serve(0)));
        crew.has_begun(0, now);
        assert_eq!((crew.step(now), crew.idle(now)), (None, Some(SPARE_DELAY)));
        let later = now + SPARE_DELAY;
        assert_eq!(crew.step(later), Some(CrewAction::Start(1)));
        crew.is_ready(1);
        assert_eq!(crew.step(later), None, "one serves at a time");
    }

    #[test]
    fn a_spare_worker_takes_over_at_once_and_another_stands_by_later() {
        let now = Instant::now();
        let mut crew = complete(now);
        let death = now + ms(5000);
        assert_eq!(crew.ended(0, death), Role::Server);
        assert_eq!(crew.step(death), Some(CrewAction::Serve(1)));
        assert_eq!(crew.step(death), None);
        assert_eq!(crew.step(death + SPARE_DELAY), Some(CrewAction::Start(2)));
    }

    #[test]
    fn a_spare_worker_that_is_not_set_up_yet_takes_over_when_it_is() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        crew.step(now);
        crew.is_ready(0);
        crew.step(now);
        assert_eq!(crew.step(now + SPARE_DELAY), Some(CrewAction::Start(1)));
        assert_eq!(crew.ended(0, now + SPARE_DELAY), Role::Server);
        assert_eq!(crew.step(now + SPARE_DELAY), None);
        crew.is_ready(1);
        assert_eq!(crew.step(now + SPARE_DELAY), Some(CrewAction::Serve(1)));
    }

    #[test]
    fn without_a_spare_worker_one_is_started_but_not_faster_than_so() {
        let now = Instant::now();
        let mut crew = Crew::new(now);
        crew.step(now);
        assert_eq!(crew.ended(0, now + ms(30)), Role::Server, "nobody serves");
        assert_eq!(
            (crew.step(now + ms(30)), crew.idle(now + ms(30))),
            (None, Some(ms(70)))
        );
        assert_eq!(crew.step(now + PAUSE), Some(CrewAction::Start(1)));
        crew.is_ready(1);
        assert_eq!(crew.step(now + PAUSE), Some(CrewAction::Serve(1)));
        assert_eq!(crew.ended(1, now + ms(400)), Role::Server);
        assert_eq!(
            crew.step(now + ms(400)),
            Some(CrewAction::Start(2)),
            "the last start is long ago"
        );
    }

    #[test]
    fn a_spare_worker_that_dies_is_replaced_later_and_costs_the_other_nothing() {
        let now = Instant::now();
        let death = now + ms(5000);
        let mut crew = complete(now);
        assert_eq!(crew.step(death), Some(CrewAction::Look(0)));
        crew.saw(0, death, well());
        assert_eq!(crew.ended(1, death), Role::Spare);
        assert_eq!((crew.step(death), crew.idle(death)), (None, Some(SPARE_DELAY)));
        assert_eq!(crew.step(death + SPARE_DELAY), Some(CrewAction::Start(2)));
        // It could not be set up.
        assert_eq!(crew.ended(2, death + SPARE_DELAY), Role::Spare);
        let looked = death + SPARE_DELAY + RETRY - ms(1);
        crew.saw(0, looked, well());
        assert_eq!(crew.idle(looked), Some(ms(1)));
        assert_eq!(crew.ended(0, death + SPARE_DELAY), Role::Server);
        assert_eq!(
            crew.step(death + SPARE_DELAY + PAUSE),
            Some(CrewAction::Start(3)),
            "nobody waits for a retry"
        );
    }

    #[test]
    fn workers_that_die_soon_are_started_more_and_more_slowly_and_one_that_lives_makes_that_good() {
        let mut now = Instant::now();
        let mut crew = Crew::new(now);
        let mut pauses = Vec::new();
        for worker in 0..14 {
            assert_eq!(crew.step(now), Some(CrewAction::Start(worker)));
            crew.is_ready(worker);
            assert_eq!(crew.step(now), Some(CrewAction::Serve(worker)));
            crew.has_begun(worker, now);
            assert_eq!(crew.ended(worker, now), Role::Server);
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
        assert_eq!(crew.ended(14, now + SOUND), Role::Server);
        assert_eq!(crew.idle(now + SOUND), Some(ms(0)));
    }

    #[test]
    fn a_worker_that_guests_wait_for_in_vain_is_killed_and_another_one_takes_its_place() {
        let now = Instant::now();
        // One that is not set up in time, while nobody serves.
        let mut crew = Crew::new(now);
        crew.step(now);
        assert_eq!(crew.step(now + SET_UP - ms(1)), None);
        assert_eq!(crew.step(now + SET_UP), Some(CrewAction::Kill(0)));
        assert_eq!(
            (crew.step(now + SET_UP), crew.idle(now + SET_UP)),
            (None, Some(SET_UP))
        );
        assert_eq!(crew.ended(0, now + SET_UP), Role::Server);
        assert_eq!(crew.step(now + SET_UP), Some(CrewAction::Start(1)));
        // One that does not begin when its turn has come.
        let mut crew = complete(now);
        crew.ended(0, now + SPARE_DELAY);
        assert_eq!(crew.step(now + SPARE_DELAY), Some(CrewAction::Serve(1)));
        assert_eq!(
            crew.idle(now + SPARE_DELAY),
            Some(SPARE_DELAY),
            "the next spare one"
        );
        assert_eq!(
            crew.step(now + SPARE_DELAY + SPARE_DELAY),
            Some(CrewAction::Start(2))
        );
        assert_eq!(crew.step(now + SPARE_DELAY + BEGIN), Some(CrewAction::Kill(1)));
        crew.is_ready(2);
        assert_eq!(crew.ended(1, now + SPARE_DELAY + BEGIN), Role::Server);
        assert_eq!(crew.step(now + SPARE_DELAY + BEGIN), Some(CrewAction::Serve(2)));
        // One that stands by may take its time.
        let mut crew = Crew::new(now);
        crew.step(now);
        crew.is_ready(0);
        crew.step(now);
        crew.has_begun(0, now);
        crew.step(now + SPARE_DELAY);
        let later = now + SET_UP * 10;
        assert_eq!(crew.step(later), Some(CrewAction::Look(0)));
        crew.saw(0, later, well());
        assert_eq!(crew.step(later), None);
    }

    /// A worker that has told that it goes on.
    const fn well() -> Sighting {
        Sighting {
            has_told: true,
            activity: Activity::Runs,
            queued: Duration::ZERO,
        }
    }

    /// Looks at worker 0 every two seconds for this long. Returns when it is to be killed, if it is.
    fn look_for(
        crew: &mut Crew,
        from: Instant,
        length: Duration,
        mut seen: impl FnMut(Duration) -> Sighting,
    ) -> Option<Duration> {
        let mut now = from;
        while now < from + length {
            now += crew.idle(now).unwrap();
            while let Some(action) = crew.step(now) {
                match action {
                    CrewAction::Look(0) => crew.saw(0, now, seen(now - from)),
                    CrewAction::Kill(0) => return Some(now - from),
                    other => panic!("{other:?}"),
                }
            }
        }
        None
    }

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_worker_that_tells_that_it_goes_on_is_left_alone() {
        let now = Instant::now();
        let mut crew = complete(now);
        assert_eq!(look_for(&mut crew, now + SPARE_DELAY, DAY, |_| well()), None);
    }

    #[test]
    fn a_worker_that_hangs_is_killed_and_the_spare_one_takes_over() {
        let now = Instant::now();
        let silent = Sighting {
            has_told: false,
            ..well()
        };
        let mut crew = complete(now);
        assert_eq!(crew.step(now + LOOK), Some(CrewAction::Look(0)));
        crew.saw(0, now + LOOK, well());
        let killed = look_for(&mut crew, now + LOOK, DAY, |_| silent);
        assert_eq!(killed, Some(SILENCE));
        let killed = now + LOOK + SILENCE;
        assert_eq!(crew.step(killed), None, "it is killed once");
        assert_eq!(crew.ended(0, killed), Role::Server);
        assert_eq!(crew.step(killed), Some(CrewAction::Serve(1)));
        crew.has_begun(1, killed);
        assert_eq!(crew.step(killed), None, "the next one begins with a clean slate");
    }

    #[test]
    fn a_worker_that_was_stopped_is_killed_soon_unless_it_goes_on_by_then() {
        let now = Instant::now();
        let stopped = Sighting {
            has_told: false,
            activity: Activity::Stopped,
            ..well()
        };
        let killed = look_for(&mut complete(now), now + SPARE_DELAY, DAY, |_| stopped).unwrap();
        assert!(killed <= STOPPED + LOOK * 2, "{killed:?}");
        // As while a debugger reads its memory.
        let mut for_a_moment = 0;
        let killed = look_for(&mut complete(now), now + SPARE_DELAY, DAY, |_| {
            for_a_moment += 1;
            if for_a_moment % 3 == 0 { well() } else { stopped }
        });
        assert_eq!(killed, None);
    }

    #[test]
    fn a_worker_that_waits_for_a_processor_or_for_the_kernel_is_not_killed() {
        let now = Instant::now();
        let silent = |activity, queued| Sighting {
            has_told: false,
            activity,
            queued,
        };
        // The host is so busy that its main thread has waited all the time.
        let waits = |passed| silent(Activity::Runs, passed);
        assert_eq!(look_for(&mut complete(now), now, DAY, waits), None);
        let in_kernel = |_| silent(Activity::Waits, Duration::ZERO);
        assert_eq!(look_for(&mut complete(now), now, DAY, in_kernel), None);
        // It waits half of the time, and runs in a circle the other half.
        let both = |passed: Duration| silent(Activity::Runs, passed / 2);
        let killed = look_for(&mut complete(now), now, DAY, both).unwrap();
        assert!(killed >= SILENCE * 2 && killed < SILENCE * 3, "{killed:?}");
    }

    #[test]
    fn a_launcher_that_looks_late_does_not_count_what_it_has_missed() {
        let now = Instant::now();
        let mut crew = complete(now);
        let mut time = now;
        // Both have had no processor for a minute, and the worker none since.
        for _ in 0..9 {
            time += ms(60_000);
            assert_eq!(crew.step(time), Some(CrewAction::Look(0)));
            let silent = Sighting {
                has_told: false,
                ..well()
            };
            crew.saw(0, time, silent);
        }
        assert_eq!(crew.step(time), None);
        crew.saw(0, time, well());
        assert_eq!(crew.step(time), None);
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
        assert_eq!(crew.step(now + SPARE_DELAY), None, "it serves already");
    }
}
