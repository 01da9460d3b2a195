//! The commands that change something: `run`, `attach`, `detach`, `destroy`.

use crate::acking;
use crate::attach;
use crate::control::{self, ControlError, Reply, Request};
use crate::domains::{self, DomainError, is_alive};
use crate::guest::{GuestConfig, GuestRefusal, PASSTHROUGH};
use crate::host::Host;
use crate::hotplug;
use crate::keepsake;
use crate::mode::Mode;
use crate::names;
use crate::policy::Choices;
use crate::prepare::{self, Checked};
use crate::progress::{Progress, is_exported, progress};
use crate::record::{Attachment, Domain};
use crate::release::{Released, release};
use crate::seize::give_back;
use crate::undo::{Step, Undo};
use crate::waiting::{GUEST_PATIENCE, Interrupt, POLL, STUB_PATIENCE, wait};
use crate::xenctrl::DomId;
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

/// From "device in dom0" to "guest up with device". On any failure all is as before.
pub fn run(request: &Run) -> Result<()> {
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
    let (guest, stub) = (config.name.clone(), stub_name(&config.name));
    for name in [&guest, &stub] {
        match domains::find(&mut host.store, name) {
            Err(DomainError::NotFound { .. }) => {}
            Ok(domain) => bail!(
                "domain {name} exists already (number {}): `bulkhead destroy {guest}` ends it, or give the guest \
                 another name",
                domain.domid
            ),
            Err(error) => return Err(error.into()),
        }
    }
    let checked = prepare::check(&mut host, &request.devices, &request.choices, &[], request.slots)?;
    control::ensure_running()?;

    let mut undo = Undo::default();
    let result = run_checked(
        &mut host, request, &guest, &overrides, &checked, &interrupt, &mut undo,
    );
    let result = result.and_then(|attachment| {
        drop(lock);
        wait_for_guest(&mut host, &attachment, request.wait, &interrupt)
    });
    match result {
        Ok(()) => {
            println!("guest {guest} has its devices through stub {stub}: `bulkhead status` shows them");
            Ok(())
        }
        Err(error) => {
            undo.undo(&mut host);
            Err(error)
        }
    }
}

/// The part of [`run`] that changes things; what it did is in `undo`.
fn run_checked(
    host: &mut Host,
    request: &Run,
    guest: &str,
    overrides: &[&str],
    checked: &Checked,
    interrupt: &Interrupt,
    undo: &mut Undo,
) -> Result<Attachment> {
    checked.take_from_dom0(host, interrupt, undo)?;
    xl::create(&request.config, overrides, true).with_context(|| format!("cannot create guest {guest}"))?;
    let guest = domains::find(&mut host.store, guest)?;
    println!("created guest {} (domain {}), paused", guest.name, guest.domid);
    undo.push(Step::Created(guest.clone()));
    interrupt.check()?;

    let stub = create_stub(host, &stub_name(&guest.name), &request.kernel, undo)?;
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
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    damaged.iter().for_each(|error| eprintln!("note: {error}"));
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
    let stub = find_stub(host, &guest, request.stub.as_deref(), attachments)?;
    if stub.is_none() {
        check_kernel(&request.kernel)?;
    }
    check_no_frontend(host, &guest)?;
    let slots = request.slots.unwrap_or_default();
    let checked = prepare::check(host, &request.devices, &request.choices, &[], slots)?;
    control::ensure_running()?;

    let mut undo = Undo::default();
    let steps = || {
        checked.take_from_dom0(host, interrupt, &mut undo)?;
        let stub = match stub {
            Some(stub) => stub,
            None => create_stub(host, &stub_name(&guest.name), &request.kernel, &mut undo)?,
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
                println!(
                    "stub {stub} offers the devices to guest {guest}, which is paused: `xl unpause {guest}`"
                );
            } else {
                println!("guest {guest} has its devices through stub {stub}: `bulkhead status` shows them");
            }
            Ok(())
        }
        Err(error) => {
            undo.undo(host);
            Err(error)
        }
    }
}

/// The stub that is named, or the one that has the name for this guest; `None` if that has to be created.
fn find_stub(
    host: &mut Host,
    guest: &Domain,
    named: Option<&str>,
    attachments: &[Attachment],
) -> Result<Option<Domain>> {
    let usual = stub_name(&guest.name);
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
    ensure!(
        stub.domid != guest.domid,
        "{} cannot be guest and stub at once",
        guest.name
    );
    if let Some(other) = attachments
        .iter()
        .find(|attachment| attachment.stub.domid == stub.domid)
    {
        bail!(
            "{} is the stub of guest {} already: name another, or leave --stub out",
            stub.name,
            other.guest.name
        );
    }
    Ok(Some(stub))
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

fn create_stub(host: &mut Host, name: &str, kernel: &Path, undo: &mut Undo) -> Result<Domain> {
    let kernel = kernel
        .to_str()
        .context("the path of the stub's image is not UTF-8")?;
    let config = bulkhead_config::stubdom(name, kernel)?;
    let file = Path::new(control::RUN).join(format!("{name}.cfg"));
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    xl::create(&file, &[], false)
        .with_context(|| format!("cannot create stub {name} from {}", file.display()))?;
    let stub = domains::find(&mut host.store, name)?;
    println!("created stub {} (domain {})", stub.name, stub.domid);
    undo.push(Step::Created(stub.clone()));
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
    if let Err(error) = keep_config(host, &attachment.stub) {
        eprintln!(
            "note: should stub {} die, it cannot be brought back as it was: {error:#}",
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
) -> Result<()> {
    wait(patience, interrupt, || Ok(progress(&mut host.store, attachment)?))
}

/// Takes devices of a running guest back, orderly: its pcifront lets go first. `who` is a guest, for all of its
/// devices, or some of its devices.
pub fn detach(who: &[String]) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let interrupt = Interrupt::catch()?;
    let first = who.first().context("name a guest or a device")?;
    let attachment = find_attachment(&mut host, first)?;
    if first.parse::<Bdf>().is_err() {
        ensure!(
            who.len() == 1,
            "{first} is a guest, and all of its devices are detached: name it alone, or devices only"
        );
        return detach_all(&mut host, &attachment, &interrupt);
    }
    let mut bdfs: Vec<Bdf> = Vec::new();
    for name in who {
        let bdf = name
            .parse()
            .with_context(|| format!("{name} is no device: name one guest, or devices only"))?;
        ensure!(
            attachment.bdfs().any(|other| other == bdf),
            "guest {} has no {bdf}: name devices of one guest (`bulkhead status` shows them)",
            attachment.guest.name
        );
        bdfs.push(bdf);
    }
    if attachment.bdfs().all(|bdf| bdfs.contains(&bdf)) {
        detach_all(&mut host, &attachment, &interrupt)
    } else {
        hotplug::shrink(&mut host, &attachment, &bdfs, &interrupt)
    }
}

/// Ends the connection.
fn detach_all(host: &mut Host, attachment: &Attachment, interrupt: &Interrupt) -> Result<()> {
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
    println!("guest {} has let go", guest.name);
    finish(host, attachment)
}

/// Ends a guest and its stub, and gives its devices back to dom0.
pub fn destroy(who: &str) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let attachment = match find_attachment(&mut host, who) {
        Err(_) if destroy_half_made(&mut host, who)? => return Ok(()),
        found => found?,
    };
    domains::destroy(&mut host, &attachment.guest)?;
    println!("guest {} is destroyed", attachment.guest.name);
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
    finish(&mut host, &attachment)
}

/// Ends what a [`run`] that was killed has left: a guest that never ran, or a stub without a guest. True if there was
/// anything. Its devices are held for the next one.
fn destroy_half_made(host: &mut Host, guest: &str) -> Result<bool> {
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    let mut any = false;
    for name in [guest.to_owned(), stub_name(guest)] {
        let Ok(domain) = domains::find(&mut host.store, &name) else {
            continue;
        };
        let serves = attachments
            .iter()
            .any(|attachment| attachment.stub.domid == domain.domid);
        // One that runs was let run, and is somebody's.
        let ours = if name == guest {
            xl::is_paused(&name)?
        } else {
            !serves && damaged.is_empty()
        };
        if ours {
            domains::destroy(host, &domain)?;
            println!("{name} is destroyed: it was made for `bulkhead run`, and had no devices yet");
            any = true;
        }
    }
    Ok(any)
}

/// Releases the attachment and gives its devices back to dom0.
fn finish(host: &mut Host, attachment: &Attachment) -> Result<()> {
    let released = release_once(host, attachment)?;
    let bdfs: Vec<Bdf> = attachment.bdfs().collect();
    hand_back(host, &bdfs, released)
}

/// Gives devices that were released back to dom0, but for those in quarantine.
pub(crate) fn hand_back(host: &mut Host, bdfs: &[Bdf], released: Released) -> Result<()> {
    released.devices.iter().for_each(|line| println!("{line}"));
    let mut problems = released.problems;
    for &bdf in bdfs {
        match give_back(host, bdf) {
            Ok(Some(driver)) => println!("gave {bdf} back to {driver}"),
            Ok(None) => {}
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
    match control::insist(&request) {
        Ok(Reply::Released { devices, problems }) => Ok(Released { devices, problems }),
        Ok(_) => bail!("the service answered something else than asked: restart it"),
        Err(error) => {
            let Some(left) = Attachment::read(&mut host.store, stub)? else {
                // The service saw the guest die, or the attach never got that far.
                return Ok(Released::default());
            };
            match error {
                ControlError::NotRunning(_) => Ok(ourselves(host, &left)),
                error => Err(error.into()),
            }
        }
    }
}

/// Switches whether dom0 answers for a guest's device on a line that dom0's drivers use too.
pub fn answer_for_line(device: &Name, answer: bool) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let bdf = names::resolve(device, &host.sysfs)?;
    let attachment = find_attachment(&mut host, &bdf.to_string())?;
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
        println!("dom0 answers for the line of {bdf}");
    } else {
        acking::switch(&mut host.store, &host.sysfs, bdf, false)?;
        println!("dom0 does not answer for the line of {bdf}: 100,000 interrupts on, it may lose the line");
    }
    Ok(())
}

/// Finds an attachment by guest (name or number) or device.
fn find_attachment(host: &mut Host, who: &str) -> Result<Attachment> {
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    damaged.iter().for_each(|error| eprintln!("note: {error}"));
    let bdf = who.parse::<Bdf>().ok();
    let found = attachments.into_iter().find(|attachment| {
        let guest = &attachment.guest;
        guest.name == who
            || guest.domid.to_string() == who
            || attachment.bdfs().any(|other| Some(other) == bdf)
    });
    found.with_context(|| match bdf {
        Some(bdf) => {
            format!("no guest has {bdf} through Bulkhead: `bulkhead status` shows what is passed through")
        }
        None => format!("guest {who} has no devices through Bulkhead: `bulkhead status` shows which do"),
    })
}
