//! The second hop's answers: what a stub asks of one of its devices.
//!
//! The stub has judged each request already; here it is judged again, because the stub may be the
//! guest's by now. Reads are not answered: a stub reads configuration space by itself.

use crate::capabilities::Capabilities;
use crate::config::{Config, command, register};
use crate::guard::{Guard, Refusal};
use crate::interrupts::{Failure, Interrupts, Mode, silence_line};
use crate::record::{Attachment, Device};
use crate::restore;
use crate::xenctrl::{DomId, Hypervisor};
use std::collections::BTreeMap;
use std::io;
use std::thread;
use std::time::Duration;
use xenbus::bdf::Bdf;
use xenbus::pciif::backend::Taken;
use xenbus::pciif::{Command, OpError, Request};

/// The space that a write may lie in.
const CONFIG_SPACE: i32 = 4096;
/// Power state in PMCSR: 0 is D0, 3 is D3hot.
const POWER_STATE: u32 = 0x3;
/// How long a function may take from D3hot to D0 (PCI Power Management 1.2, section 5.6.1).
const WAKE_UP: Duration = Duration::from_millis(10);

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// No value, or one pirq.
    Value(u32),
    /// A pirq for each vector asked for.
    Vectors(Vec<u16>),
}

/// One device of an attachment, with its configuration space open.
#[derive(Debug)]
pub struct Function<C> {
    device: Device,
    config: C,
    guard: Guard,
    interrupts: Interrupts,
    /// COMMAND as it was when the function was put to sleep.
    command_before_sleep: Option<u16>,
    refused: BTreeMap<(u16, Refusal), u64>,
}

impl<C: Config> Function<C> {
    /// Takes a device into service that is now in `mode`. A line that is withheld is silenced.
    pub fn new(device: Device, config: C, mode: Mode) -> io::Result<Self> {
        let dword = |offset| config.read(offset, 4).map(u32::to_le_bytes);
        let bytes: io::Result<Vec<_>> = (0..64).map(|n| dword(4 * n)).collect();
        let capabilities = Capabilities::find(&bytes?.concat());
        if !device.line_offered {
            silence_line(&config)?;
        }
        Ok(Self {
            guard: Guard::new(&device.header, &capabilities),
            interrupts: Interrupts::new(device.bdf, capabilities, device.bars, device.line_offered, mode),
            device,
            config,
            command_before_sleep: None,
            refused: BTreeMap::new(),
        })
    }

    /// The device's address.
    pub fn bdf(&self) -> Bdf {
        self.device.bdf
    }

    /// The interrupt mode that is on.
    pub fn mode(&self) -> &Mode {
        self.interrupts.mode()
    }

    /// The writes refused so far: register, reason, how often.
    pub fn refused(&self) -> impl Iterator<Item = (u16, Refusal, u64)> {
        self.refused
            .iter()
            .map(|(&(offset, refusal), &count)| (offset, refusal, count))
    }

    fn write(&mut self, request: &Request) -> Result<Done, Failure> {
        let (offset, width) = place(request)?;
        let value = request.value
            & u32::MAX
                .checked_shr(32 - 8 * u32::from(width))
                .unwrap_or(u32::MAX);
        let rule = self.guard.rule(offset, width);
        let mut current = 0;
        let verdict = match rule {
            Ok(rule) if rule.needs_current() => {
                current = self.config.read(offset, width).map_err(failed)?;
                rule.judge(value, current)
            }
            Ok(rule) => rule.judge(value, current),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = verdict {
            *self.refused.entry((offset, refusal)).or_default() += 1;
            let cause = format!("write of {value:#x} at {offset:#x}, {width} bytes: {refusal}");
            return Err(Failure {
                error: OpError::AccessDenied,
                cause,
            });
        }
        if self.guard.pmcsr() == Some(offset) {
            return self.write_power(offset, value, current).map_err(failed);
        }
        self.config.write(offset, width, value).map_err(failed)?;
        Ok(Done::Value(0))
    }

    /// Writes the power state. A function that comes back from D3hot without its base addresses gets
    /// them back: neither the guest nor the stub may write them.
    fn write_power(&mut self, offset: u16, value: u32, current: u32) -> io::Result<Done> {
        let (from, to) = (current & POWER_STATE, value & POWER_STATE);
        if from == 0 && to != 0 {
            self.command_before_sleep = Some(self.config.read16(register::COMMAND)?);
        }
        self.config.write(offset, 2, value)?;
        if from != 0 && to == 0 {
            thread::sleep(WAKE_UP);
            let command = self.command_before_sleep.take();
            if restore::addresses(&self.config, &self.device.header)? {
                let now = self.config.read16(register::COMMAND)?;
                let decode = command::IO | command::MEMORY | command::INTX_DISABLE;
                let command = command.unwrap_or(now) & (decode | command::MASTER);
                self.config.write16(register::COMMAND, now | command)?;
            }
        }
        Ok(Done::Value(0))
    }
}

/// The offset and width of a write, if it is one aligned register within configuration space.
fn place(request: &Request) -> Result<(u16, u8), Failure> {
    let (offset, size) = (request.offset, request.size);
    let sound = matches!(size, 1 | 2 | 4) && (0..CONFIG_SPACE).contains(&offset) && offset % size == 0;
    match (u16::try_from(offset), u8::try_from(size)) {
        (Ok(offset), Ok(size)) if sound => Ok((offset, size)),
        _ => Err(Failure {
            error: OpError::InvalidOffset,
            cause: format!("write of {size} bytes at {offset}"),
        }),
    }
}

fn failed(error: io::Error) -> Failure {
    Failure {
        error: OpError::OpFailed,
        cause: format!("the configuration space cannot be accessed: {error}"),
    }
}

/// All devices of one attachment.
#[derive(Debug)]
pub struct Functions<C> {
    guest: DomId,
    functions: Vec<Function<C>>,
}

impl<C: Config> Functions<C> {
    /// Takes the devices of an attachment into service; `open` opens their configuration spaces.
    pub fn new<E: From<io::Error>>(
        attachment: &Attachment,
        mut open: impl FnMut(Bdf) -> Result<C, E>,
    ) -> Result<Self, E> {
        let mut functions = Vec::new();
        for (device, mode) in attachment.devices.iter().zip(&attachment.modes) {
            functions.push(Function::new(device.clone(), open(device.bdf)?, mode.clone())?);
        }
        Ok(Self {
            guest: attachment.guest.domid,
            functions,
        })
    }

    /// The devices, in the order of the record.
    pub fn iter(&self) -> impl Iterator<Item = &Function<C>> {
        self.functions.iter()
    }

    /// Carries a request out. `note` writes down that the device of this number changed its mode.
    pub fn answer(
        &mut self,
        taken: &Taken,
        xen: &impl Hypervisor,
        note: impl FnOnce(usize, &Mode),
    ) -> Result<Done, Failure> {
        let request = taken.request();
        let spoken_of = request.function();
        let mut functions = self.functions.iter_mut().enumerate();
        let Some((index, function)) = functions.find(|(_, function)| Some(function.device.bdf) == spoken_of)
        else {
            return Err(Failure {
                error: OpError::DeviceNotFound,
                cause: "not a device of this stub".into(),
            });
        };
        let note = |mode: &Mode| note(index, mode);
        let Function {
            interrupts, config, ..
        } = function;
        match request.command {
            Command::ConfWrite => function.write(request),
            Command::EnableMsi => {
                let pirq = interrupts.enable_msi(config, xen, self.guest, note)?;
                Ok(Done::Value(pirq.into()))
            }
            Command::EnableMsix => {
                let entries = taken.entries().map_err(|error| Failure {
                    error: OpError::EINVAL,
                    cause: error.to_string(),
                })?;
                let entries: Vec<u16> = entries.iter().map(|entry| entry.entry).collect();
                interrupts
                    .enable_msix(config, xen, self.guest, &entries, note)
                    .map(Done::Vectors)
            }
            Command::DisableMsi | Command::DisableMsix => {
                interrupts
                    .disable(config, xen, self.guest, note)
                    .map_err(|error| Failure {
                        error: OpError::OpFailed,
                        cause: format!("the interrupts could not be turned off wholly: {error}"),
                    })?;
                Ok(Done::Value(0))
            }
            Command::ConfRead | Command::Other(_) => Err(Failure {
                error: OpError::NotImplemented,
                cause: "no request of this hop".into(),
            }),
        }
    }
}
