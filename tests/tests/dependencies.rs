//! Dependencies come from the public registry alone, under licences that fit ours.

use cargo_metadata::{MetadataCommand, Package, Source};
use spdx::{Expression, LicenseReq};
use std::path::Path;
use std::process::Command;

/// Licences that allow Bulkhead to be distributed under its own: they only ask that their text is included.
const ALLOWED: [&str; 6] = ["0BSD", "MIT", "Apache-2.0", "ISC", "Unicode-3.0", "Zlib"];

/// All crates that are built, except our own.
fn dependencies() -> Vec<Package> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // Only crates for this platform are built; the filter needs no network, because they are fetched already.
    let options = [
        "--locked",
        "--offline",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ];
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(options.map(str::to_owned))
        .exec()
        .unwrap();
    let ours = metadata.workspace_members.clone();
    let mut packages = metadata.packages;
    packages.retain(|package| !ours.contains(&package.id));
    packages
}

fn is_allowed(licence: &str) -> bool {
    // The older way to write "or".
    let licence = licence.replace('/', " OR ");
    let is_listed = |wanted: &LicenseReq| wanted.license.id().is_some_and(|id| ALLOWED.contains(&id.name));
    Expression::parse(&licence).is_ok_and(|licence| licence.evaluate(is_listed))
}

#[test]
fn all_come_from_the_public_registry() {
    let elsewhere: Vec<_> = dependencies()
        .into_iter()
        .filter(|package| !package.source.as_ref().is_some_and(Source::is_crates_io))
        .map(|package| package.id.repr)
        .collect();
    assert_eq!(elsewhere, Vec::<String>::new());
}

#[test]
fn all_have_a_licence_that_goes_with_ours() {
    let others: Vec<_> = dependencies()
        .into_iter()
        .filter(|package| !package.license.as_deref().is_some_and(is_allowed))
        .map(|package| (package.name.to_string(), package.license))
        .collect();
    assert_eq!(others, Vec::new());
}

#[test]
fn a_licence_is_one_of_those_or_a_choice_of_one_of_them() {
    for licence in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "Unlicense OR MIT"] {
        assert!(is_allowed(licence), "{licence}");
    }
    for licence in ["GPL-2.0-only", "MIT AND GPL-2.0-only", "made up", ""] {
        assert!(!is_allowed(licence), "{licence}");
    }
}

/// Names of the crates in an image of the stub with these features.
fn crates_of_image(features: &str) -> Vec<String> {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
        ])
        .args(["--package=bulkhead-unikernel", "--features", features])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let lines = String::from_utf8(tree.stdout).unwrap();
    let mut names: Vec<String> = lines
        .lines()
        .filter_map(|line| Some(line.split(' ').next()?.to_owned()))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What docs/trusted-base.md says of both images.
#[test]
fn only_the_image_with_a_network_has_network_code() {
    const NETWORK: [&str; 12] = [
        "bitflags",
        "bulkhead-metrics",
        "bulkhead-netfront",
        "bulkhead-telemetry",
        "byteorder",
        "cfg-if",
        "hash32",
        "heapless",
        "managed",
        "smoltcp",
        "stable_deref_trait",
        "bulkhead-unikernel",
    ];
    let usual = crates_of_image("boot");
    let with_network = crates_of_image("boot,net");
    let further: Vec<_> = with_network.iter().filter(|name| !usual.contains(name)).collect();
    assert_eq!(further, NETWORK[..11].iter().collect::<Vec<_>>());
    assert!(usual.contains(&NETWORK[11].to_owned()));
}
