//! The file in which the service records the interrupt mode of a device.
//!
//! The record has to outlive the process that changes the mode, and not the host. A file on tmpfs does that by one system call,
//! where xenstore takes a round trip to a daemon that commits to a store of its own (decision 133).
//!
//! The file has two places. A record goes to the place of the older one by one write, as a line with a number and a checksum.
//! A process that dies in the middle leaves the record of before. While the file cannot be written, as when the file system is
//! full, the node in xenstore has the record.

use crate::host::store::Store;
use crate::paths;
use crate::records::error::RecordError;
use crate::records::interrupt_mode::{Mode, ModeError, ModeRecord, Recorded};
use crate::records::paths::{attachment, mode_path};
use crate::records::version::newer;
use pci::bdf::Bdf;
use rustix::fs::OFlags;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;
use xen::xenctrl::DomId;
use xenbus::client::Store as _;

/// The node of a device's interrupt mode in the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeNode {
    /// The mode itself: no service has changed it yet, one of an earlier version has, or the file could not be written.
    Here(Recorded),
    /// The mode is in the device's file.
    File,
}

const IN_FILE: &str = "file";

impl ModeNode {
    /// What is recorded of the device.
    pub fn recorded(&self, bdf: Bdf) -> Recorded {
        match self {
            Self::Here(recorded) => recorded.clone(),
            Self::File => match ModeFile::open(bdf) {
                Ok((_, recorded)) => recorded,
                Err(error) => Recorded::Unknown(error.to_string()),
            },
        }
    }
}

impl From<Mode> for ModeNode {
    fn from(mode: Mode) -> Self {
        Self::Here(Recorded::Mode(mode))
    }
}

impl fmt::Display for ModeNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(Recorded::Mode(mode)) => mode.fmt(f),
            Self::Here(Recorded::Change(change)) => change.fmt(f),
            Self::Here(Recorded::Unknown(_)) | Self::File => f.write_str(IN_FILE),
        }
    }
}

impl FromStr for ModeNode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            IN_FILE => Ok(Self::File),
            text => text.parse().map(Self::Here),
        }
    }
}

/// Why the mode in a device's file is not known.
#[derive(Debug, Error)]
pub enum ModeFileError {
    /// It cannot be read, or is too short.
    #[error("cannot read the interrupt mode of {bdf} from {path}: {source}; {next}", path = path(*bdf).display(), next = next_step())]
    Read {
        /// The device.
        bdf: Bdf,
        #[source]
        source: io::Error,
    },
    /// Somebody else has put something there.
    #[error("{path}, the file of the interrupt mode of {bdf}, is not the service's; {next}", path = path(*bdf).display(), next = next_step())]
    Foreign {
        /// The device.
        bdf: Bdf,
    },
    /// Neither place holds a sound record, or the last record has an unknown form.
    #[error("{path}, the file of the interrupt mode of {bdf}, is damaged; {next}", path = path(*bdf).display(), next = next_step())]
    Damaged {
        /// The device.
        bdf: Bdf,
    },
}

/// What follows from an unknown mode, and what to do.
const fn next_step() -> &'static str {
    "the service turns its MSI and MSI-X off, and a guest that has it turns them on again when its driver is unbound and bound"
}

/// Bytes of one place. A record of the most vectors fits.
const PLACE: usize = 2048;
const SIZE: usize = 2 * PLACE;

/// The file, held open. It belongs to one attachment: the next one of the device has another file.
#[derive(Debug)]
pub struct ModeFile {
    file: File,
    /// Number of the last record.
    last: u64,
}

impl ModeFile {
    /// Records in `file`, the file of a device in the record of `stub`, which is opened if it is not open yet. While no file
    /// can be written, the node in xenstore has the record itself, and why is returned.
    pub fn record(
        file: &mut Option<Self>,
        store: &mut Store,
        stub: DomId,
        bdf: Bdf,
        record: ModeRecord<'_>,
    ) -> Result<Option<io::Error>, RecordError> {
        let written = match file {
            Some(open) => open.write(record),
            None => match Self::begin(store, stub, bdf, record)? {
                Ok(open) => {
                    *file = Some(open);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        let Err(error) = written else {
            return Ok(None);
        };
        // The next record tries to make the file anew: what it has by now must not count any more.
        *file = None;
        let node = mode_path(stub, bdf);
        // A device that has left has no node, and must not get one again.
        store.read(&node)?;
        store.write(&node, &record.to_string())?;
        Ok(Some(error))
    }

    /// Opens the file, or makes it anew, and records. The inner error is the file's.
    fn begin(
        store: &mut Store,
        stub: DomId,
        bdf: Bdf,
        record: ModeRecord<'_>,
    ) -> Result<io::Result<Self>, RecordError> {
        let node = mode_path(stub, bdf);
        if store.read(&node)? == IN_FILE
            && let Ok((mut file, _)) = Self::open(bdf)
        {
            return Ok(file.write(record).map(|()| file));
        }
        // The file counts once the node says so, and not before it is whole.
        let file = Self::create(bdf, record);
        if file.is_ok() {
            name_file(store, stub, &node)?;
        }
        Ok(file)
    }

    /// Makes the file anew.
    fn create(bdf: Bdf, record: ModeRecord<'_>) -> io::Result<Self> {
        let path = path(bdf);
        // An earlier attachment has left one.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let (last, mut bytes) = (0, [0; SIZE]);
        let line = line(last, record);
        bytes[..line.len()].copy_from_slice(line.as_bytes());
        // All of it, so that no later record needs memory.
        if let Err(error) = file.write_all_at(&bytes, 0) {
            // What there is of it takes memory where there is none.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        Ok(Self { file, last })
    }

    /// Opens the file and reads the last record.
    fn open(bdf: Bdf) -> Result<(Self, Recorded), ModeFileError> {
        let failed = |source| ModeFileError::Read { bdf, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path(bdf))
            .map_err(failed)?;
        let (is, directory) = file
            .metadata()
            .and_then(|is| Ok((is, fs::metadata(paths::run())?)))
            .map_err(failed)?;
        if !is.is_file() || is.uid() != directory.uid() {
            return Err(ModeFileError::Foreign { bdf });
        }
        let mut bytes = [0; SIZE];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let (last, recorded) = last_record(&bytes).ok_or(ModeFileError::Damaged { bdf })?;
        Ok((Self { file, last }, recorded))
    }

    fn write(&mut self, record: ModeRecord<'_>) -> io::Result<()> {
        let next = self.last + 1;
        self.file
            .write_all_at(line(next, record).as_bytes(), place(next) as u64)?;
        // Not before: a record that failed must not have the next one written over the last sound one.
        self.last = next;
        Ok(())
    }
}

/// Has the node of a mode say that the mode is in a file. An earlier version would take the record for a damaged one, so the
/// record gets a version that it refuses.
fn name_file(store: &mut Store, stub: DomId, node: &str) -> Result<(), RecordError> {
    let root = attachment(stub);
    if store.read_optional(&root)?.as_deref().and_then(newer).is_none() {
        return Ok(store.write(node, IN_FILE)?);
    }
    // Both at once, of the record as it is then.
    store.transaction(|store| {
        if let Some(newer) = store.read_optional(&root)?.as_deref().and_then(newer) {
            store.write(&root, &newer)?;
        }
        store.write(node, IN_FILE)
    })?;
    Ok(())
}

fn path(bdf: Bdf) -> PathBuf {
    paths::run().join(format!("{bdf}.interrupts"))
}

/// Where the record of this number lies.
fn place(number: u64) -> usize {
    if number.is_multiple_of(2) { 0 } else { PLACE }
}

fn line(number: u64, record: ModeRecord<'_>) -> String {
    let text = format!("{number} {record}");
    format!("{:016x} {text}\n", checksum(&text))
}

/// The last record and its number, unless it is damaged.
fn last_record(bytes: &[u8; SIZE]) -> Option<(u64, Recorded)> {
    let (even, odd) = bytes.split_at(PLACE);
    let lines = [(0, even), (PLACE, odd)].map(|(at, bytes)| sound_line(at, bytes));
    let (number, text) = lines.into_iter().flatten().max_by_key(|&(number, _)| number)?;
    // A sound line in a form that is not known must not let the one before it count.
    Some((number, text.parse().ok()?))
}

/// Number and text of the line at this place, if it is whole.
fn sound_line(at: usize, bytes: &[u8]) -> Option<(u64, &str)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let (sum, rest) = std::str::from_utf8(&bytes[..end]).ok()?.split_once(' ')?;
    let (number, text) = rest.split_once(' ')?;
    let number = number.parse().ok()?;
    let is_sound = u64::from_str_radix(sum, 16) == Ok(checksum(rest)) && place(number) == at;
    is_sound.then_some((number, text))
}

/// Detects accidental corruption; no protection against tampering.
fn checksum(text: &str) -> u64 {
    // FNV-1a.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::interrupt_mode::ModeChange;
    use crate::records::paths::attachment as attachment_path;
    use crate::records::tests::attachment;
    use crate::records::{Attachment, Device};
    use rustix::fs::{CWD, FileType, mknodat};
    use tempfile::TempDir;
    use xenbus::model::Xenstored;

    const STUB: DomId = 4;

    /// Dom0 with an attachment, and a directory of the test's own for the files.
    struct Dom0 {
        store: Store,
        home: TempDir,
    }

    impl Dom0 {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().to_path_buf();
            paths::tests::HOME.with(|home| *home.borrow_mut() = Some(path));
            let mut store = dom0(&Xenstored::new());
            let off = Attachment {
                modes: vec![Mode::Intx.into(), Mode::Intx.into()],
                ..attachment()
            };
            off.write(&mut store).unwrap();
            Self { store, home }
        }

        fn begin(&mut self, record: ModeRecord<'_>) -> ModeFile {
            ModeFile::begin(&mut self.store, STUB, bdf(), record)
                .unwrap()
                .unwrap()
        }

        /// What another process reads.
        fn recorded(&mut self) -> Recorded {
            let read = Attachment::read(&mut self.store, STUB).unwrap().unwrap();
            let is_ours = |(device, _): &(&Device, Recorded)| device.bdf == bdf();
            read.devices_and_modes().find(is_ours).unwrap().1
        }

        fn bytes(&self) -> Vec<u8> {
            fs::read(self.file()).unwrap()
        }

        fn file(&self) -> PathBuf {
            self.home.path().join("0000:00:05.0.interrupts")
        }
    }

    fn bdf() -> Bdf {
        "00:05.0".parse().unwrap()
    }

    fn msix() -> Mode {
        Mode::Msix(vec![(0, 55), (1, 54), (2, 53)])
    }

    const BEGUN: ModeRecord<'_> = ModeRecord::Change(ModeChange::Msix(3));

    #[test]
    fn each_record_is_what_the_next_process_reads() {
        let mut dom0 = Dom0::new();
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Intx));
        let mut file = dom0.begin(BEGUN);
        assert_eq!(dom0.recorded(), Recorded::Change(ModeChange::Msix(3)));
        for mode in [msix(), Mode::Intx, Mode::Msi(55), Mode::Intx, msix()] {
            file.write(ModeRecord::Mode(&mode)).unwrap();
            assert_eq!(dom0.recorded(), Recorded::Mode(mode));
        }
        // The next process goes on in the same file.
        for mode in [Mode::Intx, Mode::Msi(52), msix()] {
            dom0.begin(ModeRecord::Mode(&mode));
            assert_eq!(dom0.recorded(), Recorded::Mode(mode));
        }
    }

    #[test]
    fn a_record_of_the_most_vectors_fits_in_its_place() {
        let most = Mode::Msix((0..128).map(|entry| (u16::MAX - entry, u16::MAX)).collect());
        assert!(line(u64::MAX, ModeRecord::Mode(&most)).len() <= PLACE);
        let mut dom0 = Dom0::new();
        let mut file = dom0.begin(BEGUN);
        for _ in 0..2 {
            file.write(ModeRecord::Mode(&most)).unwrap();
            assert_eq!(dom0.recorded(), Recorded::Mode(most.clone()));
        }
        assert_eq!(dom0.bytes().len(), SIZE);
    }

    #[test]
    fn a_process_that_dies_at_any_byte_of_a_write_leaves_the_record_of_before() {
        let modes = [Mode::Intx, Mode::Msi(55), msix(), Mode::Msi(7)];
        for (before, after) in modes
            .iter()
            .flat_map(|one| modes.iter().map(move |other| (one, other)))
        {
            let mut dom0 = Dom0::new();
            let mut file = dom0.begin(BEGUN);
            // In the place that is written next lies a longer line, and one that was cut off before.
            file.write(ModeRecord::Mode(&msix())).unwrap();
            file.write(ModeRecord::Mode(before)).unwrap();
            let next = file.last + 1;
            let line = line(next, ModeRecord::Mode(after));
            for written in 0..=line.len() {
                file.file
                    .write_all_at(&line.as_bytes()[..written], place(next) as u64)
                    .unwrap();
                // The last bytes may be there already.
                let is_whole = dom0.bytes()[place(next)..].starts_with(line.as_bytes());
                let counts = if is_whole { after } else { before };
                assert_eq!(dom0.recorded(), Recorded::Mode(counts.clone()), "{written} bytes");
            }
        }
    }

    #[test]
    fn a_process_that_dies_before_the_node_names_the_file_leaves_what_the_node_says() {
        let mut dom0 = Dom0::new();
        ModeFile::create(bdf(), BEGUN).unwrap();
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Intx));
        // The file may also be one that an earlier attachment has left.
        dom0.begin(ModeRecord::Mode(&Mode::Msi(55)));
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Msi(55)));
    }

    #[test]
    fn the_node_names_no_file_that_could_not_be_made() {
        let mut dom0 = Dom0::new();
        fs::remove_dir(dom0.home.path()).unwrap();
        let begun = ModeFile::begin(&mut dom0.store, STUB, bdf(), BEGUN).unwrap();
        assert_eq!(begun.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Intx));
    }

    #[test]
    fn a_record_of_an_earlier_version_counts_until_the_mode_changes() {
        let mut dom0 = Dom0::new();
        let node = mode_path(STUB, bdf());
        for (text, recorded) in [
            ("msix 0=55 1=54 2=53", Recorded::Mode(msix())),
            ("intx changing msi", Recorded::Change(ModeChange::Msi)),
        ] {
            dom0.store.write(&node, text).unwrap();
            assert_eq!(dom0.recorded(), recorded);
        }
        dom0.begin(ModeRecord::Mode(&Mode::Intx));
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Intx));
        assert_eq!(dom0.store.read(&node).unwrap(), "file");
    }

    #[test]
    fn a_record_whose_modes_are_in_files_has_a_version_that_an_earlier_service_refuses() {
        let mut dom0 = Dom0::new();
        let root = attachment_path(STUB);
        // Written by an earlier version, with something of its own.
        let text = dom0.store.read(&root).unwrap();
        let earlier = text.replace("\"version\":2,", "\"version\":1,\"also\":[7],");
        assert_ne!(earlier, text);
        dom0.store.write(&root, &earlier).unwrap();
        let before = Attachment::read(&mut dom0.store, STUB).unwrap().unwrap();
        // As long as no mode is in a file, it may read it.
        assert_eq!(dom0.store.read(&root).unwrap(), earlier);
        dom0.begin(ModeRecord::Mode(&msix()));
        let now = dom0.store.read(&root).unwrap();
        assert!(
            now.contains("\"version\":2") && now.contains("\"also\":[7]"),
            "{now}"
        );
        assert_eq!(dom0.recorded(), Recorded::Mode(msix()));
        let read = Attachment::read(&mut dom0.store, STUB).unwrap().unwrap();
        assert_eq!(
            (&read.guest, &read.stub, &read.devices),
            (&before.guest, &before.stub, &before.devices)
        );
    }

    #[test]
    fn a_device_that_comes_back_does_not_have_the_mode_of_its_last_attachment() {
        let mut dom0 = Dom0::new();
        dom0.begin(ModeRecord::Mode(&msix()));
        let before = Attachment::read(&mut dom0.store, STUB).unwrap().unwrap();
        Attachment::remove_devices(&mut dom0.store, STUB, &[bdf()]).unwrap();
        before.add(&mut dom0.store, &attachment().devices[..1]).unwrap();
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Intx));
        dom0.begin(ModeRecord::Mode(&Mode::Msi(55)));
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Msi(55)));
    }

    #[test]
    fn nothing_is_recorded_of_a_device_that_has_left() {
        let mut dom0 = Dom0::new();
        Attachment::remove_devices(&mut dom0.store, STUB, &[bdf()]).unwrap();
        assert!(ModeFile::begin(&mut dom0.store, STUB, bdf(), BEGUN).is_err());
        assert!(dom0.store.read(&mode_path(STUB, bdf())).is_err());
    }

    #[test]
    fn the_node_holds_the_mode_while_no_file_can_be_made() {
        let mut dom0 = Dom0::new();
        let home = dom0.home.path().to_path_buf();
        let place = |path: &std::path::Path| {
            let path = Some(path.to_path_buf());
            paths::tests::HOME.with(|home| *home.borrow_mut() = path);
        };
        let mut file = None;
        let mut record = |dom0: &mut Dom0, record: ModeRecord<'_>| {
            ModeFile::record(&mut file, &mut dom0.store, STUB, bdf(), record).unwrap()
        };
        // As when there is no space: nothing can be made here.
        place(&home.join("nothing"));
        assert!(record(&mut dom0, BEGUN).is_some(), "it says why");
        assert_eq!(dom0.recorded(), Recorded::Change(ModeChange::Msix(3)));
        for mode in [msix(), Mode::Intx, Mode::Msi(55)] {
            assert!(record(&mut dom0, ModeRecord::Mode(&mode)).is_some());
            assert_eq!(dom0.recorded(), Recorded::Mode(mode));
        }
        // As soon as there is space, the file has it.
        place(&home);
        assert!(record(&mut dom0, ModeRecord::Mode(&msix())).is_none());
        assert_eq!(dom0.recorded(), Recorded::Mode(msix()));
        assert!(dom0.file().is_file());
    }

    #[test]
    fn the_node_holds_the_mode_that_an_open_file_does_not_take() {
        let mut dom0 = Dom0::new();
        let mut file = Some(dom0.begin(ModeRecord::Mode(&msix())));
        file.as_mut().unwrap().file = File::open(dom0.file()).unwrap();
        let record = |dom0: &mut Dom0, file: &mut Option<ModeFile>, mode: &Mode| {
            ModeFile::record(file, &mut dom0.store, STUB, bdf(), ModeRecord::Mode(mode))
        };
        assert!(record(&mut dom0, &mut file, &Mode::Intx).unwrap().is_some());
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Intx));
        let anew = record(&mut dom0, &mut file, &Mode::Msi(52)).unwrap();
        assert!(anew.is_none(), "a new file");
        assert_eq!(dom0.recorded(), Recorded::Mode(Mode::Msi(52)));
        // Of a device that has left nothing is recorded there either.
        file.as_mut().unwrap().file = File::open(dom0.file()).unwrap();
        Attachment::remove_devices(&mut dom0.store, STUB, &[bdf()]).unwrap();
        assert!(record(&mut dom0, &mut file, &Mode::Intx).is_err());
        assert!(dom0.store.read(&mode_path(STUB, bdf())).is_err());
    }

    #[test]
    fn a_record_that_could_not_be_written_does_not_cost_the_last_one() {
        let mut dom0 = Dom0::new();
        let mut file = dom0.begin(ModeRecord::Mode(&msix()));
        file.file = File::open(dom0.file()).unwrap();
        for _ in 0..3 {
            assert!(file.write(BEGUN).is_err());
        }
        file.file = OpenOptions::new().write(true).open(dom0.file()).unwrap();
        let line = line(file.last + 1, BEGUN);
        file.file
            .write_all_at(&line.as_bytes()[..9], place(file.last + 1) as u64)
            .unwrap();
        assert_eq!(dom0.recorded(), Recorded::Mode(msix()));
    }

    #[test]
    fn a_file_that_is_lost_damaged_or_not_the_services_is_named_and_says_nothing() {
        let mut dom0 = Dom0::new();
        drop(dom0.begin(ModeRecord::Mode(&msix())));
        let sound = dom0.bytes();
        let path = dom0.file();
        let text = path.display().to_string();
        let overwrite = |at: usize| {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        };
        let of_a_later_version = || {
            let mut bytes = sound.clone();
            let text = "2 msi-y 55";
            let line = format!("{:016x} {text}\n", checksum(text));
            bytes[..line.len()].copy_from_slice(line.as_bytes());
            fs::write(&path, bytes).unwrap();
        };
        let swapped = || fs::write(&path, [&sound[PLACE..], &sound[..PLACE]].concat()).unwrap();
        let cases: [(&str, &dyn Fn()); 9] = [
            ("cannot read", &|| fs::remove_file(&path).unwrap()),
            ("cannot read", &|| fs::write(&path, &sound[..SIZE - 1]).unwrap()),
            ("cannot read", &|| {
                let other = path.with_extension("other");
                fs::write(&other, &sound).unwrap();
                fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink(other, &path).unwrap();
            }),
            ("not the service's", &|| {
                fs::remove_file(&path).unwrap();
                mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
            }),
            ("damaged", &|| overwrite(0)),
            ("damaged", &|| overwrite(20)),
            ("damaged", &|| fs::write(&path, [0; SIZE]).unwrap()),
            ("damaged", &of_a_later_version),
            ("damaged", &swapped),
        ];
        for (words, harm) in cases {
            harm();
            let Recorded::Unknown(cause) = dom0.recorded() else {
                panic!("{words}: it is believed");
            };
            assert!(cause.contains(words) && cause.contains(&text), "{words}: {cause}");
            assert!(
                cause.ends_with("when its driver is unbound and bound"),
                "{words}: {cause}"
            );
            // The first record makes it anew.
            dom0.begin(ModeRecord::Mode(&msix()));
            assert_eq!(dom0.recorded(), Recorded::Mode(msix()), "after {words}");
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
        }
    }

    #[test]
    fn a_file_that_is_open_is_not_looked_for_again() {
        let mut dom0 = Dom0::new();
        let mut open = None;
        for (count, mode) in [msix(), Mode::Intx, Mode::Msi(55)].into_iter().enumerate() {
            let record = ModeRecord::Mode(&mode);
            ModeFile::record(&mut open, &mut dom0.store, STUB, bdf(), record).unwrap();
            assert_eq!(open.as_ref().unwrap().last, count as u64);
        }
    }

    #[test]
    fn a_file_of_another_user_is_not_believed() {
        let mut dom0 = Dom0::new();
        dom0.begin(ModeRecord::Mode(&msix()));
        // Only root can give files away.
        if std::os::unix::fs::chown(dom0.file(), Some(65_534), None).is_ok() {
            assert!(matches!(dom0.recorded(), Recorded::Unknown(_)));
        }
    }
}
