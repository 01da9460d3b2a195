//! The root file system of a Debian host: an installed Debian with systemd, Xen and libvirt, as a disk image.
//!
//! mmdebstrap installs Debian's packages, as root: their maintainer scripts run in a chroot. mkfs.ext4 makes the image
//! from the directory, so nothing is mounted on this host but by mmdebstrap while it runs.
//!
//! ```text
//! CACHE/SUITE-debian/image/KEY/root.img  the disk; KEY changes with the packages asked for and with the recipe
//! CACHE/SUITE-debian/root/               the parts of it that the initial file systems are made from
//! CACHE/SUITE-debian/built/KEY/          what is booted, but for the disk
//! ```

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{KEYRING, Mirrors, output_of};
use crate::built::Built;
use crate::installed;
use crate::observer::Observer;
use crate::packages::remove_dir;
use crate::store::{Lock, cache_dir, create_dir, sha256, write_atomically};
use crate::suite::Suite;

/// Packages beyond those that Debian calls essential. Recommended ones are left out.
const PACKAGES: &[&str] = &[
    "apt",
    "busybox-static",
    "dbus",
    "iproute2",
    "jq",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon-driver-xen",
    "libvirt-daemon-system",
    "linux-image-amd64",
    "pciutils",
    "procps",
    "systemd-sysv",
    "udev",
    "xen-system-amd64",
    "xenstore-utils",
];

/// Settles what an installer would ask, turns off what a host does on its own, and makes the image.
const CONFIGURE: &str = include_str!("../rootfs/debian/configure");

/// Size of the file system. The file is sparse.
const IMAGE_MIB: u32 = 1536;

/// The image's name.
const IMAGE: &str = "root.img";

/// Version of the code below. Raise it if the code makes another image from the same tables.
const FORMAT: u32 = 1;

/// Makes the image of `suite`, and from it the files that `make` builds, unless they are there already. `recipe` must
/// change whenever `make` does. Returns the files, and the image.
///
/// # Errors
/// Nobody may act as root here, packages cannot be fetched or installed, the cache cannot be written, or `make` fails.
pub fn build(
    suite: Suite,
    recipe: &str,
    observer: &mut dyn Observer,
    make: impl FnOnce(&Path) -> Result<Vec<(String, Vec<u8>)>>,
) -> Result<(Built, PathBuf)> {
    let dir = dir(suite);
    let _lock = Lock::take(&dir)?;
    let key = sha256(format!("{FORMAT} {suite} {PACKAGES:?} {CONFIGURE} {IMAGE_MIB}").as_bytes());
    let image = Built::of(&dir.join("image"), &key);
    if !image.is_intact() {
        let part = dir.join("root.img.part");
        install(suite, &dir, &part, observer).with_context(|| format!("making a {suite} host"))?;
        image.adopt(IMAGE, &part, 1)?;
    }
    // The list has the image's digest: a new image may have a new kernel.
    let built = Built::of(&dir, &format!("{recipe} {}", image.digest()?));
    if !built.is_intact() {
        observer.phase(&format!("{suite}: building what boots the Debian host"));
        let root = dir.join("root");
        copy_out(&image.path(IMAGE), &root)?;
        make(&root)
            .and_then(|files| built.write(files))
            .with_context(|| format!("building what boots the Debian host of {suite}"))?;
        remove_dir(&root)?;
    }
    Ok((built, image.path(IMAGE)))
}

/// Forgets the image of `suite`, so that the next [`build`] makes it from the newest packages.
///
/// # Errors
/// The cache cannot be written.
pub fn forget(suite: Suite) -> Result<()> {
    let dir = dir(suite);
    let _lock = Lock::take(&dir)?;
    remove_dir(&dir.join("image"))
}

fn dir(suite: Suite) -> PathBuf {
    cache_dir().join(format!("{suite}-debian"))
}

/// Installs Debian, and leaves its file system in the file `image`.
fn install(suite: Suite, dir: &Path, image: &Path, observer: &mut dyn Observer) -> Result<()> {
    let Some(privilege) = installed::as_root() else {
        bail!(
            "installing Debian's packages takes root: run this as root, or allow sudo without a password; or leave the \
             scenarios out that want a Debian host"
        );
    };
    installed::ensure("mmdebstrap", "mmdebstrap", observer)?;
    installed::ensure("mkfs.ext4", "e2fsprogs", observer)?;
    observer.phase(&format!(
        "{suite}: installing a Debian host: {} packages and what they need (minutes, once)",
        PACKAGES.len()
    ));
    let sources = dir.join("sources.list");
    write_atomically(&sources, Mirrors::list(suite)?.as_bytes())?;
    let configure = dir.join("configure");
    write_atomically(&configure, CONFIGURE.as_bytes())?;
    // Packages are unpacked here and not in /tmp, which may be small.
    let scratch = dir.join("scratch");
    let as_root = |words: &[&OsStr]| {
        let words: Vec<&OsStr> = privilege
            .iter()
            .map(OsStr::new)
            .chain(words.iter().copied())
            .collect();
        output_of(Command::new(words[0]).args(&words[1..])).map(drop)
    };
    let remove: [&OsStr; 3] = ["rm".as_ref(), "-rf".as_ref(), scratch.as_ref()];
    as_root(&remove)?;
    create_dir(&scratch)?;
    let root = scratch.join("root");
    let options = [
        format!("TMPDIR={}", scratch.display()),
        format!("--keyring={KEYRING}"),
        format!("--include={}", PACKAGES.join(",")),
        suite.to_string(),
        IMAGE_MIB.to_string(),
    ];
    let [tmpdir, keyring, include, suite, size] = options.each_ref().map(OsStr::new);
    let installed = as_root(&[
        "env".as_ref(),
        // No initial file system is made for the kernel: the rig has its own.
        "INITRD=No".as_ref(),
        "DEBIAN_FRONTEND=noninteractive".as_ref(),
        "LC_ALL=C".as_ref(),
        tmpdir,
        "mmdebstrap".as_ref(),
        "--mode=root".as_ref(),
        "--variant=essential".as_ref(),
        "--format=directory".as_ref(),
        "--aptopt=APT::Install-Recommends \"false\"".as_ref(),
        "--aptopt=Acquire::Languages \"none\"".as_ref(),
        "--aptopt=Acquire::Retries \"3\"".as_ref(),
        // A mirror may be a snapshot of some weeks ago. Signatures are checked all the same.
        "--aptopt=Acquire::Check-Valid-Until \"false\"".as_ref(),
        // Nobody needs the directory after a crash of this host.
        "--dpkgopt=force-unsafe-io".as_ref(),
        keyring,
        include,
        suite,
        root.as_ref(),
        sources.as_ref(),
    ]);
    let made = installed.and_then(|()| {
        as_root(&[
            "sh".as_ref(),
            configure.as_ref(),
            root.as_ref(),
            image.as_ref(),
            size,
        ])
    });
    as_root(&remove)?;
    made?;
    ensure!(image.is_file(), "no image was made at {}", image.display());
    Ok(())
}

/// Copies the directories out of the image that the initial file systems are made from. This takes no privilege.
fn copy_out(image: &Path, root: &Path) -> Result<()> {
    let debugfs =
        installed::find_program("debugfs").context("debugfs is missing: install the package e2fsprogs")?;
    remove_dir(root)?;
    create_dir(root)?;
    // As an ordinary user it complains that it cannot set owners, and succeeds.
    output_of(
        Command::new(debugfs)
            .args(["-R", &format!("rdump /boot /usr {}", root.display())])
            .arg(image),
    )
    .with_context(|| format!("reading {}", image.display()))?;
    ensure!(
        root.join("usr/lib/modules").is_dir(),
        "{} has no kernel modules: remove it, and it will be made again",
        image.display()
    );
    Ok(())
}
