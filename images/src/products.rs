//! Builds the files of this workspace for a rig's dom0.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::output_of;
use crate::boot::FileIn;
use crate::observer::Observer;
use crate::red_zone;
use crate::store::{target_dir, workspace_dir};

/// A file that cargo builds from this workspace.
struct Product {
    name: &'static str,
    /// Path below the target directory.
    path: &'static str,
    /// Path in dom0.
    target: &'static str,
    cargo: &'static [&'static str],
}

/// For images with an upcall that returns: Xen puts the upcall's frame right below the stack pointer. The setting
/// covers all crates of the image; `-C` after `cargo rustc` covers only the last one.
const NO_RED_ZONE: &str = "--config=build.rustflags=['-Cno-redzone=yes']";

const STUB: Product = Product {
    name: "the stub's image",
    path: "stub/bulkhead-stub",
    target: "/usr/lib/bulkhead/bulkhead-stub",
    cargo: &[
        "rustc",
        NO_RED_ZONE,
        "--package=bulkhead-unikernel",
        "--bin=bulkhead-stub",
        "--features=boot",
        "--profile=stub",
        "--",
        // The domain builder loads the image at fixed addresses, and nothing would relocate it.
        "-Crelocation-model=static",
        // The outliner keeps common code of several functions once: the image is 2 KiB smaller.
        "-Cllvm-args=-enable-machine-outliner=always",
    ],
};

/// The image with failures on demand; some scenarios install it in place of the image.
const STUB_INJECT: Product = Product {
    name: "the image that fails on demand",
    path: "stub/bulkhead-stub-inject",
    target: "/rig/bulkhead-stub-inject",
    cargo: &[
        "rustc",
        NO_RED_ZONE,
        "--package=bulkhead-unikernel",
        "--bin=bulkhead-stub-inject",
        "--features=boot,inject",
        "--profile=stub",
        "--",
        "-Crelocation-model=static",
        "-Cllvm-args=-enable-machine-outliner=always",
    ],
};

const TOOLSTACK: Product = Product {
    name: "the bulkhead command",
    path: "release/bulkhead",
    target: "/usr/bin/bulkhead",
    cargo: &["build", "--package=bulkhead", "--bin=bulkhead", "--release"],
};

/// The command with failures on demand; some scenarios install it in place of the command.
const TOOLSTACK_INJECT: Product = Product {
    name: "the bulkhead command that fails on demand",
    path: "release/bulkhead-inject",
    target: "/rig/bin/bulkhead-inject",
    cargo: &[
        "build",
        "--package=bulkhead",
        "--bin=bulkhead-inject",
        "--features=bulkhead/inject",
        "--release",
    ],
};

/// Runs in a guest too. The guest's image has few libraries.
const CONFIG_LATENCY: Product = Product {
    name: "the measuring program",
    path: "release/config-latency",
    target: "/rig/bin/config-latency",
    cargo: &[
        "rustc",
        "--package=bulkhead-tests",
        "--bin=config-latency",
        "--release",
        "--",
        "-Ctarget-feature=+crt-static",
    ],
};

/// Runs in a guest too.
const CONFIG_SWEEP: Product = Product {
    name: "the comparing program",
    path: "release/config-sweep",
    target: "/rig/bin/config-sweep",
    cargo: &[
        "rustc",
        "--package=bulkhead-tests",
        "--bin=config-sweep",
        "--release",
        "--",
        "-Ctarget-feature=+crt-static",
    ],
};

/// Runs in dom0.
const OPS_COMPARE: Product = Product {
    name: "the program that compares answers",
    path: "release/ops-compare",
    target: "/rig/bin/ops-compare",
    cargo: &[
        "rustc",
        "--package=bulkhead-tests",
        "--bin=ops-compare",
        "--release",
        "--",
        "-Ctarget-feature=+crt-static",
    ],
};

const TEST_GUEST: Product = Product {
    name: "the bare test guest",
    path: "stub/test-guest",
    target: "/rig/guest/test-guest",
    cargo: &[
        "rustc",
        NO_RED_ZONE,
        "--package=bulkhead-test-guest",
        "--bin=test-guest",
        "--features=boot",
        "--profile=stub",
        "--",
        "-Crelocation-model=static",
    ],
};

const HOSTILE_STUB: Product = Product {
    name: "the stub that was taken over",
    path: "stub/hostile-stub",
    target: "/rig/guest/hostile-stub",
    cargo: &[
        "rustc",
        NO_RED_ZONE,
        "--package=bulkhead-test-guest",
        "--bin=hostile-stub",
        "--features=boot",
        "--profile=stub",
        "--",
        "-Crelocation-model=static",
    ],
};

/// Builds the stub's image and gives its path.
///
/// # Errors
/// It does not compile: the compiler's words are in the error.
pub fn build_stub(observer: &mut dyn Observer) -> Result<PathBuf> {
    build(&STUB, observer)
}

/// Builds the dom0 command and gives its path.
///
/// # Errors
/// It does not compile: the compiler's words are in the error.
pub fn build_toolstack(observer: &mut dyn Observer) -> Result<PathBuf> {
    build(&TOOLSTACK, observer)
}

/// The files of an installation of Bulkhead, each with its path.
///
/// # Errors
/// One of them does not compile.
pub fn install(observer: &mut dyn Observer) -> Result<Vec<FileIn>> {
    [STUB, TOOLSTACK]
        .iter()
        .map(|product| build_file(product, observer))
        .collect()
}

/// The stub's image with failures on demand.
///
/// # Errors
/// It does not compile.
pub fn stub_inject(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&STUB_INJECT, observer)
}

/// The dom0 command with failures on demand.
///
/// # Errors
/// It does not compile.
pub fn toolstack_inject(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&TOOLSTACK_INJECT, observer)
}

/// The program that measures accesses of configuration space from inside a guest.
///
/// # Errors
/// It does not compile.
pub fn config_latency(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&CONFIG_LATENCY, observer)
}

/// The program that compares the answers of two backends to the same configuration accesses.
///
/// # Errors
/// It does not compile.
pub fn config_sweep(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&CONFIG_SWEEP, observer)
}

/// The program that compares the answers of two backends to the test guest.
///
/// # Errors
/// It does not compile.
pub fn ops_compare(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&OPS_COMPARE, observer)
}

/// The kernel of the test guest, which sends requests that Linux never sends.
///
/// # Errors
/// It does not compile.
pub fn test_guest(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&TEST_GUEST, observer)
}

/// The image of a stub that was taken over.
///
/// # Errors
/// It does not compile.
pub fn hostile_stub(observer: &mut dyn Observer) -> Result<FileIn> {
    build_file(&HOSTILE_STUB, observer)
}

/// The environment variable with the path of a Debian package, to be installed in place of the one that is built.
pub const PACKAGE_VARIABLE: &str = "BULKHEAD_DEB";

/// Builds Bulkhead's Debian package and gives its path.
///
/// # Errors
/// It cannot be built, or the one that [`PACKAGE_VARIABLE`] names is not there.
pub fn package(observer: &mut dyn Observer) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(PACKAGE_VARIABLE) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{PACKAGE_VARIABLE} names {}, which is no file",
            path.display()
        );
        return Ok(path);
    }
    observer.phase("building the Debian package");
    let path = output_of(cargo().args(["deb"])).context("building the Debian package")?;
    let path = path.lines().last().map(PathBuf::from).unwrap_or_default();
    ensure!(
        path.is_file(),
        "`cargo deb` ended well, but its last line names no file: {}",
        path.display()
    );
    Ok(path)
}

fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace_dir())
        .env("CARGO_TARGET_DIR", target_dir());
    command
}

fn build_file(product: &Product, observer: &mut dyn Observer) -> Result<FileIn> {
    Ok(FileIn {
        host: build(product, observer)?,
        target: product.target.to_owned(),
    })
}

fn build(product: &Product, observer: &mut dyn Observer) -> Result<PathBuf> {
    observer.phase(&format!("building {}", product.name));
    output_of(cargo().args(product.cargo)).with_context(|| format!("building {}", product.name))?;
    let path = target_dir().join(product.path);
    ensure!(
        path.is_file(),
        "cargo built {}, but it is not at {}",
        product.name,
        path.display()
    );
    if product.cargo.contains(&"--profile=stub") {
        red_zone::check(&path)?;
    }
    Ok(path)
}
