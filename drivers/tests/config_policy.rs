//! The config-space policy, register by register.

mod common;

use common::device::{Device, IRQ, MSI, MSIX, PCIE, PM, VPD};
use drivers::error::{MessageKind, RequestError, SetupError};
use drivers::platform::ConfigSpace;
use drivers::policy::config::bar::Bars;
use drivers::policy::config::{Access, Effect, VirtualConfig};
use drivers::policy::dom0::Dom0;
use drivers::policy::resources::Resources;
use xenbus::device::Quirks;

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
        Self::with(device, |_| {})
    }

    /// A device about which the toolstack says something else than usual.
    fn with(device: Device, change: impl FnOnce(&mut Resources)) -> Self {
        let mut resources = Device::resources("0000:00:05.0");
        change(&mut resources);
        let config = VirtualConfig::new(resources, &device).unwrap();
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
        let (dropped, mut dom0) = (&mut self.dropped, self.device.clone());
        let access = access(offset, width);
        self.config
            .write(&self.device, &mut dom0, access, value, |at| dropped.push(at))
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
fn a_part_of_a_bar_is_merged_into_what_it_reads_and_so_is_no_probe() {
    let mut view = View::new();
    for (offset, width, ones) in [(0x10, 2, 0xffff), (0x12, 2, 0xffff), (0x13, 1, 0xff)] {
        assert_eq!(view.write(offset, width, ones), Ok(Effect::Absorbed));
        assert_eq!(view.read(0x10, 4), 0xfeb8_0000, "{offset:#x}");
    }
    assert_eq!(view.sent(), []);
}

#[test]
fn the_next_guest_finds_the_devices_own_command_and_addresses() {
    let device = Device::e1000e();
    let mut first = View::of(device.clone());
    first.write(0x04, 2, 0x0540).unwrap();
    first.write(0x10, 4, u32::MAX).unwrap();
    let next = View::of(device);
    assert_eq!(next.read(0x04, 2), 0x0003);
    assert_eq!(next.read(0x10, 4), 0xfeb8_0000);
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
    fn nothing_is_derived_from_all_ones() {
        let mut view = View::new();
        view.device.poke(PM + 4, 2, 0xffff);
        assert_eq!(view.write(PM + 4, 2, 0), Err(RequestError::DeviceSilent));
        // Nor does a device that answers nothing there get woken up.
        view.device.poke(0x04, 2, 0);
        view.write(0x04, 2, 0x0002).unwrap();
        assert_eq!(view.sent(), [(0x04, 2, 0x0003)]);
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
        view.device.enable_msi("0000:00:05.0".parse().unwrap()).unwrap();
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
    assert!(matches!(*error, SetupError::DeviceSilent(_)));
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
fn a_cardbus_bridge_is_refused_in_words_and_a_multifunction_device_is_not() {
    let device = Device::e1000e();
    for header in [0x02, 0x82, 0x7f] {
        device.poke(0x0e, 1, header);
        let error = VirtualConfig::new(Device::resources("0000:00:05.0"), &device).unwrap_err();
        assert!(matches!(*error, SetupError::HeaderType { .. }), "{header:#x}");
        assert!(
            error.to_string().contains("devices (0) and PCI bridges (1)"),
            "{error}"
        );
    }
    for header in [0x80, 0x81] {
        device.poke(0x0e, 1, header);
        assert!(VirtualConfig::new(Device::resources("0000:00:05.0"), &device).is_ok());
    }
}

mod bridge {
    use super::*;

    /// A bridge with BAR 0 and a ROM.
    fn view() -> View {
        View::with(Device::bridge(), |resources| {
            resources.ids = "1b36:0001".parse().unwrap();
            let bars = "feb80000,20000,0;0,0,0;0,0,0;0,0,0;0,0,0;0,0,0;feb00000,40000,0";
            resources.bars = Bars::new(&bars.parse().unwrap()).unwrap();
        })
    }

    #[test]
    fn has_two_bars_and_its_rom_elsewhere() {
        let mut view = view();
        for (offset, address, size) in [
            (0x10, 0xfeb8_0000, 0xfffe_0000),
            (0x14, 0, 0),
            (0x38, 0xfeb0_0000, 0xfffc_0000),
        ] {
            assert_eq!(view.read(offset, 4), address);
            assert_eq!(view.write(offset, 4, u32::MAX), Ok(Effect::Absorbed));
            assert_eq!(view.read(offset, 4), size, "{offset:#x}");
            view.write(offset, 4, address).unwrap();
        }
        view.device.poke(0x10, 4, 0);
        assert_eq!(view.write(0x10, 4, 0xfeb8_0000), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x10, 4, 0xfeb8_0000)]);
    }

    #[test]
    fn its_buses_and_windows_read_as_they_are_and_are_never_written_not_even_permissively() {
        for permissive in [false, true] {
            let device = Device::bridge();
            if permissive {
                device.let_through(None);
            }
            let mut view = View::with(device, |resources| {
                resources.ids = "1b36:0001".parse().unwrap();
                resources.permissive = permissive;
            });
            for offset in (0x18..0x34).chain(0x3e..0x40) {
                assert_eq!(view.read(offset, 1), view.device.read(offset, 1), "{offset:#x}");
                let secondary_status = matches!(offset, 0x1e | 0x1f);
                let expected = if permissive && secondary_status {
                    Effect::Forwarded
                } else {
                    Effect::Dropped
                };
                assert_eq!(view.write(offset, 1, 0xff), Ok(expected), "{offset:#x}");
            }
            assert!(
                view.sent()
                    .iter()
                    .all(|(offset, ..)| matches!(offset, 0x1e | 0x1f))
            );
        }
    }

    #[test]
    fn command_line_pin_and_the_rest_are_as_with_a_device() {
        let mut view = view();
        view.device.poke(0x04, 2, 0x0000);
        assert_eq!(view.write(0x04, 2, 0x0006), Ok(Effect::Forwarded));
        assert_eq!(
            view.sent(),
            [(0x04, 2, 0x0007)],
            "both decode bits: its windows need them"
        );
        assert_eq!(view.write(0x04, 2, 0x0000), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0003)], "decode stays on");
        assert_eq!((view.read(0x3c, 1), view.read(0x3d, 1)), (IRQ, 1));
        assert_eq!(view.write(0x0c, 1, 0x10), Ok(Effect::Forwarded));
        assert_eq!(view.write(0x0d, 1, 0x10), Ok(Effect::Dropped));
        assert_eq!(view.read(0x00, 4), 0x0001_1b36);
    }
}

mod permissive {
    use super::*;

    fn view() -> View {
        let device = Device::e1000e();
        device.let_through(None);
        View::with(device, |resources| resources.permissive = true)
    }

    #[test]
    fn what_has_no_rule_goes_to_the_device_even_if_it_changes_nothing() {
        let mut view = view();
        for (offset, width, value) in [
            (0x06, 2, 0xf900),
            (0x08, 4, 0x0200_0001),
            (PCIE + 0x0a, 2, 0x0f),
            (PCIE + 0x10, 2, 0x0040),
            (0x140, 4, 0),
            (0xffc, 4, 7),
            (0x4a, 1, 5),
        ] {
            assert_eq!(view.write(offset, width, value), Ok(Effect::Forwarded));
            assert_eq!(view.sent(), [(offset, width, value)]);
        }
        assert_eq!(view.dropped, []);
    }

    #[test]
    fn what_dom0_needs_of_extended_space_stays_dom0s() {
        let device = Device::e1000e();
        // Behind AER, which names 0x140 as the next.
        device.poke(0x140, 4, 0x1a01_0010);
        device.poke(0x1a0, 4, 0x0001_0015);
        device.let_through(None);
        let mut view = View::with(device, |resources| resources.permissive = true);
        for (offset, effect) in [
            (0x104, Effect::Dropped),
            (0x138, Effect::Dropped),
            (0x13c, Effect::Forwarded),
            (0x140, Effect::Dropped),
            (0x17c, Effect::Dropped),
            (0x180, Effect::Forwarded),
            (0x1a8, Effect::Dropped),
            (0x1d0, Effect::Dropped),
            (0x1d4, Effect::Forwarded),
        ] {
            assert_eq!(view.write(offset, 4, 1), Ok(effect), "{offset:#x}");
        }
    }

    #[test]
    fn every_capability_that_is_kept_is_kept_to_its_end() {
        // From the PCI Express Base Specification 6.0, chapter 7: the bytes that each takes at least.
        const EXTENDED: [(u16, u16); 13] = [
            (0x0001, 0x38),
            (0x000d, 0x08),
            (0x000e, 0x08),
            (0x000f, 0x08),
            (0x0010, 0x40),
            (0x0012, 0x30),
            (0x0013, 0x10),
            (0x0015, 0x34),
            (0x0018, 0x08),
            (0x001b, 0x08),
            (0x001d, 0x10),
            (0x001e, 0x10),
            (0x0024, 0x34),
        ];
        for (base, id, length) in EXTENDED
            .map(|(id, length)| (0x140, id, length))
            .into_iter()
            .chain([
                (0x40, 0x13, 6),
                (0x40, 0x14, 8),
                (0x40, 0x15, 0x24),
                (0x40, 0x08, 0x1c),
            ])
        {
            let device = Device::e1000e();
            device.let_through(None);
            if base == 0x40 {
                device.poke(base, 1, id.into());
            } else {
                device.poke(base, 4, 1 << 16 | u32::from(id));
            }
            let mut view = View::with(device.clone(), |resources| resources.permissive = true);
            for offset in base..base + length {
                assert_eq!(
                    view.write(offset, 1, 0xff),
                    Ok(Effect::Dropped),
                    "{id:#x}: {offset:#x}"
                );
                let mut resources = Device::resources("0000:00:05.0");
                resources.quirks = format!("{offset:x}:1:1").parse().unwrap();
                let refusal = VirtualConfig::new(resources, &device).unwrap_err().to_string();
                assert!(
                    refusal.contains("a capability that stays dom0's"),
                    "{id:#x}: {refusal}"
                );
            }
        }
    }

    #[test]
    fn of_device_control_some_bits_are_the_guests_and_none_resets_the_device() {
        for (at, version, bits) in [(8, 1, 0x7b10), (8, 2, 0x7b10), (0x28, 2, 0x031f)] {
            let device = Device::e1000e();
            // Room for version 2.
            device.poke(PM + 1, 1, 0x50);
            device.poke(0x50, 2, 0x0010);
            device.poke(0x52, 2, version);
            let with = |permissive| View::with(device.clone(), |resources| resources.permissive = permissive);
            let at = 0x50 + at;
            device.let_through(Some((at, 2)));
            device.poke(at, 2, 0x240f);
            assert_eq!(with(false).write(at, 2, 0xffff), Ok(Effect::Dropped));
            let mut view = with(true);
            assert_eq!(view.write(at, 2, 0xffff), Ok(Effect::Forwarded));
            assert_eq!(view.sent(), [(at, 2, 0x240f | bits)]);
            let mut resources = Device::resources("0000:00:05.0");
            resources.quirks = format!("{at:x}:2:{bits:x}").parse().unwrap();
            assert!(VirtualConfig::new(resources, &device).is_ok());
            for bit in (0..16).filter(|bit| bits >> bit & 1 == 0) {
                let value = u32::from(view.device.word(at)) ^ 1 << bit;
                assert_eq!(view.write(at, 2, value), Ok(Effect::Dropped), "{bit}");
                let mut resources = Device::resources("0000:00:05.0");
                resources.quirks = format!("{at:x}:2:{:x}", 1 << bit).parse().unwrap();
                assert!(VirtualConfig::new(resources, &device).is_err(), "{bit}");
            }
        }
    }

    #[test]
    fn with_a_quirk_on_device_control_both_are_in_force() {
        let device = Device::e1000e();
        device.let_through(Some((PCIE + 8, 2)));
        let mut view = View::with(device, |resources| {
            resources.permissive = true;
            resources.quirks = "e9:1:70".parse().unwrap();
        });
        view.device.let_through(Some((PCIE + 9, 1)));
        view.write(PCIE + 8, 2, 0xffff).unwrap();
        assert_eq!(view.device.word(PCIE + 8), 0x7010);
    }

    #[test]
    fn a_write_beside_a_ruled_register_is_split_and_the_rule_holds() {
        let mut view = view();
        assert_eq!(view.write(0x04, 4, 0xf900_0403), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x06, 2, 0xf900)]);
        view.write(0x0c, 4, 0x0080_2010).unwrap();
        assert_eq!(view.sent(), [(0x0c, 1, 0x10), (0x0e, 1, 0x80)]);
        assert_eq!(view.dropped, [0x0d], "the latency timer");
    }

    #[test]
    fn command_follows_in_all_bits_that_are_the_guests_and_no_other() {
        let mut view = view();
        view.write(0x04, 2, 0xffff).unwrap();
        assert_eq!(view.sent(), [(0x04, 2, 0x02bf)]);
        view.write(0x04, 2, 0x0000).unwrap();
        assert_eq!(view.sent(), [(0x04, 2, 0x0003)], "decode stays on");
    }

    #[test]
    fn messages_stay_xens_and_product_data_the_devices() {
        let mut view = view();
        for base in [MSI, MSIX] {
            let flags = view.read(base + 2, 2);
            assert!(view.write(base + 2, 2, flags ^ 0x8001).is_err());
        }
        for offset in [MSI + 4, MSI + 8, MSI + 12, MSIX + 4, MSIX + 8, VPD + 4] {
            assert_eq!(view.write(offset, 4, 1), Ok(Effect::Dropped), "{offset:#x}");
        }
        assert!(view.write(VPD + 2, 2, 0x8000).is_err());
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn messages_with_64_bit_and_mask_are_guarded_to_their_end() {
        let device = Device::e1000e();
        device.poke(MSI + 2, 2, 0x0180);
        // Room for 24 bytes.
        device.poke(MSI + 1, 1, 0);
        device.let_through(None);
        device.let_through(Some((MSI + 24, 4)));
        let mut view = View::with(device, |resources| resources.permissive = true);
        for offset in (4..24).step_by(4) {
            assert_eq!(view.write(MSI + offset, 4, 0), Ok(Effect::Dropped), "{offset:#x}");
        }
        assert_eq!(view.write(MSI + 24, 4, 0), Ok(Effect::Forwarded));
    }
}

mod quirks {
    use super::*;

    fn view(quirks: &str) -> View {
        let device = Device::e1000e();
        let quirks: Quirks = quirks.parse().unwrap();
        for quirk in quirks.as_slice() {
            device.let_through(Some((quirk.offset(), quirk.width())));
        }
        View::with(device, |resources| resources.quirks = quirks)
    }

    #[test]
    fn the_bits_of_the_mask_are_the_guests_and_the_others_stay() {
        let mut view = view("54:2:ff0");
        view.device.poke(0x54, 2, 0xa005);
        assert_eq!(view.write(0x54, 2, 0xffff), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x54, 2, 0xaff5)]);
        assert_eq!(view.write(0x54, 2, 0), Ok(Effect::Forwarded));
        assert_eq!(view.device.word(0x54), 0xa005);
        assert_eq!(view.read(0x54, 2), 0xa005, "read as it is");
    }

    #[test]
    fn only_the_bytes_that_are_written_change() {
        let mut view = view("54:4:ffffffff;148:1:1");
        view.device.poke(0x54, 4, 0x1122_3344);
        assert_eq!(view.write(0x55, 1, 0xaa), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x54, 4, 0x1122_aa44)]);
        view.device.poke(0x148, 1, 0x10);
        assert_eq!(view.write(0x148, 4, 0xffff_ffff), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x148, 1, 0x11)]);
        assert_eq!(view.dropped, [0x148], "the other three bytes");
    }

    #[test]
    fn a_write_beside_the_mask_is_dropped_and_the_same_value_goes_out_again() {
        let mut view = view("54:2:ff");
        assert_eq!(view.write(0x55, 1, 0xff), Ok(Effect::Dropped));
        assert_eq!(view.dropped, [0x54]);
        for _ in 0..2 {
            assert_eq!(view.write(0x54, 1, 0x01), Ok(Effect::Forwarded));
        }
        assert_eq!(view.sent().len(), 2, "a written 1 may clear a bit");
    }

    #[test]
    fn it_may_cover_registers_without_a_rule_and_its_neighbours_keep_theirs() {
        let mut view = view("2c:4:ffffffff");
        assert_eq!(view.write(0x2c, 4, 0x1234_5678), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x2c, 4, 0x1234_5678)], "in one write");
        assert_eq!(view.write(0x28, 4, 1), Ok(Effect::Dropped));
    }

    #[test]
    fn one_for_a_register_with_a_rule_is_refused_by_name() {
        for (quirk, register) in [
            ("4:2:400", "Command"),
            ("10:4:ffffffff", "BAR 0"),
            ("d:1:ff", "Latency Timer"),
            ("3c:1:ff", "Interrupt Line"),
            ("cc:2:100", "PMCSR"),
            ("d4:4:ffffffff", "MSI Address"),
            ("a2:1:ff", "MSI-X Message Control"),
        ] {
            let mut resources = Device::resources("0000:00:05.0");
            resources.quirks = quirk.parse().unwrap();
            let error = VirtualConfig::new(resources, &Device::e1000e()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "quirk {quirk} of 0000:00:05.0 is for {register}, which has a rule of its own; leave it out"
                )
            );
        }
    }

    #[test]
    fn of_a_device_that_does_not_answer_nothing_is_written_and_all_ones_may_be_a_value() {
        let mut view = view("54:2:ff");
        view.device.poke(0x54, 2, 0xffff);
        assert_eq!(view.write(0x54, 2, 0), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x54, 2, 0xff00)]);
        view.device.fill(0xff);
        for (offset, width) in [(0x54, 2), (0x0c, 1), (0x0f, 1), (0x04, 2), (PM + 4, 2)] {
            let answer = view.write(offset, width, 0);
            assert_eq!(answer, Err(RequestError::DeviceSilent), "{offset:#x}");
        }
        assert_eq!(view.sent(), []);
    }

    #[test]
    fn of_a_permissive_device_a_quirk_keeps_its_mask() {
        let device = Device::e1000e();
        device.let_through(None);
        let mut view = View::with(device, |resources| {
            resources.permissive = true;
            resources.quirks = "54:2:ff".parse().unwrap();
        });
        view.write(0x54, 4, 0xffff_ffff).unwrap();
        assert_eq!(view.sent(), [(0x54, 2, 0x00ff), (0x56, 2, 0xffff)]);
    }
}

mod virtual_function {
    use super::*;

    /// As a card has it: no ids, no BARs, no decode bits.
    fn device() -> Device {
        let device = Device::e1000e();
        device.poke(0x00, 4, u32::MAX);
        device.poke(0x04, 2, 0);
        for bar in 0..6 {
            device.poke(0x10 + 4 * bar, 4, 0);
        }
        device.poke(0x3c, 2, 0);
        device
    }

    fn view() -> View {
        View::with(device(), |resources| {
            resources.virtual_function = true;
            resources.ids = "8086:10ca".parse().unwrap();
            resources.bars = resources.bars.clone().of_virtual_function();
            resources.irq = 0;
            resources.intx = false;
        })
    }

    #[test]
    fn shows_the_ids_that_dom0_knows() {
        let view = view();
        assert_eq!(view.read(0x00, 4), 0x10ca_8086);
        assert_eq!((view.read(0x00, 2), view.read(0x02, 2)), (0x8086, 0x10ca));
        assert_eq!(view.read(0x3c, 2), 0, "neither line nor pin");
    }

    #[test]
    fn its_bars_and_decode_are_taken_in_here() {
        let mut view = view();
        assert_eq!(view.read(0x10, 4), 0xfeb8_0000);
        assert_eq!(view.write(0x10, 4, u32::MAX), Ok(Effect::Absorbed));
        assert_eq!(view.read(0x10, 4), 0xfffe_0000);
        assert_eq!(view.write(0x10, 4, 0xfeb8_0000), Ok(Effect::Absorbed));
        assert_eq!(view.write(0x04, 2, 0x0002), Ok(Effect::Absorbed));
        assert_eq!(view.read(0x04, 2), 0x0002, "the guest sees what it wrote");
        assert_eq!(view.sent(), []);
        assert_eq!(view.write(0x04, 2, 0x0006), Ok(Effect::Forwarded));
        assert_eq!(view.sent(), [(0x04, 2, 0x0004)]);
    }

    #[test]
    fn one_that_is_not_there_is_refused_and_one_with_ids_of_its_own_must_have_the_right_ones() {
        let silent = device();
        silent.fill(0xff);
        let mut resources = Device::resources("0000:00:05.0");
        resources.virtual_function = true;
        let error = VirtualConfig::new(resources.clone(), &silent).unwrap_err();
        assert!(matches!(*error, SetupError::DeviceSilent(_)));
        assert!(VirtualConfig::new(resources.clone(), &Device::e1000e()).is_ok());
        resources.ids = "8086:10ca".parse().unwrap();
        let error = VirtualConfig::new(resources, &Device::e1000e()).unwrap_err();
        assert!(matches!(*error, SetupError::WrongIds { .. }));
    }
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
        drivers::policy::config::render(),
        "print it anew: cargo run -p bulkhead-drivers --example config-table > docs/config-space.md"
    );
}
