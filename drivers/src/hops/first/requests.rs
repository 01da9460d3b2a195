//! Requests of the guest: taken out of its page, served, and answered there.

use super::channel::GuestChannel;
use super::hold::Hold;
use super::ledger::{self, Ledger};
use crate::crash_log::Advice;
use crate::hops::aer::Relay;
use crate::hops::second::SecondHop;
use crate::inject::{self, Point};
use crate::platform::Platform;
use crate::policy::engine::{Engine, Reply};
use xenbus::counters::{Class, Counter};
use xenbus::pciif::Command;
use xenbus::pciif::backend::{self, Delivery, Success};

/// What became of an event of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// There was no request.
    Nothing,
    /// The request has its answer.
    Answered,
    /// The request is left in the page, as if the event had not come.
    Held,
}

/// Answers the guest's request, if there is one. The port's mark has been taken. While `hold` is on, only if it is a
/// read.
///
/// No xenstore, no allocation for config accesses, and log lines only within a limit: a guest can ask without a pause.
pub fn serve<P: Platform>(
    channel: &GuestChannel<P::Page>,
    engine: &mut Engine<P::Ecam>,
    errors: &Relay,
    platform: &mut P,
    second: &mut SecondHop<P::Page>,
    hold: &Hold,
) -> Served {
    let Some(taken) = backend::take(&channel.page) else {
        // The same port tells of verdicts on errors. Events for nothing are counted and cost no more than this (XSA-332).
        if !errors.is_answered(&channel.page) {
            engine.count(Counter::SpuriousEvents);
        }
        return Served::Nothing;
    };
    let request = *taken.request();
    let now = platform.now();
    if request.command != Command::ConfRead && hold.until(now).is_some() {
        // The guest may give it up while it is held: then this is all that is seen of it.
        let advice = platform.see_crash_log(|crash_log| crash_log.advise(taken.head(), now));
        ledger::prepare(advice, &request, engine, platform, second);
        return Served::Held;
    }
    let ledger = Ledger::open(*taken.head(), now, platform, second);
    ledger::prepare(ledger.advice, &request, engine, platform, second);
    // The copy in private memory is what is judged, served and kept: the guest may change its page meanwhile (XSA-155).
    let reply = if ledger.advice == Advice::Refuse {
        engine.refuse(&request, now)
    } else {
        inject::point(platform, Point::Taken(request.command));
        let mut dom0 = second.link(platform, hold.deadline(now));
        engine.serve(&request, taken.entries(), &mut dom0, now)
    };
    // Before the answer: what the guest has been told must hold after a restart.
    ledger::persist(&request, engine, platform, second);
    inject::point(platform, Point::Done(request.command));
    let answer = match &reply {
        Ok(Reply::Value(value)) => Ok(Success::Value(*value)),
        Ok(Reply::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
        Err(error) => Err(error.answer()),
    };
    match taken.answer(&channel.page, answer) {
        Delivery::Delivered => platform.notify(channel.port),
        // The guest does not wait for it any more: an event would be one for nothing.
        Delivery::Late => {
            engine.count(Counter::LateAnswers);
            engine.mark_unknown(&request);
            ledger::persist(&request, engine, platform, second);
        }
    }
    // The guest has its answer: what follows takes none of its time.
    if let Some(class) = Class::of(request.command) {
        engine.count_time(class, platform.now().saturating_sub(now));
    }
    ledger.close(engine, platform, second);
    Served::Answered
}
