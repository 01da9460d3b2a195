//! The devices of one attachment: finds the one that a request names.

use crate::config_space::access::ConfigAccess;
use crate::function::answers::{Done, Function};
use crate::function::failure::Failure;
use crate::records::interrupt_mode::{ModeChange, ModeRecord};
use crate::records::{Attachment, ModeFile};
use pci::bdf::Bdf;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::pciif::backend::Taken;
use xenbus::pciif::{Command, OpError, Request};

/// All devices of one attachment.
#[derive(Debug)]
pub struct Functions<C> {
    guest: DomId,
    functions: Vec<Function<C>>,
}

impl<C: ConfigAccess> Functions<C> {
    /// Takes the devices of an attachment into service; `open` opens their configuration spaces.
    pub fn new<E: From<io::Error>>(
        attachment: &Attachment,
        open: impl FnMut(Bdf) -> Result<C, E>,
    ) -> Result<Self, E> {
        let mut functions = Self::none(attachment.guest.domid);
        functions.follow(attachment, open)?;
        Ok(functions)
    }

    /// No device of this guest is in service yet.
    pub const fn none(guest: DomId) -> Self {
        Self {
            guest,
            functions: Vec::new(),
        }
    }

    /// Takes devices into service that the attachment has gained, and drops those that it has lost. The state of the
    /// others stays.
    pub fn follow<E: From<io::Error>>(
        &mut self,
        attachment: &Attachment,
        mut open: impl FnMut(Bdf) -> Result<C, E>,
    ) -> Result<(), E> {
        self.functions
            .retain(|function| attachment.bdfs().any(|bdf| bdf == function.bdf()));
        for (device, mode) in attachment.devices_and_modes() {
            if !self.functions.iter().any(|function| function.bdf() == device.bdf) {
                let config = open(device.bdf)?;
                // The physical function is dom0's: it is read, never written.
                let physical = device.physical.map(&mut open).transpose()?;
                let function = Function::new(device.clone(), config, physical, mode.mode())?;
                self.functions.push(function);
            }
        }
        Ok(())
    }

    /// Takes devices out of service: no request for them is answered any more.
    pub fn drop_devices(&mut self, bdfs: &[Bdf]) {
        self.functions.retain(|function| !bdfs.contains(&function.bdf()));
    }

    /// The device at this address.
    pub fn get(&self, bdf: Bdf) -> Option<&Function<C>> {
        self.functions.iter().find(|function| function.bdf() == bdf)
    }

    /// The devices, in the order in which they came, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Function<C>> {
        self.functions.iter_mut()
    }

    /// The devices, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Function<C>> {
        self.functions.iter()
    }

    /// Finishes what an earlier process left undone when it died. `changes` are the changes of interrupt modes whose
    /// end was not recorded, `known` the pirqs of the guest by its record. Returns what was found, for each device
    /// where there was something.
    pub fn resolve_unknown(
        &mut self,
        xen: &impl Hypervisor,
        changes: &BTreeMap<Bdf, ModeChange>,
        known: &BTreeSet<u32>,
        mut record: impl FnMut(Bdf, &mut Option<ModeFile>, ModeRecord<'_>),
    ) -> Vec<(Bdf, io::Result<String>)> {
        let guest = self.guest;
        let resolve = |function: &mut Function<C>| {
            let bdf = function.bdf();
            let change = changes.get(&bdf).copied();
            let resolved = function.resolve_unknown(xen, guest, change, known, |file, mode| {
                record(bdf, file, mode);
            });
            resolved.transpose().map(|said| (bdf, said))
        };
        self.functions.iter_mut().filter_map(resolve).collect()
    }

    /// True for a request that has to wait until [`Self::resolve_unknown`] has succeeded for its device.
    pub fn needs_resolving(&self, request: &Request) -> bool {
        let is_meant = |function: &&Function<C>| Some(function.bdf()) == request.function();
        matches!(request.command, Command::EnableMsi | Command::EnableMsix)
            && self.iter().find(is_meant).is_some_and(Function::is_unresolved)
    }

    /// Prepares for a request that is older than this process. It may have been carried out already, wholly or in
    /// part. For a request that turns MSI or MSI-X on, MSI is turned off first, because nobody knows the pirqs. All
    /// others can be carried out twice.
    pub fn begin_again(
        &mut self,
        request: &Request,
        xen: &impl Hypervisor,
        mut record: impl FnMut(Bdf, &mut Option<ModeFile>, ModeRecord<'_>),
    ) {
        let guest = self.guest;
        let bdf = request.function();
        let mut functions = self.functions.iter_mut();
        if matches!(request.command, Command::EnableMsi | Command::EnableMsix)
            && let Some(function) = functions.find(|function| Some(function.bdf()) == bdf)
        {
            let bdf = function.bdf();
            // What cannot be turned off makes the request fail.
            let _ = function.disable_msi(xen, guest, |file, mode| record(bdf, file, mode));
        }
    }

    /// Carries a request out. `record` writes down that the device at this address changed its mode, or is about to, in the
    /// file that it may have open.
    pub fn answer(
        &mut self,
        taken: &Taken,
        xen: &impl Hypervisor,
        mut record: impl FnMut(Bdf, &mut Option<ModeFile>, ModeRecord<'_>),
    ) -> Result<Done, Failure> {
        let spoken_of = taken.request().function();
        let mut functions = self.functions.iter_mut();
        let Some(function) = functions.find(|function| Some(function.bdf()) == spoken_of) else {
            return Err(Failure {
                error: OpError::DeviceNotFound,
                cause: "not a device of this stub".into(),
            });
        };
        let bdf = function.bdf();
        function.answer(taken, xen, self.guest, |file, mode| record(bdf, file, mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::function::fixture::{POWER, StubSide, bdf, config};
    use crate::records::interrupt_mode::Mode;
    use crate::records::tests::{attachment, device};
    use xen::model::Xen;

    #[test]
    fn only_the_devices_of_the_attachment_are_spoken_to() {
        let mut stub = StubSide::new();
        let other = Request::conf_write("00:06.0".parse().unwrap(), 4, 2, 7);
        assert_eq!(stub.ask(&other, &[]), Err(OpError::DeviceNotFound));
        let beyond = Request {
            bus: 0x1_0000,
            ..Request::conf_write(bdf(), 4, 2, 7)
        };
        assert_eq!(stub.ask(&beyond, &[]), Err(OpError::DeviceNotFound));
    }

    #[test]
    fn the_list_is_followed_and_the_devices_that_stay_keep_what_is_known_of_them() {
        let mut stub = StubSide::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        stub.ask(&enable, &[0]).unwrap();
        let mut one = attachment();
        one.devices.truncate(1);
        one.modes = vec![Mode::Intx.into()];
        let two = one.with(vec![device("00:06.0")]);
        let open = |_| Ok::<_, io::Error>(config());

        let other = "00:06.0".parse().unwrap();
        let write = Request::conf_write(other, 4, 2, 7);
        assert_eq!(stub.ask(&write, &[]), Err(OpError::DeviceNotFound));
        stub.functions.follow(&two, open).unwrap();
        assert_eq!(stub.ask(&write, &[]), Ok(Done::Value(0)));
        assert_eq!(
            stub.ask(&enable, &[0]),
            Err(OpError::EALREADY),
            "MSI-X is still known to be on"
        );

        stub.functions.drop_devices(&[bdf()]);
        assert_eq!(stub.ask(&enable, &[0]), Err(OpError::DeviceNotFound));
        stub.functions.follow(&one, open).unwrap();
        assert_eq!(stub.ask(&write, &[]), Err(OpError::DeviceNotFound));
        assert_eq!(stub.ask(&enable, &[0]).map(|_| ()), Ok(()), "it starts anew");
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_an_error_and_the_others_are_served() {
        let mut stub = StubSide::new();
        let more = attachment();
        let closed = |_| Err::<Model, _>(io::Error::from(io::ErrorKind::NotFound));
        assert!(stub.functions.follow(&more, closed).is_err());
        let write = Request::conf_write(bdf(), 4, 2, 7);
        assert_eq!(stub.ask(&write, &[]), Ok(Done::Value(0)));
    }

    #[test]
    fn of_a_device_that_sleeps_nothing_is_guessed_and_messages_wait_until_it_is_awake() {
        for left in [ModeChange::Unknown, ModeChange::Msix(2)] {
            let mut stub = StubSide::new();
            let enable = Request::new(Command::EnableMsix, bdf());
            stub.ask(&enable, &[0, 2]).unwrap();
            let mut stub = stub.taken_up_again(Mode::Intx);
            stub.xen = Xen::with_pirqs(&[55, 54]);
            let (changes, known) = ([(bdf(), left)].into(), BTreeSet::new());
            let mut records = 0;
            let mut resolve = |stub: &mut StubSide| {
                let resolved = stub
                    .functions
                    .resolve_unknown(&stub.xen, &changes, &known, |_, _, _| records += 1);
                (resolved.len(), records)
            };
            stub.config().set16(POWER + 4, 3);
            assert_eq!(resolve(&mut stub), (0, 0), "the record stays as it is");
            assert!(stub.functions.needs_resolving(&enable));
            assert_eq!(stub.ask(&enable, &[0]), Err(OpError::OpFailed));
            assert_eq!((stub.xen.pirqs(), stub.xen.calls().len()), (vec![54, 55], 0));
            stub.config().set16(POWER + 4, 0);
            assert_eq!(resolve(&mut stub), (1, 1));
            assert_eq!(stub.xen.pirqs(), [0; 0]);
            assert!(!stub.functions.needs_resolving(&enable));
            assert_eq!(stub.ask(&enable, &[0]).map(|_| ()), Ok(()));
        }
    }

    #[test]
    fn after_a_refusal_of_xens_messages_wait_too() {
        let mut stub = StubSide::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        let (changes, known) = ([(bdf(), ModeChange::Unknown)].into(), BTreeSet::new());
        stub.xen = Xen::refusing_after(0);
        let resolved = stub
            .functions
            .resolve_unknown(&stub.xen, &changes, &known, |_, _, _| {});
        assert!(resolved[0].1.is_err());
        stub.xen = Xen::default();
        assert_eq!(stub.ask(&enable, &[0]), Err(OpError::OpFailed));
        assert_eq!(stub.xen.calls(), [""; 0]);
    }

    #[test]
    fn messages_that_a_dead_service_turned_on_and_nobody_heard_of_are_turned_on_anew() {
        let mut stub = StubSide::new();
        let enable = Request::new(Command::EnableMsix, bdf());
        assert_eq!(stub.ask(&enable, &[0, 2]), Ok(Done::Vectors(vec![55, 54])));
        let mode = stub.function().mode().clone();
        let mut stub = stub.taken_up_again(mode);
        assert!(
            stub.resolve_unknown(&BTreeMap::new()).is_empty(),
            "it is on, as recorded"
        );
        let (functions, xen) = (&mut stub.functions, &stub.xen);
        functions.begin_again(&Request::conf_write(bdf(), 4, 2, 7), xen, |_, _, _| {});
        assert!(xen.calls().is_empty());
        functions.begin_again(&enable, xen, |_, _, _| {});
        assert_eq!(xen.calls(), ["unmap 3 55", "unmap 3 54"]);
        assert_eq!(stub.ask(&enable, &[0, 2]).map(|_| ()), Ok(()));
    }
}
