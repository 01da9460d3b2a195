//! Errors of devices: requests from dom0 to the guest, and the guest's verdicts back.
//!
//! dom0's service posts a request with the device's real address into the page of the second hop. The stub posts it into
//! the guest's page with the guest address. The verdict goes back as it is, whatever it says. Nothing waits meanwhile: the
//! guest's driver may access its device while it handles the error. The time limit is the service's.
//!
//! A request that the guest does not answer stays in its page, and no other one is posted ([`aer`]). A guest that sets,
//! clears or leaves the flag as it likes spoils its own requests and nothing else: at most one verdict goes back for each
//! request of the service.

use pci::bdf::Bdf;
use xenbus::pciif::aer::{self, AerRequest, Verdict};
use xenbus::pciif::layout::FLAGS;
use xenbus::pciif::{AER_HANDLER, SharedPage};

/// Which ends have something new in their page and want an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// There is a verdict for the service.
    pub service: bool,
    /// There is a request for the guest: the number of the notice, and whom it is about.
    pub guest: Option<(u32, Bdf)>,
}

/// Passes requests and verdicts on.
#[derive(Debug, Default)]
pub struct Relay {
    /// The guest has a request of the service's.
    asked: bool,
}

impl Relay {
    /// Passes on what there is. `service` and `guest` are the pages of the hops that are up; `guest_bdf` gives the guest
    /// address of a function.
    ///
    /// If the guest is not connected, or does not have the device, the verdict is [`Verdict::NoDriver`].
    pub fn pass<P: SharedPage>(
        &mut self,
        service: Option<&P>,
        guest: Option<&P>,
        guest_bdf: impl FnOnce(Bdf) -> Option<Bdf>,
    ) -> News {
        let mut news = News::default();
        let Some(service) = service else {
            // The service's page has gone, and its request with it. The guest's may go on; its verdict reaches nobody.
            self.asked = false;
            return news;
        };
        mirror_handler(service, guest);
        let Some(request) = aer::pending(service) else {
            // A service that was restarted has a page without the request: nobody waits for the verdict any more.
            self.asked = false;
            return news;
        };
        let verdict = match guest {
            // Also where the guest went while it was asked: its page has gone.
            None => Some(Verdict::NoDriver.raw()),
            Some(guest) if self.asked => aer::verdict(guest),
            Some(guest) => match request.function().and_then(guest_bdf) {
                None => Some(Verdict::NoDriver.raw()),
                Some(function) => {
                    let request: AerRequest = request.about(function);
                    // The guest is busy with an earlier one. This one is posted after the verdict on that.
                    if aer::post(guest, &request).is_ok() {
                        self.asked = true;
                        news.guest = Some((request.command, function));
                    }
                    None
                }
            },
        };
        if let Some(verdict) = verdict {
            self.asked = false;
            aer::answer(service, verdict);
            news.service = true;
        }
        news
    }

    /// True if the guest has given its verdict, which [`Self::pass`] will find.
    pub fn is_answered(&self, guest: &impl SharedPage) -> bool {
        self.asked && !aer::is_pending(guest)
    }
}

/// Sets the flag by which the service sees whether the guest handles errors.
fn mirror_handler<P: SharedPage>(service: &P, guest: Option<&P>) {
    let handles = guest.is_some_and(|guest| guest.load(FLAGS) & AER_HANDLER != 0);
    let told = service.load(FLAGS) & AER_HANDLER != 0;
    // A locked operation only where something changes: this runs for every request of the guest.
    match (told, handles) {
        (false, true) => _ = service.set_bits(FLAGS, AER_HANDLER),
        (true, false) => _ = service.clear_bits(FLAGS, AER_HANDLER),
        _ => {}
    }
}
