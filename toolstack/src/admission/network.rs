//! Decides whether a stub gets a network, and checks that it can have it.
//!
//! Precedence: command line over declaration over policy file; in the file a guest over all guests. What a guest's stub had
//! before counts as the command line.

use crate::admission::declared::Declared;
use crate::handover::carry::origin_of;
use crate::host::domains::{self, Domain, DomainError};
use crate::host::store::Store;
use crate::records::{Attachment, RecordError};
use bulkhead_config::mac::Mac;
use bulkhead_config::policy::{Policy, PolicyError};
use bulkhead_config::telemetry::{Telemetry, TelemetryChoice};
use bulkhead_config::{KERNEL, NET_KERNEL, StubNetwork};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xen::xenctrl::{DomId, Hypervisor};

/// What a stub is created from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubPlan {
    /// Its image.
    pub kernel: PathBuf,
    /// Its network, if it has one.
    pub network: Option<StubNetwork>,
}

/// The files of dom0 that tell about its networks.
#[derive(Clone, Debug)]
pub struct NetworkFiles {
    /// The machine's identity, from which a stub's Ethernet address is derived.
    pub machine_id: PathBuf,
    /// The network interfaces, as sysfs has them.
    pub interfaces: PathBuf,
    /// Xen's hotplug scripts.
    pub scripts: PathBuf,
}

impl Default for NetworkFiles {
    fn default() -> Self {
        Self {
            machine_id: "/etc/machine-id".into(),
            interfaces: "/sys/class/net".into(),
            scripts: "/etc/xen/scripts".into(),
        }
    }
}

impl NetworkFiles {
    /// True if dom0 has a bridge of this name.
    pub fn has_bridge(&self, name: &str) -> bool {
        self.interfaces.join(name).join("bridge").is_dir()
    }

    /// The hotplug script that a telemetry names, if it is not there.
    pub fn missing_script(&self, telemetry: &Telemetry) -> Option<PathBuf> {
        let script = telemetry.script.as_ref().map(|script| self.scripts.join(script));
        script.filter(|script| !script.is_file())
    }
}

/// Why a stub cannot have its network.
#[derive(Debug, Error)]
pub enum NetworkRefusal {
    /// The file with the choice.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Nothing to derive an address from.
    #[error(
        "cannot read {}, from which the stub's Ethernet address is derived: `systemd-machine-id-setup` makes it, or say \
         mac=ADDRESS in the telemetry",
        .path.display()
    )]
    NoMachineId {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The image.
    #[error(
        "the image of stubs with a network {} is not there: install it, name another with --kernel, or say --telemetry off",
        .kernel.display()
    )]
    NoImage {
        /// The file.
        kernel: PathBuf,
    },
    /// No bridge of that name in dom0.
    #[error(
        "dom0 has no bridge {bridge} for the stub's network{}: `ip link add {bridge} type bridge` makes one, or name \
         another in the telemetry, or the domain that has it with backend=DOMAIN",
        but(.bridges)
    )]
    NoBridge {
        /// Its name.
        bridge: String,
        /// The bridges that dom0 has.
        bridges: Vec<String>,
    },
    /// No script of that name.
    #[error(
        "there is no hotplug script {} for the stub's network: name one of {}, or leave script= out of the telemetry",
        .script.display(),
        .directory.display()
    )]
    NoScript {
        /// The file.
        script: PathBuf,
        /// Where Xen has such scripts.
        directory: PathBuf,
    },
    /// No domain of that name.
    #[error(
        "the domain {backend} that is to have the stub's network does not run: start it with `xl create`, or name another \
         with backend=DOMAIN in the telemetry"
    )]
    NoBackend {
        /// Its name or number.
        backend: String,
    },
    /// Another stub on the same bridge has an address of this one.
    #[error(
        "{key}={value} is that of stub {stub} of guest {guest} already, on the same bridge {bridge}: each stub needs an \
         address of its own, so name another with {key}= in the telemetry"
    )]
    Taken {
        /// The key of the address.
        key: &'static str,
        /// The address.
        value: String,
        /// The other stub.
        stub: String,
        /// The guest that it serves.
        guest: String,
        /// The bridge.
        bridge: String,
    },
    /// The records did not tell.
    #[error("cannot see which addresses other stubs have")]
    Others(#[from] RecordError),
    /// xenstore or Xen did not tell.
    #[error("cannot see whether domain {backend}, which is to have the stub's network, runs")]
    Backend {
        /// Its name or number.
        backend: String,
        /// The cause.
        #[source]
        source: BackendError,
    },
}

/// Why it is not known whether a backend's domain runs.
#[derive(Debug, Error)]
pub enum BackendError {
    /// xenstore did not tell.
    #[error(transparent)]
    Domain(DomainError),
    /// Xen did not tell.
    #[error("Xen does not tell")]
    Xen(#[source] io::Error),
}

fn but(bridges: &[String]) -> String {
    match bridges {
        [] => String::new(),
        bridges => format!(" (it has {})", bridges.join(", ")),
    }
}

/// What is said of the network of a guest's stub; `None` if nothing is.
///
/// # Errors
/// The policy file cannot be read, if it is needed.
pub fn choice_of(wanted: &Declared, guest: &Domain) -> Result<Option<TelemetryChoice>, PolicyError> {
    if let Some(choice) = &wanted.telemetry {
        return Ok(Some(choice.clone()));
    }
    let policy = Policy::read(wanted.choices.file.as_deref())?;
    Ok(policy.telemetry_of(&guest.name, &guest.uuid).cloned())
}

/// True if a stub that was created with `had` has what is asked for. An Ethernet address that is not named may be any. A
/// network that is not known is another one.
pub fn is_met(choice: &TelemetryChoice, had: Option<&TelemetryChoice>) -> bool {
    match (choice, had) {
        (TelemetryChoice::Off, Some(TelemetryChoice::Off)) => true,
        (TelemetryChoice::On(wanted), Some(TelemetryChoice::On(had))) => {
            let mac = wanted.mac.or(had.mac);
            *had == Telemetry {
                mac,
                ..wanted.clone()
            }
        }
        _ => false,
    }
}

/// What the stub of a guest is created from. Nothing of it is checked.
///
/// # Errors
/// The policy file or the machine's identity cannot be read, if they are needed.
pub fn plan_stub(
    wanted: &Declared,
    guest: &Domain,
    files: &NetworkFiles,
) -> Result<StubPlan, NetworkRefusal> {
    let Some(TelemetryChoice::On(telemetry)) = choice_of(wanted, guest)? else {
        return Ok(StubPlan {
            kernel: wanted.kernel.clone().unwrap_or_else(|| KERNEL.into()),
            network: None,
        });
    };
    let mac = match telemetry.mac {
        Some(mac) => mac,
        None => Mac::derived(&machine_id(&files.machine_id)?, &guest.name),
    };
    Ok(StubPlan {
        kernel: wanted.kernel.clone().unwrap_or_else(|| NET_KERNEL.into()),
        network: Some(StubNetwork {
            telemetry,
            mac,
            guest: guest.name.clone(),
        }),
    })
}

fn machine_id(path: &Path) -> Result<String, NetworkRefusal> {
    let read = std::fs::read_to_string(path).and_then(|text| match text.trim() {
        // systemd writes the latter before an image's first boot: machine-id(5).
        "" | "uninitialized" => Err(io::Error::other("it has no identity yet")),
        id => Ok(id.to_owned()),
    });
    read.map_err(|source| NetworkRefusal::NoMachineId {
        path: path.to_owned(),
        source,
    })
}

impl StubPlan {
    /// Checks that the stub can have its network: image, bridge, script, the backend's domain, and addresses that no stub of
    /// another guest has. Without a network all is well.
    ///
    /// # Errors
    /// What is missing or taken, with the next step.
    pub fn check_network(
        &self,
        store: &mut Store,
        xen: &impl Hypervisor,
        files: &NetworkFiles,
    ) -> Result<(), NetworkRefusal> {
        let Some(network) = &self.network else {
            return Ok(());
        };
        let telemetry = &network.telemetry;
        if !self.kernel.is_file() {
            let kernel = self.kernel.clone();
            return Err(NetworkRefusal::NoImage { kernel });
        }
        match &telemetry.backend {
            // Another domain's bridges and scripts are its own matter.
            Some(backend) => check_backend(backend, store, xen)?,
            None => check_bridge(telemetry, files)?,
        }
        check_addresses(network, store)
    }
}

/// Checks that no recorded stub of another guest has an address of this network on the same bridge. A dead stub counts: the
/// service brings it back.
fn check_addresses(network: &StubNetwork, store: &mut Store) -> Result<(), NetworkRefusal> {
    let (attachments, _) = Attachment::all(store)?;
    let own = &network.telemetry;
    let backend = backend_number(own, store);
    for attachment in &attachments {
        let Attachment { guest, stub, .. } = attachment;
        // A guest is declared by its name or its UUID. The stub of its last run may not have ended yet.
        if [&guest.name, &guest.uuid].contains(&&network.guest) {
            continue;
        }
        let origin = origin_of(store, attachment).map_err(RecordError::from)?;
        let Some(other) = origin.network() else {
            continue;
        };
        if other.bridge != own.bridge || backend_number(other, store) != backend {
            continue;
        }
        let address = own.address;
        let taken = match other.mac == Some(network.mac) {
            true => Some(("mac", network.mac.to_string())),
            false if address.ip().is_some() && other.address.ip() == address.ip() => {
                Some(("address", address.to_string()))
            }
            false => None,
        };
        if let Some((key, value)) = taken {
            return Err(NetworkRefusal::Taken {
                key,
                value,
                stub: stub.name.clone(),
                guest: guest.name.clone(),
                bridge: own.bridge.clone(),
            });
        }
    }
    Ok(())
}

/// Number of the domain that has the bridge; `None` if it does not run.
fn backend_number(telemetry: &Telemetry, store: &mut Store) -> Option<DomId> {
    match &telemetry.backend {
        None => Some(0),
        Some(backend) => domains::find(store, backend).ok().map(|domain| domain.domid),
    }
}

fn check_bridge(telemetry: &Telemetry, files: &NetworkFiles) -> Result<(), NetworkRefusal> {
    let bridge = &telemetry.bridge;
    if !files.has_bridge(bridge) {
        let entries = std::fs::read_dir(&files.interfaces).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut bridges: Vec<String> = names.filter(|name| files.has_bridge(name)).collect();
        bridges.sort();
        let bridge = bridge.clone();
        return Err(NetworkRefusal::NoBridge { bridge, bridges });
    }
    match files.missing_script(telemetry) {
        Some(script) => Err(NetworkRefusal::NoScript {
            script,
            directory: files.scripts.clone(),
        }),
        None => Ok(()),
    }
}

fn check_backend(backend: &str, store: &mut Store, xen: &impl Hypervisor) -> Result<(), NetworkRefusal> {
    let name = || backend.to_owned();
    let failed = |source| NetworkRefusal::Backend {
        backend: name(),
        source,
    };
    let domain = match domains::find(store, backend) {
        Ok(domain) => domain,
        Err(DomainError::NotFound { .. }) => return Err(NetworkRefusal::NoBackend { backend: name() }),
        Err(error) => return Err(failed(BackendError::Domain(error))),
    };
    // A domain that has ended may still have its name.
    let state = xen.run_state(domain.domid);
    match state.map_err(|error| failed(BackendError::Xen(error)))? {
        Some(_) => Ok(()),
        None => Err(NetworkRefusal::NoBackend { backend: name() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::guest_config::StubOrigin;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records::tests::{attachment, domain};
    use crate::records::{Carried, stub_backup};
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;
    use xen::model::{ModelDomain, Xen};
    use xenbus::model::Xenstored;

    /// A dom0 with a bridge, an interface that is none, and one script.
    fn host() -> (TempDir, NetworkFiles) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in ["net/xenbr0/bridge", "net/br-lan/bridge", "net/eth0", "scripts"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::write(root.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::write(root.join("scripts/vif-mine"), "").unwrap();
        fs::write(root.join("image"), "").unwrap();
        fs::write(root.join("policy.toml"), "telemetry = \"bridge=policy\"\n").unwrap();
        let files = NetworkFiles {
            machine_id: root.join("machine-id"),
            interfaces: root.join("net"),
            scripts: root.join("scripts"),
        };
        (directory, files)
    }

    fn wanted(policy: &Path, telemetry: Option<&str>) -> Declared {
        let mut wanted = Declared::named(vec!["00:05.0".parse().unwrap()]);
        wanted.choices.file = Some(policy.to_owned());
        wanted.telemetry = telemetry.map(|text| text.parse().unwrap());
        wanted
    }

    #[test]
    fn what_is_said_of_the_guest_counts_before_the_policy_file() {
        let (directory, files) = host();
        let policy = directory.path().join("policy.toml");
        let web = domain(3, "web");
        let bridge = |telemetry| {
            let plan = plan_stub(&wanted(&policy, telemetry), &web, &files).unwrap();
            let bridge = plan.network.map(|network| network.telemetry.bridge);
            (bridge, plan.kernel.display().to_string())
        };
        let net = NET_KERNEL.to_owned();
        assert_eq!(bridge(None), (Some("policy".into()), net.clone()));
        assert_eq!(bridge(Some("bridge=own")), (Some("own".into()), net));
        assert_eq!(bridge(Some("off")), (None, KERNEL.to_owned()));
        fs::write(
            &policy,
            "telemetry = \"bridge=all\"\n[[guest]]\nmatch = \"web\"\ntelemetry = \"off\"\n",
        )
        .unwrap();
        assert_eq!(bridge(None).0, None);
        fs::write(&policy, "").unwrap();
        assert_eq!(bridge(None), (None, KERNEL.to_owned()));
    }

    #[test]
    fn a_broken_policy_harms_nobody_of_whom_all_is_said() {
        let (directory, files) = host();
        let policy = directory.path().join("policy.toml");
        fs::write(&policy, "telemetry = 5").unwrap();
        let web = domain(3, "web");
        plan_stub(&wanted(&policy, Some("off")), &web, &files).unwrap();
        let error = plan_stub(&wanted(&policy, None), &web, &files).unwrap_err();
        assert!(matches!(error, NetworkRefusal::Policy(_)), "{error}");
    }

    #[test]
    fn an_image_that_is_named_is_the_stubs_with_and_without_a_network() {
        let (directory, files) = host();
        let policy = directory.path().join("policy.toml");
        for telemetry in ["off", "bridge=xenbr0"] {
            let mut wanted = wanted(&policy, Some(telemetry));
            wanted.kernel = Some("/tmp/image".into());
            let plan = plan_stub(&wanted, &domain(3, "web"), &files).unwrap();
            assert_eq!(plan.kernel, Path::new("/tmp/image"));
        }
    }

    #[test]
    fn a_carried_guest_gets_the_image_that_fits_its_network() {
        let (directory, files) = host();
        let policy = directory.path().join("policy.toml");
        let (none, some) = (None, Some("bridge=xenbr0"));
        for (kernel, had, named, expected) in [
            (KERNEL, Some("off"), none, KERNEL),
            (KERNEL, Some("off"), some, NET_KERNEL),
            (NET_KERNEL, some, none, NET_KERNEL),
            (NET_KERNEL, some, Some("off"), KERNEL),
            // A record without a word on the network: the policy file, which says yes, decides.
            (KERNEL, none, none, NET_KERNEL),
            ("/tmp/image", none, none, "/tmp/image"),
            ("/tmp/image", Some("off"), some, "/tmp/image"),
        ] {
            let choice = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let origin = StubOrigin {
                kernel: kernel.into(),
                telemetry: choice(had),
            };
            let mut wanted = Declared::from(Carried::new(&attachment(), origin));
            wanted.choices.file = Some(policy.clone());
            wanted.telemetry = choice(named).or(wanted.telemetry);
            let plan = plan_stub(&wanted, &domain(3, "web"), &files).unwrap();
            assert_eq!(plan.kernel, Path::new(expected), "{kernel} {had:?} {named:?}");
        }
    }

    #[test]
    fn a_stub_has_the_address_that_is_named_or_one_that_stays() {
        let (directory, files) = host();
        let policy = directory.path().join("policy.toml");
        let mac = |telemetry: &str, guest: &str, files: &NetworkFiles| {
            let plan = plan_stub(&wanted(&policy, Some(telemetry)), &domain(3, guest), files)?;
            Ok::<_, NetworkRefusal>(plan.network.unwrap().mac.to_string())
        };
        let own = "bridge=xenbr0,mac=02:00:00:00:00:01";
        assert_eq!(mac(own, "web", &files).unwrap(), "02:00:00:00:00:01");
        let derived = mac("bridge=xenbr0", "web", &files).unwrap();
        assert_eq!(derived, mac("bridge=other,metrics=9100", "web", &files).unwrap());
        assert_ne!(derived, mac("bridge=xenbr0", "mail", &files).unwrap());
        for text in ["", "uninitialized\n"] {
            fs::write(&files.machine_id, text).unwrap();
            let error = mac("bridge=xenbr0", "web", &files).unwrap_err().to_string();
            assert!(error.contains("`systemd-machine-id-setup` makes it"), "{error}");
        }
        assert_eq!(mac(own, "web", &files).unwrap(), "02:00:00:00:00:01");
    }

    #[test]
    fn what_a_stub_would_lack_is_named_with_the_next_step() {
        let (directory, files) = host();
        let daemon = Xenstored::new();
        introduce(&daemon, 7, "sys-net");
        introduce(&daemon, 8, "dead-net");
        let mut store = dom0(&daemon);
        let xen = Xen::default();
        xen.set_domain(7, ModelDomain::default());
        let image = directory.path().join("image");
        let mut check = |telemetry: &str, kernel: &Path| {
            let plan = StubPlan {
                kernel: kernel.to_owned(),
                network: Some(StubNetwork {
                    telemetry: telemetry.parse().unwrap(),
                    mac: Mac::derived("", ""),
                    guest: "web".into(),
                }),
            };
            plan.check_network(&mut store, &xen, &files)
                .map_err(|error| error.to_string())
        };
        for sound in [
            "bridge=xenbr0",
            "bridge=br-lan,script=vif-mine",
            "bridge=anything,backend=sys-net",
            "bridge=anything,backend=7",
        ] {
            assert_eq!(check(sound, &image), Ok(()), "{sound}");
        }
        for (telemetry, expected) in [
            (
                "bridge=eth0",
                "dom0 has no bridge eth0 for the stub's network (it has br-lan, xenbr0): `ip link add eth0 type bridge` \
                 makes one",
            ),
            ("bridge=br1", "dom0 has no bridge br1 "),
            ("bridge=xenbr0,script=vif-other", "there is no hotplug script "),
            (
                "bridge=b,backend=none",
                "the domain none that is to have the stub's network does not run: start it with `xl create`",
            ),
            (
                "bridge=b,backend=dead-net",
                "the domain dead-net that is to have ",
            ),
        ] {
            let error = check(telemetry, &image).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = check("bridge=xenbr0", Path::new("/nonexistent/image")).unwrap_err();
        assert!(
            error
                .starts_with("the image of stubs with a network /nonexistent/image is not there: install it"),
            "{error}"
        );
    }

    #[test]
    fn a_stub_that_exists_has_what_is_asked_for_or_something_else() {
        let had = "bridge=xenbr0,mac=00:16:3e:12:34:56".parse().unwrap();
        for (choice, of_one_with, of_one_without) in [
            ("off", false, true),
            ("bridge=xenbr0", true, false),
            ("bridge=xenbr0,mac=00:16:3e:12:34:56", true, false),
            ("bridge=xenbr0,mac=00:16:3e:12:34:57", false, false),
            ("bridge=other", false, false),
            ("bridge=xenbr0,metrics=9100", false, false),
        ] {
            let choice = choice.parse().unwrap();
            assert_eq!(is_met(&choice, Some(&had)), of_one_with, "{choice}");
            let none = Some(&TelemetryChoice::Off);
            assert_eq!(is_met(&choice, none), of_one_without, "{choice}");
            assert!(!is_met(&choice, None), "{choice}");
        }
    }

    #[test]
    fn an_address_that_the_stub_of_another_guest_has_is_refused() {
        let (directory, files) = host();
        let daemon = Xenstored::new();
        introduce(&daemon, 7, "sys-net");
        let mut store = dom0(&daemon);
        let xen = Xen::default();
        xen.set_domain(7, ModelDomain::default());
        attachment().write(&mut store).unwrap();
        let config = |interface| {
            json!({
                "b_info": { "kernel": NET_KERNEL, "cmdline": "guest=web ip=10.0.0.9/24 metrics=9743" },
                "nics": [interface],
            })
        };
        let image = directory.path().join("image");
        let check = |store: &mut Store, guest: &str, telemetry: &str| {
            let wanted = Declared {
                kernel: Some(image.clone()),
                ..wanted(Path::new(""), Some(telemetry))
            };
            let plan = plan_stub(&wanted, &domain(9, guest), &files).unwrap();
            plan.check_network(store, &xen, &files)
                .map_err(|error| error.to_string())
        };
        let (mac, address) = ("mac=00:16:3e:12:34:56", "address=10.0.0.9/24");
        let usual = json!({ "mac": "00:16:3e:12:34:56", "bridge": "xenbr0" });
        stub_backup::keep_config(&mut store, 4, &config(usual)).unwrap();
        for (taken, word) in [
            (mac, mac),
            (address, address),
            ("address=10.0.0.9/16", "address=10.0.0.9/16"),
        ] {
            let telemetry = format!("bridge=xenbr0,{taken}");
            let error = check(&mut store, "mail", &telemetry).unwrap_err();
            let start = format!(
                "{word} is that of stub web-bulkhead of guest web already, on the same bridge xenbr0: "
            );
            assert!(error.starts_with(&start), "{error}");
            assert_eq!(check(&mut store, "web", &telemetry), Ok(()), "its own");
            let elsewhere = format!("bridge=br-lan,{taken}");
            assert_eq!(check(&mut store, "mail", &elsewhere), Ok(()));
            let elsewhere = format!("bridge=xenbr0,backend=sys-net,{taken}");
            assert_eq!(check(&mut store, "mail", &elsewhere), Ok(()));
        }
        for free in [
            "bridge=xenbr0",
            "bridge=xenbr0,address=10.0.0.10/24,mac=00:16:3e:12:34:57",
        ] {
            assert_eq!(check(&mut store, "mail", free), Ok(()));
        }

        // Two stubs with DHCP have no address in common.
        let domain = json!({ "mac": "00:16:3e:12:34:56", "bridge": "xenbr0", "backend_domname": "sys-net" });
        let mut config = config(domain);
        config["b_info"]["cmdline"] = json!("guest=web ip=dhcp metrics=9743");
        stub_backup::keep_config(&mut store, 4, &config).unwrap();
        assert_eq!(check(&mut store, "mail", "bridge=xenbr0,backend=7"), Ok(()));
        // By its name or its number, it is the same domain.
        let error = check(&mut store, "mail", &format!("bridge=xenbr0,backend=7,{mac}")).unwrap_err();
        assert!(error.starts_with(mac), "{error}");
    }

    #[test]
    fn a_stub_without_a_network_lacks_nothing() {
        let files = NetworkFiles {
            machine_id: "/nonexistent".into(),
            interfaces: "/nonexistent".into(),
            scripts: "/nonexistent".into(),
        };
        let plan = plan_stub(&wanted(Path::new(""), Some("off")), &domain(3, "web"), &files).unwrap();
        let mut store = dom0(&Xenstored::new());
        plan.check_network(&mut store, &Xen::default(), &files).unwrap();
    }
}
