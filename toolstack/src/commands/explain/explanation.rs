//! What there is to tell about devices.

use super::regions::{ByteOwner, OWNERS, Region};
use serde::Serialize;

/// What is to tell about devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explanations {
    /// The devices, in the order in which they were named, or of their guest.
    pub devices: Vec<Explanation>,
}

/// What a guest can see and change of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explanation {
    /// The device's address.
    pub bdf: String,
    /// Vendor and device id.
    pub ids: String,
    /// Its product name, if the host has the list of names (`pci.ids`).
    pub called: Option<String>,
    /// The guest that has it; absent if none has, and what is told is what one would get.
    pub guest: Option<Holding>,
    /// Why no guest can have it now.
    pub unfit: Vec<String>,
    /// Its terms as far as they are not the defaults; empty if they are.
    pub terms: String,
    /// How it interrupts its guest, in words.
    pub interrupts: String,
    /// Its INTx line, in words.
    pub line: String,
    /// The ranges that its guest maps.
    pub memory: Vec<MemoryRange>,
    /// How it is reset before and after each guest; absent if it cannot be.
    pub reset: Option<String>,
    /// Its configuration space.
    pub regions: Vec<Region>,
}

/// The guest that has a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Holding {
    /// Its name.
    pub name: String,
    /// Its domid.
    pub domid: u16,
    /// Where the guest sees the device; absent while its stub does not offer it.
    pub address: Option<String>,
}

/// A range of addresses that a guest maps. Its accesses to it pass no judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryRange {
    /// The base address register: 0 to 5.
    pub bar: u8,
    /// `memory` or `ports`.
    pub kind: &'static str,
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Explanation {
    /// Number of bytes of this kind.
    pub fn count(&self, owner: ByteOwner) -> u16 {
        let regions = self.regions.iter().filter(|region| region.owner == owner);
        regions.map(|region| region.bytes).sum()
    }

    /// What there is to know besides configuration space, each with a title.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![(
            "guest",
            match &self.guest {
                Some(Holding {
                    name,
                    domid,
                    address: Some(address),
                }) => format!("{name} ({domid}), which sees it as {address}"),
                Some(Holding { name, domid, .. }) => {
                    format!("{name} ({domid}), whose stub does not offer it now")
                }
                None => "no guest has it: this is what one would get".into(),
            },
        )];
        facts.extend(self.unfit.iter().map(|refusal| ("NOT FIT", refusal.clone())));
        let usual = "the usual ones".to_owned();
        facts.push((
            "terms",
            if self.terms.is_empty() {
                usual
            } else {
                self.terms.clone()
            },
        ));
        facts.push(("interrupts", self.interrupts.clone()));
        facts.push(("INTx line", self.line.clone()));
        let ranges = self.memory.iter().map(|range| {
            let MemoryRange {
                bar,
                kind,
                start,
                size,
            } = range;
            let end = start + (size - 1);
            format!("BAR {bar}: {kind} {start:#x}-{end:#x}")
        });
        let ranges: Vec<_> = ranges.collect();
        facts.push((
            "memory",
            if ranges.is_empty() {
                "none".into()
            } else {
                format!("{}; the guest's own, without a judgement", ranges.join(", "))
            },
        ));
        let reset = self
            .reset
            .as_deref()
            .unwrap_or("none: what a guest leaves in it stays there");
        facts.push(("reset", reset.to_owned()));
        let kinds = OWNERS.iter().filter_map(|&(owner, ..)| {
            let count = self.count(owner);
            (count > 0).then(|| format!("{count} {owner}"))
        });
        let kinds: Vec<_> = kinds.collect();
        facts.push(("bytes", kinds.join(", ")));
        facts
    }
}
