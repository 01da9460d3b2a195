//! What `run` or `attach` would do, for `--dry-run`. All checks are those of the commands themselves.

use crate::control::{self, Request};
use crate::layout::{COLUMNS, Lines, Render};
use bulkhead_config::StubNetwork;
use serde::Serialize;
use std::fmt;

/// What a command would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DryRun {
    /// The command: `run` or `attach`.
    pub command: &'static str,
    /// True if the service runs already.
    pub service_runs: bool,
    /// The guest.
    pub guest: String,
    /// The configuration file from which the guest would be created; absent if the guest exists.
    pub config: Option<String>,
    /// The stub.
    pub stub: String,
    /// The image from which the stub would be created; absent if the stub exists.
    pub image: Option<String>,
    /// The stub's network; absent if it would have none, or exists.
    pub network: Option<PlannedNetwork>,
    /// How the guest would address the devices: `vpci` or `passthrough`.
    pub slots: String,
    /// The devices that the guest would get.
    pub devices: Vec<PlannedDevice>,
    /// What the administrator should know.
    pub notes: Vec<String>,
}

/// A device that a guest would get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedDevice {
    /// Its address.
    pub bdf: String,
    /// Vendor and device id.
    pub ids: String,
    /// Its product name, if the host has the list of names (`pci.ids`).
    pub called: Option<String>,
    /// What holds it now, in words.
    pub held_by: String,
    /// How it would be reset; absent if it cannot be.
    pub reset: Option<String>,
    /// Its terms as far as they are not the defaults; empty if they are.
    pub terms: String,
}

/// The network of a stub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedNetwork {
    /// The network in the words of the command line.
    pub telemetry: String,
    /// The stub's Ethernet address.
    pub mac: String,
}

impl From<StubNetwork> for PlannedNetwork {
    fn from(network: StubNetwork) -> Self {
        Self {
            telemetry: network.telemetry.to_string(),
            mac: network.mac.to_string(),
        }
    }
}

/// True if the service answers.
pub fn service_runs() -> bool {
    control::ask(Request::Status).is_ok()
}

impl Render for DryRun {
    fn render(&self, columns: usize) -> String {
        let mut lines = Lines::new(columns);
        let (guest, stub) = (&self.guest, &self.stub);
        lines.line(format_args!(
            "nothing was changed, and nothing speaks against it: `bulkhead {}` would",
            self.command
        ));
        let mut step = |text: fmt::Arguments<'_>| lines.hanging("- ", 2, text);
        if !self.service_runs {
            step(format_args!("start the service"));
        }
        for device in &self.devices {
            let PlannedDevice {
                bdf,
                ids,
                held_by,
                called,
                ..
            } = device;
            let called = called
                .as_ref()
                .map(|called| format!(" {called}"))
                .unwrap_or_default();
            let reset = match &device.reset {
                Some(method) => format!("reset it by {method}"),
                None => "not reset it, for it has no method".into(),
            };
            step(format_args!(
                "take {bdf} ({ids}{called}) from {held_by}, and {reset}"
            ));
        }
        if let Some(config) = &self.config {
            step(format_args!("create guest {guest} from {config}, paused"));
        }
        match &self.image {
            Some(image) => step(format_args!("create stub {stub} from {image}")),
            None => step(format_args!("use stub {stub}, which exists")),
        }
        if let Some(PlannedNetwork { telemetry, mac }) = &self.network {
            step(format_args!("give the stub the network {telemetry}, as {mac}"));
        }
        for device in &self.devices {
            let terms = match device.terms.as_str() {
                "" => "the usual terms",
                terms => terms,
            };
            step(format_args!("give {} to guest {guest} on {terms}", device.bdf));
        }
        if self.slots == "passthrough" {
            step(format_args!("show the devices at their addresses in dom0"));
        }
        if self.config.is_some() {
            step(format_args!(
                "let guest {guest} run, and wait until it has its devices"
            ));
        }
        for note in &self.notes {
            lines.line(format_args!("note: {note}"));
        }
        lines.into_text()
    }
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(COLUMNS))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn dry_run() -> DryRun {
        DryRun {
            command: "run",
            service_runs: false,
            guest: "web".into(),
            config: Some("web.cfg".into()),
            stub: "web-bulkhead".into(),
            image: Some(bulkhead_config::NET_KERNEL.into()),
            network: Some(PlannedNetwork {
                telemetry: "bridge=xenbr0".into(),
                mac: "00:16:3e:12:34:56".into(),
            }),
            slots: "vpci".into(),
            devices: vec![PlannedDevice {
                bdf: "0000:00:05.0".into(),
                ids: "8086:10d3".into(),
                called: Some("Intel Corporation 82574L".into()),
                held_by: "dom0's driver e1000e".into(),
                reset: Some("FLR".into()),
                terms: "permissive".into(),
            }],
            notes: vec!["mind the line".into()],
        }
    }

    #[test]
    fn each_step_that_would_be_taken_is_told() {
        let expected = "\
nothing was changed, and nothing speaks against it: `bulkhead run` would
- start the service
- take 0000:00:05.0 (8086:10d3 Intel Corporation 82574L) from dom0's driver
  e1000e, and reset it by FLR
- create guest web from web.cfg, paused
- create stub web-bulkhead from /usr/lib/bulkhead/bulkhead-stub-net
- give the stub the network bridge=xenbr0, as 00:16:3e:12:34:56
- give 0000:00:05.0 to guest web on permissive
- let guest web run, and wait until it has its devices
note: mind the line
";
        assert_eq!(dry_run().to_string(), expected);
    }

    #[test]
    fn of_a_guest_with_a_stub_only_the_devices_change() {
        let mut plan = DryRun {
            command: "attach",
            service_runs: true,
            config: None,
            image: None,
            network: None,
            slots: "passthrough".into(),
            ..dry_run()
        };
        plan.devices[0].reset = None;
        plan.devices[0].terms.clear();
        let text = plan.render(1000);
        for part in [
            "- use stub web-bulkhead, which exists\n",
            "and not reset it, for it has no method\n",
            "on the usual terms\n",
            "- show the devices at their addresses in dom0\n",
        ] {
            assert!(text.contains(part), "{text}");
        }
        for part in ["create", "network", "start the service", "wait until"] {
            assert!(!text.contains(part), "{text}");
        }
    }
}
