//! Declarations of guests: the devices that a guest gets whenever it starts, one file for each guest in [`DIRECTORY`].
//!
//! `guests.d-example.toml` explains each line. A file that cannot be understood declares the guest that has the file's
//! name: that guest must not start without its devices because of a typing error.

use crate::options::Wanted;
use crate::telemetry::TelemetryChoice;
use crate::toml_error::Broken;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, io};
use toml::Spanned;
use xenbus::device::SlotMode;

/// Directory of the declarations.
pub const DIRECTORY: &str = "/etc/bulkhead/guests.d";
/// The ending of a declaration's file. Other files are none: editors and package managers leave copies behind.
const ENDING: &str = "toml";
/// Largest size of a file in bytes.
const LARGEST: u64 = 64 << 10;

/// What happens to a guest that cannot have its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unfit {
    /// It stays paused.
    #[default]
    Hold,
    /// It starts without them.
    Start,
    /// It is destroyed.
    Destroy,
}

impl Unfit {
    /// All values, with the words that stand for them.
    const WORDS: [(Self, &'static str); 3] = [
        (Self::Hold, "hold"),
        (Self::Start, "start"),
        (Self::Destroy, "destroy"),
    ];
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(unfit, _)| unfit == self);
        f.write_str(word.map_or("", |(_, word)| word))
    }
}

impl FromStr for Unfit {
    type Err = UnfitError;

    fn from_str(text: &str) -> Result<Self, UnfitError> {
        let word = Self::WORDS.iter().find(|(_, word)| *word == text);
        word.map(|&(unfit, _)| unfit).ok_or(UnfitError)
    }
}

/// A text that is no [`Unfit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnfitError;

impl fmt::Display for UnfitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected hold, start or destroy")
    }
}

impl std::error::Error for UnfitError {}

/// The devices of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// The guest's name or UUID.
    pub guest: String,
    /// Its devices, in the words of the command line.
    pub devices: Vec<Wanted>,
    /// How the guest addresses them.
    pub slots: SlotMode,
    /// What happens to the guest if it cannot have them.
    pub unfit: Unfit,
    /// Whether its stub has a network; `None` if the policy file decides.
    pub telemetry: Option<TelemetryChoice>,
}

/// The keys of a file, each with its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDeclaration {
    guest: Spanned<String>,
    devices: Spanned<Vec<Spanned<String>>>,
    slots: Option<Spanned<String>>,
    unfit: Option<Spanned<String>>,
    telemetry: Option<Spanned<String>>,
}

/// Checks that a text can be a guest's name or UUID.
///
/// # Errors
/// The reason in words.
pub fn check_guest(guest: &str) -> Result<(), &'static str> {
    if guest.is_empty() || guest.chars().any(char::is_control) {
        return Err("expected the name or the UUID of a guest");
    }
    Ok(())
}

/// Checks that there are devices, and that none is named twice.
///
/// # Errors
/// The reason in words.
pub fn check_devices(devices: &[Wanted]) -> Result<(), String> {
    if devices.is_empty() {
        return Err("expected at least one device: remove the file if the guest is to have none".into());
    }
    for (index, device) in devices.iter().enumerate() {
        if devices[..index].iter().any(|other| other.name == device.name) {
            return Err(format!("device {} is named twice", device.name));
        }
    }
    Ok(())
}

/// Why a guest's declaration does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeclarationError {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// The file cannot be parsed.
    Broken {
        /// The file.
        path: PathBuf,
        /// The mistake.
        broken: Broken,
    },
    /// More than one file is for the guest.
    Twice {
        /// The guest's name.
        guest: String,
        /// The files.
        paths: Vec<PathBuf>,
    },
}

impl fmt::Display for DeclarationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, cause } => {
                write!(f, "cannot read the declaration {}: {cause}", path.display())
            }
            Self::Broken { path, broken } => {
                write!(f, "the declaration {} is broken in {broken}", path.display())
            }
            Self::Twice { guest, paths } => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(
                    f,
                    "guest {guest} is declared more than once, in {}: remove all but one of these files",
                    paths.join(" and ")
                )
            }
        }
    }
}

impl std::error::Error for DeclarationError {}

impl Declaration {
    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`DeclarationError::Broken`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, DeclarationError> {
        let declaration = Self::understand(text);
        declaration.map_err(|broken| DeclarationError::Broken {
            path: path.to_owned(),
            broken,
        })
    }

    fn understand(text: &str) -> Result<Self, Broken> {
        let raw: RawDeclaration = toml::from_str(text).map_err(|error| Broken::new(text, &error))?;
        let at =
            |span: Range<usize>, cause: &dyn fmt::Display| Broken::at(text, span.start, &cause.to_string());
        let guest = raw.guest.get_ref();
        check_guest(guest).map_err(|cause| at(raw.guest.span(), &cause))?;
        let devices = raw.devices.get_ref().iter();
        let devices = devices.map(|word| parse_word(word).map_err(|cause| at(word.span(), &cause)));
        let devices: Vec<Wanted> = devices.collect::<Result<_, _>>()?;
        check_devices(&devices).map_err(|cause| at(raw.devices.span(), &cause))?;
        let slots = raw
            .slots
            .map(|word| parse_word(&word).map_err(|cause| at(word.span(), &cause)));
        let unfit = raw
            .unfit
            .map(|word| parse_word(&word).map_err(|cause| at(word.span(), &cause)));
        let telemetry = raw
            .telemetry
            .map(|word| parse_word(&word).map_err(|cause| at(word.span(), &cause)));
        Ok(Self {
            guest: guest.clone(),
            devices,
            slots: slots.transpose()?.unwrap_or_default(),
            unfit: unfit.transpose()?.unwrap_or_default(),
            telemetry: telemetry.transpose()?,
        })
    }

    /// The text of a file that declares this.
    pub fn to_toml(&self) -> String {
        let quoted = |text: String| toml::Value::String(text).to_string();
        let mut text = format!(
            "# Written by `bulkhead declare`. The guest gets these devices whenever it starts.\nguest = {}\ndevices = [\n",
            quoted(self.guest.clone())
        );
        for device in &self.devices {
            // Writing to a string does not fail.
            let _ = writeln!(text, "    {},", quoted(device.to_string()));
        }
        let (slots, unfit) = (self.slots, self.unfit);
        let _ = write!(text, "]\nslots = \"{slots}\"\nunfit = \"{unfit}\"\n");
        if let Some(telemetry) = &self.telemetry {
            let _ = writeln!(text, "telemetry = {}", quoted(telemetry.to_string()));
        }
        text
    }

    /// True if it is for the guest with this name and UUID.
    pub fn is_for(&self, name: &str, uuid: &str) -> bool {
        names(&self.guest, name, uuid)
    }
}

fn parse_word<T: FromStr<Err: fmt::Display>>(word: &Spanned<String>) -> Result<T, String> {
    let text = word.get_ref();
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

pub(crate) fn names(guest: &str, name: &str, uuid: &str) -> bool {
    guest == name || (!uuid.is_empty() && guest.eq_ignore_ascii_case(uuid))
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclarationFile {
    /// Its path.
    pub path: PathBuf,
    /// What it declares.
    pub declaration: Result<Declaration, DeclarationError>,
}

impl DeclarationFile {
    /// Reads a file.
    pub fn read(path: PathBuf) -> Self {
        let declaration = read_text(&path).and_then(|text| Declaration::parse(&text, &path));
        Self { path, declaration }
    }

    /// The guest that it is for, by name or UUID: of a broken file by the file's name.
    pub fn guest(&self) -> &str {
        match &self.declaration {
            Ok(declaration) => &declaration.guest,
            Err(_) => self.path.file_stem().and_then(OsStr::to_str).unwrap_or_default(),
        }
    }
}

fn read_text(path: &Path) -> Result<String, DeclarationError> {
    let unreadable = |cause: String| DeclarationError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    let read = |path: &Path| {
        let mut text = Vec::new();
        // Bounded before it is in memory: the service reads it too.
        fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    let text = read(path).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > LARGEST {
        return Err(unreadable(format!("it is longer than {} KiB", LARGEST >> 10)));
    }
    String::from_utf8(text).map_err(|_| unreadable("it is not UTF-8".into()))
}

/// All declarations of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations(pub Vec<DeclarationFile>);

impl Declarations {
    /// Reads the files of a directory, in the order of their names. None if the directory does not exist.
    ///
    /// # Errors
    /// A directory that cannot be read. What is wrong with one file stands in its entry.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let is_hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
            if path.extension() == Some(OsStr::new(ENDING)) && !path.file_name().is_some_and(is_hidden) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(Self(paths.into_iter().map(DeclarationFile::read).collect()))
    }

    /// The declaration of the guest with this name and UUID; `None` if there is none.
    ///
    /// # Errors
    /// A file that is broken, or more than one file.
    pub fn of(&self, name: &str, uuid: &str) -> Result<Option<&Declaration>, DeclarationError> {
        let files = self.files_of(name, uuid);
        match files[..] {
            [] => Ok(None),
            [file] => file.declaration.as_ref().map(Some).map_err(Clone::clone),
            _ => Err(DeclarationError::Twice {
                guest: name.to_owned(),
                paths: files.iter().map(|file| file.path.clone()).collect(),
            }),
        }
    }

    /// The files for the guest with this name and UUID.
    pub fn files_of(&self, name: &str, uuid: &str) -> Vec<&DeclarationFile> {
        let files = self.0.iter();
        files.filter(|file| names(file.guest(), name, uuid)).collect()
    }
}

/// The path of the file that `bulkhead declare` writes for a guest. Characters that a file's name should not have become
/// `_`.
pub fn path_for(directory: &Path, guest: &str) -> PathBuf {
    let keep = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let stem: String = guest.chars().map(|c| if keep(c) { c } else { '_' }).collect();
    // A name that begins with a dot would be hidden, and not read.
    directory.join(format!(
        "{}.{ENDING}",
        stem.replacen('.', "_", usize::from(stem.starts_with('.')))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "guest = \"web\"\ndevices = [\"0000:03:00.0\", \"8086:10d3@04:00.0,msi=0,quirk=44:2:ff,quirk=60:1:1\"]\n";
    const UUID: &str = "0f1e2d3c-0000-0000-0000-00000000abcd";

    fn parse(text: &str) -> Result<Declaration, String> {
        Declaration::parse(text, Path::new("/etc/bulkhead/guests.d/web.toml"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_guest_is_declared_in_the_words_of_the_command_line() {
        let declaration = parse(WEB).unwrap();
        let words: Vec<_> = declaration.devices.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "0000:03:00.0",
                "8086:10d3@0000:04:00.0,msi=0,quirk=44:2:ff,quirk=60:1:1"
            ]
        );
        assert_eq!(
            (declaration.slots, declaration.unfit),
            (SlotMode::Vpci, Unfit::Hold)
        );
        let more = parse(&format!("{WEB}slots = \"passthrough\"\nunfit = \"start\"\n")).unwrap();
        assert_eq!((more.slots, more.unfit), (SlotMode::Passthrough, Unfit::Start));
        assert_eq!(more.telemetry, None);
        let watched = parse(&format!(
            "{WEB}telemetry = \"bridge=xenbr0,syslog=10.0.0.5:514,metrics=off\"\n"
        ))
        .unwrap();
        assert_eq!(
            watched.telemetry,
            "bridge=xenbr0,syslog=10.0.0.5:514,metrics=off".parse().ok()
        );
        let unwatched = parse(&format!("{WEB}telemetry = \"off\"\n")).unwrap();
        assert_eq!(unwatched.telemetry, Some(TelemetryChoice::Off));
    }

    #[test]
    fn the_installed_example_declares_a_guest() {
        let example = parse(crate::DECLARATION).unwrap();
        assert_eq!(example.guest, "guest");
        assert_eq!(example.devices.len(), 2);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (unfit, telemetry) in [
            (Unfit::Hold, None),
            (Unfit::Start, Some("off")),
            (Unfit::Destroy, Some("bridge=xenbr0,syslog=10.0.0.5:514")),
        ] {
            let declaration = Declaration {
                guest: "we\"b\\ \u{fc}".into(),
                unfit,
                telemetry: telemetry.map(|text| text.parse().unwrap()),
                ..parse(WEB).unwrap()
            };
            assert_eq!(parse(&declaration.to_toml()), Ok(declaration));
            assert_eq!(unfit.to_string().parse(), Ok(unfit));
        }
        assert_eq!("kill".parse::<Unfit>(), Err(UnfitError));
    }

    #[test]
    fn a_mistake_is_told_by_file_line_and_column() {
        for (text, place, cause) in [
            ("guest = 5", "line 1, column 9", "invalid type: integer `5`"),
            (
                "\nguest = \"\"\ndevices = []",
                "line 2, column 9",
                "expected the name or the UUID",
            ),
            ("guest = \"web\"", "line 1, column 1", "missing field `devices`"),
            (
                "guest = \"web\"\ndevices = []",
                "line 2, column 11",
                "expected at least one device",
            ),
            (
                "guest = \"web\"\ndevices = [\n  \"03:00.0\",\n  \"eth0\",\n]",
                "line 4, column 3",
                "\"eth0\": \"eth0\" names no PCI device",
            ),
            (
                "guest = \"web\"\ndevices = [\"03:00.0,msi=7\"]",
                "line 2, column 12",
                "\"03:00.0,msi=7\": \"msi=7\": expected 0 or 1",
            ),
            (
                "guest = \"web\"\ndevices = [\"03:00.0\", \"0000:03:00.0,msi=0\"]",
                "line 2, column 11",
                "device 0000:03:00.0 is named twice",
            ),
            (
                "guest = \"web\"\ndevice = []",
                "line 2, column 1",
                "unknown field `device`",
            ),
            (
                &format!("{WEB}unfit = \"kill\""),
                "line 3, column 9",
                "\"kill\": expected hold, start or destroy",
            ),
            (
                &format!("{WEB}slots = \"mine\""),
                "line 3, column 9",
                "\"mine\": expected vpci or passthrough",
            ),
            (
                &format!("{WEB}telemetry = \"bridge=b,metrics=0\""),
                "line 3, column 13",
                "\"bridge=b,metrics=0\": metrics=0: expected a TCP port",
            ),
            ("guest = ", "line 1, column 9", ""),
        ] {
            let error = parse(text).unwrap_err();
            let start =
                format!("the declaration /etc/bulkhead/guests.d/web.toml is broken in {place}: {cause}");
            assert!(error.starts_with(&start), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    /// A directory with these files.
    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_guest_is_found_by_its_name_or_its_uuid() {
        let by_uuid = WEB.replace("web", &UUID.to_uppercase());
        let directory = directory(&[
            ("web.toml", WEB.as_bytes()),
            ("other.toml", by_uuid.as_bytes()),
            ("web.toml~", b"nonsense"),
            (".web.toml", b"nonsense"),
        ]);
        let all = Declarations::read(directory.path()).unwrap();
        assert_eq!(all.of("web", "").unwrap().unwrap().guest, "web");
        assert_eq!(all.of("mail", UUID).unwrap().unwrap().guest, UUID.to_uppercase());
        assert_eq!(all.of("mail", ""), Ok(None));
        let error = all.of("web", UUID).unwrap_err().to_string();
        assert!(
            error.starts_with("guest web is declared more than once, in ")
                && error.contains("other.toml and ")
                && error.ends_with("web.toml: remove all but one of these files"),
            "{error}"
        );
        let none = Declarations::read(Path::new("/nonexistent/guests.d")).unwrap();
        assert_eq!(none, Declarations::default());
    }

    #[test]
    fn a_broken_file_keeps_only_the_guest_of_its_name_from_its_devices() {
        let long = vec![b'#'; LARGEST as usize + 1];
        let directory = directory(&[
            ("web.toml", b"guest = \"mail\"\ndevices = 7"),
            ("long.toml", &long),
            ("latin.toml", b"guest = \"\xfc\""),
            ("mail.toml", WEB.replace("web", "mail").as_bytes()),
        ]);
        fs::create_dir(directory.path().join("folder.toml")).unwrap();
        let all = Declarations::read(directory.path()).unwrap();
        assert!(all.of("mail", "").unwrap().is_some());
        for (guest, expected) in [
            ("web", "is broken in line 2, column 11: "),
            ("long", "it is longer than 64 KiB"),
            ("latin", "it is not UTF-8"),
            ("folder", "cannot read the declaration "),
        ] {
            let error = all.of(guest, "").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(guest), "{error}");
        }
    }

    #[test]
    fn the_file_of_a_guest_has_a_name_that_is_read() {
        let path = |guest| path_for(Path::new("/d"), guest).display().to_string();
        assert_eq!(path("web"), "/d/web.toml");
        assert_eq!(path("../etc/x y"), "/d/_._etc_x_y.toml");
        assert_eq!(path(".hidden"), "/d/_hidden.toml");
    }
}
