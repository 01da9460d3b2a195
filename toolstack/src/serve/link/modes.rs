//! The interrupt modes of a stub's devices: the thread of the link records them, and finds what an earlier thread has left.

use super::limits::Limits;
use super::state::lock;
use crate::host::store::Store;
use crate::paths;
use crate::records::interrupt_mode::{Mode, ModeChange, ModeRecord, Recorded};
use crate::records::{Attachment, ModeFile, RecordError};
use crate::serve::log_limit::log_limited;
use inject::Point;
use log::Level;
use pci::bdf::Bdf;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use xen::xenctrl::DomId;

/// Records interrupt modes.
pub struct ModeRecorder<'a> {
    store: &'a mut Store,
    stub: DomId,
    name: &'a str,
    limits: &'a Mutex<Limits>,
    /// The modes that are recorded and not logged yet.
    recorded: Vec<(Bdf, Mode)>,
}

impl<'a> ModeRecorder<'a> {
    /// Nothing is recorded yet.
    pub const fn new(store: &'a mut Store, stub: DomId, name: &'a str, limits: &'a Mutex<Limits>) -> Self {
        Self {
            store,
            stub,
            name,
            limits,
            recorded: Vec::new(),
        }
    }

    /// Records in the device's `file`, which is opened the first time.
    pub fn record(&mut self, bdf: Bdf, file: &mut Option<ModeFile>, record: ModeRecord<'_>) {
        inject::point(Point::Note);
        let recorded = ModeFile::record(file, self.store, self.stub, bdf, record);
        inject::point(Point::Noted);
        if let Ok(Some(error)) = &recorded {
            log_limited!(
                lock(self.limits).mode_changes,
                Level::Warn,
                DEVICE = bdf;
                "stub {name}: {bdf}: xenstore has the interrupt mode, because its file in {run} cannot be written: {error}; \
                 `df {run}` shows whether there is space",
                name = self.name,
                run = paths::RUN,
            );
        }
        match (recorded, record) {
            // The mode that it ends in is logged.
            (Ok(_), ModeRecord::Change(_)) => {}
            (Ok(_), ModeRecord::Mode(mode)) => self.recorded.push((bdf, mode.clone())),
            (Err(error), record) => log_limited!(
                lock(self.limits).mode_changes,
                Level::Error,
                DEVICE = bdf;
                "stub {name}: {bdf}: cannot record interrupt mode {record}: {error:#}",
                name = self.name,
                error = anyhow::Error::from(error)
            ),
        }
    }

    /// Logs the modes. To be called when nobody waits for the answer.
    pub fn log(self) {
        let name = self.name;
        for (bdf, mode) in self.recorded {
            log_limited!(
                lock(self.limits).mode_changes,
                Level::Info,
                DEVICE = bdf;
                "stub {name}: {bdf} now interrupts by {mode}"
            );
        }
    }
}

/// What an earlier thread may have left.
#[derive(Debug, Default)]
pub struct LeftOver {
    /// The changes of interrupt modes whose end is not recorded, by device.
    pub changes: BTreeMap<Bdf, ModeChange>,
    /// The pirqs that the guest has by the record.
    pub known: BTreeSet<u32>,
    /// The devices whose record is lost or damaged, with the cause.
    pub causes: Vec<(Bdf, String)>,
}

/// What an earlier thread has left of a stub, by its record.
pub fn unfinished(store: &mut Store, stub: DomId) -> Result<LeftOver, RecordError> {
    let attachment = Attachment::read(store, stub)?;
    Ok(attachment.as_ref().map(unfinished_of).unwrap_or_default())
}

/// The same by a record that was read when no thread recorded modes in it.
pub fn unfinished_of(attachment: &Attachment) -> LeftOver {
    let mut left = LeftOver::default();
    for (device, recorded) in attachment.devices_and_modes() {
        if let Recorded::Unknown(cause) = &recorded {
            left.causes.push((device.bdf, cause.clone()));
        }
        left.changes
            .extend(recorded.change().map(|change| (device.bdf, change)));
        // INTx counts too: the guest has that pirq from the start.
        let pirqs = recorded.mode().pirqs().into_iter().map(u32::from);
        left.known.extend(pirqs.chain(device.gsi));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::ConfigAccess;
    use crate::config_space::access::tests::Model;
    use crate::config_space::interrupts::sends_msi;
    use crate::function::fixture::{bdf, config};
    use crate::function::{Done, Functions};
    use crate::host::store::tests::dom0;
    use crate::records::tests::attachment;
    use std::cell::Cell;
    use std::io;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::rc::Rc;
    use tempfile::TempDir;
    use xen::model::Xen;
    use xenbus::model::{Page, Xenstored};
    use xenbus::pciif::backend::take;
    use xenbus::pciif::frontend::post;
    use xenbus::pciif::{Command, MsixEntry, Request};

    const STUB: DomId = 4;

    /// A count of steps, after the last of which the process dies.
    #[derive(Clone, Default)]
    struct Steps(Rc<Cell<Option<u32>>>);

    impl Steps {
        fn one(&self) {
            if let Some(left) = self.0.get() {
                self.0.set(left.checked_sub(1));
                if left == 0 {
                    resume_unwind(Box::new("it dies here"));
                }
            }
        }
    }

    /// A device, in whose configuration space the process may die after each write.
    #[derive(Clone)]
    struct MortalConfig {
        space: Rc<Model>,
        steps: Steps,
    }

    impl ConfigAccess for MortalConfig {
        fn read(&self, offset: u16, width: u8) -> io::Result<u32> {
            self.space.read(offset, width)
        }

        fn write(&self, offset: u16, width: u8, value: u32) -> io::Result<()> {
            self.space.write(offset, width, value)?;
            self.steps.one();
            Ok(())
        }

        fn read_space(&self, length: usize) -> io::Result<Vec<u8>> {
            self.space.read_space(length)
        }
    }

    /// What outlives a process of the service.
    struct Survivors {
        store: Store,
        xen: Xen,
        device: MortalConfig,
        steps: Steps,
        _home: TempDir,
    }

    impl Survivors {
        /// The guest has the pirq 20 by its line, and 55 by another function.
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().to_path_buf();
            crate::paths::tests::HOME.with(|home| *home.borrow_mut() = Some(path));
            let steps = Steps::default();
            let (at_a_call, at_a_write) = (steps.clone(), steps.clone());
            let xen = Xen::with_pirqs(&[20, 55]);
            xen.after_each(move || at_a_call.one());
            let mut store = dom0(&Xenstored::new());
            let mut both = attachment();
            both.devices[0].header = config().bytes.borrow()[..64].to_vec();
            both.modes = vec![Mode::Intx.into(), Mode::Msi(55).into()];
            both.write(&mut store).unwrap();
            Self {
                store,
                xen,
                device: MortalConfig {
                    space: Rc::new(config()),
                    steps: at_a_write,
                },
                steps,
                _home: home,
            }
        }

        /// A process of the service begins, and then answers these requests.
        fn serve(&mut self, requests: &[Command]) -> Vec<Option<Done>> {
            let mut attachment = Attachment::read(&mut self.store, STUB).unwrap().unwrap();
            attachment = attachment.without(&[attachment.devices[1].bdf]);
            let open = |_| Ok::<_, io::Error>(self.device.clone());
            let mut functions = Functions::new(&attachment, open).unwrap();
            let LeftOver { changes, known, .. } = unfinished(&mut self.store, STUB).unwrap();
            let (store, steps) = (&mut self.store, self.steps.clone());
            let mut record = |bdf, file: &mut Option<ModeFile>, mode: ModeRecord<'_>| {
                ModeFile::record(file, store, STUB, bdf, mode).unwrap();
                steps.one();
            };
            let resolved = functions.resolve_unknown(&self.xen, &changes, &known, &mut record);
            resolved
                .into_iter()
                .for_each(|(_, resolved)| drop(resolved.unwrap()));
            let mut ask = |&command| {
                let page = Page::new();
                let entries = [0, 2, 3].map(|entry| MsixEntry { vector: 0, entry });
                assert!(post(&page, &Request::new(command, bdf()), &entries).is_ok());
                let taken = take(&page).unwrap();
                functions.answer(&taken, &self.xen, &mut record).ok()
            };
            requests.iter().map(&mut ask).collect()
        }

        /// A process that dies after so many steps; false if it has no more to do than that.
        fn die_after(&mut self, steps: u32, requests: &[Command]) -> bool {
            self.steps.0.set(Some(steps));
            let died = catch_unwind(AssertUnwindSafe(|| self.serve(requests))).is_err();
            self.steps.0.set(None);
            died
        }

        fn pirqs_of_the_device(&self) -> Vec<u16> {
            let others = [20, 55];
            let pirqs = self.xen.pirqs().into_iter();
            pirqs.filter(|pirq| !others.contains(pirq)).collect()
        }

        fn is_on(&self) -> bool {
            sends_msi(&self.device.space.bytes.borrow())
        }
    }

    const ROUND: [Command; 3] = [Command::EnableMsix, Command::DisableMsix, Command::EnableMsix];

    /// The next process finds the mode off, or the one that is on; and the guest has what it asks for, however often processes die.
    fn is_sound_after_a_death(host: &mut Survivors, what: &str) {
        host.serve(&[]);
        let pirqs = host.pirqs_of_the_device();
        assert_eq!(host.is_on(), pirqs.len() == 3, "{what}: {pirqs:?}");
        assert!(matches!(pirqs.len(), 0 | 3), "{what}: {pirqs:?}");
        host.serve(&[Command::DisableMsix]);
        assert_eq!(
            (host.is_on(), host.pirqs_of_the_device()),
            (false, vec![]),
            "{what}"
        );
        let done = host.serve(&[Command::EnableMsix]);
        assert_eq!(done, [Some(Done::Vectors(vec![54, 53, 52]))], "{what}");
        assert_eq!(
            (host.is_on(), host.pirqs_of_the_device()),
            (true, vec![52, 53, 54])
        );
    }

    #[test]
    fn a_process_may_die_after_any_step_and_the_next_one_too() {
        // Turned on: two records, three pirqs, two registers. Turned off: one record, three pirqs, two registers.
        for first in 0..7 + 6 + 7 {
            let mut host = Survivors::new();
            assert!(host.die_after(first, &ROUND));
            is_sound_after_a_death(&mut host, &format!("after {first} steps"));
            for second in 0..12 {
                let mut host = Survivors::new();
                host.die_after(first, &ROUND);
                // It dies while it finishes what the first one has left, or later.
                host.die_after(second, &ROUND[..1]);
                is_sound_after_a_death(&mut host, &format!("after {first} and {second} steps"));
            }
        }
        assert!(!Survivors::new().die_after(20, &ROUND), "that is all");
    }

    #[test]
    fn a_record_that_is_lost_turns_off_what_is_on() {
        for requests in [&ROUND[..1], &ROUND[..2]] {
            let mut host = Survivors::new();
            host.serve(requests);
            std::fs::remove_file(crate::paths::run().join("0000:00:05.0.interrupts")).unwrap();
            let LeftOver {
                changes,
                known,
                causes,
            } = unfinished(&mut host.store, STUB).unwrap();
            assert_eq!(causes.len(), 1);
            assert_eq!(changes, [(bdf(), ModeChange::Unknown)].into());
            // The line of the device itself, and what other functions have.
            assert_eq!(known, [20, 55].into());
            host.serve(&[]);
            assert_eq!((host.is_on(), host.pirqs_of_the_device()), (false, vec![]));
            is_sound_after_a_death(&mut host, "later");
        }
    }
}
