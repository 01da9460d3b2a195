//! Requests of the guest, off the ring that it shares with us.

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

/// Answers the guest's request, if there is one. Nothing else: no xenstore, no allocation for config
/// accesses, and log lines only within a limit. True if there was one.
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
        if !errors.is_answered(&channel.page) {
            engine.count(Counter::SpuriousEvents);
        }
        return false;
    };
    let now = platform.now();
    let request = *taken.request();
    let ledger = Ledger::open(*taken.head(), now, platform, second);
    let reply = if ledger.advice == Advice::Refuse {
        engine.refuse(&request, now)
    } else {
        inject::point(platform, Point::Taken(request.command));
        if ledger.advice == Advice::ServeAgain {
            engine.mark_unknown(&request);
        }
        let mut dom0 = second.link(platform, now.saturating_add(TIMEOUT));
        engine.serve(&request, taken.entries(), &mut dom0, now)
    };
    ledger.persist(&request, engine, platform, second);
    inject::point(platform, Point::Done(request.command));
    let answer = match &reply {
        Ok(Reply::Value(value)) => Ok(Success::Value(*value)),
        Ok(Reply::Vectors(vectors)) => Ok(Success::Vectors(vectors)),
        Err(error) => Err(error.answer()),
    };
    match taken.answer(&channel.page, answer) {
        Delivery::Delivered => platform.notify(channel.port),
        Delivery::Late => engine.count(Counter::LateAnswers),
    }
    ledger.close(engine, platform, second);
    true
}
