//! What stubs with a network need of the host: their image, and the bridges and scripts that files of the administrator name.

use crate::admission::network::NetworkFiles;
use bulkhead_config::declaration::Declarations;
use bulkhead_config::policy::Policy;
use bulkhead_config::telemetry::{Telemetry, TelemetryChoice};
use std::path::{Path, PathBuf};

/// What the policy file and the declarations ask for, and what of it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TelemetryFacts {
    /// The guests whose stubs are to have a network, in words.
    pub guests: Vec<String>,
    /// True if the image of such stubs is installed.
    pub image: bool,
    /// Those with a bridge in dom0 that is not there, each with its name.
    pub without_bridge: Vec<(String, String)>,
    /// Those with a hotplug script that is not there, each with its path.
    pub without_script: Vec<(String, PathBuf)>,
}

impl TelemetryFacts {
    /// Reads what there is. A file that cannot be read asks for nothing; other findings tell of it.
    pub fn of(
        policy: Option<&Policy>,
        declarations: Option<&Declarations>,
        image: &Path,
        files: &NetworkFiles,
    ) -> Self {
        let mut facts = Self {
            image: image.is_file(),
            ..Self::default()
        };
        if let Some(policy) = policy {
            for guest in &policy.guests {
                facts.add(format!("guest {}", guest.r#match), &guest.telemetry, files);
            }
            if let Some(telemetry) = &policy.telemetry {
                facts.add("each guest without telemetry of its own".into(), telemetry, files);
            }
        }
        for file in declarations.iter().flat_map(|declarations| &declarations.0) {
            if let Ok(declaration) = &file.declaration
                && let Some(telemetry) = &declaration.telemetry
            {
                facts.add(format!("guest {}", declaration.guest), telemetry, files);
            }
        }
        facts
    }

    fn add(&mut self, guest: String, choice: &TelemetryChoice, files: &NetworkFiles) {
        let TelemetryChoice::On(telemetry) = choice else {
            return;
        };
        self.guests.push(guest.clone());
        let Telemetry { bridge, backend, .. } = telemetry;
        // Bridges and scripts of another domain are its own matter.
        if backend.is_some() {
            return;
        }
        if !files.has_bridge(bridge) {
            self.without_bridge.push((guest.clone(), bridge.clone()));
        }
        let script = files.missing_script(telemetry);
        self.without_script.extend(script.map(|script| (guest, script)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What is found on a host with the bridge xenbr0 and the script vif-bridge.
    fn facts(policy: &str, declaration: &str) -> TelemetryFacts {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("net/xenbr0/bridge")).unwrap();
        fs::create_dir_all(root.join("net/eth0")).unwrap();
        fs::write(root.join("vif-bridge"), "").unwrap();
        fs::create_dir(root.join("guests.d")).unwrap();
        fs::write(root.join("guests.d/web.toml"), declaration).unwrap();
        let files = NetworkFiles {
            interfaces: root.join("net"),
            scripts: root.to_owned(),
            ..NetworkFiles::default()
        };
        let policy = Policy::parse(policy, &root.join("policy.toml")).unwrap();
        let declarations = Declarations::read(&root.join("guests.d")).unwrap();
        TelemetryFacts::of(
            Some(&policy),
            Some(&declarations),
            &root.join("vif-bridge"),
            &files,
        )
    }

    const WEB: &str = "guest = \"web\"\ndevices = [\"00:05.0\"]\n";

    #[test]
    fn what_nobody_asks_for_is_not_missing() {
        let found = facts("telemetry = \"off\"", &format!("{WEB}telemetry = \"off\""));
        let expected = TelemetryFacts {
            image: true,
            ..TelemetryFacts::default()
        };
        assert_eq!(found, expected);
        assert_eq!(facts("", WEB), expected);
        // A file that cannot be understood.
        assert_eq!(facts("", "guest ="), expected);
    }

    #[test]
    fn bridges_and_scripts_that_files_name_are_looked_for_in_dom0() {
        for (telemetry, is_missing) in [
            ("bridge=xenbr0", [false, false]),
            ("bridge=xenbr0,script=vif-bridge", [false, false]),
            ("bridge=xenbr1", [true, false]),
            ("bridge=eth0", [true, false]),
            ("bridge=xenbr0,script=vif-route", [false, true]),
            ("bridge=xenbr1,backend=net", [false, false]),
        ] {
            for (policy, declaration, guest) in [
                (
                    String::new(),
                    format!("{WEB}telemetry = \"{telemetry}\""),
                    "guest web",
                ),
                (
                    format!("[[guest]]\nmatch = \"mail\"\ntelemetry = \"{telemetry}\""),
                    WEB.to_owned(),
                    "guest mail",
                ),
                (
                    format!("telemetry = \"{telemetry}\""),
                    WEB.to_owned(),
                    "each guest without telemetry of its own",
                ),
            ] {
                let found = facts(&policy, &declaration);
                assert_eq!(found.guests, [guest], "{telemetry}");
                let missing = [!found.without_bridge.is_empty(), !found.without_script.is_empty()];
                assert_eq!(missing, is_missing, "{telemetry}");
                let named = found.without_bridge.iter().map(|(guest, _)| guest);
                let named = named.chain(found.without_script.iter().map(|(guest, _)| guest));
                assert!(
                    named.eq(is_missing.iter().filter(|is| **is).map(|_| guest)),
                    "{telemetry}"
                );
            }
        }
    }
}
