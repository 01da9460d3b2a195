//! Makes the accesses in a Linux guest.
//!
//! The sysfs file `config` of a function turns each aligned read or write of 1, 2 or 4 bytes into one request of
//! pcifront, of that size. The file hides the result: an error of a read becomes all-ones, an error of a write is lost.
//! So a kernel probe (kretprobe of tracefs) reads what pcifront's two functions return.

use super::operation::{Answer, Operation, Span};
use super::phase::Phase;
use super::recording::{About, AccessRecording, dwords};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs `phase` on the function `bdf`. The accesses are those for a function with the config space `reference`.
///
/// # Errors
/// No such function, tracing that is not mounted, or an access that the kernel refuses.
pub fn record(bdf: &str, phase: Phase, reference: &[u8], seed: u64, count: usize) -> Result<AccessRecording> {
    let function = Function::open(bdf)?;
    let mut about = About {
        phase,
        seed,
        count,
        reference: dwords(reference),
        start: function.dump()?,
        milliseconds: 0,
        repeated: Vec::new(),
    };
    ensure!(
        reference.len() == 4 * about.start.len(),
        "{bdf} has {} bytes of config space, and the reference {}",
        4 * about.start.len(),
        reference.len()
    );
    let operations = about.operations();
    let mut statuses = Statuses::follow()?;
    let mut answers = Vec::with_capacity(operations.len());
    let began = Instant::now();
    for block in operations.chunks(BLOCK) {
        let mut values = Vec::with_capacity(BLOCK);
        for operation in block {
            let access = || {
                function
                    .access(*operation)
                    .with_context(|| format!("{bdf}: {operation}"))
            };
            let asked = Instant::now();
            values.push(Some(access()?));
            if asked.elapsed() > TIMEOUT {
                about.repeated.push(answers.len() + values.len() - 1);
                // The trace has a status for both tries. `None` drops that of the first one.
                values.pop();
                values.extend([None, Some(access()?)]);
            }
        }
        let statuses = statuses.take(values.len())?;
        let answered = values.into_iter().zip(statuses);
        answers.extend(answered.filter_map(|(value, status)| {
            Some(Answer {
                value: value?,
                status,
            })
        }));
    }
    about.milliseconds = began.elapsed().as_millis() as u64;
    Ok(AccessRecording { about, answers })
}

/// Accesses between two reads of the trace buffer, which must hold all of them.
const BLOCK: usize = 256;
/// pcifront gives up on a request after two seconds. That is about the machine's speed, not about the policy. So an access
/// that takes this long is noted and repeated.
const TIMEOUT: Duration = Duration::from_millis(1900);

/// A function's config space.
struct Function(File);

impl Function {
    fn open(bdf: &str) -> Result<Self> {
        let path = format!("/sys/bus/pci/devices/{bdf}/config");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Self(file.with_context(|| format!("open {path}"))?))
    }

    /// The whole config space, in dwords.
    fn dump(&self) -> Result<Vec<u32>> {
        let length = self.0.metadata()?.len();
        ensure!(
            matches!(length, 256 | 4096),
            "the kernel shows {length} bytes of config space, which is neither 256 nor 4096"
        );
        (0..length as u16)
            .step_by(4)
            .map(|offset| self.access(Operation::Read(Span::new(offset, 4))))
            .collect()
    }

    /// Makes one access by one system call.
    fn access(&self, operation: Operation) -> Result<u32> {
        let span = operation.span();
        let (at, width) = (u64::from(span.offset), usize::from(span.width));
        let mut bytes = [0; 4];
        let (value, done) = match operation {
            Operation::Read(_) => {
                let done = self.0.read_at(&mut bytes[..width], at)?;
                (u32::from_le_bytes(bytes), done)
            }
            Operation::Write(_, value) => (0, self.0.write_at(&value.to_le_bytes()[..width], at)?),
        };
        ensure!(done == width, "the kernel did {done} of {width} bytes");
        Ok(value)
    }
}

/// The kernel's tracing.
const TRACING: &str = "/sys/kernel/tracing";
/// Group of our probes.
const GROUP: &str = "sweep";
/// Probes of the return values of pcifront's read and write.
const PROBES: &[&str] = &[
    "r:sweep/read pcifront_bus_read ret=$retval:s32",
    "r:sweep/write pcifront_bus_write ret=$retval:s32",
];
const O_NONBLOCK: i32 = 0o4000;

/// What pcifront returns, call by call.
struct Statuses {
    pipe: File,
}

impl Statuses {
    /// Starts tracing, for this process.
    fn follow() -> Result<Self> {
        ensure!(
            Path::new(TRACING).join("kprobe_events").exists(),
            "no tracing of the kernel at {TRACING}: `mount -t tracefs tracefs {TRACING}` first"
        );
        Self::clear()?;
        for probe in PROBES {
            append("kprobe_events", probe)?;
        }
        // Other processes may access config space meanwhile, and must not count.
        set(
            &format!("events/{GROUP}/filter"),
            &format!("common_pid=={}", std::process::id()),
        )?;
        set("trace_options", "nocontext-info")?;
        set("trace", "")?;
        set(&format!("events/{GROUP}/enable"), "1")?;
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open(Path::new(TRACING).join("trace_pipe"))
            .context("open trace_pipe")?;
        Ok(Self { pipe })
    }

    /// Removes probes that an earlier run left.
    fn clear() -> Result<()> {
        let group = Path::new(TRACING).join("events").join(GROUP);
        if group.exists() {
            set(&format!("events/{GROUP}/enable"), "0")?;
            for probe in fs::read_dir(&group)? {
                let probe = probe?;
                if probe.file_type()?.is_dir() {
                    append(
                        "kprobe_events",
                        &format!("-:{GROUP}/{}", probe.file_name().display()),
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Return values of the last `count` calls.
    fn take(&mut self, count: usize) -> Result<Vec<i32>> {
        let mut text = Vec::new();
        match self.pipe.read_to_end(&mut text) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(error).context("read trace_pipe");
            }
            _ => {}
        }
        let text = String::from_utf8_lossy(&text);
        let statuses = text.lines().map(status).collect::<Result<Vec<i32>>>()?;
        if statuses.len() != count {
            bail!(
                "{count} accesses were made, and the kernel saw {} requests of pcifront",
                statuses.len()
            );
        }
        Ok(statuses)
    }
}

impl Drop for Statuses {
    fn drop(&mut self) {
        // If this fails, the next run removes the probes, or they end with the guest.
        let _ = Self::clear();
    }
}

/// The value in a line such as `write: (pci_bus_write+0x1/0x2 <- pcifront_bus_write) ret=136`.
fn status(line: &str) -> Result<i32> {
    line.rsplit_once("ret=")
        .and_then(|(_, value)| value.trim().parse().ok())
        .with_context(|| format!("trace_pipe says \"{line}\", which has no ret="))
}

fn set(file: &str, text: &str) -> Result<()> {
    let path = Path::new(TRACING).join(file);
    fs::write(&path, text).with_context(|| format!("write \"{text}\" to {}", path.display()))
}

fn append(file: &str, text: &str) -> Result<()> {
    let path = Path::new(TRACING).join(file);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write \"{text}\" to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_trace_ends_with_what_was_returned() {
        let line = "write: (pci_user_write_config_byte+0x5e/0xa0 <- pcifront_bus_write) ret=136";
        assert_eq!(status(line).unwrap(), 136);
        assert_eq!(status("read: (a <- b) ret=-5").unwrap(), -5);
        assert!(status("CPU:0 [LOST 3 EVENTS]").is_err());
    }
}
