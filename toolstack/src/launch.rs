//! The commands that change something: `run`, `attach`, `detach`, `destroy`.

use crate::attach::attach;
use crate::checks::{self, Claims, Notice, Refusal};
use crate::control::{self, ControlError, Reply, Request};
use crate::domains::{self, DomainError, is_alive};
use crate::guest::{GuestConfig, GuestRefusal, PASSTHROUGH};
use crate::host::Host;
use crate::interrupts::Mode;
use crate::mcfg::{self, Mcfg};
use crate::progress::{Progress, is_exported, progress};
use crate::record::{self, Attachment, Domain};
use crate::release::{Released, release};
use crate::seize::{Before, give_back, seize};
use crate::xl;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use xenbus::bdf::Bdf;
use xenbus::client::Store as _;
use xenbus::path::{Device as Hop, key};
use xenbus::state::XenbusState;

/// How often xenstore is looked at while something is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How long a stub may take to export its devices.
const STUB_PATIENCE: Duration = Duration::from_secs(15);
/// How long a guest may take to let go of its devices, or to be cleared away.
const GUEST_PATIENCE: Duration = Duration::from_secs(30);

/// What `run` is asked for.
#[derive(Clone, Debug)]
pub struct Run {
    /// The guest's configuration file.
    pub config: PathBuf,
    /// The devices that it gets.
    pub devices: Vec<Bdf>,
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
    pub devices: Vec<Bdf>,
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
    ensure!(
        request.kernel.is_file(),
        "the stub's image {} is not there: install it, or name another with --kernel",
        request.kernel.display()
    );
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
    let checked = check(&mut host, &request.devices)?;
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
    take_from_dom0(host, &request.devices, interrupt, undo)?;
    xl::create(&request.config, overrides, true).with_context(|| format!("cannot create guest {guest}"))?;
    let guest = domains::find(&mut host.store, guest)?;
    println!("created guest {} (domain {}), paused", guest.name, guest.domid);
    undo.push(Step::Created(guest.clone()));
    interrupt.check()?;

    let stub = create_stub(host, &stub_name(&guest.name), &request.kernel)?;
    println!("created stub {} (domain {})", stub.name, stub.domid);
    undo.push(Step::Created(stub.clone()));
    interrupt.check()?;

    let attachment = attach_checked(host, guest, stub, checked, undo)?;
    interrupt.check()?;
    xl::unpause(&attachment.guest.domid.to_string())?;
    Ok(attachment)
}

/// Gives devices to a guest and a stub that exist.
pub fn attach_existing(request: &Attach) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let interrupt = Interrupt::catch()?;
    let guest = domains::find(&mut host.store, &request.guest)?;
    let stub = find_stub(&mut host, &guest, request.stub.as_deref())?;
    let config = xl::config_of(&guest.domid.to_string())?;
    GuestConfig::from_json(&config)?.check()?;
    check_free(&mut host, &guest, &stub)?;
    let checked = check(&mut host, &request.devices)?;
    control::ensure_running()?;

    let mut undo = Undo::default();
    let result = take_from_dom0(&mut host, &request.devices, &interrupt, &mut undo)
        .and_then(|()| attach_checked(&mut host, guest, stub, &checked, &mut undo))
        .and_then(|attachment| {
            wait_for_stub(&mut host, &attachment, &interrupt)?;
            Ok(attachment)
        });
    match result {
        Ok(attachment) => {
            let (guest, stub) = (&attachment.guest.name, &attachment.stub.name);
            println!(
                "stub {stub} offers the devices to guest {guest}: if it is paused, `xl unpause {guest}`"
            );
            Ok(())
        }
        Err(error) => {
            undo.undo(&mut host);
            Err(error)
        }
    }
}

fn find_stub(host: &mut Host, guest: &Domain, named: Option<&str>) -> Result<Domain> {
    let name = named.map_or_else(|| stub_name(&guest.name), str::to_owned);
    let stub = domains::find(&mut host.store, &name);
    let stub = stub.with_context(|| {
        format!(
            "no stub for guest {guest}: create one with `xl create stubdom.cfg 'name=\"{name}\"'`, or name yours with \
             --stub",
            guest = guest.name
        )
    })?;
    ensure!(
        stub.domid != guest.domid,
        "{} cannot be guest and stub at once",
        guest.name
    );
    Ok(stub)
}

/// Checks that neither domain has a connection yet.
fn check_free(host: &mut Host, guest: &Domain, stub: &Domain) -> Result<()> {
    let (attachments, _) = Attachment::all(&mut host.store)?;
    for attachment in &attachments {
        ensure!(
            attachment.guest.domid != guest.domid,
            "guest {0} has devices already, through stub {1}: `bulkhead detach {0}` first",
            guest.name,
            attachment.stub.name
        );
        ensure!(
            attachment.stub.domid != stub.domid,
            "{} is the stub of guest {} already: create another",
            stub.name,
            attachment.guest.name
        );
    }
    let frontend = Hop::first_hop(stub.domid, guest.domid).frontend_dir();
    let taken = host.store.read_optional(&frontend)?.is_some();
    ensure!(
        !taken,
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

/// Devices that have passed all checks.
struct Checked {
    bdfs: Vec<Bdf>,
    mcfg: Mcfg,
    claims: Claims,
}

fn check(host: &mut Host, bdfs: &[Bdf]) -> Result<Checked> {
    checks::check_host(&xl::info()?)?;
    let table = fs::read(mcfg::PATH).with_context(|| {
        format!(
            "cannot read {}: this host maps no configuration space in memory, and the stub reads no other",
            mcfg::PATH
        )
    })?;
    let mcfg = Mcfg::parse(&table).with_context(|| format!("{} cannot be used", mcfg::PATH))?;
    let claims = Claims::read(&mut host.store)?;
    let refusals = checks::check_devices(bdfs, &host.sysfs, &mcfg, &claims);
    match refusals.len() {
        0 => Ok(Checked {
            bdfs: bdfs.to_vec(),
            mcfg,
            claims,
        }),
        1 => Err(refusals
            .into_iter()
            .next()
            .map_or_else(|| anyhow!("refused"), anyhow::Error::from)),
        _ => bail!(
            refusals
                .iter()
                .map(Refusal::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        ),
    }
}

fn take_from_dom0(host: &mut Host, bdfs: &[Bdf], interrupt: &Interrupt, undo: &mut Undo) -> Result<()> {
    for &bdf in bdfs {
        let seized = seize(host, bdf);
        undo.push(Step::Seized(bdf));
        match seized? {
            Before::Driven(driver) => println!("took {bdf} from dom0's driver {driver}"),
            Before::Idle => println!("took {bdf}, which had no driver in dom0"),
            Before::Held => println!("{bdf} is held by xen-pciback already"),
        }
        interrupt.check()?;
    }
    Ok(())
}

fn create_stub(host: &mut Host, name: &str, kernel: &Path) -> Result<Domain> {
    let kernel = kernel
        .to_str()
        .context("the path of the stub's image is not UTF-8")?;
    let config = bulkhead_config::stubdom(name, kernel)?;
    let file = Path::new(control::RUN).join(format!("{name}.cfg"));
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    xl::create(&file, &[], false)
        .with_context(|| format!("cannot create stub {name} from {}", file.display()))?;
    Ok(domains::find(&mut host.store, name)?)
}

fn attach_checked(
    host: &mut Host,
    guest: Domain,
    stub: Domain,
    checked: &Checked,
    undo: &mut Undo,
) -> Result<Attachment> {
    let (devices, notices) =
        checks::describe_all(&checked.bdfs, &host.sysfs, &checked.mcfg, &checked.claims)?;
    notices
        .iter()
        .for_each(|notice: &Notice| eprintln!("note: {notice}"));
    let attachment = Attachment {
        guest,
        stub,
        modes: vec![Mode::Line; devices.len()],
        devices,
    };
    undo.push(Step::Attached(attachment.clone()));
    attach(host, &attachment)?;
    Ok(attachment)
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

fn wait(patience: Duration, interrupt: &Interrupt, mut look: impl FnMut() -> Result<Progress>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        interrupt.check()?;
        match look()? {
            Progress::Connected => return Ok(()),
            Progress::Failed(why) => bail!("{why}"),
            Progress::Waiting(what) if Instant::now() >= deadline => {
                bail!("gave up after {} s: {what}", patience.as_secs())
            }
            Progress::Waiting(_) => thread::sleep(POLL),
        }
    }
}

/// Takes the devices of a running guest back, orderly: its pcifront lets go first.
pub fn detach(who: &str) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let interrupt = Interrupt::catch()?;
    let attachment = find_attachment(&mut host, who)?;
    let guest = &attachment.guest;
    ensure!(
        who.parse::<Bdf>().is_err() || attachment.devices.len() == 1,
        "{who} is one of {} devices of guest {}, and one alone cannot be detached by now: `bulkhead detach {1}` \
         detaches all",
        attachment.devices.len(),
        guest.name
    );
    ensure!(
        is_alive(&mut host.store, &attachment.stub)?,
        "stub {} is dead, so guest {} cannot be told to let go: `bulkhead destroy {1}` frees the devices",
        attachment.stub.name,
        guest.name
    );
    let hop = Hop::first_hop(attachment.stub.domid, guest.domid);
    let closing = XenbusState::Closing.as_str();
    host.store.write(&hop.backend_node(key::ONLINE), "0")?;
    host.store.write(&hop.backend_node(key::STATE), closing)?;
    let let_go = wait(GUEST_PATIENCE, &interrupt, || {
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
    finish(&mut host, &attachment)
}

/// Ends a guest and its stub, and gives its devices back to dom0.
pub fn destroy(who: &str) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let attachment = find_attachment(&mut host, who)?;
    domains::destroy(&mut host.store, &attachment.guest)?;
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

/// Releases the attachment and gives its devices back to dom0.
fn finish(host: &mut Host, attachment: &Attachment) -> Result<()> {
    let released = release_once(host, attachment)?;
    released.devices.iter().for_each(|line| println!("{line}"));
    let mut problems = released.problems;
    for bdf in attachment.bdfs() {
        let quarantined = record::quarantined(&mut host.store)?
            .iter()
            .any(|(other, _)| *other == bdf);
        if quarantined {
            continue;
        }
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

/// Has the attachment released, by the service if it runs, unless that has happened.
fn release_once(host: &mut Host, attachment: &Attachment) -> Result<Released> {
    let stub = attachment.stub.domid;
    match control::ask(Request::Release { stub }) {
        Ok(Reply::Released { devices, problems }) => Ok(Released { devices, problems }),
        Ok(_) => bail!("the service answered something else than asked: restart it"),
        Err(error) => {
            let Some(left) = Attachment::read(&mut host.store, stub)? else {
                // The service saw the guest die, or the attach never got that far.
                return Ok(Released::default());
            };
            match error {
                ControlError::NotRunning(_) => Ok(release(host, &left)),
                error => Err(error.into()),
            }
        }
    }
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

/// One thing that was done.
#[derive(Clone, Debug)]
enum Step {
    Seized(Bdf),
    Created(Domain),
    Attached(Attachment),
}

/// What was done so far, to be undone in the reverse order.
#[derive(Debug, Default)]
struct Undo(Vec<Step>);

impl Undo {
    fn push(&mut self, step: Step) {
        self.0.push(step);
    }

    /// Undoes everything; what cannot be undone is told.
    fn undo(self, host: &mut Host) {
        if !self.0.is_empty() {
            eprintln!("undoing what was done");
        }
        for step in self.0.into_iter().rev() {
            if let Err(error) = step.undo(host) {
                eprintln!("note: while undoing: {error:#}");
            }
        }
    }
}

impl Step {
    fn undo(self, host: &mut Host) -> Result<()> {
        match self {
            Self::Seized(bdf) => give_back(host, bdf).map(drop).map_err(Into::into),
            Self::Created(domain) => Ok(domains::destroy(&mut host.store, &domain)?),
            Self::Attached(attachment) => {
                let released = release_once(host, &attachment)?;
                ensure!(released.problems.is_empty(), "{}", released.problems.join("; "));
                Ok(())
            }
        }
    }
}

/// Ctrl-C and SIGTERM, seen between two steps.
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn catch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
        }
        Ok(Self(flag))
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}
