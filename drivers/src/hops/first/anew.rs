//! A frontend that starts anew: how the stub recognises it, how long it may take, and how often it may.

use super::channel::{self, RingParams};
use super::context::Context;
use super::nodes::set_state;
use super::phase::GuestPhase;
use crate::error::SetupError;
use crate::log;
use crate::platform::Platform;
use alloc::boxed::Box;
use core::time::Duration;
use xenbus::client::Transport;
use xenbus::path::Device;
use xenbus::state::XenbusState;

/// How long a frontend may take to publish another page or port if those in its nodes cannot be had: it may be about to
/// start anew.
const TRIAL: Duration = Duration::from_secs(5);
/// The first pause between two tries; each next one is twice as long.
const TRIAL_PAUSE: Duration = Duration::from_millis(10);
/// The least time between two new starts of a frontend. Each costs xenstore some sixty requests, and the log a line for
/// each device.
const REST: Duration = Duration::from_millis(250);
/// The longest pause of a frontend that starts anew without end: the pause doubles up to this.
const REST_MAX: Duration = Duration::from_secs(4);

/// True if the frontend has started anew since the connection that is, or was, in service. `last` is its state at the last
/// reconciliation that went through.
pub fn starts_anew<P: Platform, T: Transport>(
    phase: &mut GuestPhase<P::Page>,
    last: XenbusState,
    cx: &mut Context<'_, P, T>,
    device: Device,
    own: XenbusState,
    frontend: XenbusState,
) -> Result<bool, Box<SetupError>> {
    use XenbusState::*;
    Ok(match phase {
        GuestPhase::Ended { .. } => match frontend {
            Initialising => last != Initialising,
            Initialised => last != Initialised && own != Closing,
            _ => false,
        },
        // Not yet: its drivers may still be taken down by the old page. It is told at once that it is seen.
        GuestPhase::Connected(channel) if frontend == Initialising => {
            if !channel.anew {
                // The next run would not know that the frontend has been here.
                cx.platform.snapshot().unseal();
                set_state(cx.client, device, InitWait)?;
                channel.anew = true;
            }
            false
        }
        // The frontend was at Reconfiguring then; nobody goes from there to Initialised.
        GuestPhase::Connected(_) if (own, frontend) == (Reconfigured, Initialised) => true,
        GuestPhase::Connected(channel) => channel.is_replaced(cx.client, device, frontend)?,
        GuestPhase::Idle | GuestPhase::Exported { .. } => match (own, frontend) {
            // An earlier run had the connection in service.
            (Connected | Reconfiguring | Reconfigured, Initialising) => true,
            // As above.
            (Reconfigured, Initialised) => true,
            (Connected | Reconfiguring, Initialised) => {
                // Both ends look as an earlier run left them. Another page or port tells that the frontend is a new one.
                match (
                    channel::remembered(cx.platform),
                    RingParams::read(cx.client, device),
                ) {
                    (_, Err(error)) if error.is_of_store() => return Err(error),
                    (Some(known), Ok(params)) => params.word() != known,
                    _ => false,
                }
            }
            // The connection was closed, or could not be served: one more try.
            (Closing | Closed, Initialising) | (Closed, Initialised) => matches!(phase, GuestPhase::Idle),
            _ => false,
        },
    })
}

/// The time that a frontend has whose page or port cannot be had.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// When the trial has failed.
    end: Duration,
    /// When the next try is due.
    next: Duration,
    pause: Duration,
}

impl Trial {
    /// Begins or continues a trial because of `error`. Returns when to look at the frontend again.
    ///
    /// # Errors
    /// `error`, if its time is up, or if no new start of the frontend would make it good.
    pub fn extend(
        trial: &mut Option<Self>,
        now: Duration,
        error: Box<SetupError>,
    ) -> Result<Duration, Box<SetupError>> {
        // What another page or port would cure. A wrong version, or a node of garbage, is the frontend's last word.
        let passes = matches!(
            *error,
            SetupError::MissingNode { .. } | SetupError::MapGrant { .. } | SetupError::BindPort { .. }
        );
        if !passes {
            return Err(error);
        }
        let trial = trial.get_or_insert_with(|| {
            log::debug!("{error}; waiting for the frontend");
            Self {
                end: now.saturating_add(TRIAL),
                next: now,
                pause: TRIAL_PAUSE,
            }
        });
        if now >= trial.end {
            return Err(error);
        }
        // By the clock, not by calls: every event of the frontend's brings one.
        if now >= trial.next {
            trial.next = now.saturating_add(trial.pause).min(trial.end);
            trial.pause *= 2;
        }
        Ok(trial.next)
    }
}

/// The pause between two new starts of the frontend.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// When the next new start may be served.
    pub end: Duration,
    /// The pause before that.
    pause: Duration,
}

impl Rest {
    /// The first new start is served at once.
    pub const NONE: Self = Self {
        end: Duration::ZERO,
        pause: REST,
    };

    /// Begins the pause after a new start.
    pub fn begin(&mut self, now: Duration) {
        // The longest pause without a new start, and it counts as a first one again.
        let calm = now.saturating_sub(self.end) > REST_MAX;
        self.pause = match calm {
            true => REST,
            false => (self.pause * 2).min(REST_MAX),
        };
        self.end = now.saturating_add(self.pause);
    }
}
