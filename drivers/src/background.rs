//! Work of a stub beside serving its guest: what the image has, besides the backend, in the time between two requests.

use crate::platform::{DomId, Platform, Port};
use core::time::Duration;
use pci::bdf::Bdf;
use xenbus::client::{Client, Transport};
use xenbus::counters::Counters;

/// Calls its argument with the real address of each device that the guest has.
pub type ForEachDevice<'a> = dyn Fn(&mut dyn FnMut(Bdf)) + 'a;

/// The stub as background work sees it.
pub struct View<'a> {
    /// A request waits: only work that can wait no longer is done.
    pub asks: bool,
    /// The guest, once something is exported to it.
    pub guest: Option<DomId>,
    /// What was counted.
    pub counters: &'a Counters,
    /// The guest's devices.
    pub for_each_device: &'a ForEachDevice<'a>,
}

/// Work that is done while no request of the guest waits. A turn must end soon: the guest may ask meanwhile.
pub trait Background<P: Platform, T: Transport> {
    /// False if there is never anything to do: such an image has no code for it.
    const EXISTS: bool = true;

    /// Sets the watches. Their tokens must differ from the stub's. The guest is served even if xenstore refuses.
    fn start(&mut self, platform: &mut P, client: &mut Client<T>, domid: DomId);

    /// A watch that is not the stub's own has fired.
    fn changed(&mut self, token: &str);

    /// The port whose events call for a turn.
    fn port(&self) -> Option<Port>;

    /// Does some of the work; returns when more is due even if no event comes.
    ///
    /// A turn that has asked xenstore must return the present: events may have come along with the replies, and no port
    /// tells of them any more.
    fn turn(&mut self, platform: &mut P, client: &mut Client<T>, view: View<'_>) -> Option<Duration>;
}

/// No background work.
impl<P: Platform, T: Transport> Background<P, T> for () {
    const EXISTS: bool = false;

    fn start(&mut self, _: &mut P, _: &mut Client<T>, _: DomId) {}

    fn changed(&mut self, _: &str) {}

    fn port(&self) -> Option<Port> {
        None
    }

    fn turn(&mut self, _: &mut P, _: &mut Client<T>, _: View<'_>) -> Option<Duration> {
        None
    }
}
