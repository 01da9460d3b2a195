//! Files that a scenario finds in dom0, in addition to those of the rig.

use crate::scenario;
use anyhow::{Context as _, Result};
use images::{FileIn, Observer, products};
use std::path::Path;

/// Files of this repository for dom0, each with its path there.
const FILES: &[(&str, &str)] = &[
    ("config/stubdom.cfg", "/etc/bulkhead/stubdom.cfg"),
    ("config/policy.toml", "/etc/bulkhead/policy.toml"),
    ("config/guest.cfg", "/etc/bulkhead/guest.cfg"),
];

/// Builds the stub, the dom0 command and the programs for guests. Returns all files for dom0.
///
/// # Errors
/// Something does not compile.
pub fn build(observer: &mut dyn Observer) -> Result<Vec<FileIn>> {
    let mut files = products::install(observer)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("tests/ lies in the workspace")?;
    for (host, target) in FILES {
        files.push(FileIn {
            host: root.join(host),
            target: (*target).to_owned(),
        });
    }
    files.push(products::stub_inject(observer)?);
    files.push(products::toolstack_inject(observer)?);
    files.push(products::config_latency(observer)?);
    files.push(products::config_sweep(observer)?);
    files.push(products::ops_compare(observer)?);
    files.push(products::test_guest(observer)?);
    files.push(products::hostile_stub(observer)?);
    files.push(FileIn {
        host: scenario::directory().join("lib.sh"),
        target: "/rig/scenarios/lib.sh".to_owned(),
    });
    Ok(files)
}
