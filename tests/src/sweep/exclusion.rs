//! Bits that are not written, and why.

use super::layout::{Layout, PMCSR, Register};
use super::operation::Span;
use super::phase::Phase;

/// Bits that a phase always writes as 0.
#[derive(Debug)]
pub struct Exclusion {
    /// Which register.
    pub register: Register,
    /// Which of its bits.
    pub bits: u32,
    /// In which phases.
    pub phases: &'static [Phase],
    /// Why.
    pub reason: &'static str,
}

/// All of them. Every other bit of every register is written: the backends must stop what may not reach the device.
pub const EXCLUSIONS: &[Exclusion] = &[Exclusion {
    register: PMCSR,
    bits: 0x0003,
    phases: &[Phase::Writes, Phase::Random],
    reason: "the power state: each change takes at least 10 ms, and outside D0 each function answers in its own way; \
             the phase `power` goes through all states",
}];

/// `value` without the bits that `phase` may not write to `span`.
pub fn harmless(layout: &Layout, phase: Phase, span: Span, value: u32) -> u32 {
    EXCLUSIONS
        .iter()
        .filter(|exclusion| exclusion.phases.contains(&phase))
        .filter_map(|exclusion| Some((layout.place(exclusion.register)?, exclusion.bits)))
        .fold(value & span.mask(), |value, (place, bits)| {
            value & !span.bits_of(place, bits)
        })
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::dump;
    use super::*;

    #[test]
    fn the_power_state_is_never_written_but_in_its_phase() {
        let layout = Layout::of(&dump());
        for (span, value) in [
            (Span::new(0xcc, 1), 0xfc),
            (Span::new(0xcc, 2), 0xfffc),
            (Span::new(0xcc, 4), 0xffff_fffc),
            (Span::new(0xcd, 1), 0xff),
            (Span::new(0xc8, 4), 0xffff_ffff),
        ] {
            assert_eq!(harmless(&layout, Phase::Random, span, u32::MAX), value, "{span}");
            assert_eq!(
                harmless(&layout, Phase::Power, span, u32::MAX),
                span.mask(),
                "{span}"
            );
        }
    }
}
