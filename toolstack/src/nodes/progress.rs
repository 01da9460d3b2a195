//! How far a guest and its stub are connected, and what is missing.

use crate::host::domains::is_alive;
use crate::host::store::{Store, StoreError};
use crate::host::systemd;
use crate::nodes::device_list::List;
use crate::nodes::hops::{error_node, guest_errors};
use crate::records::Attachment;
use crate::records::failed::Failed;
use pci::bdf::Bdf;
use std::path::Path;
use xenbus::client::Store as _;
use xenbus::path::{Device as Hop, home, key};
use xenbus::state::XenbusState;

/// The states of all four ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// The service's end of the second hop.
    pub service: XenbusState,
    /// The stub's end of the second hop.
    pub stub: XenbusState,
    /// The stub's end of the first hop.
    pub backend: XenbusState,
    /// The guest's end of the first hop.
    pub guest: XenbusState,
}

/// What the states mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The guest has its devices.
    Connected,
    /// Not yet: what is waited for, and where to look if it does not happen.
    Waiting(String),
    /// The connection failed: why.
    Failed(String),
}

/// How far the connection of an attachment is.
pub fn progress(store: &mut Store, attachment: &Attachment) -> Result<Progress, StoreError> {
    let (guest, stub) = (attachment.guest.domid, attachment.stub.domid);
    if let Some(ended) = ended(store, attachment)? {
        return Ok(ended);
    }
    let (first, second) = (Hop::first_hop(stub, guest), Hop::second_hop(stub));
    let mut state = |path: String| store.read_state(&path);
    let states = States {
        service: state(second.backend_node(key::STATE))?,
        stub: state(second.frontend_node(key::STATE))?,
        backend: state(first.backend_node(key::STATE))?,
        guest: state(first.frontend_node(key::STATE))?,
    };
    let progress = judge(states, &attachment.guest.name, &attachment.stub.name);
    if progress == Progress::Connected {
        // Errors that were reported before are over.
        return Ok(progress);
    }
    // Each end reports errors in a node of its own, as Linux's xenbus does.
    let errors = [
        format!("{}/error/device/bulkhead/0/error", home(stub)),
        format!("{}/error/backend/pci/{guest}/0/error", home(stub)),
    ];
    for path in errors {
        if let Some(error) = store.read_optional(&path)? {
            return Ok(Progress::Failed(domain_says(&attachment.stub.name, &error)));
        }
    }
    if let Some(error) = store.read_optional(&error_node(stub))? {
        return Ok(Progress::Failed(format!("the service says: {error}")));
    }
    // The guest's own report decides nothing: the guest may write anything.
    let said = store.read_optional(&format!("{}/error", guest_errors(attachment)))?;
    Ok(with_word_of_guest(
        progress,
        &attachment.guest.name,
        said.as_deref(),
    ))
}

/// Adds the error that the guest has reported. It decides nothing by itself: Linux reports one whenever it gives up a
/// frontend, even if that starts anew.
fn with_word_of_guest(progress: Progress, guest: &str, said: Option<&str>) -> Progress {
    let add = |text: String| match said {
        Some(error) => format!("domain {guest} says: {}; {text}", quoted(error)),
        None => text,
    };
    match progress {
        Progress::Connected => Progress::Connected,
        Progress::Waiting(text) => Progress::Waiting(add(text)),
        Progress::Failed(text) => Progress::Failed(add(text)),
    }
}

fn ended(store: &mut Store, attachment: &Attachment) -> Result<Option<Progress>, StoreError> {
    let (guest, stub) = (&attachment.guest, &attachment.stub);
    if !is_alive(store, guest)? {
        let text = format!("domain {} has ended; {}", guest.name, console_log(&guest.name));
        return Ok(Some(Progress::Failed(text)));
    }
    if is_alive(store, stub)? {
        return Ok(None);
    }
    // The service brings a dead stub back, so its death alone is no failure.
    let log = console_log(&stub.name);
    Ok(Some(match Failed::of(store, guest.domid)? {
        Some(failed) => Progress::Failed(format!("{failed}; {log}")),
        None => Progress::Waiting(format!(
            "stub {} has died, and does not come back; {log}",
            stub.name
        )),
    }))
}

fn judge(states: States, guest: &str, stub: &str) -> Progress {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};
    let waiting = |whom: String, log: String| Progress::Waiting(format!("{whom}; {log}"));
    let States {
        service,
        stub: frontend,
        backend,
        guest: pcifront,
    } = states;
    if [service, frontend, backend, pcifront]
        .iter()
        .any(|state| matches!(state, Closing | Closed))
    {
        let text = format!("the connection between {guest}, {stub} and dom0 was closed again ({states:?})");
        return Progress::Failed(format!("{text}; {}", console_log(stub)));
    }
    // The order is from the service to the guest: an earlier end keeps the later ones waiting.
    match (service, frontend, backend, pcifront) {
        (_, _, Connected, Connected) => Progress::Connected,
        (Initialising | Unknown, ..) => waiting("the service has not seen the stub".into(), service_log()),
        (_, Initialising | Unknown, ..) => {
            waiting(format!("stub {stub} does not come up"), console_log(stub))
        }
        (InitWait | Initialised, ..) => {
            waiting("the service does not connect to the stub".into(), service_log())
        }
        (_, _, Initialising | InitWait | Unknown, _) => waiting(
            format!("stub {stub} does not export the devices"),
            console_log(stub),
        ),
        (_, _, _, Initialising | Unknown) => waiting(
            format!(
                "guest {guest} has not looked at its devices: is it still booting, or without xen-pcifront?"
            ),
            console_log(guest),
        ),
        (_, _, Initialised, _) => waiting(
            format!("stub {stub} does not connect to the guest"),
            console_log(stub),
        ),
        _ => waiting(format!("guest {guest} does not connect"), console_log(guest)),
    }
}

/// How far a change of the list of devices is. `Connected` means that both ends have followed it.
pub fn change_progress(store: &mut Store, attachment: &Attachment) -> Result<Progress, StoreError> {
    if let Some(ended) = ended(store, attachment)? {
        return Ok(ended);
    }
    let list = List::read(store, attachment)?;
    Ok(judge_change(
        list.backend,
        list.guest,
        &attachment.guest.name,
        &attachment.stub.name,
    ))
}

fn judge_change(backend: XenbusState, pcifront: XenbusState, guest: &str, stub: &str) -> Progress {
    use XenbusState::{Closed, Closing, Connected, Reconfigured, Reconfiguring, Unknown};
    let waiting = |whom: String, name: &str| Progress::Waiting(format!("{whom}; {}", console_log(name)));
    match (backend, pcifront) {
        (Connected, Connected) => Progress::Connected,
        (Closing | Closed | Unknown, _) | (_, Closing | Closed | Unknown) => Progress::Failed(format!(
            "the connection between {guest} and {stub} is closed (stub {backend:?}, guest {pcifront:?}); {}",
            console_log(stub)
        )),
        (Reconfiguring, Connected) => waiting(
            format!(
                "guest {guest} has not taken the change in: is it paused, or is a device in use that is to leave?"
            ),
            guest,
        ),
        (Reconfigured, Reconfiguring) => waiting(
            format!("guest {guest} is still looking at its new devices"),
            guest,
        ),
        (Reconfiguring | Connected, Reconfiguring) | (Reconfigured, Connected) => {
            waiting(format!("stub {stub} does not follow the change"), stub)
        }
        _ => waiting(
            format!("guest {guest} has not connected to stub {stub} yet"),
            guest,
        ),
    }
}

/// True if the stub has done its part, and only the guest is waited for.
pub fn is_exported(store: &mut Store, attachment: &Attachment) -> Result<bool, StoreError> {
    let backend = Hop::first_hop(attachment.stub.domid, attachment.guest.domid).backend_node(key::STATE);
    Ok(matches!(
        store.read_state(&backend)?,
        XenbusState::Initialised | XenbusState::Connected
    ))
}

/// True if only the guest is waited for: the stub offers the devices, and the guest has not found them or not
/// connected yet.
pub fn awaits_guest(store: &mut Store, attachment: &Attachment) -> Result<bool, StoreError> {
    let hop = Hop::first_hop(attachment.stub.domid, attachment.guest.domid);
    let mut state = |path: String| store.read_state(&path);
    let (backend, guest) = (
        state(hop.backend_node(key::STATE))?,
        state(hop.frontend_node(key::STATE))?,
    );
    use XenbusState::{Connected, Initialised, Initialising, Unknown};
    Ok(matches!(
        (backend, guest),
        (Initialised, Initialising | Unknown) | (Connected, Initialising | Unknown | Initialised)
    ))
}

/// Why a stub does not export a device. `error` is the stub's own text.
pub fn stub_says(stub: &str, bdf: Bdf, error: Option<&str>) -> String {
    let log = console_log(stub);
    match error {
        Some(error) => format!("stub {stub} refuses {bdf}: {}; {log}", quoted(error)),
        None => format!("stub {stub} does not take {bdf} in; {log}"),
    }
}

/// What a domain says went wrong.
fn domain_says(name: &str, error: &str) -> String {
    format!("domain {name} says: {}; {}", quoted(error), console_log(name))
}

/// The longest text of a domain that is shown.
const LONGEST: usize = 200;

/// Escapes and shortens a text of a domain that is not trusted, so that it cannot control or fill a terminal.
fn quoted(text: &str) -> String {
    let escaped: String = text.escape_debug().take(LONGEST).collect();
    if escaped.len() < text.len() && escaped.chars().count() == LONGEST {
        format!("{escaped}…")
    } else {
        escaped
    }
}

/// Directories where xenconsoled logs what domains print, if it runs with `--log=guest`. Debian's does not.
const CONSOLE_LOGS: [&str; 2] = ["/var/log/xen/console", "/var/log/xen"];

fn console_log(domain: &str) -> String {
    console_log_in(&CONSOLE_LOGS.map(Path::new), domain)
}

/// Tells where to see what a domain has printed.
fn console_log_in(directories: &[&Path], domain: &str) -> String {
    let file = format!("guest-{domain}.log");
    // A name with a slash would lead to another directory.
    let logs = directories.iter().filter(|_| !domain.contains('/'));
    match logs
        .map(|directory| directory.join(&file))
        .find(|log| log.exists())
    {
        Some(log) => format!("see {}", log.display()),
        None => {
            format!("see `xl console {domain}` (xenconsoled keeps no log of it: it does with --log=guest)")
        }
    }
}

fn service_log() -> String {
    format!("see {}", systemd::service_log())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::state::XenbusState::*;

    fn text(service: XenbusState, stub: XenbusState, backend: XenbusState, guest: XenbusState) -> String {
        match judge(
            States {
                service,
                stub,
                backend,
                guest,
            },
            "web",
            "web-bulkhead",
        ) {
            Progress::Connected => "connected".into(),
            Progress::Waiting(text) => text,
            Progress::Failed(text) => format!("failed: {text}"),
        }
    }

    #[test]
    fn what_hangs_is_named_at_every_stage() {
        for (states, expected) in [
            (
                (Initialising, Initialising, Initialising, Initialising),
                "the service has not seen the stub",
            ),
            (
                (InitWait, Initialising, Initialising, Initialising),
                "stub web-bulkhead does not come up",
            ),
            (
                (InitWait, Initialised, Initialising, Initialising),
                "the service does not connect",
            ),
            (
                (Connected, Initialised, InitWait, Initialising),
                "stub web-bulkhead does not export",
            ),
            (
                (Connected, Connected, Initialised, Initialising),
                "guest web has not looked at its devices",
            ),
            (
                (Connected, Connected, Initialised, Initialised),
                "stub web-bulkhead does not connect to the guest",
            ),
            (
                (Connected, Connected, Connected, Initialised),
                "guest web does not connect",
            ),
            ((Connected, Connected, Connected, Connected), "connected"),
            (
                (Closing, Connected, Initialised, Initialised),
                "failed: the connection between web, web-bulkhead",
            ),
            (
                (Connected, Connected, Connected, Closed),
                "failed: the connection between",
            ),
        ] {
            let (service, stub, backend, guest) = states;
            let text = text(service, stub, backend, guest);
            assert!(text.starts_with(expected), "{states:?}: {text}");
        }
    }

    #[test]
    fn what_a_guest_tells_of_errors_is_told_and_decides_nothing() {
        let error = Some("22 freeing event channel 8\u{1b}");
        let waiting = with_word_of_guest(Progress::Waiting("no".into()), "web", error);
        let text = r"domain web says: 22 freeing event channel 8\u{1b}; no";
        assert_eq!(waiting, Progress::Waiting(text.into()));
        assert_eq!(
            with_word_of_guest(Progress::Connected, "web", error),
            Progress::Connected
        );
        let failed = Progress::Failed("closed".into());
        assert_eq!(with_word_of_guest(failed.clone(), "web", None), failed);
    }

    #[test]
    fn what_hangs_in_a_change_is_named_at_every_stage() {
        for (backend, guest, expected) in [
            (Connected, Connected, "connected"),
            (Reconfiguring, Connected, "guest web has not taken the change in"),
            (Reconfiguring, Reconfiguring, "stub web-bulkhead does not follow"),
            (Reconfigured, Reconfiguring, "guest web is still looking"),
            (Reconfigured, Connected, "stub web-bulkhead does not follow"),
            (Connected, Reconfiguring, "stub web-bulkhead does not follow"),
            (Initialised, Initialised, "guest web has not connected"),
            (
                Closing,
                Connected,
                "failed: the connection between web and web-bulkhead",
            ),
            (
                Connected,
                Closed,
                "failed: the connection between web and web-bulkhead",
            ),
            (
                Unknown,
                Connected,
                "failed: the connection between web and web-bulkhead",
            ),
        ] {
            let text = match judge_change(backend, guest, "web", "web-bulkhead") {
                Progress::Connected => "connected".into(),
                Progress::Waiting(text) => text,
                Progress::Failed(text) => format!("failed: {text}"),
            };
            assert!(text.starts_with(expected), "{backend:?} {guest:?}: {text}");
        }
    }

    #[test]
    fn what_a_domain_says_neither_steers_nor_fills_a_terminal() {
        let text = domain_says("web", "\x1b[2Jgone\n\u{202e}right to left");
        assert!(
            text.starts_with(
                "domain web says: \\u{1b}[2Jgone\\n\\u{202e}right to left; see `xl console web`"
            ),
            "{text}"
        );
        let bdf = "00:05.0".parse().unwrap();
        let text = stub_says("web-bulkhead", bdf, Some("\x07"));
        assert!(
            text.starts_with("stub web-bulkhead refuses 0000:00:05.0: \\u{7};"),
            "{text}"
        );
        assert_eq!(quoted(&"x".repeat(4096)), "x".repeat(200) + "…");
        assert_eq!(quoted(&"\n".repeat(4096)).chars().count(), 201);
        assert_eq!(quoted(&"x".repeat(200)), "x".repeat(200));
    }

    #[test]
    fn a_console_log_is_named_if_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [Path::new("/nonexistent"), directory.path()];
        std::fs::write(directory.path().join("guest-web.log"), "").unwrap();
        let log = directory.path().join("guest-web.log");
        assert_eq!(
            console_log_in(&directories, "web"),
            format!("see {}", log.display())
        );
        let text = console_log_in(&directories, "mail");
        assert!(
            text.starts_with("see `xl console mail` (xenconsoled keeps no log"),
            "{text}"
        );
        let text = console_log_in(&[&directory.path().join("x")], "/../web");
        assert!(text.starts_with("see `xl console"), "{text}");
    }

    #[test]
    fn a_guest_is_awaited_once_its_stub_has_done_its_part() {
        let mut store = crate::host::store::tests::dom0(&xenbus::model::Xenstored::new());
        let attachment = crate::records::tests::attachment();
        let hop = Hop::first_hop(4, 3);
        for (backend, guest, expected) in [
            (None, None, false),
            (Some(Initialising), Some(Initialising), false),
            (Some(InitWait), Some(Initialising), false),
            (Some(Initialised), Some(Initialising), true),
            (Some(Initialised), None, true),
            // The stub does not go on.
            (Some(Initialised), Some(Initialised), false),
            (Some(Connected), Some(Initialised), true),
            (Some(Closing), Some(Initialising), false),
            (Some(Initialised), Some(Closed), false),
        ] {
            for (path, state) in [
                (hop.backend_node(key::STATE), backend),
                (hop.frontend_node(key::STATE), guest),
            ] {
                match state {
                    Some(state) => store.write(&path, state.as_str()).unwrap(),
                    None if store.read_optional(&path).unwrap().is_some() => store.remove(&path).unwrap(),
                    None => {}
                }
            }
            let awaited = awaits_guest(&mut store, &attachment).unwrap();
            assert_eq!(awaited, expected, "{backend:?} {guest:?}");
        }
    }

    #[test]
    fn a_connection_that_stands_has_recovered_from_what_was_told() {
        let daemon = xenbus::model::Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = crate::host::store::tests::dom0(&daemon);
        let attachment = crate::records::tests::attachment();
        let error = "/local/domain/4/error/backend/pci/3/0/error";
        store.write(error, "-22 cannot map grant 8").unwrap();
        let (first, second) = (Hop::first_hop(4, 3), Hop::second_hop(4));
        let look = |store: &mut Store, guest: XenbusState| {
            for hop in [first, second] {
                store.write(&hop.backend_node(key::STATE), "4").unwrap();
                store.write(&hop.frontend_node(key::STATE), "4").unwrap();
            }
            store
                .write(&first.frontend_node(key::STATE), guest.as_str())
                .unwrap();
            progress(store, &attachment).unwrap()
        };
        assert_eq!(look(&mut store, Connected), Progress::Connected);
        let Progress::Failed(text) = look(&mut store, Initialised) else {
            panic!("what does not stand has failed");
        };
        assert!(text.contains("cannot map grant 8"), "{text}");
    }
}
