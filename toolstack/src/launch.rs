//! The commands that change something: `run`, `attach`, `detach`, `destroy`.

use crate::acking;
use crate::attach;
use crate::control::{self, Asked, Reply, Request};
use crate::domains::Domain;
use crate::domains::{self, DomainError, is_alive};
use crate::guest::{GuestConfig, GuestRefusal, PASSTHROUGH, check_stub};
use crate::host::Host;
use crate::hotplug;
use crate::keepsake;
use crate::mode::Mode;
use crate::policy::Choices;
use crate::prepare::{self, Checked};
use crate::progress::{Progress, awaits_guest, is_exported, progress};
use crate::records::{self, Attachment};
use crate::release::{Released, release};
use crate::say::{note, say};
use crate::seize::{Back, give_back};
use crate::select::{SelectError, of_device, select};
use crate::undo::{Step, Undo, unique};
use crate::unfinished::{self, Unfinished};
use crate::waiting::{GUEST_PATIENCE, Interrupt, POLL, STUB_PATIENCE, TimedOut, wait};
use crate::xenctrl::{DomId, Life};
use crate::xl;
use anyhow::{Context, Result, bail, ensure};
use bulkhead_config::name::Name;
use bulkhead_config::options::Wanted;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use xenbus::bdf::Bdf;
use xenbus::client::Store as _;
use xenbus::device::SlotMode;
use xenbus::path::{Device as Hop, key};
use xenbus::state::XenbusState;

/// What `run` is asked for.
#[derive(Clone, Debug)]
pub struct Run {
    /// The guest's configuration file.
    pub config: PathBuf,
    /// The devices that it gets.
    pub devices: Vec<Wanted>,
    /// What is said of all of them.
    pub choices: Choices,
    /// How the guest addresses them.
    pub slots: SlotMode,
    /// The stub's image.
    pub kernel: PathBuf,
    /// How long the guest may take to connect.
    pub wait: Duration,
}

/// What `attach` is asked for.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The guest, by name or number.
    pub guest: String,
    /// The stub, by name or number.
    pub stub: Option<String>,
    /// The devices that the guest gets.
    pub devices: Vec<Wanted>,
    /// What is said of all of them.
    pub choices: Choices,
    /// How the guest addresses them; `None`: as those that it has.
    pub slots: Option<SlotMode>,
    /// The image of a stub that is created.
    pub kernel: PathBuf,
    /// How long a guest that runs may take to have them.
    pub wait: Duration,
}

/// The name of the stub that `run` makes for a guest.
fn stub_name(guest: &str) -> String {
    format!("{guest}-bulkhead")
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All was done.
    Done,
    /// All was done but for the guest's part: it runs, and has not come so far in the time that it had.
    GuestStillBoots,
}

/// From "device in dom0" to "guest up with device". On any failure all is as before; a guest that is slow is none.
pub fn run(request: &Run) -> Result<Ended> {
    let mut host = Host::open()?;
    let lock = control::lock_commands()?;
    let interrupt = Interrupt::catch()?;
    let file = &request.config;
    ensure!(
        file.is_file(),
        "there is no file {}: name the guest's configuration file",
        file.display()
    );
    check_kernel(&request.kernel)?;
    let (config, overrides) = guest_config(file)?;
    let guest = NewDomain::guest(config)?;
    let stub = stub_name(&guest.name);
    for name in [&guest.name, &stub] {
        match domains::find(&mut host.store, name) {
            Err(DomainError::NotFound { .. }) => {}
            Ok(domain) => bail!(
                "domain {name} exists already (number {}): `bulkhead destroy {1}` ends it if an earlier `bulkhead run` \
                 has left it, or give the guest another name",
                domain.domid,
                guest.name
            ),
            Err(error) => return Err(error.into()),
        }
    }
    let checked = prepare::check(
        &mut host,
        &request.devices,
        &request.choices,
        None,
        &[],
        request.slots,
    )?;
    control::ensure_running()?;

    let mut undo = Undo::new()?;
    let made = run_checked(
        &mut host, request, &guest, &overrides, &checked, &interrupt, &mut undo,
    );
    let mut lock = Some(lock);
    let result = made.and_then(|attachment| {
        // Others may work while the guest boots.
        lock = None;
        wait_for_guest(&mut host, &attachment, request.wait, &interrupt)
            .or_else(|error| still_boots(&mut host, &attachment, error))
    });
    match result {
        Ok(Ended::Done) => {
            say!(
                "guest {} has its devices through stub {stub}: `bulkhead status` shows them",
                guest.name
            );
            Ok(Ended::Done)
        }
        Ok(Ended::GuestStillBoots) => Ok(Ended::GuestStillBoots),
        Err(error) => {
            match lock.map_or_else(control::lock_commands, Ok) {
                Ok(_lock) => undo.undo(&mut host),
                Err(no_lock) => note!(
                    "nothing was undone, for {no_lock}: `bulkhead destroy {}` does it",
                    guest.name
                ),
            }
            Err(error)
        }
    }
}

/// What to make of a guest that was waited for in vain. If all that hangs is the guest itself, it may be slow: what it
/// has is left to it.
fn still_boots(host: &mut Host, attachment: &Attachment, error: anyhow::Error) -> Result<Ended> {
    let Some(TimedOut { what, .. }) = error.downcast_ref() else {
        return Err(error);
    };
    if !awaits_guest(&mut host.store, attachment)? {
        return Err(error);
    }
    let guest = &attachment.guest.name;
    note!("{what}");
    note!(
        "guest {guest} runs, and its devices wait for it: it has them as soon as its kernel looks for them, and `bulkhead \
         status` shows that. Nothing was undone; `bulkhead destroy {guest}` ends it and gives the devices back"
    );
    Ok(Ended::GuestStillBoots)
}

/// A domain that is to be created.
struct NewDomain {
    name: String,
    uuid: String,
    /// UUID and name of the guest that it is created for.
    guest: (String, String),
}

impl NewDomain {
    /// A guest that is to have devices.
    fn guest(config: GuestConfig) -> Result<Self> {
        let uuid = match config.uuid {
            Some(uuid) => uuid,
            None => unique()?,
        };
        Ok(Self {
            name: config.name.clone(),
            uuid: uuid.clone(),
            guest: (uuid, config.name),
        })
    }

    /// The stub of a guest.
    fn stub_of(guest: &Domain) -> Result<Self> {
        Ok(Self {
            name: stub_name(&guest.name),
            uuid: unique()?,
            guest: (guest.uuid.clone(), guest.name.clone()),
        })
    }

    /// Creates it, paused if asked to. It is noted first: whoever is killed from then on leaves a domain that is known.
    fn create(
        &self,
        host: &mut Host,
        file: &Path,
        overrides: &[&str],
        paused: bool,
        undo: &mut Undo,
    ) -> Result<Domain> {
        let (guest, guest_name) = self.guest.clone();
        let noted = Unfinished {
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            guest,
            guest_name,
        };
        unfinished::note(&mut host.store, &noted)?;
        let uuid = format!("uuid=\"{}\"", self.uuid);
        let overrides: Vec<&str> = overrides.iter().copied().chain([uuid.as_str()]).collect();
        let created = xl::create(file, &overrides, paused);
        let domain = domains::with_uuid(&mut host.store, &self.uuid)?;
        match (created, domain) {
            (Ok(()), Some(domain)) => {
                undo.push(Step::Created(domain.clone()));
                Ok(domain)
            }
            (Ok(()), None) => bail!("xl has created domain {}, and it is gone already", self.name),
            (Err(error), left) => {
                match left {
                    Some(domain) => undo.push(Step::Created(domain)),
                    None => unfinished::forget(&mut host.store, &self.uuid)?,
                }
                Err(error.into())
            }
        }
    }
}

/// The part of [`run`] that changes things; what it did is in `undo`.
fn run_checked(
    host: &mut Host,
    request: &Run,
    guest: &NewDomain,
    overrides: &[&str],
    checked: &Checked,
    interrupt: &Interrupt,
    undo: &mut Undo,
) -> Result<Attachment> {
    checked.take_from_dom0(host, interrupt, undo)?;
    let created = guest.create(host, &request.config, overrides, true, undo);
    let guest = created.with_context(|| format!("cannot create guest {}", guest.name))?;
    say!("created guest {} (domain {}), paused", guest.name, guest.domid);
    interrupt.check()?;

    let stub = create_stub(host, &guest, &request.kernel, undo)?;
    interrupt.check()?;

    let attachment = attach_checked(host, guest, stub, request.slots, checked, undo)?;
    interrupt.check()?;
    xl::unpause(&attachment.guest.domid.to_string())?;
    Ok(attachment)
}

fn check_kernel(kernel: &Path) -> Result<()> {
    ensure!(
        kernel.is_file(),
        "the stub's image {} is not there: install it, or name another with --kernel",
        kernel.display()
    );
    Ok(())
}

/// Gives devices to a guest that exists: further ones by its stub, first ones by a stub that it is given.
pub fn attach(request: &Attach) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let interrupt = Interrupt::catch()?;
    let guest = domains::find(&mut host.store, &request.guest)?;
    ensure!(
        guest.domid != 0,
        "{} is dom0, which has the devices: name a guest",
        request.guest
    );
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    damaged.iter().for_each(|error| note!("{error}"));
    match attachments
        .iter()
        .find(|attachment| attachment.guest.domid == guest.domid)
    {
        Some(attachment) => {
            let stub = &attachment.stub;
            let named = request.stub.as_deref();
            ensure!(
                named.is_none_or(|name| name == stub.name || name == stub.domid.to_string()),
                "guest {} has devices already, through stub {}: it can have one stub only, so leave --stub out",
                guest.name,
                stub.name
            );
            ensure!(
                request.slots.is_none_or(|slots| slots == attachment.slots),
                "guest {} addresses its devices by --slots {}, all of them: leave --slots out",
                guest.name,
                attachment.slots
            );
            hotplug::grow(
                &mut host,
                attachment,
                &request.devices,
                &request.choices,
                request.wait,
                &interrupt,
            )
        }
        None => attach_first(&mut host, request, guest, &attachments, &interrupt),
    }
}

/// Gives a guest its first devices, by a stub that is created if it is not there.
fn attach_first(
    host: &mut Host,
    request: &Attach,
    guest: Domain,
    attachments: &[Attachment],
    interrupt: &Interrupt,
) -> Result<()> {
    let domid = guest.domid.to_string();
    GuestConfig::from_json(&xl::config_of(&domid)?)?.check()?;
    check_kernel(&request.kernel)?;
    let stub = find_stub(host, &guest, request, attachments)?;
    check_no_frontend(host, &guest)?;
    let slots = request.slots.unwrap_or_default();
    let checked = prepare::check(host, &request.devices, &request.choices, Some(&guest), &[], slots)?;
    control::ensure_running()?;

    let mut undo = Undo::new()?;
    let steps = || {
        checked.take_from_dom0(host, interrupt, &mut undo)?;
        let stub = match stub {
            Some(stub) => stub,
            None => create_stub(host, &guest, &request.kernel, &mut undo)?,
        };
        interrupt.check()?;
        let attachment = attach_checked(host, guest, stub, slots, &checked, &mut undo)?;
        let paused = xl::is_paused(&domid)?;
        if paused {
            wait_for_stub(host, &attachment, interrupt)?;
        } else {
            wait_for_guest(host, &attachment, request.wait, interrupt)?;
        }
        Ok((attachment, paused))
    };
    match steps() {
        Ok((attachment, paused)) => {
            let (guest, stub) = (&attachment.guest.name, &attachment.stub.name);
            if paused {
                say!(
                    "stub {stub} offers the devices to guest {guest}, which is paused: `xl unpause {guest}`"
                );
            } else {
                say!("guest {guest} has its devices through stub {stub}: `bulkhead status` shows them");
            }
            Ok(())
        }
        Err(error) => {
            undo.undo(host);
            Err(error)
        }
    }
}

/// The stub that is named, or the one that has the name for this guest; `None` if that has to be created. A domain that
/// is no stub is refused: it would be given nodes that mean something else to it.
fn find_stub(
    host: &mut Host,
    guest: &Domain,
    request: &Attach,
    attachments: &[Attachment],
) -> Result<Option<Domain>> {
    let usual = stub_name(&guest.name);
    let named = request.stub.as_deref();
    let stub = match (domains::find(&mut host.store, named.unwrap_or(&usual)), named) {
        (Ok(stub), _) => stub,
        (Err(DomainError::NotFound { .. }), None) => return Ok(None),
        (Err(error), _) => {
            return Err(error).with_context(|| {
                let name = named.unwrap_or(&usual);
                format!(
                    "no stub {name}: create it with `xl create stubdom.cfg 'name=\"{name}\"'`, or leave --stub out"
                )
            });
        }
    };
    check_is_free(&stub, guest, attachments)?;
    let life = host
        .xen
        .life(stub.domid)
        .context("cannot ask Xen about the stub")?;
    ensure!(
        life == Life::Alive,
        "stub {0} is dead ({life:?}): `xl destroy {0}`, and try again",
        stub.name
    );
    let config = xl::config_of(&stub.domid.to_string())?;
    check_stub(&config, &stub.name, &request.kernel).with_context(|| match named {
        Some(_) => {
            "--stub is for a domain that was created from stubdom.cfg, and --kernel for its image".to_owned()
        }
        None => format!(
            "the stub of guest {} would have that name: rename the domain, or name a stub with --stub",
            guest.name
        ),
    })?;
    Ok(Some(stub))
}

/// Checks that a domain can become the stub of a guest as far as it is known here.
fn check_is_free(stub: &Domain, guest: &Domain, attachments: &[Attachment]) -> Result<()> {
    ensure!(stub.domid != 0, "{} is dom0, and no stub", stub.name);
    ensure!(
        stub.domid != guest.domid,
        "{} cannot be guest and stub at once",
        guest.name
    );
    for attachment in attachments {
        ensure!(
            attachment.stub.domid != stub.domid,
            "{} is the stub of guest {} already: name another, or leave --stub out",
            stub.name,
            attachment.guest.name
        );
        ensure!(
            attachment.guest.domid != stub.domid,
            "{} is a guest that has devices, and no stub",
            stub.name
        );
    }
    Ok(())
}

/// Checks that the guest has no connection that is not ours.
fn check_no_frontend(host: &mut Host, guest: &Domain) -> Result<()> {
    let frontend = Hop::first_hop(0, guest.domid).frontend_dir();
    ensure!(
        host.store.read_optional(&frontend)?.is_none(),
        "guest {} has a PCI frontend already ({frontend}): it can have one backend only",
        guest.name
    );
    Ok(())
}

/// The configuration as xl will see it, and the lines that we add for that.
fn guest_config(file: &Path) -> Result<(GuestConfig, Vec<&'static str>)> {
    let config = GuestConfig::from_json(&xl::parse_config(file, &[])?)?;
    match config.check() {
        Err(GuestRefusal::NoPassthrough { .. }) => {
            let overrides = vec![PASSTHROUGH];
            let config = GuestConfig::from_json(&xl::parse_config(file, &overrides)?)?;
            config.check()?;
            Ok((config, overrides))
        }
        checked => {
            checked?;
            Ok((config, Vec::new()))
        }
    }
}

fn create_stub(host: &mut Host, guest: &Domain, kernel: &Path, undo: &mut Undo) -> Result<Domain> {
    let kernel = kernel
        .to_str()
        .context("the path of the stub's image is not UTF-8")?;
    let stub = NewDomain::stub_of(guest)?;
    let config = bulkhead_config::stubdom(&stub.name, kernel)?;
    // Not by the guest's name, which may be one that no file can have, or lead elsewhere. Commands take turns.
    let file = Path::new(control::RUN).join("stub.cfg");
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let created = stub.create(host, &file, &[], false, undo);
    let _ = fs::remove_file(&file);
    let stub = created.with_context(|| format!("cannot create stub {}", stub.name))?;
    say!("created stub {} (domain {})", stub.name, stub.domid);
    Ok(stub)
}

fn attach_checked(
    host: &mut Host,
    guest: Domain,
    stub: Domain,
    slots: SlotMode,
    checked: &Checked,
    undo: &mut Undo,
) -> Result<Attachment> {
    let devices = checked.describe()?;
    let attachment = Attachment {
        guest,
        stub,
        slots,
        modes: vec![Mode::Line; devices.len()],
        devices,
    };
    undo.push(Step::Attached(attachment.clone()));
    attach::attach(host, &attachment)?;
    // From here on the record has them.
    for domain in [&attachment.guest, &attachment.stub] {
        unfinished::forget(&mut host.store, &domain.uuid)?;
    }
    if let Err(error) = keep_config(host, &attachment.stub) {
        note!(
            "should stub {} die, it cannot be brought back as it was: {error:#}",
            attachment.stub.name
        );
    }
    Ok(attachment)
}

/// Keeps the configuration of a stub for its next life.
fn keep_config(host: &mut Host, stub: &Domain) -> Result<()> {
    let listed = xl::config_of(&stub.domid.to_string())?;
    let config = listed
        .pointer("/0/config")
        .context("xl tells no configuration of it")?;
    Ok(keepsake::keep_config(&mut host.store, stub.domid, config)?)
}

fn wait_for_stub(host: &mut Host, attachment: &Attachment, interrupt: &Interrupt) -> Result<()> {
    wait(STUB_PATIENCE, interrupt, || {
        if is_exported(&mut host.store, attachment)? {
            return Ok(Progress::Connected);
        }
        Ok(progress(&mut host.store, attachment)?)
    })
}

fn wait_for_guest(
    host: &mut Host,
    attachment: &Attachment,
    patience: Duration,
    interrupt: &Interrupt,
) -> Result<Ended> {
    wait(patience, interrupt, || Ok(progress(&mut host.store, attachment)?))?;
    Ok(Ended::Done)
}

/// Takes devices of a running guest back, orderly: its pcifront lets go first. `who` is a guest, for all of its
/// devices, or some of its devices. If the guest is `trusted` to leave alone what it may still have mapped, they go back
/// to dom0's drivers; else they stay held.
pub fn detach(who: &[String], trusted: bool) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let interrupt = Interrupt::catch()?;
    let attachments = attachments(&mut host)?;
    let selected = select(&mut host.store, &host.sysfs, &attachments, who)?;
    if selected.is_all() {
        detach_all(&mut host, selected.attachment, trusted, &interrupt)
    } else {
        hotplug::shrink(
            &mut host,
            selected.attachment,
            &selected.bdfs,
            trusted,
            &interrupt,
        )
    }
}

/// All attachments; of those that cannot be read it is said why.
fn attachments(host: &mut Host) -> Result<Vec<Attachment>> {
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    damaged.iter().for_each(|error| note!("{error}"));
    Ok(attachments)
}

/// Ends the connection.
fn detach_all(host: &mut Host, attachment: &Attachment, trusted: bool, interrupt: &Interrupt) -> Result<()> {
    let guest = &attachment.guest;
    ensure!(
        is_alive(&mut host.store, &attachment.stub)?,
        "stub {} is dead, so guest {} cannot be told to let go: try again when `bulkhead status` shows that it is back; \
         `bulkhead destroy {1}` does not wait for that",
        attachment.stub.name,
        guest.name
    );
    // The guest's drivers turn their devices off, which takes writes.
    control::ensure_running()?;
    let hop = Hop::first_hop(attachment.stub.domid, guest.domid);
    let closing = XenbusState::Closing.as_str();
    host.store.write(&hop.backend_node(key::ONLINE), "0")?;
    host.store.write(&hop.backend_node(key::STATE), closing)?;
    let let_go = wait(GUEST_PATIENCE, interrupt, || {
        if !is_alive(&mut host.store, &attachment.guest)? {
            return Ok(Progress::Connected);
        }
        let state = host.store.read_optional(&hop.frontend_node(key::STATE))?;
        Ok(match XenbusState::parse(state.as_deref().unwrap_or_default()) {
            // A guest that has never looked has nothing to let go of.
            XenbusState::Closed | XenbusState::Initialising | XenbusState::Unknown => Progress::Connected,
            state => Progress::Waiting(format!(
                "guest {0} does not let go of its devices ({state:?}): does a program in it use them? \
                 `bulkhead destroy {0}` does not ask",
                guest.name
            )),
        })
    });
    let_go?;
    say!("guest {} has let go", guest.name);
    let released = release_once(host, attachment)?;
    let bdfs: Vec<Bdf> = attachment.bdfs().collect();
    hand_back(host, &bdfs, released, trusted)
}

/// Ends a guest and its stub, and gives its devices back to dom0.
pub fn destroy(who: &str) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let attachments = attachments(&mut host)?;
    let attachment = match select(&mut host.store, &host.sysfs, &attachments, &[who.to_owned()]) {
        Err(SelectError::Guest { .. }) if destroy_unfinished(&mut host, who)? => return Ok(()),
        selected => selected?.attachment,
    };
    // What it has now, and what it had and may still have mapped.
    let mut bdfs: Vec<Bdf> = attachment.bdfs().collect();
    let mapped = records::mapped(&mut host.store)?.into_iter();
    let mapped = mapped.filter(|(bdf, guest)| *guest == attachment.guest && !bdfs.contains(bdf));
    let mapped: Vec<Bdf> = mapped.map(|(bdf, _)| bdf).collect();
    bdfs.extend(mapped);
    domains::destroy(&mut host, &attachment.guest)?;
    say!("guest {} is destroyed", attachment.guest.name);
    // Its devices are its own until Xen has taken it apart.
    let deadline = Instant::now() + GUEST_PATIENCE;
    while is_alive(&mut host.store, &attachment.guest)? {
        ensure!(
            Instant::now() < deadline,
            "guest {} does not die: `xl list` shows its state; try again when it is gone",
            attachment.guest.name
        );
        thread::sleep(POLL);
    }
    let released = release_once(&mut host, attachment)?;
    hand_back(&mut host, &bdfs, released, false)
}

/// Ends what a command of ours that was killed has left: a guest that never ran, a stub without a guest. True if there
/// was anything. Its devices are held for the next one.
fn destroy_unfinished(host: &mut Host, who: &str) -> Result<bool> {
    let found = match domains::find(&mut host.store, who) {
        Ok(domain) => Some(domain),
        Err(DomainError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let left = unfinished::left_of(&mut host.store, who, found.as_ref())?;
    for domain in &left {
        domains::destroy(host, domain)?;
        unfinished::forget(&mut host.store, &domain.uuid)?;
        say!(
            "{} is destroyed: a command of Bulkhead's had created it and came to no end",
            domain.name
        );
    }
    Ok(!left.is_empty())
}

/// Gives devices that were released back to dom0, but for those in quarantine, and those that a guest may still have
/// mapped that is not `trusted`.
pub(crate) fn hand_back<X>(
    host: &mut Host<X>,
    bdfs: &[Bdf],
    released: Released,
    trusted: bool,
) -> Result<()> {
    released.devices.iter().for_each(|line| say!("{line}"));
    let mut problems = released.problems;
    for &bdf in bdfs {
        if trusted {
            records::forget_mapped(&mut host.store, bdf)?;
        }
        match give_back(host, bdf) {
            Ok(Back::Driver(driver)) => say!("gave {bdf} back to {driver}"),
            Ok(Back::MappedBy(guest)) => say!("{}", stays_held(bdf, &guest)),
            Ok(Back::Undriven | Back::Stays) => {}
            Err(error) => problems.push(format!("{:#}", anyhow::Error::from(error))),
        }
    }
    ensure!(
        problems.is_empty(),
        "not everything could be undone:\n{}",
        problems.join("\n")
    );
    Ok(())
}

/// Why a device stays held that a guest had which lives on.
pub(crate) fn stays_held(bdf: Bdf, guest: &Domain) -> String {
    format!(
        "{bdf} stays held: guest {} runs and may still have its memory mapped. `bulkhead release {bdf}` gives it to dom0 \
         when the guest has ended, with --trusted-guest at once",
        guest.name
    )
}

/// Has the attachment released, unless that has happened.
pub(crate) fn release_once(host: &mut Host, attachment: &Attachment) -> Result<Released> {
    let stub = attachment.stub.domid;
    ask_release(host, stub, Request::Release { stub }, release)
}

/// Has devices of a stub released, as the request says: by the service, or if that does not run by `ourselves`.
pub(crate) fn ask_release(
    host: &mut Host,
    stub: DomId,
    request: Request,
    ourselves: impl FnOnce(&mut Host, &Attachment) -> Released,
) -> Result<Released> {
    let answered = control::insist_or_keep_stopped(&request);
    if let Ok(Asked::Answered(reply)) = answered {
        return match *reply {
            Reply::Released { devices, problems } => Ok(Released { devices, problems }),
            _ => bail!("the service answered something else than asked: restart it"),
        };
    }
    let Some(left) = Attachment::read(&mut host.store, stub)? else {
        // The service saw the guest die, or the attach never got that far.
        return Ok(Released::default());
    };
    let _stopped = answered?;
    Ok(ourselves(host, &left))
}

/// Switches whether dom0 answers for a guest's device on a line that dom0's drivers use too.
pub fn answer_for_line(device: &Name, answer: bool) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let attachments = attachments(&mut host)?;
    let (attachment, bdf) = of_device(&host.sysfs, &attachments, device)?;
    let offered = attachment
        .devices
        .iter()
        .any(|device| device.bdf == bdf && device.line_offered);
    ensure!(
        offered,
        "guest {} has {bdf} without its interrupt line, so there is nothing to answer for",
        attachment.guest.name
    );
    if answer {
        acking::start(&mut host, bdf)?;
        say!("dom0 answers for the line of {bdf}");
    } else {
        acking::switch(&mut host.store, &host.sysfs, bdf, false)?;
        say!("dom0 does not answer for the line of {bdf}: 100,000 interrupts on, it may lose the line");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::records::Taken;
    use crate::records::tests::{attachment, domain};
    use crate::store::tests::{dom0, introduce};
    use crate::sysfs::tests::Tree;
    use crate::xenctrl::tests::Xen;
    use xenbus::model::Xenstored;

    #[test]
    fn a_stub_serves_one_guest_and_is_none_itself() {
        let attachments = [attachment()];
        let mail = domain(7, "mail");
        check_is_free(&domain(9, "mail-bulkhead"), &mail, &attachments).unwrap();
        for (stub, expected) in [
            (domain(0, "Domain-0"), "Domain-0 is dom0"),
            (mail.clone(), "mail cannot be guest and stub"),
            (domain(4, "renamed"), "renamed is the stub of guest web already"),
            (domain(3, "web"), "web is a guest that has devices"),
        ] {
            let error = check_is_free(&stub, &mail, &attachments).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_device_that_a_guest_may_have_mapped_is_handed_back_if_that_is_trusted() {
        let (name, daemon, tree) = ("0000:00:07.0", Xenstored::new(), Tree::new());
        introduce(&daemon, 3, "web");
        tree.add(name, &[]);
        // Dom0 has it by now, so that only the notes are left to go.
        tree.bind(name, "e1000e");
        let bdf = name.parse().unwrap();
        for trusted in [false, true] {
            let mut host = Host {
                store: dom0(&daemon),
                xen: Xen::default(),
                sysfs: tree.sysfs(),
                runner: Runner::Noting(Vec::new()),
            };
            let store = &mut host.store;
            records::note_taken(store, Taken::ForGuest, bdf, "e1000e", "test").unwrap();
            records::note_mapped(store, bdf, &domain(3, "web")).unwrap();
            hand_back(&mut host, &[bdf], Released::default(), trusted).unwrap();
            let store = &mut host.store;
            let is_held = records::taken_from(store, Taken::ForGuest, bdf)
                .unwrap()
                .is_some();
            let is_mapped = !records::mapped(store).unwrap().is_empty();
            assert_eq!((is_held, is_mapped), (!trusted, !trusted));
        }
    }

    #[test]
    fn what_did_not_work_fails_the_command_in_words() {
        let mut host = Host {
            store: dom0(&Xenstored::new()),
            xen: Xen::default(),
            sysfs: Tree::new().sysfs(),
            runner: Runner::Noting(Vec::new()),
        };
        let released = Released {
            problems: vec!["it is mute".into()],
            ..Released::default()
        };
        let error = hand_back(&mut host, &[], released, false).unwrap_err();
        assert!(error.to_string().ends_with("it is mute"), "{error}");
    }

    #[test]
    fn what_is_created_is_known_by_its_uuid_and_by_its_guest() {
        let config = serde_json::json!({ "c_info": { "name": "web", "uuid": "u" } });
        let guest = NewDomain::guest(GuestConfig::from_json(&config).unwrap()).unwrap();
        assert_eq!(
            (guest.uuid.as_str(), guest.guest),
            ("u", ("u".into(), "web".into()))
        );
        let config = serde_json::json!({ "c_info": { "name": "web" } });
        let guest = NewDomain::guest(GuestConfig::from_json(&config).unwrap()).unwrap();
        assert_eq!(guest.uuid.len(), 36);
        let stub = NewDomain::stub_of(&domain(3, "web")).unwrap();
        assert_eq!(stub.name, "web-bulkhead");
        assert_eq!(stub.guest, (domain(3, "web").uuid, "web".into()));
        assert_ne!(stub.uuid, stub.guest.0);
    }
}
