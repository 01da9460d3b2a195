//! The parts of a guest's or stub's configuration that matter for passthrough, from the JSON that xl prints.

use bulkhead_config::telemetry::{Telemetry, TelemetryChoice};
use bulkhead_config::{KERNEL, NET_KERNEL};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::RangeInclusive;
use std::path::Path;
use thiserror::Error;

/// The line that `bulkhead run` adds where the file lacks it: without it Xen makes no IOMMU context
/// for the guest, and no device can be assigned later.
pub const PASSTHROUGH: &str = r#"passthrough="enabled""#;

/// The parts of a guest's configuration that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// The guest's name.
    pub name: String,
    /// Its UUID. For a file without one, xl makes up another each time.
    pub uuid: Option<String>,
    kind: String,
    e820_host: bool,
    own_devices: bool,
    passthrough: bool,
}

/// Why a guest cannot get devices.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GuestRefusal {
    /// xl printed a configuration without a name.
    #[error("xl prints no name in the configuration: is it a domain's?")]
    NoName,
    /// The guest is no PV guest.
    #[error(
        "guest {name} is of type {kind}, and only PV guests have pcifront: set type=\"pv\" in its configuration"
    )]
    NotPv {
        /// The guest.
        name: String,
        /// Its type.
        kind: String,
    },
    /// The guest's memory map has no room for BARs.
    #[error(
        "guest {name} has no e820_host=1: without the host's memory map it finds no place for the \
         device's memory. Add the line e820_host=1 to its configuration"
    )]
    NoE820Host {
        /// The guest.
        name: String,
    },
    /// The guest has devices through xen-pciback.
    #[error(
        "guest {name} has a pci= line of its own: a guest has one PCI backend, and xl's would be dom0. \
         Remove the line and name those devices with --device"
    )]
    OwnDevices {
        /// The guest.
        name: String,
    },
    /// The guest was created without an IOMMU context.
    #[error(
        "guest {name} was created without {PASSTHROUGH}, so Xen cannot assign devices to it: \
         add the line to its configuration and create it again"
    )]
    NoPassthrough {
        /// The guest.
        name: String,
    },
}

impl GuestConfig {
    /// Reads the JSON of `xl create -n` (the configuration itself) or `xl list -l` (in an array, with
    /// the domid beside it).
    pub fn from_json(json: &Value) -> Result<Self, GuestRefusal> {
        let domain = json.get(0).unwrap_or(json);
        let config = domain.get("config").unwrap_or(domain);
        let text = |path: &str| config.pointer(path).and_then(Value::as_str);
        let name = text("/c_info/name").ok_or(GuestRefusal::NoName)?;
        let kind = text("/c_info/type").unwrap_or("unknown");
        let devices = config.get("pcidevs").and_then(Value::as_array);
        Ok(Self {
            name: name.to_owned(),
            uuid: text("/c_info/uuid").map(str::to_owned),
            kind: kind.to_owned(),
            // libxl prints booleans that have a default as texts.
            e820_host: text("/b_info/type.pv/e820_host") == Some("True"),
            own_devices: devices.is_some_and(|devices| !devices.is_empty()),
            passthrough: !matches!(
                text("/c_info/passthrough"),
                None | Some("disabled" | "unknown" | "default")
            ),
        })
    }

    /// Checks that the guest can get devices by way of a stub.
    pub fn check(&self) -> Result<(), GuestRefusal> {
        let name = self.name.clone();
        // The type comes first: the settings below do not exist for other types.
        if self.kind != "pv" {
            let kind = self.kind.clone();
            return Err(GuestRefusal::NotPv { name, kind });
        }
        if self.own_devices {
            return Err(GuestRefusal::OwnDevices { name });
        }
        if !self.e820_host {
            return Err(GuestRefusal::NoE820Host { name });
        }
        if !self.passthrough {
            return Err(GuestRefusal::NoPassthrough { name });
        }
        Ok(())
    }
}

/// What a stub was created from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StubOrigin {
    /// Its image.
    pub kernel: String,
    /// Whether it has a network, with the Ethernet address that it had; `None` if that is not known.
    #[serde(default)]
    pub telemetry: Option<TelemetryChoice>,
}

impl Default for StubOrigin {
    /// The installed image. The policy file says whether there is a network.
    fn default() -> Self {
        Self {
            kernel: KERNEL.into(),
            telemetry: None,
        }
    }
}

impl StubOrigin {
    /// By the stub's configuration, as `xl list -l` prints it; `None` if that names no image.
    pub fn of(config: &Value) -> Option<Self> {
        Some(Self {
            kernel: config.pointer("/b_info/kernel")?.as_str()?.to_owned(),
            telemetry: telemetry(config),
        })
    }

    /// Its network, if it has one.
    pub fn network(&self) -> Option<&Telemetry> {
        self.telemetry.as_ref()?.network()
    }

    /// Its image, if that is not an installed one. Which installed image the next stub has is decided by its network.
    pub fn named_kernel(&self) -> Option<&str> {
        let kernel = self.kernel.as_str();
        (![KERNEL, NET_KERNEL].contains(&kernel)).then_some(kernel)
    }
}

/// The network of a stub with this configuration; `None` if it has one that is not Bulkhead's.
fn telemetry(config: &Value) -> Option<TelemetryChoice> {
    let Some(interface) = config.pointer("/nics/0") else {
        return Some(TelemetryChoice::Off);
    };
    let text = |key: &str| interface.get(key).and_then(Value::as_str);
    let number = interface.get("backend_domid").and_then(Value::as_u64);
    // A domain that is named counts by its name: its number changes when it restarts.
    let number = number
        .filter(|number| *number != 0)
        .map(|number| number.to_string());
    let backend = text("backend_domname").or(number.as_deref());
    let known = [
        ("bridge", text("bridge")),
        ("backend", backend),
        ("mac", text("mac")),
        ("script", text("script")),
    ];
    let known: Vec<_> = known
        .iter()
        .filter_map(|&(key, value)| Some((key, value?)))
        .collect();
    let command_line = config.pointer("/b_info/cmdline").and_then(Value::as_str);
    let telemetry = Telemetry::of_domain(&known, command_line.unwrap_or_default());
    telemetry.ok().map(TelemetryChoice::On)
}

/// An image that a domain may have been created from to count as a stub.
#[derive(Clone, Debug)]
pub struct StubImage<'a> {
    /// The file.
    pub kernel: &'a Path,
    /// How many network interfaces a stub with this image has.
    interfaces: RangeInclusive<usize>,
}

impl<'a> StubImage<'a> {
    /// The installed images.
    pub fn installed() -> Vec<Self> {
        [KERNEL, NET_KERNEL]
            .map(|kernel| Self::at(Path::new(kernel)))
            .into()
    }

    /// The image in this file. One that is not installed may have a network.
    pub fn at(kernel: &'a Path) -> Self {
        let interfaces = match kernel {
            _ if same_file(kernel, Path::new(KERNEL)) => 0..=0,
            _ if same_file(kernel, Path::new(NET_KERNEL)) => 1..=1,
            _ => 0..=1,
        };
        Self { kernel, interfaces }
    }
}

/// Why a domain is no stub.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("domain {name} is no stub: {why}")]
pub struct NoStub {
    name: String,
    why: String,
}

/// Limit of a stub's memory, in KiB: more than any stub needs.
const STUB_MEMORY_KIB: u64 = 64 << 10;

/// Checks by what `xl list -l` says of a domain that it is a stub: a PV guest of little memory, with one of these images,
/// and without devices but for the network interface of an image that has one. That is dom0's own record of how the domain
/// was created, which no guest can change.
pub fn check_stub(json: &Value, name: &str, images: &[StubImage<'_>]) -> Result<(), NoStub> {
    let domain = json.get(0).unwrap_or(json);
    let config = domain.get("config").unwrap_or(domain);
    let text = |path: &str| config.pointer(path).and_then(Value::as_str);
    let number = |path: &str| config.pointer(path).and_then(Value::as_u64);
    let no = |why: String| {
        Err(NoStub {
            name: name.to_owned(),
            why,
        })
    };
    match text("/c_info/type") {
        Some("pv") => {}
        kind => return no(format!("it is of type {}, and not pv", kind.unwrap_or("unknown"))),
    }
    let Some(kernel) = text("/b_info/kernel") else {
        return no("xl knows of no kernel of it".into());
    };
    let Some(image) = images
        .iter()
        .find(|image| same_file(Path::new(kernel), image.kernel))
    else {
        let known: Vec<_> = images
            .iter()
            .map(|image| image.kernel.display().to_string())
            .collect();
        return no(format!("its kernel is {kernel}, and not {}", known.join(" or ")));
    };
    let count = |list: &str| config.get(list).and_then(Value::as_array).map_or(0, Vec::len);
    for list in ["disks", "pcidevs", "vfbs"] {
        if count(list) > 0 {
            return no(format!("it has {list}"));
        }
    }
    let interfaces = count("nics");
    if !image.interfaces.contains(&interfaces) {
        let (least, most) = (image.interfaces.start(), image.interfaces.end());
        let wanted = match (least, most) {
            (0, 0) => "none".to_owned(),
            (least, most) if least == most => least.to_string(),
            (_, most) => format!("{most} at most"),
        };
        return no(format!(
            "it has {interfaces} network interfaces, and a stub with its image has {wanted}"
        ));
    }
    match number("/b_info/max_memkb") {
        Some(0..=STUB_MEMORY_KIB) => Ok(()),
        Some(more) => no(format!("it has {} MiB of memory", more >> 10)),
        None => no("xl does not say how much memory it has".into()),
    }
}

/// True if two paths lead to one file, or are the same text.
fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    one == other || real(one).is_some_and(|one| real(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> Value {
        json!({
            "c_info": { "type": "pv", "name": "web", "passthrough": "enabled" },
            "b_info": { "type.pv": { "e820_host": "True" } },
            "on_reboot": "restart"
        })
    }

    fn verdict(config: &Value) -> Result<(), GuestRefusal> {
        GuestConfig::from_json(config)?.check()
    }

    #[test]
    fn a_pv_guest_with_the_hosts_memory_map_and_passthrough_is_accepted() {
        assert_eq!(verdict(&config()), Ok(()));
        assert_eq!(verdict(&json!([{ "domid": 3, "config": config() }])), Ok(()));
    }

    #[test]
    fn each_refusal_names_the_guest_and_the_line_to_change() {
        let change = |path: &str, value: Value| {
            let mut config = config();
            *config.pointer_mut(path).unwrap() = value;
            verdict(&config).unwrap_err().to_string()
        };
        let cases = [
            (change("/c_info/type", json!("hvm")), "type=\"pv\""),
            (change("/b_info/type.pv", json!({})), "e820_host=1"),
            (change("/b_info/type.pv/e820_host", json!("False")), "e820_host=1"),
            (
                change("/c_info/passthrough", json!("disabled")),
                "passthrough=\"enabled\"",
            ),
            (
                change("/c_info", json!({ "name": "web", "type": "pv" })),
                "passthrough=\"enabled\"",
            ),
        ];
        for (text, line) in &cases {
            assert!(text.starts_with("guest web ") && text.contains(line), "{text}");
        }
    }

    #[test]
    fn devices_of_its_own_are_refused_and_an_empty_list_is_not() {
        let mut with_devices = config();
        with_devices["pcidevs"] = json!([{ "dev": 5 }]);
        assert_eq!(
            verdict(&with_devices),
            Err(GuestRefusal::OwnDevices { name: "web".into() })
        );
        with_devices["pcidevs"] = json!([]);
        assert_eq!(verdict(&with_devices), Ok(()));
    }

    #[test]
    fn json_of_something_else_is_no_configuration() {
        for json in [json!({}), json!([]), json!(null), json!({ "c_info": 5 })] {
            assert_eq!(verdict(&json), Err(GuestRefusal::NoName), "{json}");
        }
    }

    /// As xl lists a stub that `bulkhead run` has created.
    fn stub() -> Value {
        json!({
            "c_info": { "type": "pv", "name": "web-bulkhead" },
            "b_info": { "max_memkb": 4096, "target_memkb": 4096, "kernel": "/usr/lib/bulkhead/bulkhead-stub" },
            "on_crash": "preserve"
        })
    }

    fn no_stub(config: Value) -> Option<String> {
        no_stub_of(config, &[StubImage::at(Path::new(KERNEL))])
    }

    fn no_stub_of(config: Value, images: &[StubImage<'_>]) -> Option<String> {
        let listed = json!([{ "domid": 4, "config": config }]);
        let checked = check_stub(&listed, "mail", images);
        checked.err().map(|error| error.to_string())
    }

    #[test]
    fn a_stub_proves_itself_by_what_it_was_created_from() {
        assert_eq!(no_stub(stub()), None);
        let change = |path: &str, key: &str, value: Value| {
            let mut config = stub();
            config.pointer_mut(path).unwrap()[key] = value;
            no_stub(config).unwrap()
        };
        for (text, expected) in [
            (
                change("/c_info", "type", json!("hvm")),
                "it is of type hvm, and not pv",
            ),
            (
                change("/b_info", "kernel", json!("/boot/vmlinuz")),
                "its kernel is /boot/vmlinuz, and not /usr/lib/bulkhead/bulkhead-stub",
            ),
            (
                change("/b_info", "kernel", json!(null)),
                "xl knows of no kernel of it",
            ),
            (change("", "disks", json!([{}])), "it has disks"),
            (
                change("", "nics", json!([{}])),
                "it has 1 network interfaces, and a stub with its image has none",
            ),
            (change("", "pcidevs", json!([{}])), "it has pcidevs"),
            (
                change("/b_info", "max_memkb", json!(1 << 20)),
                "it has 1024 MiB of memory",
            ),
            (
                change("/b_info", "max_memkb", json!("little")),
                "xl does not say how much memory it has",
            ),
        ] {
            assert_eq!(text, format!("domain mail is no stub: {expected}"));
        }
        // As xl lists dom0, and as it lists nothing.
        for config in [
            json!({ "c_info": { "type": "pv", "name": "Domain-0" }, "b_info": {} }),
            json!({}),
            json!(null),
        ] {
            assert!(no_stub(config.clone()).is_some(), "{config}");
        }
    }

    #[test]
    fn a_stub_has_one_interface_if_its_image_has_a_network_and_none_otherwise() {
        let with = |kernel: &str, interfaces: usize| {
            let mut config = stub();
            config["b_info"]["kernel"] = json!(kernel);
            config["b_info"]["max_memkb"] = json!(6 << 10);
            config["nics"] = json!(vec![json!({}); interfaces]);
            config
        };
        let installed = StubImage::installed();
        for (kernel, interfaces) in [(KERNEL, 0), (NET_KERNEL, 1)] {
            assert_eq!(no_stub_of(with(kernel, interfaces), &installed), None, "{kernel}");
        }
        for (kernel, interfaces, wanted) in [(KERNEL, 1, "none"), (NET_KERNEL, 0, "1"), (NET_KERNEL, 2, "1")]
        {
            let told = no_stub_of(with(kernel, interfaces), &installed).unwrap();
            let expected = format!(
                "domain mail is no stub: it has {interfaces} network interfaces, and a stub with its image has {wanted}"
            );
            assert_eq!(told, expected);
        }
        let other = [StubImage::at(Path::new("/tmp/stub"))];
        for interfaces in [0, 1] {
            assert_eq!(no_stub_of(with("/tmp/stub", interfaces), &other), None);
        }
        let told = no_stub_of(with("/tmp/stub", 2), &other).unwrap();
        assert!(told.ends_with("a stub with its image has 1 at most"), "{told}");
        let told = no_stub_of(with("/tmp/stub", 0), &installed).unwrap();
        assert!(
            told.ends_with("its kernel is /tmp/stub, and not /usr/lib/bulkhead/bulkhead-stub or /usr/lib/bulkhead/bulkhead-stub-net"),
            "{told}"
        );
    }

    #[test]
    fn what_a_stub_was_created_from_is_found_in_its_configuration() {
        let mut config = stub();
        let origin = StubOrigin::of(&config).unwrap();
        assert_eq!((origin.kernel.as_str(), origin.network()), (KERNEL, None));
        assert_eq!(origin.telemetry, Some(TelemetryChoice::Off));
        config["b_info"]["cmdline"] =
            json!("loglevel=info guest=web ip=10.0.0.9/24 gateway=10.0.0.1 metrics=off syslog=10.1.0.5:514");
        config["nics"] =
            json!([{ "devid": 0, "mac": "00:16:3e:12:34:56", "bridge": "xenbr0", "nictype": "vif" }]);
        let told = |config: &Value| StubOrigin::of(config).unwrap().network().map(ToString::to_string);
        let rest = "address=10.0.0.9/24,gateway=10.0.0.1,syslog=10.1.0.5:514,metrics=off";
        let expected = format!("bridge=xenbr0,mac=00:16:3e:12:34:56,{rest}");
        assert_eq!(told(&config), Some(expected));
        config["nics"][0]["script"] = json!("vif-mine");
        for (backend, expected) in [
            (json!({ "backend_domid": 0 }), ""),
            (json!({ "backend_domid": 7 }), "backend=7,"),
            (
                json!({ "backend_domid": 7, "backend_domname": "sys-net" }),
                "backend=sys-net,",
            ),
        ] {
            let mut config = config.clone();
            let interface = config["nics"][0].as_object_mut().unwrap();
            interface.extend(backend.as_object().unwrap().clone());
            let expected = format!("bridge=xenbr0,{expected}mac=00:16:3e:12:34:56,script=vif-mine,{rest}");
            assert_eq!(told(&config), Some(expected));
        }
        config["nics"][0]["bridge"] = json!("a name that no bridge has");
        assert_eq!(StubOrigin::of(&config).unwrap().telemetry, None);
        assert_eq!(StubOrigin::of(&json!({})), None);
    }

    #[test]
    fn an_installed_image_is_not_one_that_somebody_named() {
        for (kernel, expected) in [
            (KERNEL, None),
            (NET_KERNEL, None),
            ("/tmp/stub", Some("/tmp/stub")),
        ] {
            let origin = StubOrigin {
                kernel: kernel.into(),
                telemetry: None,
            };
            assert_eq!(origin.named_kernel(), expected);
        }
    }

    #[test]
    fn what_is_recorded_of_a_stubs_origin_is_read_again() {
        let old: StubOrigin = serde_json::from_str(r#"{"kernel":"/stub"}"#).unwrap();
        assert_eq!((old.kernel.as_str(), old.telemetry), ("/stub", None));
        for telemetry in [None, Some("off"), Some("bridge=xenbr0,metrics=9100")] {
            let origin = StubOrigin {
                telemetry: telemetry.map(|text| text.parse().unwrap()),
                ..StubOrigin::default()
            };
            let text = serde_json::to_string(&origin).unwrap();
            assert_eq!(serde_json::from_str::<StubOrigin>(&text).unwrap(), origin);
        }
    }

    #[test]
    fn an_image_may_be_named_by_another_path() {
        let directory = tempfile::tempdir().unwrap();
        let (image, link) = (directory.path().join("image"), directory.path().join("link"));
        std::fs::write(&image, "").unwrap();
        std::os::unix::fs::symlink(&image, &link).unwrap();
        assert!(same_file(&image, &link) && same_file(&link, &link));
        assert!(!same_file(&image, &directory.path().join("other")));
        assert!(!same_file(
            Path::new("/nonexistent/a"),
            Path::new("/nonexistent/b")
        ));
    }
}
