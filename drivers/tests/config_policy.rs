//! The config-space policy, register by register.

mod common;

use common::device::{Device, IRQ, MSI, MSIX, PCIE, PM, VPD};
use drivers::error::{MessageKind, RequestError, SetupError};
use drivers::pciback::config::{Access, Effect, VirtualConfig};
use drivers::pciback::hardware::Hardware;
use drivers::platform::ConfigSpace;
use std::time::Duration;

/// A guest's view of a device.
struct View {
    device: Device,
    config: VirtualConfig,
    dropped: Vec<u16>,
}

impl View {
    fn new() -> Self {
        Self::of(Device::e1000e())
    }

    fn of(device: Device) -> Self {
        let config = VirtualConfig::new(Device::resources("0000:00:05.0"), &device).unwrap();
        Self {
            device,
            config,
            dropped: Vec::new(),
        }
    }

    fn read(&self, offset: u16, width: u8) -> u32 {
        self.config.read(&self.device, access(offset, width))
    }

    fn write(&mut self, offset: u16, width: u8, value: u32) -> Result<Effect, RequestError> {
        let dropped = &mut self.dropped;
        self.config
            .write(&mut self.device, access(offset, width), value, |at| {
                dropped.push(at)
            })
    }

    /// What the device has been sent since the last call.
    fn sent(&self) -> Vec<(u16, u8, u32)> {
        self.device.take_writes()
    }
}

fn access(offset: u16, width: u8) -> Access {
    Access::new(offset.into(), width.into()).unwrap()
}

#[test]
fn what_no_rule_changes_reads_what_the_device_says() {
    let view = View::new();
    let ruled = [0x3c, 0x3d, PM + 3];
    for offset in 0..4096 {
        if !ruled.contains(&offset) {
            assert_eq!(view.read(offset, 1), view.device.read(offset, 1), "{offset:#x}");
        }
    }
    for offset in (0x40..4096).step_by(4).filter(|&offset| offset != PM) {
        assert_eq!(view.read(offset, 4), view.device.read(offset, 4), "{offset:#x}");
    }
}

#[test]
fn a_read_of_any_width_sees_the_same_bytes() {
    let mut view = View::new();
    view.write(0x10, 4, u32::MAX).unwrap();
    view.write(0x04, 2, 0x0447).unwrap();
    for offset in (0..256).step_by(4) {
        let dword = view.read(offset, 4);
        let words = view.read(offset, 2) | view.read(offset + 2, 2) << 16;
        let bytes = (0..4).map(|at| view.read(offset + at, 1) << (8 * at)).sum();
        assert_eq!((dword, dword), (words, bytes), "{offset:#x}");
    }
}

#[test]
fn every_register_without_a_write_rule_drops_writes_and_says_so() {
    let mut view = View::new();
    let ruled = [
        0x04..0x06,
        0x0c..0x0d,
        0x0f..0x28,
        0x30..0x34,
        PM + 4..PM + 6,
        MSI + 2..MSI + 4,
        MSIX + 2..MSIX + 4,
        VPD + 2..VPD + 4,
    ];
    for offset in 0..4096u16 {
        if !ruled.iter().any(|range| range.contains(&offset)) {
            assert_eq!(view.write(offset, 1, 0xff), Ok(Effect::Dropped), "{offset:#x}");
        }
    }
    assert_eq!(view.sent(), []);
    for offset in [
        0x00,
        0x02,
        0x06,
        0x08,
        0x0d,
        0x0e,
        0x2c,
        0x3c,
        0x3d,
        MSI + 4,
        MSI + 8,
        PCIE + 8,
        0x100,
    ] {
        assert!(view.dropped.contains(&offset), "{offset:#x} is not counted");
    }
}

#[test]
fn interrupt_line_is_the_pirq_and_pin_is_zero_where_intx_is_withheld() {
    let view = View::new();
    assert_eq!((view.read(0x3c, 1), view.read(0x3d, 1)), (IRQ, 1));

    let mut resources = Device::resources("0000:00:05.0");
    resources.intx = false;
    let device = Device::e1000e();
    let config = VirtualConfig::new(resources, &device).unwrap();
    assert_eq!(config.read(&device, access(0x3c, 2)), IRQ);
}

mod command {
    use super::*;

    #[test]
    fn reads_back_what_the_guest_wrote_where_the_device_does_not_follow() {
        let mut view = View::new();
        assert_eq!(view.read(0x04, 2), 0x0003);
        view.write(0x04, 2, 0x0540).unwrap();
        assert_eq!(view.read(0x04, 2), 0x0540);
        assert_eq!(view.device.word(0x04), 0x0003);
    }

    #[test]
    fn sizing_bars_as_linux_does_costs_no_hop() {
        let mut view = View::new();
        view.write(0x04, 2, 0x0000).unwrap();
        for bar in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24] {
            let address = view.read(bar, 4);
            assert_eq!(view.write(bar, 4, u32::MAX), Ok(Effect::Absorbed));
            view.read(bar, 4);
            assert_eq!(view.write(bar, 4, address), Ok(Effect::Absorbed));
        }
        view.write(0x30, 4, 0xffff_f800).unwrap();
        assert_eq!(view.read(0x30, 4), 0xfffc_0000);
        view.write(0x30, 4, 0xfeb0_0000).unwrap();
        assert_eq!(view.write(0x04, 2, 0x0003), Ok(Effect::Absorbed));
        // Whether INTx can be masked is tested by toggling the bit.
        assert_eq!(view.write(0x04, 2, 0x0403), Ok(Effect::Absorbed));
        assert_eq!(view.write(0x04, 2, 0x0003), Ok(Effect::Absorbed));
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn bus_master_follows_the_guest() {
        let mut view = View::new();
        assert_eq!(view.write(0x04, 2, 0x0007), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0007)]);
        assert_eq!(view.write(0x04, 2, 0x0007), Ok(Effect::Absorbed));
        assert_eq!(view.write(0x04, 2, 0x0000), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0003)], "decode stays on");
    }

    #[test]
    fn decode_is_turned_on_once_for_the_spaces_that_have_a_bar() {
        let device = Device::e1000e();
        device.poke(0x04, 2, 0x0000);
        let mut view = View::of(device);
        assert_eq!(view.write(0x04, 2, 0x0002), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0003)]);
        assert_eq!(view.read(0x04, 2), 0x0002, "the guest sees what it wrote");
    }

    #[test]
    fn a_sleeping_device_is_woken_before_it_decodes() {
        let device = Device::e1000e();
        device.poke(0x04, 2, 0x0000);
        device.poke(PM + 4, 2, 0x8103);
        let mut view = View::of(device);
        view.write(0x04, 2, 0x0002).unwrap();
        assert_eq!(view.sent(), [(PM + 4, 2, 0x0100), (0x04, 2, 0x0003)]);
        assert_eq!(view.device.paused(), Duration::from_millis(10));
        assert_eq!(view.device.word(PM + 4), 0x8100, "PME status is not cleared");
    }

    #[test]
    fn a_guest_that_turns_decode_on_wakes_a_device_whose_decode_was_never_off() {
        let mut view = View::new();
        view.write(0x04, 2, 0x0000).unwrap();
        view.write(PM + 4, 2, 0x0003).unwrap();
        assert_eq!(view.sent(), [(PM + 4, 2, 0x0003)]);
        assert_eq!(view.write(0x04, 2, 0x0001), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(PM + 4, 2, 0x0000)]);
        view.write(PM + 4, 2, 0x0003).unwrap();
        view.sent();
        assert_eq!(view.write(0x04, 2, 0x0003), Ok(Effect::Absorbed));
        assert_eq!(view.sent(), [], "it was on already: nothing is turned on");
    }

    #[test]
    fn a_device_that_forgot_its_addresses_gets_them_back_before_it_decodes() {
        let device = Device::e1000e();
        for lost in [0x04, 0x10, 0x18, 0x30] {
            device.poke(lost, 2, 0);
            device.poke(lost + 2, 2, 0);
        }
        let mut view = View::of(device);
        view.write(0x04, 2, 0x0002).unwrap();
        assert_eq!(
            view.sent(),
            [(0x10, 4, 0xfeb8_0000), (0x18, 4, 0xc041), (0x04, 2, 0x0003)]
        );
    }

    #[test]
    fn a_device_that_lost_decode_in_d3_gets_it_back() {
        let mut view = View::new();
        view.device.poke(0x04, 2, 0x0000);
        assert_eq!(view.write(0x04, 2, 0x0007), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0007)]);
    }

    #[test]
    fn interrupt_parity_and_serr_bits_never_reach_the_device() {
        let mut view = View::new();
        view.device.poke(0x04, 2, 0x0403);
        assert_eq!(view.write(0x04, 2, 0x0147), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0407)]);
    }

    #[test]
    fn mwi_follows_the_guest() {
        let mut view = View::new();
        assert_eq!(view.write(0x04, 2, 0x0013), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0013)]);
    }

    #[test]
    fn a_device_that_reads_all_ones_gets_nothing() {
        let mut view = View::new();
        view.device.fill(0xff);
        assert_eq!(view.write(0x04, 2, 0x0003), Err(RequestError::DeviceSilent));
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn a_write_that_dom0_does_not_carry_out_is_not_remembered() {
        let mut view = View::new();
        view.device.answer_with(Some(RequestError::ServiceAbsent));
        assert_eq!(view.write(0x04, 2, 0x0407), Err(RequestError::ServiceAbsent));
        assert_eq!(view.read(0x04, 2), 0x0003);
    }

    #[test]
    fn a_byte_of_it_can_be_written() {
        let mut view = View::new();
        view.write(0x05, 1, 0x05).unwrap();
        assert_eq!(view.read(0x04, 2), 0x0503);
    }

    #[test]
    fn a_dword_write_leaves_status_alone() {
        let mut view = View::new();
        assert_eq!(view.write(0x04, 4, 0xffff_0007), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0007)]);
        assert_eq!(view.dropped, [0x06]);
    }
}

#[test]
fn cache_line_size_goes_to_the_device_if_it_changes() {
    let mut view = View::new();
    assert_eq!(view.write(0x0c, 1, 0x10), Ok(Effect::Forwarded));
    assert_eq!(view.write(0x0c, 1, 0x10), Ok(Effect::Absorbed));
    assert_eq!(view.sent(), [(0x0c, 1, 0x10)]);
}

#[test]
fn a_dword_over_cache_line_latency_header_type_and_bist_changes_the_first_only() {
    let mut view = View::new();
    assert_eq!(view.write(0x0c, 4, 0x12ff_2010), Ok(Effect::Forwarded));
    assert_eq!(view.sent(), [(0x0c, 1, 0x10)]);
    assert_eq!(view.dropped, [0x0d, 0x0e, 0x0f]);
}

#[test]
fn bist_can_be_started_and_nothing_else() {
    let mut view = View::new();
    view.device.poke(0x0f, 1, 0x80);
    assert_eq!(view.write(0x0f, 1, 0xc0), Ok(Effect::Forwarded));
    assert_eq!(view.sent(), [(0x0f, 1, 0xc0)]);
    assert_eq!(view.write(0x0f, 1, 0x85), Ok(Effect::Dropped));
    assert_eq!(
        view.write(0x0f, 1, 0x40),
        Ok(Effect::Forwarded),
        "the bare start bit"
    );
}

#[test]
fn a_bar_that_the_device_lost_is_put_back_and_never_moved() {
    let mut view = View::new();
    view.device.poke(0x10, 4, 0);
    assert_eq!(view.write(0x10, 4, 0xfeb8_0000), Ok(Effect::Forwarded));
    assert_eq!(view.sent(), [(0x10, 4, 0xfeb8_0000)]);
    assert_eq!(view.write(0x10, 4, 0xdead_0000), Ok(Effect::Absorbed));
    assert_eq!(view.write(0x12, 2, 0xdead), Ok(Effect::Absorbed));
    assert_eq!(view.read(0x10, 4), 0xfeb8_0000);
    assert_eq!(view.sent(), []);
}

#[test]
fn the_rom_can_be_sized_and_neither_enabled_nor_moved() {
    let mut view = View::new();
    view.device.poke(0x30, 4, 0);
    for value in [0xfeb0_0001, 0xfeb0_0000, 0xdead_0000] {
        assert_eq!(view.write(0x30, 4, value), Ok(Effect::Absorbed));
        assert_eq!(view.read(0x30, 4), 0xfeb0_0000);
    }
    view.write(0x30, 4, u32::MAX).unwrap();
    assert_eq!(view.read(0x30, 4), 0xfffc_0000);
    assert_eq!(view.sent(), []);
}

mod power_management {
    use super::*;

    #[test]
    fn pme_support_is_hidden() {
        let view = View::new();
        assert_eq!(view.device.word(PM + 2), 0xc823);
        assert_eq!(view.read(PM + 2, 2), 0x0023);
        assert_eq!(view.read(PM, 4), 0x0023_d001);
    }

    #[test]
    fn the_state_goes_to_the_device_if_it_has_it() {
        let mut view = View::new();
        assert_eq!(view.write(PM + 4, 2, 0x0003), Ok(Effect::Forwarded));
        assert_eq!(view.write(PM + 4, 2, 0x0003), Ok(Effect::Absorbed));
        assert_eq!(view.write(PM + 4, 2, 0x0000), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(PM + 4, 2, 3), (PM + 4, 2, 0)]);
        for state in [1, 2] {
            assert_eq!(
                view.write(PM + 4, 2, state),
                Err(RequestError::PowerState(state as u8))
            );
        }
        view.device.poke(PM + 2, 2, 0xce23);
        assert_eq!(view.write(PM + 4, 2, 0x0002), Ok(Effect::Forwarded));
    }

    #[test]
    fn pme_enable_is_never_set() {
        let mut view = View::new();
        assert_eq!(view.write(PM + 4, 2, 0x0100), Ok(Effect::Absorbed));
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn pme_status_is_cleared_by_a_written_one_only() {
        let mut view = View::new();
        view.device.poke(PM + 4, 2, 0x8000);
        view.write(PM + 4, 1, 0x03).unwrap();
        assert_eq!(
            view.device.word(PM + 4),
            0x8003,
            "a byte beside it leaves it alone"
        );
        assert_eq!(view.write(PM + 4, 2, 0x8003), Ok(Effect::Forwarded));
        assert_eq!(view.device.word(PM + 4), 0x0003);
        assert_eq!(
            view.write(PM + 4, 2, 0x8003),
            Ok(Effect::Absorbed),
            "nothing left to clear"
        );
    }

    #[test]
    fn data_select_goes_to_the_device() {
        let mut view = View::new();
        assert_eq!(view.write(PM + 4, 2, 0x0200), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(PM + 4, 2, 0x0200)]);
    }

    #[test]
    fn an_absent_state_is_refused_even_in_a_wider_write() {
        let mut view = View::new();
        assert_eq!(
            view.write(PM + 4, 4, 0x0000_0001),
            Err(RequestError::PowerState(1))
        );
    }
}

mod messages {
    use super::*;

    #[test]
    fn a_flags_write_that_changes_nothing_succeeds_without_a_hop() {
        let mut view = View::new();
        for base in [MSI, MSIX] {
            let flags = view.read(base + 2, 2);
            assert_eq!(view.write(base + 2, 2, flags), Ok(Effect::Absorbed));
        }
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn every_change_is_denied() {
        let mut view = View::new();
        for (base, register) in [(MSI, "MSI Message Control"), (MSIX, "MSI-X Message Control")] {
            let flags = view.read(base + 2, 2);
            for bit in 0..16 {
                assert_eq!(
                    view.write(base + 2, 2, flags ^ 1 << bit),
                    Err(RequestError::MessageControl { register })
                );
            }
            assert_eq!(
                view.write(base, 4, (flags ^ 1) << 16),
                Err(RequestError::MessageControl { register }),
                "in a wider write"
            );
        }
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn linux_sees_msi_on_after_the_op_and_may_write_it_so() {
        let mut view = View::new();
        let off = view.read(MSI + 2, 2);
        assert_eq!(view.write(MSI + 2, 2, off), Ok(Effect::Absorbed));
        view.device.enable_msi().unwrap();
        assert_eq!(view.write(MSI + 2, 2, off | 1), Ok(Effect::Absorbed));
    }

    #[test]
    fn address_and_data_and_mask_belong_to_xen() {
        let mut view = View::new();
        for offset in [MSI + 4, MSI + 8, MSI + 12, MSI + 16, MSIX + 4, MSIX + 8] {
            assert_eq!(
                view.write(offset, 4, u32::MAX),
                Ok(Effect::Dropped),
                "{offset:#x}"
            );
        }
    }
}

#[test]
fn vpd_can_be_read_and_not_written() {
    let mut view = View::new();
    assert_eq!(view.write(VPD + 2, 2, 0x0010), Ok(Effect::Forwarded));
    assert_eq!(
        view.write(VPD + 2, 2, 0x0010),
        Ok(Effect::Forwarded),
        "each write starts a read"
    );
    assert_eq!(
        view.write(VPD + 2, 2, 0x8010),
        Err(RequestError::Denied {
            register: "VPD Address"
        })
    );
    assert_eq!(view.write(VPD + 4, 4, 1), Ok(Effect::Dropped));
    assert_eq!(view.sent(), [(VPD + 2, 2, 0x10), (VPD + 2, 2, 0x10)]);
}

#[test]
fn a_device_that_answers_all_ones_is_refused_by_name() {
    let device = Device::e1000e();
    device.fill(0xff);
    let error = VirtualConfig::new(Device::resources("0000:00:05.0"), &device).unwrap_err();
    assert!(matches!(error, SetupError::DeviceSilent(_)));
    assert!(
        error.to_string().starts_with("0000:00:05.0 answers all-ones"),
        "{error}"
    );
}

#[test]
fn a_device_with_other_ids_is_refused_by_name() {
    let device = Device::e1000e();
    device.poke(0x02, 2, 0x10d4);
    let error = VirtualConfig::new(Device::resources("0000:00:05.0"), &device).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("0000:00:05.0 is 8086:10d4, not 8086:10d3"),
        "{error}"
    );
}

#[test]
fn a_bridge_is_refused_and_a_multifunction_device_is_not() {
    let device = Device::e1000e();
    device.poke(0x0e, 1, 0x81);
    let error = VirtualConfig::new(Device::resources("0000:00:05.0"), &device).unwrap_err();
    assert!(matches!(error, SetupError::HeaderType { header: 1, .. }));
    device.poke(0x0e, 1, 0x80);
    assert!(VirtualConfig::new(Device::resources("0000:00:05.0"), &device).is_ok());
}

#[test]
fn a_device_whose_capabilities_loop_or_point_anywhere_is_served_all_the_same() {
    for pointer in 0..=255 {
        let device = Device::e1000e();
        device.poke(0x34, 1, pointer);
        device.poke(MSIX + 1, 1, PM.into());
        // Where registers lie is the device's word; what matters is that none of it harms the stub.
        device.answer_with(Some(RequestError::ServiceAbsent));
        let mut view = View::of(device);
        for offset in (0x40..256).step_by(4) {
            view.read(offset, 4);
            let _ = view.write(offset, 4, 0x5a5a_5a5a);
        }
        let _ = view.config.message_capability(MessageKind::Msi);
    }
}

#[test]
fn the_table_in_the_documentation_is_the_one_in_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config-space.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(
        text,
        drivers::pciback::config::render(),
        "print it anew: cargo run -p bulkhead-drivers --example config-table > docs/config-space.md"
    );
}
