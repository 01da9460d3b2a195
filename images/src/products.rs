//! Builds the files of this workspace for a rig's dom0.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::output_of;
use crate::file_in::FileIn;
use crate::observer::Observer;
use crate::red_zone;
use crate::store::{target_dir, workspace_dir};

/// A file that cargo builds from this workspace.
#[derive(Debug)]
pub struct Product {
    name: &'static str,
    package: &'static str,
    bin: &'static str,
    /// Separated by commas.
    features: &'static str,
    kind: Kind,
    /// Path in dom0.
    target: &'static str,
}

/// How a product is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A Xen PV kernel.
    Image,
    /// A program for dom0.
    Program,
    /// A program that runs in a guest too, whose image has few libraries, or that starts often: what a program of
    /// libraries and relocations reads at its start takes an emulated processor 100 ms.
    Static,
}

/// Settings for all crates of an image; `-C` after `cargo rustc` covers only the last one.
///
/// The red zone is off, because Xen puts the frame of an upcall that returns right below the stack pointer. Sources of
/// crates are named without the directory of this machine, so that an image has the same bytes everywhere.
fn all_crates() -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registries = home.and_then(|home| std::fs::read_dir(home.join("registry/src")).ok());
    let prefixes = registries.into_iter().flatten().flatten();
    let remaps = prefixes.map(|registry| format!(", '--remap-path-prefix={}/='", registry.path().display()));
    format!(
        "--config=build.rustflags=['-Cno-redzone=yes'{}]",
        remaps.collect::<String>()
    )
}

/// The domain builder loads an image at fixed addresses, and nothing would relocate it. A static program starts faster so.
const FIXED: &str = "-Crelocation-model=static";

/// What LLVM is told to make an image smaller; by 4 KiB for the usual image (decision 123).
///
/// The outliner keeps common code of several functions once. The inliner counts a call as dearer and an instruction as
/// cheaper than it does by itself. Short `match`es compare instead of jumping through a table of addresses. Registers are
/// spilled for size. The passes that are off hoist constants and common values out of loops and branches: at most once per
/// request that saves an instruction, and each value that waits in a register costs code around it.
const SMALL_CODE: &str = "-Cllvm-args=-enable-machine-outliner=always -inline-call-penalty=70 \
                          -inline-instr-cost=4 -min-jump-table-entries=12 -split-spill-mode=size -disable-lsr \
                          -disable-machine-licm -disable-machine-cse -disable-constant-hoisting";

impl Product {
    /// The profile of cargo's that builds it.
    fn profile(&self) -> &'static str {
        match self.kind {
            Kind::Image => "stub",
            Kind::Program | Kind::Static => "release",
        }
    }

    /// The arguments of cargo.
    fn cargo(&self, profile: &str) -> Vec<String> {
        let what = [
            format!("--package={}", self.package),
            format!("--bin={}", self.bin),
            format!("--features={}", self.features),
            format!("--profile={profile}"),
        ];
        let all_crates = all_crates();
        let (before, after): (&[&str], &[&str]) = match self.kind {
            Kind::Image => (&["rustc", &all_crates], &["--", FIXED, SMALL_CODE]),
            Kind::Program => (&["build"], &[]),
            Kind::Static => (&["rustc"], &["--", "-Ctarget-feature=+crt-static", FIXED]),
        };
        let owned = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        [owned(before), what.into(), owned(after)].concat()
    }

    /// Builds it and gives its path.
    ///
    /// # Errors
    /// It does not compile: the compiler's words are in the error.
    pub fn build(&self, observer: &mut dyn Observer) -> Result<PathBuf> {
        self.build_by(self.profile(), observer)
    }

    /// Builds an image with the symbols that [`crate::sizes`] reads.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_with_symbols(&self, observer: &mut dyn Observer) -> Result<PathBuf> {
        self.build_by("stub-symbols", observer)
    }

    fn build_by(&self, profile: &str, observer: &mut dyn Observer) -> Result<PathBuf> {
        let name = self.name;
        observer.phase(&format!("building {name}"));
        output_of(cargo().args(self.cargo(profile))).with_context(|| format!("building {name}"))?;
        let path = target_dir().join(profile).join(self.bin);
        ensure!(
            path.is_file(),
            "cargo built {name}, but it is not at {}",
            path.display()
        );
        if self.kind == Kind::Image {
            red_zone::check(&path)?;
        }
        Ok(path)
    }

    /// Where it is found in its file system.
    pub fn target(&self) -> &'static str {
        self.target
    }

    /// Builds it and gives it its path in dom0.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn file(&self, observer: &mut dyn Observer) -> Result<FileIn> {
        Ok(FileIn {
            host: self.build(observer)?,
            target: self.target.to_owned(),
        })
    }
}

/// Declares the products, a table.
macro_rules! products {
    ($($(#[doc = $doc:literal])* $id:ident = $name:literal: $package:literal $bin:literal [$features:literal] $kind:ident at $target:literal;)*) => {
        $(
            $(#[doc = $doc])*
            pub static $id: Product = Product {
                name: $name,
                package: $package,
                bin: $bin,
                features: $features,
                kind: Kind::$kind,
                target: $target,
            };
        )*
    };
}

products! {
    /// The usual stub.
    STUB = "the stub's image":
        "bulkhead-unikernel" "bulkhead-stub" ["boot"] Image at "/usr/lib/bulkhead/bulkhead-stub";
    /// The stub that has a network for its metrics and its log.
    STUB_NET = "the image of stubs with a network":
        "bulkhead-unikernel" "bulkhead-stub-net" ["boot,net"] Image at "/usr/lib/bulkhead/bulkhead-stub-net";
    /// The stub with failures on demand; some scenarios install it in place of the stub.
    STUB_INJECT = "the image that fails on demand":
        "bulkhead-unikernel" "bulkhead-stub-inject" ["boot,inject"] Image at "/rig/bulkhead-stub-inject";
    /// The same with a network.
    STUB_NET_INJECT = "the image with a network that fails on demand":
        "bulkhead-unikernel" "bulkhead-stub-net-inject" ["boot,net,inject"] Image at "/rig/bulkhead-stub-net-inject";
    /// The dom0 command.
    TOOLSTACK = "the bulkhead command":
        "bulkhead" "bulkhead" [""] Program at "/usr/bin/bulkhead";
    /// The dom0 command with failures on demand; some scenarios install it in place of the command.
    TOOLSTACK_INJECT = "the bulkhead command that fails on demand":
        "bulkhead" "bulkhead-inject" ["bulkhead/inject"] Program at "/rig/bin/bulkhead-inject";
    /// Runs commands in guests, from dom0.
    GUEST_RUN = "the program that runs commands in guests":
        "bulkhead-guest-agent" "guest-run" [""] Static at "rig/bin/guest-run";
    /// Answers it, in each guest.
    GUEST_AGENT = "the agent of guests":
        "bulkhead-guest-agent" "guest-agent" [""] Static at "rig/agent";
    /// Measures accesses of configuration space from inside a guest.
    CONFIG_LATENCY = "the measuring program":
        "bulkhead-tests" "config-latency" [""] Static at "/rig/bin/config-latency";
    /// Compares the answers of two backends to the same configuration accesses.
    CONFIG_SWEEP = "the comparing program":
        "bulkhead-tests" "config-sweep" [""] Static at "/rig/bin/config-sweep";
    /// Compares the answers of two backends to the test guest.
    OPS_COMPARE = "the program that compares answers":
        "bulkhead-tests" "ops-compare" [""] Static at "/rig/bin/ops-compare";
    /// The kernel of the test guest, which sends requests that Linux never sends.
    TEST_GUEST = "the bare test guest":
        "bulkhead-test-guest" "test-guest" ["boot"] Image at "/rig/guest/test-guest";
    /// A stub that was taken over.
    HOSTILE_STUB = "the stub that was taken over":
        "bulkhead-test-guest" "hostile-stub" ["boot"] Image at "/rig/guest/hostile-stub";
}

/// The files of an installation of Bulkhead, each with its path.
///
/// # Errors
/// One of them does not compile.
pub fn install(observer: &mut dyn Observer) -> Result<Vec<FileIn>> {
    [&STUB, &STUB_NET, &TOOLSTACK]
        .iter()
        .map(|product| product.file(observer))
        .collect()
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
