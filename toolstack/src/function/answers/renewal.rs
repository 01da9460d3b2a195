//! A function that has lost its configuration: in a reset, on its way from D3hot to D0, in a suspend of the host, or while no
//! process served it.

use super::{Done, Function, is_silent};
use crate::config_space::access::{ConfigAccess, WAKE_UP};
use crate::config_space::bytes::register_at;
use crate::config_space::restore;
use crate::function::aer::Health;
use crate::function::msix_table::is_awake;
use crate::records::ModeFile;
use crate::records::interrupt_mode::{Mode, ModeChange, ModeRecord};
use pci::registers::{command, power, register};
use std::collections::BTreeSet;
use std::io;
use std::thread;
use xen::xenctrl::{DomId, Hypervisor};

/// Power state in PMCSR: 0 is D0, 3 is D3hot.
const POWER_STATE: u32 = power::STATE as u32;

impl<C: ConfigAccess> Function<C> {
    /// Finds out the state of the function after an error. A function that was reset gets its configuration and its
    /// MSI back.
    pub fn inspect(&self, xen: &impl Hypervisor) -> io::Result<Health> {
        if is_silent(&self.config)? {
            return Ok(Health::Gone);
        }
        if !self.is_lost()? {
            return Ok(Health::Sound);
        }
        self.renew(xen)?;
        Ok(Health::Restored)
    }

    /// Finds out the state of the function after the host was suspended. A function that may have lost its state gets its
    /// configuration and its MSI back; with `in_doubt` also one of which nobody can tell.
    pub fn resume(&self, xen: &impl Hypervisor, in_doubt: bool) -> io::Result<Health> {
        if is_silent(&self.config)? {
            return Ok(Health::Gone);
        }
        // One that sleeps is restored when the guest wakes it up.
        if !is_awake(&self.config, self.power)? {
            return Ok(Health::Sound);
        }
        // Linux has restored the header by now, but not MSI, which it does not know to be on. So with INTx nobody can tell
        // whether the function has kept its state.
        let is_doubtful = in_doubt && *self.interrupts.mode() == Mode::Intx;
        if !is_doubtful && !self.is_lost()? {
            return Ok(Health::Sound);
        }
        self.snapshot.restore(&self.config)?;
        // The snapshot of a function that nobody served is what the suspend has left.
        self.decode()?;
        self.interrupts.restore(&self.config, xen)?;
        Ok(Health::Restored)
    }

    /// Has the function decode its addresses as it is recorded: Xen writes the MSI-X table through a BAR.
    fn decode(&self) -> io::Result<()> {
        let recorded = register_at(&self.device.header, register::COMMAND, 2).unwrap_or_default();
        let decode = recorded as u16 & (command::IO | command::MEMORY);
        let now = self.config.read16(register::COMMAND)?;
        self.config.write16(register::COMMAND, now | decode)
    }

    /// True if the function was reset. Some functions lose their addresses, others MSI alone.
    fn is_lost(&self) -> io::Result<bool> {
        Ok(self.snapshot.is_lost(&self.config)? || self.interrupts.is_lost(&self.config)?)
    }

    /// Gives the function its configuration and its MSI back after a reset.
    pub fn renew(&self, xen: &impl Hypervisor) -> io::Result<()> {
        self.snapshot.restore(&self.config)?;
        self.interrupts.restore(&self.config, xen)
    }

    /// Finishes what an earlier process left undone when it died: a wake-up that lost the addresses, or a change of
    /// the interrupt mode. For `change` and `known` see
    /// [`Interrupts::resolve_unknown`](crate::function::interrupts::Interrupts::resolve_unknown). Says what it found.
    pub(in crate::function) fn resolve_unknown(
        &mut self,
        xen: &impl Hypervisor,
        guest: DomId,
        change: Option<ModeChange>,
        known: &BTreeSet<u32>,
        mut record: impl FnMut(&mut Option<ModeFile>, ModeRecord<'_>),
    ) -> io::Result<Option<String>> {
        // Until this has succeeded.
        self.is_unresolved = change.is_some();
        let config = &self.config;
        let power = self
            .guard
            .pmcsr()
            .map(|pmcsr| config.read(pmcsr, 2))
            .transpose()?;
        let asleep = power.is_some_and(|power| power & POWER_STATE != 0);
        // A function that sleeps loses its addresses only when it wakes up.
        if asleep || is_silent(config)? {
            return Ok(None);
        }
        let found = if restore::addresses(config, &self.device.header)? {
            self.decode()?;
            self.interrupts.restore(config, xen)?;
            Some("it had lost its addresses; they are back".to_owned())
        } else {
            let before = self.interrupts.mode().clone();
            let file = &mut self.mode_file;
            let unmapped = self
                .interrupts
                .resolve_unknown(config, xen, guest, change, known, |mode| record(file, mode))?;
            self.is_unresolved = false;
            let changed = change.is_some() || before != *self.interrupts.mode();
            changed.then(|| {
                format!(
                    "a change of its interrupt mode was cut short and is undone; pirqs unmapped: {unmapped}"
                )
            })
        };
        self.snapshot.update_command(&self.config)?;
        Ok(found)
    }

    /// Writes the power state. A function that comes back from D3hot may have been reset on the way (No_Soft_Reset is
    /// 0). Then it gets its configuration and its MSI back, which neither the guest nor the stub may write.
    pub(super) fn write_power(
        &mut self,
        offset: u16,
        value: u32,
        current: u32,
        xen: &impl Hypervisor,
    ) -> io::Result<Done> {
        let (from, to) = (current & POWER_STATE, value & POWER_STATE);
        // The snapshot gets COMMAND as it is now, in case the function resets itself on its way back.
        if from == 0 && to != 0 {
            self.snapshot.update_command(&self.config)?;
        }
        self.config.write(offset, 2, value)?;
        if from != 0 && to == 0 {
            thread::sleep(WAKE_UP);
            // A function that does not answer must not be written to.
            self.config.read_sound(register::COMMAND)?;
            if self.is_lost()? {
                self.renew(xen)?;
            }
        }
        Ok(Done::Value(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;
    use crate::config_space::capabilities::tests::space;
    use crate::function::fixture::{MSIX, POWER, StubSide, bdf, config};
    use crate::function::functions::Functions;
    use crate::records::tests::attachment;
    use std::collections::BTreeMap;
    use xen::model::Xen;
    use xenbus::pciif::{Command, OpError, Request};

    const EXPRESS: u16 = 0x90;

    /// One with PCI Express, of which the device control is 0x2810.
    fn express() -> StubSide {
        let mut attachment = attachment();
        attachment.devices.truncate(1);
        attachment.modes = vec![Mode::Intx.into()];
        let list = [(POWER as u8, 1), (EXPRESS as u8, 0x10), (MSIX as u8, 0x11)];
        let mut bytes = config().bytes.into_inner();
        let linked = space(&list);
        for at in [POWER, POWER + 1, EXPRESS, EXPRESS + 1, MSIX, MSIX + 1, 0x06, 0x34] {
            bytes[usize::from(at)] = linked[usize::from(at)];
        }
        bytes[usize::from(EXPRESS) + 8..][..2].copy_from_slice(&[0x10, 0x28]);
        attachment.devices[0].header = bytes[..64].to_vec();
        StubSide {
            functions: Functions::new(&attachment, |_| Ok::<_, io::Error>(Model::new(bytes.clone())))
                .unwrap(),
            ..StubSide::new()
        }
    }

    #[test]
    fn a_function_that_forgets_its_addresses_in_its_sleep_gets_them_back() {
        let mut stub = StubSide::new();
        stub.config().set16(4, 0x0007);
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        assert_eq!(stub.ask(&power(3), &[]), Ok(Done::Value(0)));
        // As a function does that resets itself on the way to D0.
        stub.config().set16(0x04, 0);
        stub.config().set16(0x12, 0);
        assert_eq!(stub.ask(&power(0), &[]), Ok(Done::Value(0)));
        let expected = [
            (POWER + 4, 2, 3),
            (POWER + 4, 2, 0),
            (0x10, 4, 0xfebc_0000),
            (4, 2, 0x0007),
        ];
        assert_eq!(stub.writes(), expected);
    }

    #[test]
    fn a_function_that_resets_itself_on_its_way_to_d0_gets_all_back_also_its_messages() {
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        // What it loses: its addresses and all else, or its messages alone.
        for lost in [
            &[0x04, 0x12, EXPRESS + 8, MSIX + 2][..],
            &[0x04, MSIX + 2],
            &[MSIX + 2],
        ] {
            let mut stub = express();
            stub.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]).unwrap();
            stub.ask(&Request::new(Command::EnableMsix, bdf()), &[0, 2])
                .unwrap();
            let before = stub.config().bytes.borrow().clone();
            stub.ask(&power(3), &[]).unwrap();
            for &at in lost {
                let value = if at == MSIX + 2 { 4 } else { 0 };
                stub.config().set16(at, value);
            }
            assert_eq!(stub.ask(&power(0), &[]), Ok(Done::Value(0)));
            assert!(*stub.config().bytes.borrow() == before, "{lost:x?}");
            assert_eq!(stub.xen.calls().last().unwrap(), "restore messages 0000:00:05.0");
        }
    }

    #[test]
    fn one_that_does_not_answer_after_its_sleep_is_not_written_to() {
        let mut stub = StubSide::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        stub.ask(&power(3), &[]).unwrap();
        stub.config().bytes.borrow_mut()[..64].fill(0xff);
        let before = stub.writes().len();
        assert_eq!(stub.ask(&power(0), &[]), Err(OpError::OpFailed));
        assert_eq!(stub.writes()[before..], [(POWER + 4, 2, 0)]);
    }

    #[test]
    fn messages_of_a_function_that_sleeps_wait_until_it_is_awake() {
        let mut stub = StubSide::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        stub.ask(&power(3), &[]).unwrap();
        let enable = Request::new(Command::EnableMsix, bdf());
        assert_eq!(stub.ask(&enable, &[0]), Err(OpError::EINVAL));
        assert!(stub.xen.calls().is_empty() && stub.recorded.is_empty());
        stub.ask(&power(0), &[]).unwrap();
        assert_eq!(stub.ask(&enable, &[0]), Ok(Done::Vectors(vec![55])));
    }

    #[test]
    fn a_function_whose_wake_up_was_cut_short_gets_its_addresses_back() {
        let stub = StubSide::new();
        // The process died in the pause after the write of D0.
        stub.config().set16(0x04, 0);
        stub.config().set16(0x12, 0);
        let mut stub = stub.taken_up_again(Mode::Intx);
        let resolved = stub.resolve_unknown(&BTreeMap::new());
        assert_eq!(resolved, ["it had lost its addresses; they are back"]);
        assert_eq!(stub.writes(), [(0x10, 4, 0xfebc_0000), (4, 2, 0x0003)]);
        assert!(stub.resolve_unknown(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_function_that_sleeps_while_the_service_is_replaced_wakes_up_as_before() {
        let mut stub = StubSide::new();
        stub.config().set16(4, 0x0007);
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        stub.ask(&power(3), &[]).unwrap();
        let mut stub = stub.taken_up_again(Mode::Intx);
        assert!(stub.resolve_unknown(&BTreeMap::new()).is_empty());
        stub.config().set16(0x04, 0);
        stub.config().set16(0x12, 0);
        stub.ask(&power(0), &[]).unwrap();
        assert_eq!(stub.writes().last(), Some(&(4, 2, 0x0007)));
    }

    #[test]
    fn a_change_that_was_cut_short_is_undone_and_told() {
        let mut stub = StubSide::new().taken_up_again(Mode::Intx);
        stub.xen = Xen::with_pirqs(&[55, 54]);
        let resolved = stub.resolve_unknown(&[(bdf(), ModeChange::Msix(3))].into());
        assert_eq!(
            resolved,
            ["a change of its interrupt mode was cut short and is undone; pirqs unmapped: 2"]
        );
        assert!(stub.xen.pirqs().is_empty());
    }

    #[test]
    fn a_function_that_keeps_its_state_in_its_sleep_is_left_alone() {
        let mut stub = StubSide::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        assert_eq!(stub.ask(&power(3), &[]), Ok(Done::Value(0)));
        assert_eq!(stub.ask(&power(0), &[]), Ok(Done::Value(0)));
        assert_eq!(stub.writes(), [(POWER + 4, 2, 3), (POWER + 4, 2, 0)]);
    }

    #[test]
    fn a_function_that_was_reset_under_its_guest_gets_configuration_and_messages_back() {
        let mut stub = StubSide::new();
        stub.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]).unwrap();
        stub.ask(&Request::new(Command::EnableMsix, bdf()), &[0, 2])
            .unwrap();
        let before = stub.config().bytes.borrow().clone();
        let inspect = |stub: &StubSide| stub.functions.get(bdf()).unwrap().inspect(&stub.xen).unwrap();
        assert_eq!(inspect(&stub), Health::Sound);
        // As dom0's kernel does to all that is below a port with a fatal error.
        stub.config().set16(4, 0);
        stub.config().set16(0x12, 0);
        stub.config().set16(MSIX + 2, 4);
        assert_eq!(inspect(&stub), Health::Restored);
        assert!(*stub.config().bytes.borrow() == before, "INTx silenced, MSI-X on");
        assert_eq!(stub.xen.calls().last().unwrap(), "restore messages 0000:00:05.0");
        assert_eq!(inspect(&stub), Health::Sound);
        // As after a reset in which Linux has saved and restored the header.
        stub.config().set16(MSIX + 2, 4);
        assert_eq!(inspect(&stub), Health::Restored);
        assert!(*stub.config().bytes.borrow() == before);
        stub.config().bytes.borrow_mut().fill(0xff);
        assert_eq!(inspect(&stub), Health::Gone);
    }

    fn resume(stub: &StubSide) -> Health {
        stub.functions
            .get(bdf())
            .unwrap()
            .resume(&stub.xen, true)
            .unwrap()
    }

    #[test]
    fn a_function_that_lost_its_messages_in_a_suspend_of_the_host_gets_them_back() {
        let mut stub = StubSide::new();
        stub.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]).unwrap();
        stub.ask(&Request::new(Command::EnableMsix, bdf()), &[0, 2])
            .unwrap();
        let before = stub.config().bytes.borrow().clone();
        let calls = stub.xen.calls().len();
        assert_eq!(resume(&stub), Health::Sound, "it has kept its state");
        assert_eq!(stub.xen.calls().len(), calls);
        // Linux has restored the header, or has not.
        for lost in [&[MSIX + 2][..], &[MSIX + 2, 0x04, 0x12]] {
            for &at in lost {
                stub.config().set16(at, if at == MSIX + 2 { 4 } else { 0 });
            }
            assert_eq!(resume(&stub), Health::Restored, "{lost:x?}");
            assert!(*stub.config().bytes.borrow() == before, "{lost:x?}");
            assert_eq!(stub.xen.calls().last().unwrap(), "restore messages 0000:00:05.0");
        }
        stub.config().bytes.borrow_mut().fill(0xff);
        let writes = stub.writes().len();
        assert_eq!(resume(&stub), Health::Gone);
        assert_eq!(stub.writes().len(), writes);
    }

    #[test]
    fn a_function_with_intx_counts_as_reset_in_a_suspend_of_the_host() {
        let mut stub = StubSide::new();
        stub.ask(&Request::conf_write(bdf(), 4, 2, 0x0007), &[]).unwrap();
        let before = stub.config().bytes.borrow().clone();
        stub.config().set16(4, 0);
        stub.config().set16(0x12, 0);
        assert_eq!(resume(&stub), Health::Restored);
        assert!(*stub.config().bytes.borrow() == before);
        assert_eq!(resume(&stub), Health::Restored, "nobody can tell");
        let function = stub.functions.get(bdf()).unwrap();
        assert_eq!(function.resume(&stub.xen, false).unwrap(), Health::Sound);
        assert!(stub.xen.calls().is_empty());
    }

    #[test]
    fn a_function_that_sleeps_over_a_suspend_of_the_host_is_restored_when_it_wakes_up() {
        let mut stub = StubSide::new();
        let power = |value| Request::conf_write(bdf(), POWER + 4, 2, value);
        stub.ask(&power(3), &[]).unwrap();
        stub.config().set16(0x12, 0);
        let writes = stub.writes().len();
        assert_eq!(resume(&stub), Health::Sound);
        assert_eq!(stub.writes().len(), writes);
        stub.ask(&power(0), &[]).unwrap();
        assert!(stub.writes().contains(&(0x10, 4, 0xfebc_0000)));
    }
}
