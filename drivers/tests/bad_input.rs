//! What a guest, a device, the toolstack or dom0's service can get wrong, and what is answered.

mod common;

use common::device::{Device, IRQ, TABLE};
use common::host::{GUEST, Host, STUB};
use common::service::Mood;
use drivers::error::MessageKind;
use drivers::stub::{Outcome, Stub};
use pci::bdf::Bdf;
use std::time::Duration;
use xenbus::client::{Client, Store};
use xenbus::counters::{Counter, Counters};
use xenbus::path::{self, Numbered, key};
use xenbus::pciif::{AER_HANDLER, Command, MsixEntry, Request, SharedPage, layout};
use xenbus::state::XenbusState::*;

const FIRST: Bdf = Bdf::from_devfn(0, 0, 0);

fn entries(indices: impl IntoIterator<Item = u16>) -> Vec<MsixEntry> {
    let entry = |entry| MsixEntry {
        vector: 0xdead,
        entry,
    };
    indices.into_iter().map(entry).collect()
}

/// The number that a guest is answered; 0 is success.
fn told(host: &mut Host, request: &Request, entries: &[MsixEntry]) -> i32 {
    host.ask(request, entries).map_or_else(|error| error.raw(), |_| 0)
}

mod requests {
    use super::*;

    #[test]
    fn an_absent_device_is_not_found() {
        let mut host = Host::connected();
        for (domain, bus, devfn) in [
            (0, 0, 1),
            (0, 0, 0xff),
            (0, 0, 0x100),
            (0, 1, 0),
            (1, 0, 0),
            (0x1_0000, 0, 0),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            for command in 0..12 {
                let request = Request {
                    domain,
                    bus,
                    devfn,
                    ..Request::new(Command::from_raw(command), FIRST)
                };
                assert_eq!(told(&mut host, &request, &[]), -1, "{request}");
            }
        }
    }

    #[test]
    fn an_unknown_command_is_not_implemented() {
        let mut host = Host::connected();
        for command in [6, 7, 8, 9, 10, 11, 0x8000_0000, u32::MAX] {
            let request = Request::new(Command::from_raw(command), FIRST);
            assert_eq!(told(&mut host, &request, &[]), -4, "{command}");
        }
    }

    #[test]
    fn several_messages_of_msi_are_refused_as_a_command_that_is_not_there() {
        const ENABLE_MULTI_MSI: u32 = 10;
        let mut host = Host::connected();
        let request = Request {
            value: 4,
            ..Request::new(Command::from_raw(ENABLE_MULTI_MSI), FIRST)
        };
        assert_eq!(told(&mut host, &request, &[]), -4);
        assert_eq!(host.device.mode(), None);
        assert!(
            host.service.borrow().served.is_empty(),
            "dom0 hears nothing of it"
        );
    }

    #[test]
    fn messages_that_are_switched_off_for_a_device_are_refused_and_the_line_is_left() {
        let mut host = Host::idle();
        host.attach_second(&["0000:00:05.0"]);
        let path = host.second.backend_node("msi-0");
        host.set(&path, "0");
        host.attach_first(&["0000:00:05.0"]);
        host.start();
        host.settle();
        host.guest.publish();
        host.settle();
        let refused = |host: &mut Host| {
            let service = host.service.borrow();
            let counters = Counters::collect(service.page().unwrap()).unwrap();
            counters.get(Counter::Refused)
        };
        let before = refused(&mut host);
        assert_eq!(told(&mut host, &Request::new(Command::EnableMsi, FIRST), &[]), -5);
        let msix = Request::new(Command::EnableMsix, FIRST);
        assert_eq!(told(&mut host, &msix, &entries([0])), -5);
        assert_eq!(refused(&mut host) - before, 2);
        assert!(host.service.borrow().served.is_empty());
        let off = host.ask(&Request::new(Command::DisableMsix, FIRST), &[]).unwrap();
        assert_eq!(off.value, IRQ, "the line's pirq");
    }

    #[test]
    fn a_virtual_function_gets_msix_whatever_its_own_decode_bit_says() {
        let mut host = Host::idle();
        host.device.poke(0x00, 4, u32::MAX);
        host.device.poke(0x04, 2, 0);
        host.attach_second(&["0000:00:05.0"]);
        let path = host.second.backend_node("virtual-0");
        host.set(&path, "1");
        host.attach_first(&["0000:00:05.0"]);
        host.start();
        host.settle();
        host.guest.publish();
        host.settle();
        assert_eq!(host.read(0x00, 4), 0x10d3_8086);
        let msix = Request::new(Command::EnableMsix, FIRST);
        host.device.decode_by_another();
        assert_eq!(told(&mut host, &msix, &entries([0])), 0);
    }

    #[test]
    fn an_unaligned_negative_or_distant_access_is_an_invalid_offset() {
        let mut host = Host::connected();
        for (offset, size) in [
            (1, 2),
            (2, 4),
            (0, 0),
            (0, 3),
            (0, 8),
            (0, -4),
            (-4, 4),
            (-1, 1),
            (4096, 1),
            (4096, 4),
            (4094, 4),
            (i32::MIN, 4),
            (i32::MAX, 1),
            (0, i32::MIN),
        ] {
            for command in [Command::ConfRead, Command::ConfWrite] {
                let request = Request {
                    offset,
                    size,
                    ..Request::new(command, FIRST)
                };
                assert_eq!(told(&mut host, &request, &[]), -2, "{request}");
            }
        }
        assert!(
            host.service.borrow().served.is_empty(),
            "dom0 hears of none of it"
        );
    }

    #[test]
    fn one_hundred_and_twenty_nine_vectors_are_too_many() {
        let mut host = Host::connected();
        for count in [129, 1000, u32::MAX] {
            // Written by hand: our own frontend would not post it.
            let posted = host.guest.post(&Request::new(Command::EnableMsix, FIRST), &[]);
            host.guest.page.copy_in(layout::OP_VALUE, &count.to_le_bytes());
            host.stub().step();
            assert_eq!(host.guest.answer(posted).unwrap_err().raw(), -22, "{count}");
        }
        assert_eq!(host.device.mode(), None);
    }

    #[test]
    fn the_same_vector_twice_is_refused() {
        let mut host = Host::connected();
        for twice in [[0, 0], [4, 4]] {
            let request = Request::new(Command::EnableMsix, FIRST);
            assert_eq!(told(&mut host, &request, &entries(twice)), -22);
        }
        assert_eq!(host.device.mode(), None);
    }

    #[test]
    fn an_entry_past_the_table_and_no_entry_at_all_are_refused() {
        let mut host = Host::connected();
        let request = Request::new(Command::EnableMsix, FIRST);
        for bad in [vec![TABLE], vec![0, 0xffff], vec![]] {
            assert_eq!(told(&mut host, &request, &entries(bad.clone())), -22, "{bad:?}");
        }
        assert_eq!(told(&mut host, &request, &entries(0..TABLE)), 0);
    }

    #[test]
    fn msi_and_msix_exclude_each_other_and_themselves() {
        let mut host = Host::connected();
        let msi = Request::new(Command::EnableMsi, FIRST);
        let msix = Request::new(Command::EnableMsix, FIRST);
        assert_eq!(told(&mut host, &msi, &[]), 0);
        assert_eq!(told(&mut host, &msi, &[]), -5);
        assert_eq!(told(&mut host, &msix, &entries([0])), -6);
        assert_eq!(
            told(&mut host, &Request::new(Command::DisableMsix, FIRST), &[]),
            0
        );
        assert_eq!(told(&mut host, &msix, &entries([0])), 0);
        assert_eq!(told(&mut host, &msix, &entries([0])), -114);
        assert_eq!(told(&mut host, &msi, &[]), -5);
    }

    #[test]
    fn turning_off_what_is_off_succeeds_and_does_nothing() {
        let mut host = Host::connected();
        for command in [Command::DisableMsi, Command::DisableMsix] {
            assert_eq!(told(&mut host, &Request::new(command, FIRST), &[]), 0);
        }
        assert!(host.service.borrow().served.is_empty());
    }

    #[test]
    fn msix_needs_memory_decode_in_the_device_itself() {
        let mut host = Host::connected();
        host.device.poke(0x04, 2, 0x0001);
        let request = Request::new(Command::EnableMsix, FIRST);
        assert_eq!(told(&mut host, &request, &entries([0])), -6);
        host.write(0x04, 2, 0x0002).unwrap();
        assert_eq!(told(&mut host, &request, &entries([0])), 0);
    }

    #[test]
    fn a_device_without_the_capability_is_not_turned_to_it() {
        let mut host = Host::idle();
        host.device.poke(0x34, 1, 0);
        host.attach_second(&["0000:00:05.0"]);
        host.attach_first(&["0000:00:05.0"]);
        host.start();
        host.settle();
        host.guest.publish();
        host.settle();
        assert_eq!(told(&mut host, &Request::new(Command::EnableMsi, FIRST), &[]), -5);
        let msix = Request::new(Command::EnableMsix, FIRST);
        assert_eq!(told(&mut host, &msix, &entries([0])), -22);
    }

    #[test]
    fn a_device_that_dies_reads_all_ones_and_takes_no_command() {
        let mut host = Host::connected();
        host.device.fill(0xff);
        assert_eq!(host.read(0x08, 4), u32::MAX);
        assert_eq!(host.write(0x04, 2, 0x0007).unwrap_err().raw(), -5);
    }

    #[test]
    fn garbage_all_over_the_shared_page_is_answered_and_nothing_breaks() {
        let mut host = Host::connected();
        for seed in 0..=255u8 {
            let garbage: Vec<u8> = (0..1020u32)
                .map(|at| seed.wrapping_mul(31).wrapping_add(at as u8))
                .collect();
            host.guest.page.copy_in(4, &garbage);
            let raw = u32::from(seed) | AER_HANDLER | 1;
            host.guest.page.set_bits(layout::FLAGS, raw);
            host.world.notify(GUEST, host.guest.port);
            host.stub().step();
            assert_eq!(host.guest.page.load(layout::FLAGS) & 1, 0, "{seed}: answered");
        }
        assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    }

    #[test]
    fn events_without_a_request_cost_nothing_and_are_counted() {
        use xenbus::counters::{Counter, Counters};
        let mut host = Host::connected();
        for _ in 0..10 {
            host.world.notify(GUEST, host.guest.port);
            assert_eq!(host.stub().step(), Outcome::Wait { until: None });
        }
        host.read(0, 4);
        let service = host.service.borrow();
        let counters = Counters::collect(service.page().unwrap()).unwrap();
        // One more came with the binding of the port.
        assert_eq!(counters.get(Counter::SpuriousEvents), 11);
    }

    #[test]
    fn a_guest_that_gave_up_is_not_answered() {
        let mut host = Host::connected();
        let posted = host.guest.post(&Request::conf_read(FIRST, 0, 4), &[]);
        assert!(posted.withdraw(&host.guest.page).is_none());
        host.stub().step();
        assert_eq!(host.read(0x00, 2), 0x8086, "the next request is served");
    }

    #[test]
    fn a_flood_of_refusals_is_told_of_in_time_and_no_more() {
        let mut host = Host::connected();
        for _ in 0..1000 {
            host.ask(&Request::new(Command::Other(99), FIRST), &[])
                .unwrap_err();
        }
        let Outcome::Wait { until: Some(due) } = host.stub().step() else {
            panic!("the suppressed lines are due at some time");
        };
        host.stub().wait(Some(due));
        assert_eq!(host.stub().step(), Outcome::Wait { until: None });
    }
}

mod frontend_nodes {
    use super::*;

    /// The guest publishes this; the backend must say why it will not do, and recover with a new start.
    fn publish(pci_op_ref: &str, event_channel: &str, magic: &str) -> (Host, String) {
        let mut host = Host::ready();
        let grant = host.guest.grant.to_string();
        let port = host.guest.port.to_string();
        let or = |given: &str, sound: String| if given == "ok" { sound } else { given.to_owned() };
        host.guest
            .publish_as(&or(pci_op_ref, grant), &or(event_channel, port), magic);
        host.settle_for_good();
        assert_eq!(host.backend_state(), Closing);
        assert_eq!(host.world.mapped(), 0, "nothing stays mapped");
        assert_eq!(host.stub().ports().len(), 2, "xenstore's and the service's");
        let error = host.error().expect("an error node");
        let own = host.get(&host.first.backend_node("error"));
        assert_eq!(own.as_ref(), Some(&error));
        (host, error)
    }

    #[test]
    fn another_magic_is_refused_by_name() {
        for magic in ["6", "8", "", "7 ", "07", "seven"] {
            let (_, error) = publish("ok", "ok", magic);
            assert!(
                error.starts_with("-22 ") && error.contains("/magic is"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_grant_that_is_no_number_is_refused_by_name() {
        for grant in ["", "-1", "0x10", "4294967296", "8 ", "\u{1b}[2J"] {
            let (_, error) = publish(grant, "ok", "7");
            assert!(error.contains("/pci-op-ref is"), "{error}");
        }
    }

    #[test]
    fn a_port_that_is_no_number_is_refused_by_name() {
        for port in ["", "-1", "99999999999", "one"] {
            let (_, error) = publish("ok", port, "7");
            assert!(error.contains("/event-channel is"), "{error}");
        }
    }

    #[test]
    fn a_grant_that_cannot_be_mapped_is_refused_by_name() {
        let (_, error) = publish("4294967295", "ok", "7");
        assert!(error.starts_with("-22 cannot map grant 4294967295"), "{error}");
    }

    #[test]
    fn a_port_that_cannot_be_bound_is_refused_by_name() {
        let (_, error) = publish("ok", "4294967295", "7");
        assert!(
            error.starts_with("-22 cannot bind event channel 4294967295"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_node_is_named() {
        let mut host = Host::ready();
        host.guest.set_state(Initialised);
        host.settle_for_good();
        let error = host.error().unwrap();
        assert!(
            error.starts_with("-2 ") && error.contains("/pci-op-ref is missing"),
            "{error}"
        );
    }

    #[test]
    fn a_node_that_is_no_text_is_named() {
        let mut host = Host::ready();
        host.guest.publish_as("\u{0}\u{1}", "1", "7");
        host.settle();
        assert!(host.error().unwrap().contains("/pci-op-ref is"));
    }

    #[test]
    fn long_text_is_cut_before_it_is_repeated() {
        let (_, error) = publish(&"9".repeat(2000), "ok", "7");
        assert!(error.len() < 300, "{} bytes", error.len());
    }

    #[test]
    fn after_a_refusal_the_toolstack_can_start_anew() {
        let (mut host, _) = publish("ok", "ok", "8");
        host.guest.set_state(Closed);
        host.settle();
        assert_eq!(host.backend_state(), Closed);
        host.attach_first(&["0000:00:05.0"]);
        host.settle();
        host.guest.publish();
        host.settle();
        assert_eq!(host.backend_state(), Connected);
    }

    #[test]
    fn a_guest_that_writes_its_state_all_the_time_only_costs_time() {
        let mut host = Host::connected();
        for round in 0..500u32 {
            host.guest
                .write(key::STATE, ["4", "3", "", "x", "4"][round as usize % 5]);
            if round % 97 == 0 {
                host.guest.set_state(Connected);
                host.stub().step();
            }
        }
        host.guest.set_state(Connected);
        host.settle();
        assert_eq!(host.backend_state(), Connected);
        assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    }
}

mod toolstack_nodes {
    use super::*;

    /// A host where one node is wrong; the stub must not export, and say why.
    fn refused(spoil: impl FnOnce(&mut Host)) -> String {
        let mut host = Host::idle();
        host.attach_second(&["0000:00:05.0"]);
        host.attach_first(&["0000:00:05.0"]);
        spoil(&mut host);
        host.start();
        assert_eq!(host.settle(), Outcome::Wait { until: None });
        assert_eq!(host.backend_state(), Closing);
        assert_eq!(host.world.mapped(), 0, "nothing stays mapped");
        host.error().expect("an error node")
    }

    #[test]
    fn garbage_in_the_first_hops_nodes_is_named() {
        for (node, values) in [
            ("num_devs", &["", "x", "-1", "0", "257", "4294967296"][..]),
            (
                "dev-0",
                &["", "05.0", "0000:00:20.0", "0000:00:05.8", "0000:00:05.0 "],
            ),
        ] {
            for value in values {
                let error = refused(|host| {
                    let path = host.first.backend_node(node);
                    host.set(&path, value);
                });
                assert!(
                    error.starts_with("-22 ") && error.contains(&format!("/{node} is")),
                    "{node} {value:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn garbage_in_the_second_hops_nodes_is_named() {
        for (node, values) in [
            ("num_devs", &["", "x", "257"][..]),
            ("dev-0", &["", "5"]),
            ("ids-0", &["", "8086", "8086:10d3:1"]),
            ("ecam-0", &["", "0xb0028", "-1"]),
            (
                "bars-0",
                &["", "0,0,0", "1000,3000,0;0,0,0;0,0,0;0,0,0;0,0,0;0,0,0;0,0,0"],
            ),
            ("irq-0", &["", "-1", "x"]),
            ("intx-0", &["", "2", "yes"]),
            ("slots", &["", "real", "Vpci"]),
            ("permissive-0", &["", "2", "yes"]),
            (
                "quirks-0",
                &["44:3:1", "1000:1:1", "44:1:100", "44:2:1;45:1:1", "x"],
            ),
            ("msi-0", &["", "2", "off"]),
            ("virtual-0", &["", "2", "no"]),
        ] {
            for value in values {
                let error = refused(|host| {
                    let path = host.second.backend_node(node);
                    host.set(&path, value);
                });
                assert!(
                    error.starts_with("-22 ") && error.contains(&format!("/{node} is")),
                    "{node} {value:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn a_missing_node_is_named() {
        for key in [
            Numbered::Ids,
            Numbered::Ecam,
            Numbered::Bars,
            Numbered::Irq,
            Numbered::Intx,
        ] {
            let node = key.at(0);
            let error = refused(|host| {
                let path = host.second.backend_node(&node);
                host.remove(&path);
            });
            assert!(error.starts_with("-2 ") && error.contains(&node), "{error}");
        }
    }

    #[test]
    fn a_device_that_the_service_does_not_list_is_refused_by_name() {
        let error = refused(|host| host.attach_first(&["0000:00:06.0"]));
        assert!(error.starts_with("-1 0000:00:06.0 is exported"), "{error}");
    }

    #[test]
    fn a_device_listed_twice_is_refused_by_name() {
        let error = refused(|host| host.attach_first(&["0000:00:05.0", "0000:00:05.0"]));
        assert!(error.starts_with("-17 0000:00:05.0 is listed twice"), "{error}");
    }

    #[test]
    fn an_ecam_frame_that_was_not_granted_is_named() {
        let error = refused(|host| {
            let path = host.second.backend_node("ecam-0");
            host.set(&path, "dead");
        });
        assert!(
            error.starts_with("-1 cannot map the config space of 0000:00:05.0"),
            "{error}"
        );
    }

    #[test]
    fn a_device_whose_ecam_page_the_stub_could_write_is_refused_by_name() {
        let error = refused(|host| host.leave_writable("0000:00:05.0"));
        assert!(
            error.starts_with("-1 0000:00:05.0 is refused: Xen leaves its config space")
                && error.ends_with("writable; boot Xen without mmcfg="),
            "{error}"
        );
    }

    #[test]
    fn a_device_that_answers_all_ones_is_named() {
        let error = refused(|host| host.device.fill(0xff));
        assert!(error.starts_with("-19 0000:00:05.0 answers all-ones"), "{error}");
    }

    #[test]
    fn another_device_at_the_address_is_named() {
        let error = refused(|host| host.device.poke(0x02, 2, 0x1234));
        assert!(
            error.starts_with("-19 0000:00:05.0 is 8086:1234, not 8086:10d3"),
            "{error}"
        );
    }

    #[test]
    fn a_cardbus_bridge_and_a_pci_bridge_on_the_virtual_bus_are_named() {
        let error = refused(|host| host.device.poke(0x0e, 1, 2));
        assert!(error.starts_with("-19 0000:00:05.0 has header type 2"), "{error}");
        let error = refused(|host| host.device.poke(0x0e, 1, 1));
        assert!(
            error.starts_with("-19 0000:00:05.0 is a bridge") && error.contains("--slots passthrough"),
            "{error}"
        );
    }

    #[test]
    fn a_quirk_for_a_register_with_a_rule_is_named() {
        let error = refused(|host| {
            let path = host.second.backend_node("quirks-0");
            host.set(&path, "4:2:400");
        });
        assert!(
            error.starts_with("-22 quirk 4:2:400 of 0000:00:05.0 is for Command"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_node_that_is_no_number_is_waited_out() {
        let mut host = Host::idle();
        host.attach_second(&["0000:00:05.0"]);
        host.attach_first(&["0000:00:05.0"]);
        let path = host.second.backend_node(key::GUEST);
        host.set(&path, "me");
        host.start();
        host.settle();
        assert_eq!(host.backend_state(), Initialising);
    }

    #[test]
    fn a_second_guest_is_refused_and_the_first_is_not_disturbed() {
        let mut host = Host::connected();
        for other in ["9/0", "7/1", "x/0"] {
            let directory = format!("{}/backend/pci/{other}", path::home(STUB));
            host.set(&format!("{directory}/state"), "1");
            host.settle();
            assert_eq!(
                host.get(&format!("{directory}/state")).as_deref(),
                Some("5"),
                "{other}"
            );
            let error = host.get(&format!("{directory}/error")).unwrap();
            assert!(
                error.starts_with("-1 guest 9") || error.starts_with("-17 device"),
                "{error}"
            );
        }
        assert_eq!(host.backend_state(), Connected);
        assert_eq!(host.read(0x00, 4), 0x10d3_8086);
    }

    #[test]
    fn a_stub_without_a_domid_node_does_not_start() {
        let host = Host::idle();
        let mut toolstack = Client::new(host.xenstored.connect(0));
        toolstack.remove(&format!("{}/domid", path::home(STUB))).unwrap();
        let platform = common::world::Domain {
            domid: STUB,
            world: host.world.clone(),
            others: std::rc::Rc::new(std::cell::RefCell::new(|| {})),
            store: common::world::StoreEvent::default(),
            snapshot: host.world.snapshot(),
        };
        let Err(error) = Stub::new(platform, Client::new(host.xenstored.connect(STUB)), 1) else {
            panic!("no domid, no stub");
        };
        assert!(error.to_string().contains("domid is missing"), "{error}");
    }

    #[test]
    fn nodes_that_the_stub_may_not_write_do_not_stop_it() {
        let mut host = Host::idle();
        host.attach_second(&["0000:00:05.0"]);
        host.attach_first(&["0000:00:05.0"]);
        let state = host.first.backend_node(key::STATE);
        host.own(&state, 0, STUB);
        host.start();
        host.settle();
        assert_eq!(host.world.mapped(), 0);
        let node = format!("{}/control/shutdown", path::home(STUB));
        host.set(&node, "poweroff");
        assert!(matches!(host.settle(), Outcome::Shutdown(_)), "it still listens");
    }

    #[test]
    fn no_grant_left_for_the_second_hop_is_said_once_and_tried_again_later() {
        let mut host = Host::idle();
        host.world.refuse_grants(true);
        host.attach_second(&["0000:00:05.0"]);
        host.start();
        assert_eq!(host.settle(), Outcome::Wait { until: None });
        assert_eq!(host.hop_state(), Closing);
        let error = host.get(&format!("{}/error/device/bulkhead/0/error", path::home(STUB)));
        assert!(error.unwrap().starts_with("-28 Xen refused a page"));

        host.world.refuse_grants(false);
        host.service.borrow_mut().set_state(Closed);
        host.settle();
        host.service.borrow_mut().set_state(Initialising);
        host.settle();
        assert_eq!(host.hop_state(), Connected);
    }
}

mod service {
    use super::*;

    #[test]
    fn a_silent_service_fails_the_op_before_the_guest_gives_up() {
        let mut host = Host::connected();
        host.service.borrow_mut().mood = Mood::Silent;
        let before = host.world.now();
        assert_eq!(host.write(0x0c, 1, 8).unwrap_err().raw(), -5);
        let waited = host.world.now() - before;
        assert_eq!(waited, Duration::from_millis(1500));
    }

    #[test]
    fn further_requests_wait_for_an_answer_that_is_owed_and_later_ones_fail_at_once() {
        let mut host = Host::connected();
        host.service.borrow_mut().mood = Mood::Silent;
        host.write(0x0c, 1, 8).unwrap_err();
        // Each leaves 400 ms of its own time for what it asks itself, and 1.5 s is the limit of all.
        for (number, expected) in [1100, 400, 0, 0].into_iter().enumerate() {
            let before = host.world.now();
            assert_eq!(host.write(0x0c, 1, 16).unwrap_err().raw(), -5);
            let waited = host.world.now() - before;
            assert_eq!(waited, Duration::from_millis(expected), "{number}");
        }
        let before = host.world.now();
        assert_eq!(host.read(0x00, 4), 0x10d3_8086);
        assert_eq!(host.world.now(), before);
    }

    /// A service that has not answered the request before, and gets to it so many ms after the stub has given up.
    fn host_that_owes_an_answer(late: u64, mood: fn(Duration) -> Mood) -> Host {
        let mut host = Host::connected();
        let back = host.world.now() + Duration::from_millis(1500 + late);
        host.service.borrow_mut().mood = mood(back);
        assert_eq!(host.write(0x0c, 1, 8).unwrap_err().raw(), -5);
        host.world.set_alarm(back);
        host
    }

    #[test]
    fn an_answer_that_comes_too_late_costs_one_request() {
        for late in [1, 700, 1099] {
            let mut host = host_that_owes_an_answer(late, Mood::SilentUntil);
            let before = host.world.now();
            host.write(0x0c, 1, 16).unwrap();
            let waited = host.world.now() - before;
            assert_eq!(waited.as_millis(), late.into());
            let service = host.service.borrow();
            let values: Vec<_> = service.served.iter().map(|request| request.value).collect();
            assert_eq!(values, [8, 16], "{late}");
        }
    }

    #[test]
    fn msix_can_be_turned_on_while_the_answer_about_turning_it_off_is_owed() {
        let mut host = Host::connected();
        let [on, off] =
            [Command::EnableMsix, Command::DisableMsix].map(|command| Request::new(command, FIRST));
        host.ask(&on, &entries([0, 1])).unwrap();
        let back = host.world.now() + Duration::from_millis(2200);
        host.service.borrow_mut().mood = Mood::SilentUntil(back);
        host.ask(&off, &[]).unwrap_err();
        host.world.set_alarm(back);
        assert_eq!(host.ask(&on, &entries([0, 1])).unwrap().vectors, [55, 54]);
        assert_eq!(host.device.mode(), Some(MessageKind::Msix));
    }

    #[test]
    fn a_request_that_has_waited_for_that_fails_in_its_own_time() {
        for late in [1, 700, 1099] {
            let mut host = host_that_owes_an_answer(late, Mood::AnsweringOneAt);
            let before = host.world.now();
            assert_eq!(host.write(0x0c, 1, 16).unwrap_err().raw(), -5);
            assert_eq!(host.world.now() - before, Duration::from_millis(1500), "{late}");
        }
    }

    #[test]
    fn a_late_answer_is_not_taken_for_the_next_one() {
        let mut host = Host::connected();
        let [on, off] = [Command::EnableMsi, Command::DisableMsi].map(|command| Request::new(command, FIRST));
        assert_eq!(told(&mut host, &on, &[]), 0);
        assert_eq!(told(&mut host, &off, &[]), 0);
        host.service.borrow_mut().served.clear();
        host.service.borrow_mut().mood = Mood::Silent;
        assert_eq!(told(&mut host, &on, &[]), -5);

        // Now the late answer comes: MSI is on in the device, and the guest knows nothing of it.
        host.service.borrow_mut().mood = Mood::Willing;
        host.service.borrow_mut().run();
        assert_eq!(host.device.mode(), Some(MessageKind::Msi));

        let msix = host.ask(&Request::new(Command::EnableMsix, FIRST), &entries([0, 1]));
        assert_eq!(msix.unwrap().vectors, [55, 54]);
        assert_eq!(host.device.mode(), Some(MessageKind::Msix));
        let commands: Vec<_> = host
            .service
            .borrow()
            .served
            .iter()
            .map(|request| request.command)
            .collect();
        assert_eq!(
            commands,
            [Command::EnableMsi, Command::DisableMsi, Command::EnableMsix]
        );
    }

    #[test]
    fn a_disable_whose_answer_was_lost_can_be_repeated() {
        let mut host = Host::connected();
        assert_eq!(told(&mut host, &Request::new(Command::EnableMsi, FIRST), &[]), 0);
        host.service.borrow_mut().mood = Mood::Silent;
        let disable = Request::new(Command::DisableMsi, FIRST);
        assert_eq!(told(&mut host, &disable, &[]), -5);
        host.service.borrow_mut().mood = Mood::Willing;
        host.service.borrow_mut().run();
        assert_eq!(told(&mut host, &disable, &[]), 0);
        assert_eq!(host.device.mode(), None);
    }

    #[test]
    fn a_refusal_of_any_kind_is_a_failed_op() {
        let mut host = Host::connected();
        for code in [-1, -2, -3, -4, -5, -22, -114, 17, i32::MIN] {
            host.service.borrow_mut().mood = Mood::Refusing(code);
            assert_eq!(host.write(0x0c, 1, 8).unwrap_err().raw(), -5, "{code}");
            assert_eq!(told(&mut host, &Request::new(Command::EnableMsi, FIRST), &[]), -5);
            let msix = Request::new(Command::EnableMsix, FIRST);
            assert_eq!(told(&mut host, &msix, &entries([0])), -5);
        }
        host.service.borrow_mut().mood = Mood::Willing;
        assert_eq!(told(&mut host, &Request::new(Command::EnableMsi, FIRST), &[]), 0);
    }

    #[test]
    fn a_guest_that_leaves_while_the_service_is_silent_does_not_hang_the_stub() {
        let mut host = Host::connected();
        assert_eq!(told(&mut host, &Request::new(Command::EnableMsi, FIRST), &[]), 0);
        host.service.borrow_mut().mood = Mood::Silent;
        host.guest.set_state(Closed);
        host.settle();
        assert_eq!(host.backend_state(), Closed);
        assert_eq!(host.world.mapped(), 0);
    }

    #[test]
    fn a_device_at_an_address_with_several_functions_gets_its_own_requests() {
        let mut host = Host::idle();
        let devices = ["0000:00:05.0", "0000:00:05.1"];
        host.attach_second(&devices);
        host.attach_first(&devices);
        host.start();
        host.settle();
        host.guest.publish();
        host.settle();
        let second = Bdf::from_devfn(0, 0, 1);
        host.ask(&Request::conf_write(second, 0x0c, 1, 8), &[]).unwrap();
        let served = host.service.borrow().served[0].function();
        assert_eq!(served, Some("0000:00:05.1".parse().unwrap()));
        assert_eq!(host.device.take_writes(), Device::e1000e().take_writes());
    }
}
