//! The Rust version that Cargo.toml states: no dependency needs a later one.
//!
//! For uses of a later standard library there is `cargo clippy`: `clippy::incompatible_msrv` goes by the same line of
//! Cargo.toml, and clippy.toml extends it to tests.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Numbers of a version, so that 1.90 is later than 1.9.
fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|number| number.parse().unwrap()).collect()
}

fn metadata() -> Value {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        cargo.status.success(),
        "{}",
        String::from_utf8_lossy(&cargo.stderr)
    );
    serde_json::from_slice(&cargo.stdout).unwrap()
}

#[test]
fn no_dependency_needs_a_later_rust_than_is_stated() {
    let metadata = metadata();
    let used: Vec<&Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| &node["id"])
        .collect();
    let packages = || metadata["packages"].as_array().unwrap().iter();
    let ours = packages().find(|package| package["name"] == "bulkhead").unwrap();
    let stated = ours["rust_version"].as_str().unwrap();
    let mut counted = 0;
    for package in packages().filter(|package| used.contains(&&package["id"])) {
        if let Some(needed) = package["rust_version"].as_str() {
            counted += 1;
            assert!(
                version(needed) <= version(stated),
                "{} {} needs Rust {needed}; Cargo.toml states {stated}",
                package["name"],
                package["version"]
            );
        }
    }
    assert!(counted > 40, "{counted} dependencies that say what they need");
}

#[test]
fn the_readme_states_it_too_and_clippy_looks_at_tests() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let stated = read("Cargo.toml");
    let stated = stated
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    assert!(read("README.md").contains(&format!("Rust {stated} or later")));
    assert!(read("clippy.toml").contains("check-incompatible-msrv-in-tests = true"));
}
