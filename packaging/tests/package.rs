//! What is in the package, by dpkg-deb. Other files stand for the command and the stub's image: that those build, other checks
//! see to.

use packaging::archive::pack;
use packaging::contents::Sources;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn dpkg_deb(words: &[&str], package: &Path) -> String {
    let output = Command::new("dpkg-deb")
        .args(words)
        .arg(package)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn packed(directory: &Path) -> PathBuf {
    let sources = Sources {
        workspace: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
        command: std::fs::read("/bin/true").unwrap(),
        stub: b"an image".to_vec(),
        stub_net: b"an image with a network".to_vec(),
        version: "9.9.9".into(),
    };
    pack(&sources, directory).unwrap()
}

/// The listing by path: type and permissions, and owner.
fn listing(package: &Path) -> BTreeMap<String, (String, String)> {
    let listing = dpkg_deb(&["-c"], package);
    let entries = listing.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _, _, _, path] = words[..] else {
            panic!("{line}")
        };
        (path.to_owned(), (mode.to_owned(), owner.to_owned()))
    });
    entries.collect()
}

#[test]
fn the_package_has_all_that_an_installation_needs() {
    let directory = tempfile::tempdir().unwrap();
    let package = packed(directory.path());
    assert_eq!(package, directory.path().join("bulkhead_9.9.9_amd64.deb"));
    let listing = listing(&package);
    for (path, mode) in [
        ("./usr/bin/bulkhead", "-rwxr-xr-x"),
        ("./usr/lib/bulkhead/bulkhead-stub", "-rw-r--r--"),
        ("./usr/lib/bulkhead/bulkhead-stub-net", "-rw-r--r--"),
        ("./usr/lib/systemd/system/bulkhead.service", "-rw-r--r--"),
        ("./usr/lib/systemd/system/bulkhead-guests.service", "-rw-r--r--"),
        ("./usr/lib/systemd/system/bulkhead-seize.service", "-rw-r--r--"),
        ("./usr/lib/systemd/system/bulkhead-metrics.socket", "-rw-r--r--"),
        ("./usr/lib/systemd/system/bulkhead-metrics.service", "-rw-r--r--"),
        ("./etc/bulkhead/policy.toml", "-rw-r--r--"),
        ("./etc/bulkhead/stubdom.cfg", "-rw-r--r--"),
        ("./etc/bulkhead/guest.cfg", "-rw-r--r--"),
        ("./etc/bulkhead/guests.d/", "drwxr-xr-x"),
        ("./usr/share/man/man1/bulkhead.1.gz", "-rw-r--r--"),
        ("./usr/share/man/man1/bulkhead-run.1.gz", "-rw-r--r--"),
        ("./usr/share/man/man1/bulkhead-metrics.1.gz", "-rw-r--r--"),
        ("./usr/share/bash-completion/completions/bulkhead", "-rw-r--r--"),
        ("./usr/share/zsh/vendor-completions/_bulkhead", "-rw-r--r--"),
        (
            "./usr/share/fish/vendor_completions.d/bulkhead.fish",
            "-rw-r--r--",
        ),
        ("./usr/share/doc/bulkhead/copyright", "-rw-r--r--"),
        ("./usr/share/doc/bulkhead/changelog.gz", "-rw-r--r--"),
        ("./usr/share/doc/bulkhead/third-party-licences.gz", "-rw-r--r--"),
        ("./usr/share/doc/bulkhead/README.md", "-rw-r--r--"),
        ("./usr/share/doc/bulkhead/docs/administration.md", "-rw-r--r--"),
        ("./usr/share/doc/bulkhead/docs/metrics.md", "-rw-r--r--"),
        ("./usr/share/doc/bulkhead/docs/metrics.svg", "-rw-r--r--"),
        (
            "./usr/share/doc/bulkhead/config/grafana-dashboard.json",
            "-rw-r--r--",
        ),
        (
            "./usr/share/doc/bulkhead/config/prometheus-alerts.yml",
            "-rw-r--r--",
        ),
    ] {
        let found = listing.get(path).map(|(mode, _)| mode.as_str());
        assert_eq!(found, Some(mode), "{path}");
    }
    assert!(listing.values().all(|(_, owner)| owner == "root/root"));
}

#[test]
fn an_upgrade_keeps_what_the_administrator_may_change() {
    let directory = tempfile::tempdir().unwrap();
    let package = packed(directory.path());
    let conffiles = dpkg_deb(&["-I"], &package);
    assert!(conffiles.contains("conffiles"), "{conffiles}");
    let control = directory.path().join("control");
    dpkg_deb_into(&["-e"], &package, &control);
    let conffiles = std::fs::read_to_string(control.join("conffiles")).unwrap();
    let expected = [
        "/etc/bulkhead/policy.toml",
        "/etc/bulkhead/stubdom.cfg",
        "/etc/bulkhead/guest.cfg",
    ];
    assert_eq!(conffiles.lines().collect::<Vec<_>>(), expected);
}

fn dpkg_deb_into(words: &[&str], package: &Path, into: &Path) {
    let status = Command::new("dpkg-deb")
        .args(words)
        .args([package, into])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_same_sources_make_the_same_package() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = directories
        .each_ref()
        .map(|directory| std::fs::read(packed(directory.path())).unwrap());
    assert!(first == second);
}
