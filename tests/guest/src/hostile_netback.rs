//! A network backend that attacks its frontend.
//!
//! The guest is the backend of another domain's vif: either libxl has made its nodes (`backend=` in the vif's configuration),
//! or dom0 has made them by hand. It takes the first device below its own `backend/vif`. Each round is one connection: the
//! guest connects, does one deed, and ends the connection. The frontend must either give the network up, which the guest
//! sees by its state, or stay connected.
//!
//! The console says `netback: round N NAME done`, or `netback: round N NAME failed: why`, in the end
//! `netback: COUNT random responses done, seed SEED`. Words of the command line: `mode=netback seed=N count=N`; `count` is the
//! number of random responses after the rounds.
//!
//! | module | holds |
//! |---|---|
//! | [`backend`] | the backend: its device, its connections, what it waits for |
//! | [`rings`] | both rings, as a backend maps them |
//! | [`rounds`] | the deeds |
//! | [`draw`] | random responses, right and wrong |

pub mod backend;
pub mod draw;
pub mod rings;
pub mod rounds;

use crate::frontend::Failure;
use backend::{Fate, HostileNetback};
use drivers::platform::Platform;
use xenbus::client::Transport;

/// What the backend `B` does in a round: the name, the deed, and the frontend's fate.
pub type Round<B> = (&'static str, fn(&mut B) -> Result<(), Failure>, Fate);

impl<P: Platform, T: Transport> HostileNetback<'_, P, T> {
    /// All rounds, in order.
    pub const ROUNDS: [Round<Self>; 23] = [
        ("an honest backend", Self::honest, Fate::Stays),
        ("a number that is no request's", Self::strange_id, Fate::GivesUp),
        ("an answer given twice", Self::twice, Fate::GivesUp),
        (
            "an answer to a frame that was not sent",
            Self::unsent,
            Fate::GivesUp,
        ),
        ("a frame that is too short", Self::short, Fate::GivesUp),
        ("a frame that is too long", Self::long, Fate::GivesUp),
        (
            "a frame over the end of its page",
            Self::over_the_end,
            Fate::GivesUp,
        ),
        ("flags for more slots", Self::more_slots, Fate::GivesUp),
        (
            "a status that is none for a sent frame",
            Self::strange_status,
            Fate::GivesUp,
        ),
        ("an index far ahead", Self::far_ahead, Fate::GivesUp),
        ("an index that goes back", Self::back, Fate::GivesUp),
        ("one byte of an index", Self::torn, Fate::GivesUp),
        ("garbage in every slot", Self::garbage, Fate::GivesUp),
        ("frames that are dropped", Self::dropped, Fate::Stays),
        (
            "indices of the frontend's, overwritten",
            Self::scribble,
            Fate::Stays,
        ),
        ("events that are lost", Self::lost_events, Fate::Stays),
        ("a flood of events", Self::event_flood, Fate::Stays),
        ("a flood of frames", Self::frame_flood, Fate::Stays),
        ("rings that are unmapped in use", Self::unmapped, Fate::Stays),
        ("pages that are kept", Self::kept, Fate::Stays),
        ("the connection after that", Self::after_kept, Fate::Stays),
        ("a flood of states", Self::state_flood, Fate::Either),
        ("an honest backend again", Self::honest, Fate::Stays),
    ];

    /// All rounds, and then `count` random responses; the number of rounds that failed.
    pub fn run(&mut self, seed: u64, count: usize) -> usize {
        let mut failed = 0;
        for (index, &(name, deed, fate)) in Self::ROUNDS.iter().enumerate() {
            let number = index + 1;
            match self.round(deed, fate) {
                Ok(()) => log::info!("netback: round {number} {name} done"),
                Err(failure) => {
                    log::error!("netback: round {number} {name} failed: {failure}");
                    failed += 1;
                }
            }
        }
        match self.at_random(count) {
            Ok(wrong) => {
                log::info!("netback: {count} random responses done, seed {seed}, {wrong} of them wrong")
            }
            Err(failure) => {
                log::error!("netback: random responses failed: {failure}, seed {seed}");
                failed += 1;
            }
        }
        failed
    }

    /// Runs one round. The connection is ended in any case.
    fn round(&mut self, deed: fn(&mut Self) -> Result<(), Failure>, fate: Fate) -> Result<(), Failure> {
        self.connect()?;
        let result = deed(self).and_then(|()| self.see(fate));
        let ended = self.end();
        result.and(ended)
    }
}
