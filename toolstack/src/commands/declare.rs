//! `bulkhead declare` and `bulkhead undeclare`: write and remove the file that says which devices a guest gets whenever it
//! starts.

use super::check::{self, Check};
use super::create::check_stub_plan;
use crate::admission::policy::Choices;
use crate::host::Host;
use crate::host::device_names;
use crate::host::domains::{self, Domain};
use crate::host::sysfs::Sysfs;
use crate::records::Attachment;
use crate::records::claims::Claims;
use crate::say::{notice, say};
use anyhow::{Context, Result, bail, ensure};
use bulkhead_config::declaration::{
    DIRECTORY, Declaration, DeclarationFile, Declarations, Unfit, check_devices, check_guest, path_for,
};
use bulkhead_config::options::Wanted;
use bulkhead_config::telemetry::TelemetryChoice;
use pci::bdf::Bdf;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use xenbus::device::SlotMode;

/// Arguments of `declare`.
#[derive(Clone, Debug)]
pub struct Declare {
    /// The guest, by name or UUID.
    pub guest: String,
    /// Its devices.
    pub devices: Vec<Wanted>,
    /// No device gets MSI, except those with `msi=1`.
    pub no_msi: bool,
    /// How the guest addresses them.
    pub slots: SlotMode,
    /// What happens to the guest if it cannot have them.
    pub unfit: Unfit,
    /// Whether its stub has a network.
    pub telemetry: Option<TelemetryChoice>,
    /// Only tells what would be written.
    pub dry_run: bool,
}

/// Writes the declaration of a guest after the checks of `bulkhead check`. An earlier one of the guest is replaced. That another
/// guest has a device now is no reason against it.
pub fn declare(request: &Declare) -> Result<()> {
    let mut host = Host::open()?;
    let directory = Path::new(DIRECTORY);
    let declaration = declaration(request)?;
    let others = read(directory)?;
    let path = path(directory, &others, &declaration.guest)?;
    let had = devices_of(&mut host, &declaration.guest)?;
    let wanted: Vec<(String, Option<Bdf>)> = declaration
        .devices
        .iter()
        .map(|device| {
            (
                device.to_string(),
                device_names::resolve(&device.name, &host.sysfs).ok(),
            )
        })
        .collect();
    // What the guest has already cannot be had again, and needs no check.
    let unchecked = |bdf: &Option<Bdf>| bdf.is_some_and(|bdf| had.contains(&bdf));
    let report = check::check(&Check {
        devices: wanted
            .iter()
            .filter(|(_, bdf)| !unchecked(bdf))
            .map(|(text, _)| text.clone())
            .collect(),
        guest: None,
        slots: declaration.slots,
        choices: Choices::default(),
        later: true,
    })?;
    let mut refusals: Vec<String> = report.host.into_iter().collect();
    for device in &report.devices {
        refusals.extend(
            device
                .refusals
                .iter()
                .map(|refusal| format!("{}: {refusal}", device.name)),
        );
        device.notes.iter().for_each(|note| notice!("{note}"));
    }
    if !report.fit && refusals.is_empty() {
        refusals.clone_from(&report.notes);
    } else {
        report.notes.iter().for_each(|note| notice!("{note}"));
    }
    ensure!(refusals.is_empty(), "{}", refusals.join("\n"));
    let others_have = Claims::read(&mut host.store)?;
    let others_have = used_by_others(others_have, wanted.iter().filter_map(|(_, bdf)| *bdf), &had);
    for (bdf, by) in &others_have {
        notice!(
            "{bdf} is in use {by}: guest {} has it at a start after that has ended",
            declaration.guest
        );
    }
    for (bdf, guest) in also_declared(
        &others,
        &path,
        wanted.iter().filter_map(|(_, bdf)| *bdf),
        &host.sysfs,
    ) {
        notice!(
            "{bdf} is declared for guest {guest} too: whichever starts first has it, the other one cannot have it"
        );
    }
    // No reason against it: the guest may start later, with what is missing.
    let guest = Domain {
        domid: 0,
        name: declaration.guest.clone(),
        uuid: String::new(),
    };
    if declaration.telemetry.is_some()
        && let Err(error) = check_stub_plan(&mut host, &declaration.clone().into(), &guest)
    {
        notice!(
            "if guest {} started now, its stub could not be created: {error:#}",
            guest.name
        );
    }
    if request.dry_run {
        say!(
            "would write {}:\n{}",
            path.display(),
            declaration.to_toml().trim_end()
        );
        return Ok(());
    }
    write(&path, &declaration.to_toml())?;
    let guest = &declaration.guest;
    say!(
        "guest {guest} gets its devices whenever it starts: {}",
        path.display()
    );
    if had.is_empty() && others_have.is_empty() && domains::find(&mut host.store, guest).is_ok() {
        say!("it runs now, and has none yet: `bulkhead attach {guest}` gives them to it");
    }
    Ok(())
}

/// Removes the declaration of a guest. A guest that runs keeps its devices until it ends.
pub fn undeclare(guest: &str) -> Result<()> {
    let files = read(Path::new(DIRECTORY))?;
    let found = files.files_of(guest, guest);
    if found.is_empty() {
        let declared: Vec<_> = files.0.iter().map(DeclarationFile::guest).collect();
        match &declared[..] {
            [] => bail!("no guest is declared: there is no file in {DIRECTORY}"),
            _ => bail!("guest {guest} is not declared: there are {}", declared.join(", ")),
        }
    }
    for file in found {
        fs::remove_file(&file.path).with_context(|| format!("cannot remove {}", file.path.display()))?;
        say!(
            "removed {}: guest {guest} keeps what it has until it ends",
            file.path.display()
        );
    }
    Ok(())
}

fn declaration(request: &Declare) -> Result<Declaration> {
    check_guest(&request.guest).map_err(|why| anyhow::anyhow!("{:?} is no guest: {why}", request.guest))?;
    check_devices(&request.devices).map_err(anyhow::Error::msg)?;
    let mut devices = request.devices.clone();
    for device in &mut devices {
        if request.no_msi {
            device.options.msi.get_or_insert(false);
        }
    }
    Ok(Declaration {
        guest: request.guest.clone(),
        devices,
        slots: request.slots,
        unfit: request.unfit,
        telemetry: request.telemetry.clone(),
    })
}

fn read(directory: &Path) -> Result<Declarations> {
    Declarations::read(directory)
        .with_context(|| format!("cannot read the directory {}", directory.display()))
}

/// The file for a guest: the one that it has, or a new one.
fn path(directory: &Path, files: &Declarations, guest: &str) -> Result<PathBuf> {
    let own = files.files_of(guest, guest);
    match own[..] {
        [] => {}
        [file] => return Ok(file.path.clone()),
        _ => {
            let paths: Vec<_> = own.iter().map(|file| file.path.display().to_string()).collect();
            bail!(
                "guest {guest} is declared more than once, in {}: `bulkhead undeclare {guest}` removes these files",
                paths.join(" and ")
            );
        }
    }
    let path = path_for(directory, guest);
    let other = files.0.iter().find(|file| file.path == path);
    if let Some(other) = other {
        bail!(
            "{} declares guest {}: give that file another name",
            path.display(),
            other.guest()
        );
    }
    Ok(path)
}

/// The devices that a guest has now.
fn devices_of(host: &mut Host, guest: &str) -> Result<Vec<Bdf>> {
    let (attachments, _) = Attachment::all(&mut host.store)?;
    let own = attachments
        .iter()
        .filter(|attachment| attachment.guest.name == guest || attachment.guest.uuid == guest);
    Ok(own.flat_map(Attachment::bdfs).collect())
}

/// Those of these devices that other guests have now, each with the guest. The guest itself has those of `own`.
fn used_by_others(mut claims: Claims, bdfs: impl Iterator<Item = Bdf>, own: &[Bdf]) -> Vec<(Bdf, String)> {
    let bdfs: Vec<Bdf> = bdfs.filter(|bdf| !own.contains(bdf)).collect();
    claims.set_aside(&bdfs)
}

/// Those of these devices that the declaration of another guest names, each with that guest.
fn also_declared(
    files: &Declarations,
    own: &Path,
    bdfs: impl Iterator<Item = Bdf>,
    sysfs: &Sysfs,
) -> Vec<(Bdf, String)> {
    let mut found = Vec::new();
    for bdf in bdfs {
        for file in files.0.iter().filter(|file| file.path != own) {
            let devices = file
                .declaration
                .iter()
                .flat_map(|declaration| &declaration.devices);
            if devices
                .clone()
                .any(|device| device_names::means(&device.name, bdf, sysfs))
            {
                found.push((bdf, file.guest().to_owned()));
            }
        }
    }
    found
}

/// Writes a file as a whole: a reader sees the old one or the new one.
fn write(path: &Path, text: &str) -> Result<()> {
    let written = || {
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        // The ending is no declaration's: a file that is left half written is not read.
        let draft = path.with_extension("toml.new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::claims::attachment_claims;
    use crate::records::tests::{attachment, domain};

    const MAIL: &str = "guest = \"mail\"\ndevices = [\"0000:00:05.0\"]\n";

    fn request(guest: &str, device: &str) -> Declare {
        Declare {
            guest: guest.into(),
            devices: vec![device.parse().unwrap()],
            no_msi: false,
            slots: SlotMode::Vpci,
            unfit: Unfit::Hold,
            telemetry: None,
            dry_run: false,
        }
    }

    #[test]
    fn what_is_written_replaces_the_guests_file_and_no_other_guests() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("guests.d");
        let path =
            |guest| path(&directory, &read(&directory).unwrap(), guest).map_err(|error| error.to_string());
        let web = path("web").unwrap();
        assert_eq!(web, directory.join("web.toml"));
        write(&web, MAIL).unwrap();
        assert_eq!(
            path("mail").unwrap(),
            web,
            "the file that it has, whatever its name"
        );
        let error = path("web").unwrap_err();
        assert!(
            error.ends_with("web.toml declares guest mail: give that file another name"),
            "{error}"
        );
        write(&directory.join("mail.toml"), MAIL).unwrap();
        let error = path("mail").unwrap_err();
        assert!(
            error.starts_with("guest mail is declared more than once"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn no_msi_is_for_the_devices_that_say_nothing_of_it() {
        let mut request = request("web", "00:05.0");
        request.devices.push("00:06.0,msi=1".parse().unwrap());
        request.no_msi = true;
        let words: Vec<_> = declaration(&request)
            .unwrap()
            .devices
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(words, ["0000:00:05.0,msi=0", "0000:00:06.0,msi=1"]);
    }

    #[test]
    fn the_network_of_the_stub_is_written_as_it_was_asked_for() {
        for text in [None, Some("off"), Some("bridge=xenbr0,syslog=10.0.0.5:514")] {
            let telemetry = text.map(|text| text.parse().unwrap());
            let request = Declare {
                telemetry,
                ..request("web", "00:05.0")
            };
            let written = declaration(&request).unwrap().to_toml();
            let line = written.lines().find_map(|line| line.strip_prefix("telemetry = "));
            assert_eq!(line.map(|text| text.trim_matches('"')), text);
        }
    }

    #[test]
    fn nonsense_is_not_written() {
        for (guest, expected) in [
            ("", "\"\" is no guest: expected"),
            ("a\nb", "\"a\\nb\" is no guest"),
        ] {
            let error = declaration(&request(guest, "00:05.0")).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let mut twice = request("web", "00:05.0");
        twice.devices.push("0000:00:05.0,msi=0".parse().unwrap());
        let error = declaration(&twice).unwrap_err().to_string();
        assert_eq!(error, "device 0000:00:05.0 is named twice");
    }

    #[test]
    fn a_device_that_another_guest_has_now_is_told_with_that_guest() {
        let claims = Claims {
            taken: attachment_claims(&attachment()).collect(),
            mapped: vec![("00:07.0".parse().unwrap(), domain(7, "mail"))],
            ..Claims::default()
        };
        let bdfs = ["00:05.0", "00:06.0", "00:07.0", "00:08.0"].map(|bdf| bdf.parse().unwrap());
        let told = |own: &[Bdf]| {
            let users = used_by_others(claims.clone(), bdfs.into_iter(), own);
            let words = users.iter().map(|(bdf, by)| format!("{bdf} {by}"));
            words.collect::<Vec<_>>()
        };
        let others = "0000:00:07.0 by guest mail, which may still have its memory mapped";
        assert_eq!(
            told(&[]),
            [
                "0000:00:05.0 by guest web (through stub web-bulkhead)",
                "0000:00:06.0 by guest web (through stub web-bulkhead)",
                others
            ]
        );
        assert_eq!(told(&bdfs[..2]), [others]);
    }

    #[test]
    fn a_device_of_another_declaration_is_found_by_any_of_its_names() {
        let host = device_names::tests::host();
        let sysfs = host.sysfs();
        let file = |guest: &str, device: &str| DeclarationFile {
            path: format!("/d/{guest}.toml").into(),
            declaration: Ok(declaration(&request(guest, device)).unwrap()),
        };
        let files = Declarations(vec![
            file("web", "00:05.0"),
            file("mail", "8086:10d3"),
            file("news", "00:06.0"),
        ]);
        let bdf: Bdf = "00:05.0".parse().unwrap();
        let found = also_declared(&files, Path::new("/d/web.toml"), [bdf].into_iter(), &sysfs);
        assert_eq!(found, [(bdf, "mail".to_owned())]);
    }
}
