//! One run: a script in dom0 of a freshly booted machine, and its outcome.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::apt::output_of;
use crate::cpio::{Archive, normalized};
use crate::emulator::Emulator;
use crate::file_in::FileIn;
use crate::installed;
use crate::observer::Observer;
use crate::package_disk;
use crate::qemu::{DISK_BYTES, Machine, STOP, file};
use crate::rig::Rig;
use crate::store::create_dir;

/// Interval between looks at the run's progress.
const TICK: Duration = Duration::from_millis(50);

/// How long dom0 has to send its logs after the time limit; [`Boot::timeout`] states it too.
const GRACE: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The machine to run it on.
    pub machine: Machine,
    /// Files for dom0.
    pub files: Vec<FileIn>,
    /// Debian packages whose programs the script runs by `in-packages`.
    pub packages: Vec<String>,
    /// The program that dom0 runs as root: a script with a first line `#!/bin/sh`.
    pub script: String,
    /// Time limit from power-on. A script that still runs then is killed, and dom0 gets 20 s to send its logs.
    pub timeout: Duration,
}

impl Boot {
    /// A script on the default machine with no PCI devices of its own, for at most two minutes.
    pub fn script(script: impl Into<String>) -> Boot {
        Boot {
            machine: Machine::default(),
            files: Vec::new(),
            packages: Vec::new(),
            script: script.into(),
            timeout: Duration::from_secs(120),
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The script ended with this exit code.
    Exited(i32),
    /// The time limit was reached.
    TimedOut,
    /// The machine ended before the script did, or did not send its logs. Holds the reason.
    Died(String),
}

/// Outcome of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What the script printed on stdout and stderr.
    pub script_log: String,
    /// Where the logs are.
    pub dir: PathBuf,
    /// From power-on to power-off.
    pub duration: Duration,
}

impl Outcome {
    /// The script's exit code. 124 if the time limit was reached, 125 if the machine died (as `timeout` does).
    pub fn exit_code(&self) -> i32 {
        match self.end {
            End::Exited(code) => code,
            End::TimedOut => 124,
            End::Died(_) => 125,
        }
    }

    /// What a guest wrote on its console; empty if there was no such guest.
    pub fn guest_log(&self, name: &str) -> String {
        self.log(&format!("guests/{name}.log"))
    }

    /// Xen's messages.
    pub fn xl_dmesg(&self) -> String {
        self.log("xl-dmesg.log")
    }

    /// The messages of dom0's kernel.
    pub fn dom0_dmesg(&self) -> String {
        self.log("dom0-dmesg.log")
    }

    /// All output on the serial port: the only log that a crash of dom0 or Xen leaves.
    pub fn serial_log(&self) -> String {
        self.log("serial.log")
    }

    /// A file that the script left in `/rig/out`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join("files").join(name)
    }

    fn log(&self, name: &str) -> String {
        fs::read(self.dir.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

/// Files that a run leaves in its directory.
const LEFT: [&str; 8] = [
    "serial.log",
    "script.log",
    "exit-code",
    "xl-dmesg.log",
    "dom0-dmesg.log",
    "journal.log",
    "guests",
    "files",
];
/// QEMU's working directory, below the directory of the run.
const MACHINE_DIR: &str = "machine";

impl Rig {
    /// Boots the machine, runs the script, and leaves in `dir`: `serial.log`, `script.log`, `exit-code`,
    /// `xl-dmesg.log`, `dom0-dmesg.log`, `guests/NAME.log`, `files/` (what the script put into `/rig/out`), and
    /// `machine/qemu.command`. What an earlier run left there is removed.
    ///
    /// # Errors
    /// A file for dom0 is missing, `dir` cannot be written, QEMU is not there or does not accept a device, or the
    /// observer cancels. If the script fails, hangs or crashes the machine, that is no error but an [`Outcome`].
    pub fn run(&self, boot: &Boot, dir: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
        clear(dir)?;
        let work = dir.join(MACHINE_DIR);
        let emulator = Emulator::prepare(boot.machine.qemu, observer)?;
        if self.disk().is_some() {
            installed::ensure("qemu-img", "qemu-utils", observer)?;
        }
        let packages = match &boot.packages[..] {
            [] => None,
            names => Some(package_disk::prepare(self.suite(), names, observer)?),
        };
        self.set_up(boot, packages.as_deref(), &work)?;
        observer.phase(&format!("{}: booting Xen", self.suite()));
        let started = Instant::now();
        let arguments = boot.machine.arguments(self.host(), packages.is_some());
        let mut run = Run::start(&emulator, arguments, &work)?;
        let end = run.watch(boot.timeout, observer)?;
        let duration = started.elapsed();
        for (from, to) in [(file::SERIAL, "serial.log"), (file::OUTPUT, "script.log")] {
            fs::rename(work.join(from), dir.join(to)).with_context(|| format!("writing {to}"))?;
        }
        let results = work.join(file::RESULTS);
        let end = match unpack(&results, dir) {
            Err(error) if matches!(end, End::Exited(_)) => {
                End::Died(format!("dom0 did not hand over its logs: {error:#}"))
            }
            _ => end,
        };
        for name in [
            file::INITRD,
            file::DISK,
            file::PACKAGES,
            file::RESULTS,
            file::EVENTS,
            file::CONTROL,
            file::MONITOR,
        ] {
            let _ = fs::remove_file(work.join(name));
        }
        let outcome = Outcome {
            end,
            script_log: String::from_utf8_lossy(&fs::read(dir.join("script.log"))?).into_owned(),
            dir: dir.to_owned(),
            duration,
        };
        fs::write(dir.join("exit-code"), format!("{}\n", outcome.exit_code()))?;
        Ok(outcome)
    }

    /// Puts the files that QEMU reads into its working directory.
    fn set_up(&self, boot: &Boot, packages: Option<&Path>, work: &Path) -> Result<()> {
        create_dir(work)?;
        let mut extra = Archive::new();
        let overlay = self.host().overlay();
        for FileIn { host, target } in &boot.files {
            extra
                .host_path(&format!("{overlay}{}", normalized(target)), host)
                .with_context(|| format!("{target} for dom0"))?;
        }
        extra.file(&format!("{overlay}rig/script"), 0o755, boot.script.as_bytes());

        let path = work.join(file::INITRD);
        let mut initrd = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        for part in self.initrds() {
            std::io::copy(&mut File::open(&part)?, &mut initrd)
                .with_context(|| format!("joining {}", part.display()))?;
            // The kernel looks for the next archive at a multiple of four.
            let length = initrd.stream_position()?;
            initrd.write_all(&[0; 4][..(length.next_multiple_of(4) - length) as usize])?;
        }
        initrd
            .write_all(&extra.finish()?)
            .with_context(|| format!("writing {}", path.display()))?;

        if let Some(disk) = self.disk() {
            // The file takes what dom0 writes, and outlives a reboot. The image itself stays as it is.
            output_of(
                Command::new("qemu-img")
                    .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                    .args([&fs::canonicalize(disk)?, &work.join(file::DISK)]),
            )?;
        }
        let kernels = [(file::XEN, self.xen()), (file::KERNEL, self.kernel())];
        let packages = packages.map(|packages| (file::PACKAGES, packages.to_owned()));
        for (name, target) in kernels.into_iter().chain(packages) {
            let target =
                fs::canonicalize(&target).with_context(|| format!("looking for {}", target.display()))?;
            std::os::unix::fs::symlink(target, work.join(name)).with_context(|| format!("linking {name}"))?;
        }
        for disk in boot.machine.disk_files() {
            File::create(work.join(&disk))
                .and_then(|file| file.set_len(DISK_BYTES))
                .with_context(|| format!("creating {disk}"))?;
        }
        Ok(())
    }
}

/// Removes what an earlier run left, and nothing else.
fn clear(dir: &Path) -> Result<()> {
    create_dir(dir)?;
    for name in LEFT.iter().chain(&[MACHINE_DIR]) {
        let path = dir.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Unpacks the logs that dom0 sent.
fn unpack(results: &Path, dir: &Path) -> Result<()> {
    let file = File::open(results)?;
    ensure!(file.metadata()?.len() > 0, "it sent nothing");
    let mut archive = tar::Archive::new(file);
    archive.set_preserve_permissions(false);
    archive.unpack(dir)?;
    Ok(())
}

/// A line from dom0's init.
#[derive(Debug, PartialEq, Eq)]
enum Event<'a> {
    Phase(&'a str),
    Failed(&'a str),
    Exit(i32),
    /// The script asked for a reboot, and will run again.
    Reboot,
    /// The logs are sent. dom0 powers off, in an orderly way if it says for how many seconds at most.
    Done(Option<u64>),
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Event<'a>> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "phase" => Some(Event::Phase(rest)),
            "failed" => Some(Event::Failed(rest)),
            "exit" => rest.parse().ok().map(Event::Exit),
            "reboot" => Some(Event::Reboot),
            "done" if rest.is_empty() => Some(Event::Done(None)),
            "done" => rest.parse().ok().map(|seconds| Event::Done(Some(seconds))),
            _ => None,
        }
    }
}

/// Name of a phase of dom0's init on the terminal.
fn phase_name(phase: &str) -> &str {
    match phase {
        "disk" => "dom0's kernel is up, mounting the disk",
        "systemd" => "starting systemd",
        "tools" => "dom0 is up, starting Xen's tools",
        "script" => "running the script",
        "results" => "fetching the logs",
        other => other,
    }
}

/// QEMU at work. Dropping it ends QEMU.
struct Run {
    command: Command,
    qemu: Child,
    work: PathBuf,
    events: Tail,
    output: Tail,
    serial: Tail,
    unfinished_line: String,
}

impl Run {
    fn start(emulator: &Emulator, arguments: Vec<OsString>, work: &Path) -> Result<Run> {
        let mut command = emulator.command();
        command.args(arguments);
        let quoted: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        fs::write(work.join("qemu.command"), quoted.join(" ") + "\n")?;
        let stderr = File::create(work.join(file::QEMU_ERRORS))?;
        // QEMU creates them only after it has started, and the readers must not fail before that.
        for name in [file::SERIAL, file::EVENTS, file::OUTPUT] {
            File::create(work.join(name)).with_context(|| format!("creating {name}"))?;
        }
        let control = work.join(file::CONTROL);
        mknodat(CWD, &control, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .with_context(|| format!("creating {}", control.display()))?;
        command
            .current_dir(work)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let qemu = command.spawn().context("starting QEMU")?;
        Ok(Run {
            command,
            qemu,
            work: work.to_owned(),
            events: Tail::open(&work.join(file::EVENTS))?,
            output: Tail::open(&work.join(file::OUTPUT))?,
            serial: Tail::open(&work.join(file::SERIAL))?,
            unfinished_line: String::new(),
        })
    }

    /// Reports progress and output until QEMU ends or the time limit is reached.
    fn watch(&mut self, timeout: Duration, observer: &mut dyn Observer) -> Result<End> {
        let mut deadline = Instant::now() + timeout;
        let mut progress = Progress::default();
        loop {
            // QEMU's end is noted before the files are read: then this read gets all that QEMU has written.
            let ended = self.qemu.try_wait().context("waiting for QEMU")?;
            self.pass_on(&mut progress, observer)?;
            if let Some(status) = ended {
                if !(progress.reboots && status.success()) {
                    return self.verdict(status, progress);
                }
                // A new QEMU, and not a reset of the old one: after a reset in QEMU 7.2 Xen hangs where it sets dom0's
                // IOMMU up.
                self.qemu = self.command.spawn().context("starting QEMU again")?;
                progress = Progress::default();
                observer.phase("dom0 has rebooted, booting Xen");
            }
            if observer.cancelled() {
                bail!("stopped");
            }
            if let Some(PowerOff { seconds, before }) = progress.power_off
                && Instant::now() >= before
            {
                return Ok(End::Died(format!("dom0 did not power off within {seconds} s")));
            }
            if Instant::now() >= deadline {
                // dom0 can end a script only while one runs. Otherwise dropping `self` kills the machine.
                if progress.stopped || !progress.script_runs || self.stop().is_err() {
                    return Ok(End::TimedOut);
                }
                observer.phase("the time is up, ending the script");
                progress.stopped = true;
                deadline += GRACE;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Tells dom0 to end the script.
    fn stop(&self) -> std::io::Result<()> {
        // QEMU has the pipe open, so opening it does not block.
        File::options()
            .write(true)
            .open(self.work.join(file::CONTROL))?
            .write_all(STOP.as_bytes())
    }

    fn pass_on(&mut self, progress: &mut Progress, observer: &mut dyn Observer) -> Result<()> {
        if !progress.kernel_seen
            && self
                .serial
                .read_new()?
                .windows(13)
                .any(|text| text == b"Linux version")
        {
            progress.kernel_seen = true;
            observer.phase("dom0's kernel is booting");
        }
        let output = self.output.read_new()?;
        if !output.is_empty() {
            observer.output(&output);
        }
        // A read can end in the middle of a line.
        self.unfinished_line += &String::from_utf8_lossy(&self.events.read_new()?);
        while let Some((line, rest)) = self.unfinished_line.split_once('\n') {
            match Event::parse(line) {
                Some(Event::Phase(phase)) => {
                    progress.script_runs = phase == "script";
                    observer.phase(phase_name(phase));
                }
                Some(Event::Failed(reason)) => progress.failed = Some(reason.to_owned()),
                Some(Event::Exit(code)) => progress.exit_code = Some(code),
                Some(Event::Reboot) => {
                    progress.reboots = true;
                    progress.script_runs = false;
                    observer.phase("dom0 reboots");
                }
                Some(Event::Done(limit)) => {
                    progress.done = true;
                    progress.power_off = limit.map(|seconds| PowerOff {
                        seconds,
                        before: Instant::now() + Duration::from_secs(seconds),
                    });
                }
                None => {}
            }
            self.unfinished_line = rest.to_owned();
        }
        Ok(())
    }

    fn verdict(&self, status: ExitStatus, progress: Progress) -> Result<End> {
        let said = fs::read_to_string(self.work.join(file::QEMU_ERRORS)).unwrap_or_default();
        if !status.success() {
            return Err(anyhow!("QEMU ended with {status}: {}", said.trim()));
        }
        Ok(match progress {
            Progress { stopped: true, .. } => End::TimedOut,
            Progress {
                exit_code: Some(code),
                done: true,
                ..
            } => End::Exited(code),
            Progress {
                failed: Some(reason), ..
            } => End::Died(format!("dom0 could not start: {reason}")),
            Progress {
                exit_code: Some(_), ..
            } => End::Died("dom0 ended before it handed over its logs".into()),
            _ => End::Died("the machine ended before the script did: see serial.log".into()),
        })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // An error means that QEMU has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// How far dom0 has come.
#[derive(Debug, Default)]
struct Progress {
    kernel_seen: bool,
    script_runs: bool,
    /// The time limit was reached, and dom0 was told.
    stopped: bool,
    failed: Option<String>,
    exit_code: Option<i32>,
    /// dom0 has said that the end of this machine is a reboot.
    reboots: bool,
    done: bool,
    power_off: Option<PowerOff>,
}

/// How long dom0 may take to power off.
#[derive(Clone, Copy, Debug)]
struct PowerOff {
    seconds: u64,
    before: Instant,
}

/// The end of a file that is being written.
struct Tail(File);

impl Tail {
    fn open(path: &Path) -> Result<Tail> {
        File::open(path)
            .map(Tail)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// Bytes that were written since the last call.
    fn read_new(&mut self) -> Result<Vec<u8>> {
        let mut new = Vec::new();
        self.0.read_to_end(&mut new)?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_dom0_are_read_and_anything_else_is_passed_over() {
        assert_eq!(Event::parse("phase script"), Some(Event::Phase("script")));
        assert_eq!(Event::parse("exit 3"), Some(Event::Exit(3)));
        assert_eq!(Event::parse("reboot"), Some(Event::Reboot));
        assert_eq!(Event::parse("done"), Some(Event::Done(None)));
        assert_eq!(Event::parse("done 60"), Some(Event::Done(Some(60))));
        assert_eq!(
            Event::parse("failed xenstored (exit code 1): no"),
            Some(Event::Failed("xenstored (exit code 1): no"))
        );
        for line in ["", "exit", "exit x", "done soon", "hello"] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }

    #[test]
    fn an_exit_code_tells_the_script_from_the_time_limit_and_from_a_crash() {
        let outcome = |end| Outcome {
            end,
            script_log: String::new(),
            dir: PathBuf::new(),
            duration: Duration::ZERO,
        };
        assert_eq!(outcome(End::Exited(3)).exit_code(), 3);
        assert_eq!(outcome(End::TimedOut).exit_code(), 124);
        assert_eq!(outcome(End::Died("crash".into())).exit_code(), 125);
    }
}
