//! What a worker gives up once it is set up: all capabilities but one, new privileges by any program, all files but those of
//! [`FILES`], and the system calls that it never makes. A refused call fails with `EPERM` or `EACCES` and does not kill, so
//! that the log says what was missing.
//!
//! The [`crate::host::launcher`], a process of its own that is not confined, runs programs and opens connections for it.

use crate::paths;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use thiserror::Error;

/// Linux shows more than the first 64 bytes of a function's configuration space only to those who had it when they
/// opened the file (`pci_read_config` in `drivers/pci/pci-sysfs.c`).
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Why a worker could not be confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// Capabilities could not be dropped.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    /// Files could not be given up.
    #[error("cannot give up files (landlock)")]
    Files(#[from] RulesetError),
    /// The filter could not be compiled.
    #[error("cannot make the filter of system calls")]
    Filter(#[from] BackendError),
    /// The kernel refuses the filter.
    #[error("cannot turn the filter of system calls on: does the kernel have CONFIG_SECCOMP_FILTER?")]
    Apply(#[from] seccompiler::Error),
}

/// Confines this process for good. Other threads would keep their capabilities, so there should be none yet.
///
/// A kernel without landlock, or with an early version, leaves more within reach. The result says how much was enforced.
pub fn confine() -> Result<RulesetStatus, ConfineError> {
    let kept = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    let dropped = set_no_new_privs(true).and_then(|()| set_capabilities(None, kept));
    dropped.map_err(|error| ConfineError::Capabilities(error.into()))?;
    // Files before calls: the filters do not allow the calls of landlock.
    let files = restrict_files()?;
    for filter in filters()? {
        apply_filter_all_threads(&filter)?;
    }
    Ok(files)
}

/// Version of landlock that is asked for. What the kernel does not know is left out.
const LANDLOCK: ABI = ABI::V6;
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// The files that a worker opens once it serves, by directory, with the kinds of access. Files that are open already stay open.
const FILES: &[(&str, BitFlags<AccessFs>)] = &[
    ("/sys", READ),
    ("/proc", READ),
    // Configuration space, resets. Paths below `bus/pci` lead to below `devices`.
    ("/sys/devices", make_bitflags!(AccessFs::{WriteFile})),
    ("/sys/bus/pci", make_bitflags!(AccessFs::{WriteFile})),
    // The directory above that of the declarations, which may be replaced.
    ("/etc/bulkhead", READ),
    // Grants and event channels.
    (
        "/dev/xen",
        make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
    ),
    // The registers that a device had before its guest (`handover::config_backup`), and its interrupt mode
    // (`records::ModeFile`).
    (
        paths::RUN,
        make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile}),
    ),
];

/// Gives up all files but [`FILES`], signals to other processes, and abstract sockets.
fn restrict_files() -> Result<RulesetStatus, RulesetError> {
    restrict_to(FILES)
}

fn restrict_to(files: &[(impl AsRef<Path>, BitFlags<AccessFs>)]) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    for (path, access) in files {
        rules = rules.add_rules(path_beneath_rules([path], *access))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Condition for a call: the bits `mask` of this argument have this value.
#[derive(Clone, Copy, Debug)]
struct Only {
    argument: u8,
    mask: u64,
    value: u64,
}

const fn only(argument: u8, mask: u64, value: u64) -> Only {
    Only {
        argument,
        mask,
        value,
    }
}

const ALL: u64 = u32::MAX as u64;
/// The letter of a request to a device (`_IOC_TYPE`).
const LETTER: u64 = 0xff00;
const NOT_EXECUTABLE: Only = only(2, libc::PROT_EXEC as u64, 0);

/// The allowed calls. With an empty list any use is allowed. Otherwise all conditions of at least one entry must hold.
///
/// Beside the service's own calls, these are the calls of Rust's library, of libc's allocator and threads, and of libxenctrl.
const CALLS: &[(i64, &[&[Only]])] = &[
    // Files and sockets that are open.
    (libc::SYS_read, &[]),
    (libc::SYS_write, &[]),
    (libc::SYS_readv, &[]),
    (libc::SYS_writev, &[]),
    (libc::SYS_pread64, &[]),
    (libc::SYS_pwrite64, &[]),
    (libc::SYS_lseek, &[]),
    (libc::SYS_close, &[]),
    (libc::SYS_fstat, &[]),
    // No `F_SETFL` and no `F_SETOWN`: whether a descriptor blocks, and whom it signals, is the next worker's business too.
    (
        libc::SYS_fcntl,
        &[
            &[only(1, ALL, libc::F_DUPFD_CLOEXEC as u64)],
            &[only(1, ALL, libc::F_GETFD as u64)],
            &[only(1, ALL, libc::F_SETFD as u64)],
            &[only(1, ALL, libc::F_GETFL as u64)],
        ],
    ),
    (libc::SYS_poll, &[]),
    (libc::SYS_ppoll, &[]),
    // Hypercalls, grants, event channels; FIONBIO of sockets.
    (
        libc::SYS_ioctl,
        &[
            &[only(1, LETTER, (b'P' as u64) << 8)],
            &[only(1, LETTER, (b'G' as u64) << 8)],
            &[only(1, LETTER, (b'E' as u64) << 8)],
            &[only(1, ALL, libc::FIONBIO)],
        ],
    ),
    // Devices that come later, and what sysfs and procfs tell.
    (libc::SYS_open, &[]),
    (libc::SYS_openat, &[]),
    (libc::SYS_newfstatat, &[]),
    (libc::SYS_statx, &[]),
    (libc::SYS_getdents64, &[]),
    (libc::SYS_readlink, &[]),
    (libc::SYS_readlinkat, &[]),
    // Backups of registers that were restored (`handover::config_backup`), and files of interrupt modes (`records::ModeFile`).
    (libc::SYS_unlink, &[]),
    // xenstore, the launcher, which opens further connections, and the clients of the control socket. No `socket` and no
    // `connect`: systemd and other daemons do what a process of root's asks them to.
    (libc::SYS_accept4, &[]),
    (libc::SYS_getsockopt, &[]),
    // The time limits for clients. No other option, for the sockets are the next worker's too.
    (
        libc::SYS_setsockopt,
        &[
            &[
                only(1, ALL, libc::SOL_SOCKET as u64),
                only(2, ALL, libc::SO_RCVTIMEO as u64),
            ],
            &[
                only(1, ALL, libc::SOL_SOCKET as u64),
                only(2, ALL, libc::SO_SNDTIMEO as u64),
            ],
        ],
    ),
    // Over connected sockets only. No `sendmsg`, which names its receiver in memory that a filter cannot read: over the
    // journal's socket a worker could send to any daemon.
    (libc::SYS_sendto, &[&[only(4, u64::MAX, 0)]]),
    (libc::SYS_recvfrom, &[]),
    (libc::SYS_recvmsg, &[]),
    // Memory, none of it executable.
    (libc::SYS_mmap, &[&[NOT_EXECUTABLE]]),
    (libc::SYS_mprotect, &[&[NOT_EXECUTABLE]]),
    (libc::SYS_munmap, &[]),
    (libc::SYS_mremap, &[]),
    (libc::SYS_madvise, &[]),
    (libc::SYS_brk, &[]),
    // While a worker stands by (`serve::memory`): what it has by then, and nothing that comes later.
    (libc::SYS_mlockall, &[&[only(0, ALL, libc::MCL_CURRENT as u64)]]),
    (libc::SYS_munlockall, &[]),
    // Threads, and no processes.
    (
        libc::SYS_clone,
        &[&[only(0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)]],
    ),
    (libc::SYS_clone3, &[]),
    (libc::SYS_futex, &[]),
    (libc::SYS_set_robust_list, &[]),
    (libc::SYS_rseq, &[]),
    (libc::SYS_prctl, &[&[only(0, ALL, libc::PR_SET_NAME as u64)]]),
    (libc::SYS_gettid, &[]),
    (libc::SYS_getpid, &[]),
    (libc::SYS_sched_getaffinity, &[]),
    (libc::SYS_sched_yield, &[]),
    (libc::SYS_sigaltstack, &[]),
    (libc::SYS_rt_sigaction, &[]),
    (libc::SYS_rt_sigprocmask, &[]),
    (libc::SYS_rt_sigreturn, &[]),
    (libc::SYS_restart_syscall, &[]),
    (libc::SYS_exit, &[]),
    (libc::SYS_exit_group, &[]),
    // Time and chance.
    (libc::SYS_clock_gettime, &[]),
    (libc::SYS_gettimeofday, &[]),
    (libc::SYS_clock_nanosleep, &[]),
    (libc::SYS_nanosleep, &[]),
    (libc::SYS_getrandom, &[]),
];

/// The filters. A call has to pass each of them.
fn filters() -> Result<[BpfProgram; 2], BackendError> {
    // The flags of `clone3` lie in memory, which a filter cannot read. Where the call is missing (`ENOSYS`) libc uses `clone`.
    let no_clone3 = SeccompFilter::new(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        refuse(Errno::NOSYS),
        TargetArch::x86_64,
    )?;
    let mut rules = BTreeMap::new();
    for (call, uses) in CALLS {
        let uses: Result<Vec<_>, _> = uses.iter().map(rule).collect();
        rules.insert(*call, uses?);
    }
    // A signal to its own threads, as `abort` sends.
    let own = only(0, ALL, std::process::id().into());
    rules.insert(libc::SYS_tgkill, vec![rule(&&[own][..])?]);
    let calls = SeccompFilter::new(
        rules,
        refuse(Errno::PERM),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    // In this order: the second filter refuses to have a further one applied.
    Ok([no_clone3.try_into()?, calls.try_into()?])
}

fn rule(all: &&[Only]) -> Result<SeccompRule, BackendError> {
    let condition = |only: &Only| {
        let equal = SeccompCmpOp::MaskedEq(only.mask);
        SeccompCondition::new(only.argument, SeccompCmpArgLen::Qword, equal, only.value)
    };
    let conditions: Result<_, _> = all.iter().map(condition).collect();
    SeccompRule::new(conditions?)
}

fn refuse(error: Errno) -> SeccompAction {
    SeccompAction::Errno(error.raw_os_error().unsigned_abs())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config_space::access::ConfigAccess as _;
    use crate::handover::config_backup;
    use crate::host::store::tests::dom0;
    use crate::host::sysfs::tests::Tree;
    use crate::records::interrupt_mode::{Mode, ModeRecord, Recorded};
    use crate::records::tests::attachment;
    use crate::records::{ModeFile, ModeNode};
    use rustix::fs::{FlockOperation, flock};
    use rustix::net::{AddressFamily, SocketType, socket};
    use std::fs::File;
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::{fs, thread};
    use xenbus::model::Xenstored;

    /// Runs something in a thread that makes only the calls that the service may make.
    fn filtered<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        filtered_after(|| {}, work)
    }

    fn filtered_after<T: Send + 'static>(
        first: impl FnOnce() + Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let thread = thread::spawn(|| {
            first();
            for filter in filters().unwrap() {
                seccompiler::apply_filter(&filter).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    }

    /// The same with its files too.
    pub fn confined<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        filtered_after(
            || {
                set_no_new_privs(true).unwrap();
                restrict_files().unwrap();
            },
            work,
        )
    }

    fn refused<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(Errno::PERM.raw_os_error()))
    }

    #[test]
    fn what_the_service_never_does_is_refused() {
        assert!(filtered(|| refused(Command::new("/bin/true").status())));
        assert!(filtered(|| refused(fs::remove_dir("/nonexistent"))));
        assert!(filtered(|| refused(fs::rename("/nonexistent", "/other"))));
        assert!(filtered(|| refused(std::os::unix::fs::chown(
            "/nonexistent",
            Some(0),
            None
        ))));
        let local = || socket(AddressFamily::UNIX, SocketType::STREAM, None).map_err(io::Error::from);
        assert!(filtered(move || refused(local())));
        assert!(filtered(|| refused(UnixStream::connect("/run/systemd/private"))));
        let network = || socket(AddressFamily::INET, SocketType::STREAM, None).map_err(io::Error::from);
        assert!(filtered(move || refused(network())));
        assert!(filtered(|| refused(
            rustix::process::chdir("/").map_err(io::Error::from)
        )));
        // The socket and the lock are those of the next worker too.
        let (shared, _other) = UnixStream::pair().unwrap();
        assert!(filtered(move || refused(shared.shutdown(Shutdown::Both))));
        let lock = tempfile::tempfile().unwrap();
        assert!(filtered(move || refused(
            flock(&lock, FlockOperation::Unlock).map_err(io::Error::from)
        )));
    }

    #[test]
    fn other_files_are_out_of_reach() {
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        let path = elsewhere.path().to_owned();
        let thread = thread::spawn(move || {
            set_no_new_privs(true).unwrap();
            let status = restrict_files().unwrap();
            let writable = File::options().write(true).open("/proc/self/comm").is_ok();
            let found = (fs::read(&path).is_ok(), fs::write(&path, "x").is_ok(), writable);
            (status, found, fs::read_to_string("/proc/self/status").is_ok())
        });
        let (status, found, reads) = thread.join().unwrap();
        assert!(reads);
        // A kernel without landlock cannot be tested.
        if status != RulesetStatus::NotEnforced {
            assert_eq!(found, (false, false, false));
        }
    }

    /// Runs something with the service's files and calls, where `root` stands for `/sys` and holds `run` for
    /// [`paths::RUN`].
    fn confined_to<T: Send + 'static>(root: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
        let place = |path: &str| match path.strip_prefix("/sys") {
            Some(below) => root.join(below.trim_start_matches('/')),
            None if path == paths::RUN => root.join("run"),
            None => path.into(),
        };
        let files: Vec<_> = FILES
            .iter()
            .map(|(path, access)| (place(path), *access))
            .collect();
        let first = move || {
            set_no_new_privs(true).unwrap();
            restrict_to(&files).unwrap();
        };
        filtered_after(first, work)
    }

    const BDF: &str = "0000:00:05.0";

    fn told<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
        result.map_err(|error| format!("{what}: {error}"))
    }

    #[test]
    fn all_that_the_service_does_with_files_works() {
        let tree = Tree::new();
        tree.add(
            BDF,
            &[("config", &[0; 64]), ("reset", b"?"), ("vendor", b"0x8086\n")],
        );
        tree.bind(BDF, "pciback");
        let root = tree.directory.path();
        let handlers = root.join("bus/pci/drivers/pciback/irq_handler_state");
        let run = root.join("run");
        let kept = run.join(format!("{BDF}.config"));
        fs::create_dir(&run).unwrap();
        fs::write(&handlers, "").unwrap();
        fs::write(&kept, "").unwrap();
        let (sysfs, bdf) = (tree.sysfs(), BDF.parse().unwrap());
        let file = kept.clone();
        let done = confined_to(root, move || {
            let config = told("config", sysfs.open_config(bdf))?;
            told("write", config.write16(4, 6))?;
            told("reset", sysfs.reset(bdf))?;
            told("handler", sysfs.toggle_irq_handler(bdf))?;
            told("what was kept", fs::read(&file))?;
            paths::tests::HOME.with(|home| *home.borrow_mut() = Some(run));
            told("forget what was kept", config_backup::forget(bdf))?;
            let mut store = dom0(&Xenstored::new());
            told("attachment", attachment().write(&mut store))?;
            // Twice by one process, and once more by the next one, which also reads what the first has left.
            for mode in [Mode::Msi(55), Mode::Intx] {
                let mut file = None;
                for _ in 0..2 {
                    let record = ModeRecord::Mode(&mode);
                    told("mode", ModeFile::record(&mut file, &mut store, 4, bdf, record))?;
                }
                if ModeNode::File.recorded(bdf) != Recorded::Mode(mode) {
                    return Err("the mode is not recorded".into());
                }
            }
            Ok::<_, String>((told("functions", sysfs.functions())?, sysfs.driver(bdf)))
        });
        assert_eq!(done, Ok((vec![bdf], Some("pciback".to_owned()))));
        assert_eq!(tree.sysfs().config_bytes(bdf).unwrap()[4], 6);
        assert_eq!(fs::read_to_string(tree.device(BDF).join("reset")).unwrap(), "1");
        assert!(!kept.exists());
    }

    #[test]
    fn files_of_sysfs_are_written_and_neither_emptied_nor_made() {
        let tree = Tree::new();
        tree.add(BDF, &[("reset", b"?"), ("vendor", b"0x8086\n")]);
        fs::create_dir(tree.directory.path().join("elsewhere")).unwrap();
        // A kernel whose landlock is early, or missing, cannot be tested: truncation came in its third version.
        let status = thread::spawn(|| {
            set_no_new_privs(true).unwrap();
            restrict_files().unwrap()
        });
        if status.join().unwrap() != RulesetStatus::FullyEnforced {
            return;
        }
        let (device, root) = (tree.device(BDF), tree.directory.path().to_owned());
        let done = confined_to(&root.clone(), move || {
            [
                fs::write(device.join("reset"), "1"),
                fs::write(device.join("new"), "1"),
                fs::remove_file(device.join("vendor")),
                fs::write(root.join("elsewhere/new"), "1"),
            ]
            .map(|done| done.map_err(|error| error.kind()))
        });
        assert_eq!(done, [Err(io::ErrorKind::PermissionDenied); 4]);
    }

    /// What the filters answer to a call, as the kernel runs them (`struct seccomp_data` is what they look at).
    fn answer(call: i64, arguments: &[u64]) -> u32 {
        const X86_64: u32 = 0xc000_003e;
        let mut data = vec![u32::try_from(call).unwrap(), X86_64, 0, 0];
        for &argument in arguments {
            data.extend([argument as u32, (argument >> 32) as u32]);
        }
        data.resize(16, 0);
        let answers = filters().unwrap().map(|filter| run(&filter, &data));
        *answers
            .iter()
            .find(|&&answer| answer != ALLOWED)
            .unwrap_or(&ALLOWED)
    }

    fn run(filter: &BpfProgram, data: &[u32]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = &filter[at];
            at += 1;
            let mut jump = |condition| at += usize::from(if condition { step.jt } else { step.jf });
            match step.code {
                0x20 => accumulator = data[step.k as usize / 4],
                0x54 => accumulator &= step.k,
                0x05 => at += step.k as usize,
                0x15 => jump(accumulator == step.k),
                0x25 => jump(accumulator > step.k),
                0x35 => jump(accumulator >= step.k),
                0x06 => return step.k,
                code => panic!("an instruction that is not known here: {code:#x}"),
            }
        }
    }

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

    #[test]
    fn no_process_is_made_no_memory_becomes_code_and_no_directory_is_made() {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let bits = |flags: libc::c_int| flags as u64;
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        let thread = bits(libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD);
        let own = u64::from(std::process::id());
        let socket = bits(libc::SOL_SOCKET);
        #[rustfmt::skip]
        let calls: [(&str, i64, &[u64], u32); 32] = [
            ("fork", libc::SYS_fork, &[], refused),
            ("vfork", libc::SYS_vfork, &[], refused),
            ("a process", libc::SYS_clone, &[bits(libc::SIGCHLD)], refused),
            ("a process with our memory", libc::SYS_clone, &[bits(libc::CLONE_VM | libc::CLONE_VFORK)], refused),
            ("a thread", libc::SYS_clone, &[thread], ALLOWED),
            ("clone3", libc::SYS_clone3, &[], libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            ("execve", libc::SYS_execve, &[], refused),
            ("execveat", libc::SYS_execveat, &[], refused),
            ("memory becomes code", libc::SYS_mprotect, &[0, 4096, bits(read | execute)], refused),
            ("memory becomes data", libc::SYS_mprotect, &[0, 4096, bits(read | write)], ALLOWED),
            ("new code", libc::SYS_mmap, &[0, 4096, bits(execute)], refused),
            ("new data", libc::SYS_mmap, &[0, 4096, bits(read | write)], ALLOWED),
            ("mkdir", libc::SYS_mkdir, &[], refused),
            ("mkdirat", libc::SYS_mkdirat, &[], refused),
            ("kill", libc::SYS_kill, &[], refused),
            ("ptrace", libc::SYS_ptrace, &[], refused),
            ("a thread's name", libc::SYS_prctl, &[bits(libc::PR_SET_NAME)], ALLOWED),
            ("core dumps", libc::SYS_prctl, &[bits(libc::PR_SET_DUMPABLE)], refused),
            ("a hypercall", libc::SYS_ioctl, &[0, 0x5000], ALLOWED),
            ("a signal to its own thread", libc::SYS_tgkill, &[own], ALLOWED),
            ("a signal to another process", libc::SYS_tgkill, &[own + 1], refused),
            ("a client's time", libc::SYS_setsockopt, &[3, socket, bits(libc::SO_RCVTIMEO)], ALLOWED),
            ("a filter of the kernel's events", libc::SYS_setsockopt, &[3, socket, bits(libc::SO_ATTACH_FILTER)], refused),
            ("an end of the kernel's events", libc::SYS_setsockopt, &[3, bits(libc::SOL_NETLINK), bits(libc::NETLINK_DROP_MEMBERSHIP)], refused),
            ("another's timeout", libc::SYS_setsockopt, &[3, bits(libc::SOL_NETLINK), bits(libc::SO_RCVTIMEO)], refused),
            ("a copy of a descriptor", libc::SYS_fcntl, &[3, bits(libc::F_DUPFD_CLOEXEC)], ALLOWED),
            ("a signal at a client", libc::SYS_fcntl, &[3, bits(libc::F_SETOWN), 1], refused),
            ("a socket that waits", libc::SYS_fcntl, &[3, bits(libc::F_SETFL)], refused),
            ("a message to a connected peer", libc::SYS_sendto, &[3, 0, 0, 0, 0], ALLOWED),
            ("a message to any daemon", libc::SYS_sendto, &[3, 0, 0, 0, 0x7f00_0000_1000], refused),
            ("a message to whom memory says", libc::SYS_sendmsg, &[3], refused),
            ("input to a terminal", libc::SYS_ioctl, &[0, libc::TIOCSTI], refused),
        ];
        for (what, call, arguments, expected) in calls {
            assert_eq!(answer(call, arguments), expected, "{what}");
        }
        assert!(filtered(|| self::refused(fs::create_dir(
            "/nonexistent/directory"
        ))));
    }

    #[test]
    fn what_it_does_is_not() {
        assert!(filtered(|| fs::read_to_string("/proc/self/status").is_ok()));
        assert!(filtered(|| fs::read_dir("/sys").unwrap().count() > 0));
        assert!(filtered(|| File::open("/dev/null").unwrap().try_clone().is_ok()));
        assert!(filtered(|| thread::spawn(|| vec![0_u8; 1 << 20].len())
            .join()
            .is_ok()));
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(filtered(move || {
            ours.set_nonblocking(true).is_ok() && (&ours).write_all(b"x").is_ok()
        }));
        drop(theirs);
        assert_eq!(
            filtered(|| fs::remove_dir("/nonexistent").unwrap_err().to_string()),
            "Operation not permitted (os error 1)"
        );
    }
}
