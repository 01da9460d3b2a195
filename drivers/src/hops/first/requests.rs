//! Requests of the guest: taken out of its page, served, and answered there.

use super::channel::GuestChannel;
use super::ledger::Ledger;
use crate::crash_log::Advice;
use crate::hops::aer::Relay;
use crate::hops::second::{SecondHop, TIMEOUT};
use crate::inject::{self, Point};
use crate::platform::Platform;
use crate::policy::engine::{Engine, Reply};
use xenbus::counters::Counter;
use xenbus::pciif::backend::{self, Delivery, Success};

/// Answers the guest's request, if there is one; true if there was.
///
/// No xenstore, no allocation for config accesses, and log lines only within a limit: a guest can ask without a pause.
pub fn serve<P: Platform>(
    channel: &GuestChannel<P::Page>,
    engine: &mut Engine<P::Ecam>,
    errors: &Relay,
    platform: &mut P,
    second: &mut SecondHop<P::Page>,
) -> bool {
    if !platform.take_pending(channel.port) {
        return false;
    }
    let Some(taken) = backend::take(&channel.page) else {
        // The same port tells of verdicts on errors. Events for nothing are counted and cost no more than this (XSA-332).
        if !errors.is_answered(&channel.page) {
            engine.count(Counter::SpuriousEvents);
        }
        return false;
    };
    let now = platform.now();
    let request = *taken.request();
    let ledger = Ledger::open(*taken.head(), now, platform, second);
    // The copy in private memory is what is judged, served and kept: the guest may change its page meanwhile (XSA-155).
    let reply = if ledger.advice == Advice::Refuse {
        engine.refuse(&request, now)
    } else {
        inject::point(platform, Point::Taken(request.command));
        if ledger.advice == Advice::ServeAgain {
            engine.mark_unknown(&request);
        }
        // From when the request was taken, not from when it is posted: the guest waits since then.
        let mut dom0 = second.link(platform, now.saturating_add(TIMEOUT));
        engine.serve(&request, taken.entries(), &mut dom0, now)
    };
    // Before the answer: see `Ledger::persist`.
    ledger.persist(&request, engine, platform, second);
    inject::point(platform, Point::Done(request.command));
    let answer = match &reply {
        Ok(Reply::Value(value)) => Ok(Success::Value(*value)),
        Ok(Reply::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
        Err(error) => Err(error.answer()),
    };
    match taken.answer(&channel.page, answer) {
        Delivery::Delivered => platform.notify(channel.port),
        // The guest does not wait for it any more: an event would be one for nothing.
        Delivery::Late => engine.count(Counter::LateAnswers),
    }
    ledger.close(engine, platform, second);
    true
}
