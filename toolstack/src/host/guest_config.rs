//! The parts of a guest's or stub's configuration that matter for passthrough, from the JSON that xl prints.

use serde_json::Value;
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

/// Why a domain is no stub.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("domain {name} is no stub: {why}")]
pub struct NoStub {
    name: String,
    why: String,
}

/// Limit of a stub's memory, in KiB: more than any stub needs.
const STUB_MEMORY_KIB: u64 = 64 << 10;

/// Checks by what `xl list -l` says of a domain that it is a stub: a PV guest without devices, of little memory, with
/// this image. That is dom0's own record of how the domain was created, which no guest can change.
pub fn check_stub(json: &Value, name: &str, kernel: &Path) -> Result<(), NoStub> {
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
    match text("/b_info/kernel") {
        Some(image) if same_file(Path::new(image), kernel) => {}
        Some(image) => return no(format!("its kernel is {image}, and not {}", kernel.display())),
        None => return no("xl knows of no kernel of it".into()),
    }
    for list in ["disks", "nics", "pcidevs", "vfbs"] {
        if config
            .get(list)
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
        {
            return no(format!("it has {list}"));
        }
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
        let listed = json!([{ "domid": 4, "config": config }]);
        let checked = check_stub(&listed, "mail", Path::new("/usr/lib/bulkhead/bulkhead-stub"));
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
            (change("", "nics", json!([{}])), "it has nics"),
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
