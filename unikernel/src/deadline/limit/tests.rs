//! The limit on a machine whose clock the tests move. Time in tests is in milliseconds.

use super::*;
use core::cell::{Cell, RefCell};
use std::vec::Vec;

/// A port that is bound to nothing in particular.
const PORT: Port = 3;

/// Xen, as far as the limit sees it: its timer ends polls, though upcalls are masked.
#[derive(Default)]
struct Model {
    now: Cell<u64>,
    running: Cell<u64>,
    timer: Cell<Option<u64>>,
    watchdog: Cell<Option<u64>>,
    open: Cell<bool>,
    /// An event of the timer that has not led to an upcall yet.
    fired: Cell<bool>,
    /// When an event comes on [`PORT`].
    event: Cell<Option<u64>>,
    pending: Cell<bool>,
    dead: Cell<bool>,
    hypercalls: Cell<u32>,
    /// Ends of polls.
    woken: RefCell<Vec<u64>>,
}

impl Model {
    /// Lets time pass; the stub runs for `running` of it. True if it dies by Xen's watchdog.
    fn pass(&self, time: u64, running: u64) {
        self.now.set(self.now.get() + time);
        self.running.set(self.running.get() + running);
        let now = self.now.get();
        if self.timer.get().is_some_and(|at| at <= now) {
            self.timer.set(None);
            self.fired.set(true);
        }
        if self.event.get().is_some_and(|at| at <= now) {
            self.event.set(None);
            self.pending.set(true);
        }
        if self.watchdog.get().is_some_and(|at| at <= now) {
            self.dead.set(true);
        }
    }

    fn hypercall(&self) {
        self.hypercalls.set(self.hypercalls.get() + 1);
    }
}

impl Vcpu for Model {
    fn now(&self) -> Duration {
        Duration::from_millis(self.now.get())
    }

    fn running(&self) -> Duration {
        self.hypercall();
        Duration::from_millis(self.running.get())
    }

    fn set_timer(&self, at: Option<Duration>) -> bool {
        self.hypercall();
        self.fired.set(false);
        self.timer.set(at.map(|at| at.as_millis() as u64));
        true
    }

    fn set_watchdog(&self, seconds: u32) -> bool {
        self.hypercall();
        let end = (seconds != 0).then(|| self.now.get() + u64::from(seconds) * 1000);
        self.watchdog.set(end);
        true
    }

    fn open_upcalls(&self, open: bool) {
        self.open.set(open);
    }

    fn is_pending(&self, ports: &[Port]) -> bool {
        ports.contains(&PORT) && self.pending.get()
    }

    fn poll(&self, ports: &[Port], until: Option<Duration>) {
        self.hypercall();
        assert!(!self.open.get(), "upcalls are masked while the stub waits");
        let until = until.map(|until| until.as_millis() as u64);
        let event = self.event.get().filter(|_| ports.contains(&PORT));
        let end = [until, event, self.timer.get()].into_iter().flatten().min();
        let end = end.expect("it would wait for ever");
        self.pass(end.saturating_sub(self.now.get()), 0);
        self.woken.borrow_mut().push(self.now.get());
    }
}

/// Works for `wall` milliseconds, running in `share` of 100 of them, with upcalls as they come. True if found hung.
fn work(limit: &Limit, model: &Model, wall: u64, share: u64) -> bool {
    for tick in 0..wall {
        model.pass(1, u64::from(tick * share / 100 != (tick + 1) * share / 100));
        if model.open.get() && model.fired.get() && limit.expire(model) == Verdict::Hung {
            return true;
        }
    }
    false
}

#[test]
fn a_stub_that_runs_on_is_cut_off_and_not_before_the_limit() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    assert!(work(&limit, &model, 10_000, 100));
    assert!((350..=400).contains(&model.now.get()), "{}", model.now.get());
}

#[test]
fn a_stub_that_is_starved_is_not_hung_however_long_it_takes() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    assert!(!work(&limit, &model, 15_000, 2), "300 ms of running");
    assert!(!model.dead.get(), "Xen's watchdog is set anew meanwhile");
    assert!(work(&limit, &model, 15_000, 2), "a hang ends there too");
}

#[test]
fn one_gap_is_no_hang_though_xen_counts_it_as_time_of_the_stub() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    for _ in 0..3 {
        model.pass(2_500, 2_500);
        assert_eq!(limit.expire(&model), Verdict::GoOn);
    }
    model.pass(2_500, 2_500);
    assert_eq!(limit.expire(&model), Verdict::Hung);
}

#[test]
fn work_is_charged_for_itself_alone() {
    let (limit, model) = (Limit::new(), Model::default());
    for _ in 0..20 {
        limit.work(&model);
        assert!(!work(&limit, &model, 320, 100));
        model.event.set(Some(model.now.get() + 1));
        limit.wait(&model, &[PORT], None);
        assert!(model.pending.take());
    }
}

#[test]
fn a_pause_while_it_works_or_has_just_begun_to_wait_is_survived() {
    let (limit, model) = (Limit::new(), Model::default());
    for pause in [100, 1_000, 4_000, 8_000] {
        limit.work(&model);
        assert!(!work(&limit, &model, 90, 100));
        model.pass(pause, 0);
        assert!(!model.dead.get(), "{pause} ms");
        assert_eq!(limit.expire(&model), Verdict::GoOn);
        model.event.set(Some(model.now.get() + pause));
        limit.wait(&model, &[PORT], None);
        assert!(model.pending.take() && !model.dead.get(), "{pause} ms");
    }
}

#[test]
fn an_idle_stub_has_neither_timer_nor_watchdog_and_is_woken_by_its_event_alone() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    model.event.set(Some(3_600_000));
    limit.wait(&model, &[PORT], None);
    assert!(model.pending.get() && !model.dead.get());
    let woken = model.woken.borrow();
    assert_eq!(
        woken[..],
        [IDLE.as_millis() as u64, 3_600_000],
        "once, to go idle"
    );
    assert!(model.open.get() && model.timer.get().is_some() && model.watchdog.get().is_some());
}

#[test]
fn after_idling_both_are_set_again() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    for event in [1_000, 1_100, 1_200, 9_000] {
        model.event.set(Some(event));
        limit.wait(&model, &[PORT], None);
        assert!(model.pending.take());
        let now = model.now.get();
        assert!(model.timer.get().is_some_and(|at| at > now), "{event}");
        assert!(
            model.watchdog.get().is_some_and(|at| at >= now + 8_000),
            "{event}"
        );
    }
}

#[test]
fn what_is_not_limited_yet_waits_once() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.wait(&model, &[PORT], Some(Duration::from_millis(5_000)));
    assert_eq!(model.woken.borrow()[..], [5_000]);
}

#[test]
fn what_ran_before_the_work_is_not_charged() {
    let (limit, model) = (Limit::new(), Model::default());
    model.running.set(100_000);
    limit.work(&model);
    for _ in 0..17 {
        model.pass(100, 20);
        assert_eq!(limit.expire(&model), Verdict::GoOn);
    }
}

#[test]
fn a_pause_of_eight_seconds_is_survived_at_any_moment() {
    for moment in 0..60 {
        let (limit, model) = (Limit::new(), Model::default());
        limit.work(&model);
        for _ in 0..moment {
            model.pass(70, 1);
            model.pending.set(true);
            limit.wait(&model, &[PORT], None);
        }
        model.pass(7_900, 0);
        assert!(!model.dead.get(), "after {moment} pieces of work");
    }
}

#[test]
fn a_timer_that_ends_the_wait_leads_to_idleness_as_well() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    // Work has used up some of the timer's time: it fires before the wait counts as idle.
    assert!(!work(&limit, &model, 45, 100));
    model.event.set(Some(60_000));
    limit.wait(&model, &[PORT], None);
    assert_eq!(model.woken.borrow().last(), Some(&60_000));
    assert!(!model.dead.get());
}

#[test]
fn a_wait_with_an_end_that_is_not_far_ends_then() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    limit.wait(&model, &[PORT], Some(Duration::from_millis(30)));
    assert_eq!(model.now.get(), 30);
    limit.wait(&model, &[PORT], Some(Duration::from_millis(1_000)));
    assert_eq!(model.now.get(), 1_000);
}

#[test]
fn requests_that_follow_each_other_cost_no_hypercall() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    let before = model.hypercalls.get();
    for _ in 0..40 {
        model.pass(1, 1);
        model.pending.set(true);
        limit.wait(&model, &[PORT], None);
    }
    assert_eq!(model.hypercalls.get(), before);
    for _ in 0..1_000 {
        model.pass(1, 1);
        limit.wait(&model, &[PORT], None);
    }
    // Running time and timer every 50 ms, the watchdog every 2 s.
    assert!(
        model.hypercalls.get() - before <= 42,
        "{}",
        model.hypercalls.get()
    );
}

#[test]
fn a_hang_with_upcalls_masked_is_ended_by_xens_watchdog() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    assert!(!work(&limit, &model, 120, 100));
    model.open_upcalls(false);
    assert!(!work(&limit, &model, 10_000, 100));
    assert!(model.dead.get());
}

#[test]
fn the_watchdog_is_set_and_stopped_whatever_an_earlier_life_has_left() {
    // Xen's `domain_watchdog`, with a domain that dies at once where the time is 0.
    let on = Cell::new(None);
    let xen = |id: u32, seconds: u32| {
        assert!(id != 0 || seconds != 0, "the domain ends itself");
        match (id, on.get()) {
            (0, None) | (1, Some(_)) => on.set((seconds != 0).then_some(seconds)),
            _ => return false,
        }
        true
    };
    for seconds in [0, 0, 10, 10, 7, 0, 0, 10] {
        assert!(set_watchdog(seconds, xen));
        assert_eq!(on.get(), (seconds != 0).then_some(seconds));
    }
}

#[test]
fn the_end_of_a_life_is_watched_and_the_next_one_waits_without_a_watchdog() {
    let (limit, model) = (Limit::new(), Model::default());
    limit.work(&model);
    model.event.set(Some(50_000));
    limit.wait(&model, &[PORT], None);
    model.pass(3_000, 3);
    limit.end(&model);
    assert!(!model.open.get());
    let bite = model.watchdog.get().expect("set");
    assert!(bite >= model.now.get() + 8_000);
    // The next run knows nothing of that, and xenstored takes its time.
    let next = Limit::new();
    next.work(&model);
    model.pending.set(false);
    model.event.set(Some(model.now.get() + 30_000));
    next.wait(&model, &[PORT], None);
    assert!(model.pending.get() && !model.dead.get());
}
