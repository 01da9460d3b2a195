//! Files that a scenario finds in dom0, in addition to those of the rig.

use crate::scenario;
use anyhow::Result;
use images::{FileIn, Host, Observer, products, store};
use std::path::{Path, PathBuf};

/// Files of this repository for dom0, each with its path there.
const FILES: &[(&str, &str)] = &[
    ("config/stubdom.cfg", "/etc/bulkhead/stubdom.cfg"),
    ("config/policy.toml", "/etc/bulkhead/policy.toml"),
    ("config/guest.cfg", "/etc/bulkhead/guest.cfg"),
];

/// The files for each kind of dom0.
#[derive(Debug)]
pub struct Artifacts {
    /// An installation of Bulkhead.
    installation: Vec<FileIn>,
    /// Programs of the tests.
    tests: Vec<FileIn>,
    /// Bulkhead's package, if there will be a Debian host.
    package: Option<PathBuf>,
}

impl Artifacts {
    /// All files for dom0. Bulkhead is installed already on a host with busybox. A Debian host gets the package in `/rig`, and
    /// the script installs it (`install_bulkhead` of `lib.sh`).
    pub fn of(&self, host: Host) -> Vec<FileIn> {
        let installation = match host {
            Host::Busybox => self.installation.clone(),
            Host::Debian => self.package.iter().map(|package| packaged(package)).collect(),
        };
        [installation, self.tests.clone()].concat()
    }
}

fn packaged(package: &Path) -> FileIn {
    FileIn {
        host: package.to_owned(),
        target: format!("/rig/{}", name_of(package)),
    }
}

fn name_of(package: &Path) -> String {
    let name = package.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn of_workspace((host, target): (&str, &str)) -> FileIn {
    FileIn {
        host: store::workspace_dir().join(host),
        target: target.to_owned(),
    }
}

/// Builds the stub, the dom0 command and the programs for guests; for Debian hosts, if there will be any, also the package.
///
/// # Errors
/// Something does not compile.
pub fn build(hosts: &[Host], observer: &mut dyn Observer) -> Result<Artifacts> {
    let mut installation = products::install(observer)?;
    installation.extend(FILES.iter().map(|file| of_workspace(*file)));
    let package = match hosts.contains(&Host::Debian) {
        true => Some(products::package(observer)?),
        false => None,
    };
    let tests = vec![
        products::STUB_INJECT.file(observer)?,
        products::STUB_NET_INJECT.file(observer)?,
        products::TOOLSTACK_INJECT.file(observer)?,
        products::CONFIG_LATENCY.file(observer)?,
        products::CONFIG_SWEEP.file(observer)?,
        products::OPS_COMPARE.file(observer)?,
        products::TEST_GUEST.file(observer)?,
        products::HOSTILE_STUB.file(observer)?,
        FileIn {
            host: scenario::directory().join("lib.sh"),
            target: "/rig/scenarios/lib.sh".to_owned(),
        },
    ];
    Ok(Artifacts {
        installation,
        tests,
        package,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(artifacts: &Artifacts, host: Host) -> Vec<String> {
        artifacts.of(host).into_iter().map(|file| file.target).collect()
    }

    #[test]
    fn a_debian_host_gets_the_package_and_the_other_host_an_installation() {
        let file = |target: &str| FileIn {
            host: target.into(),
            target: target.into(),
        };
        let artifacts = Artifacts {
            installation: vec![file("/usr/bin/bulkhead")],
            tests: vec![file("/rig/test")],
            package: Some("/somewhere/bulkhead_1_amd64.deb".into()),
        };
        assert_eq!(
            targets(&artifacts, Host::Busybox),
            ["/usr/bin/bulkhead", "/rig/test"]
        );
        assert_eq!(
            targets(&artifacts, Host::Debian),
            ["/rig/bulkhead_1_amd64.deb", "/rig/test"]
        );
    }
}
