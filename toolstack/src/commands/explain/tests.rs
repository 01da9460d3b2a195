use super::*;
use crate::config_space::capabilities::tests::{extended, space};
use crate::layout::Render as _;
use crate::records::tests::device;
use crate::status::{DroppedWrites, RefusedWrite};

const PM: u16 = 0x40;
const MSI: u16 = 0x50;
const VPD: u16 = 0x70;
const EXPRESS: u16 = 0x80;
const AER: u16 = 0x100;

/// A card with the usual capabilities.
fn card() -> Vec<u8> {
    let mut config = extended(&[(AER, 0x0001), (0x150, 0x0003)]);
    let list = [
        (PM as u8, 0x01),
        (MSI as u8, 0x05),
        (VPD as u8, 0x03),
        (EXPRESS as u8, 0x10),
    ];
    config[..256].copy_from_slice(&space(&list)[..256]);
    config[..8].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10, 0x06, 0x04, 0x10, 0x00]);
    config[0x08..0x10].copy_from_slice(&[0x00, 0x00, 0x00, 0x02, 0x10, 0x00, 0x00, 0x00]);
    config[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
    config[0x3d] = 1;
    config[usize::from(PM) + 2] = 0x03;
    config[usize::from(MSI) + 2] = 0x80;
    config[usize::from(EXPRESS) + 2] = 0x02;
    config
}

fn case(terms: Terms) -> Device {
    let config = card();
    Device {
        ids: "8086:10d3".parse().unwrap(),
        bars: "febc0000,20000,0;0,0,0;c041,0,0;0,0,0;0,0,0;0,0,0;0,0,0"
            .parse()
            .unwrap(),
        header: config[..64].to_vec(),
        terms,
        ..device("00:05.0")
    }
}

fn regions(terms: &Terms) -> Vec<Region> {
    let mut model = JudgementModel::new(&case(terms.clone()), &card()).unwrap();
    regions::divide(&mut model, terms)
}

fn at(regions: &[Region], offset: u16) -> &Region {
    regions
        .iter()
        .find(|region| (region.offset..region.end()).contains(&offset))
        .unwrap()
}

fn permissive() -> Terms {
    Terms {
        permissive: true,
        ..Terms::default()
    }
}

#[test]
fn every_byte_is_in_one_region_in_the_order_of_offsets() {
    for terms in [
        Terms::default(),
        permissive(),
        Terms {
            quirks: "b0:2:ff;f00:4:1;e1:1:80".parse().unwrap(),
            ..Terms::default()
        },
    ] {
        let regions = regions(&terms);
        let mut next = 0;
        for region in &regions {
            assert_eq!(region.offset, next, "{terms}");
            assert!(region.bytes > 0);
            next = region.end();
        }
        assert_eq!(next, 4096, "{terms}");
    }
}

#[test]
fn each_byte_has_its_owner_by_what_the_judgements_do_with_it() {
    let usual = regions(&Terms::default());
    for (offset, owner) in [
        (0x00, ByteOwner::Virtual),
        (0x04, ByteOwner::Filtered),
        (0x06, ByteOwner::Dropped),
        (0x0c, ByteOwner::Device),
        (0x0d, ByteOwner::Kept),
        (0x10, ByteOwner::Virtual),
        (0x14, ByteOwner::Virtual),
        (0x3c, ByteOwner::Virtual),
        (0x3d, ByteOwner::Kept),
        (PM + 4, ByteOwner::Filtered),
        (MSI + 2, ByteOwner::Denied),
        (MSI + 4, ByteOwner::Kept),
        (VPD + 2, ByteOwner::Filtered),
        (EXPRESS + 8, ByteOwner::Dropped),
        (AER, ByteOwner::Kept),
        (0xfff, ByteOwner::Dropped),
    ] {
        assert_eq!(at(&usual, offset).owner, owner, "{offset:#x}");
    }
}

#[test]
fn terms_open_bytes_and_leave_those_of_dom0_and_xen() {
    let open = regions(&permissive());
    for (offset, owner) in [
        (0x06, ByteOwner::Permissive),
        (0x0d, ByteOwner::Kept),
        (0xf0, ByteOwner::Permissive),
        (EXPRESS + 8, ByteOwner::Permissive),
        (MSI + 2, ByteOwner::Denied),
        (MSI + 4, ByteOwner::Kept),
        (AER, ByteOwner::Kept),
        (0x150, ByteOwner::Permissive),
    ] {
        assert_eq!(at(&open, offset).owner, owner, "{offset:#x}");
    }
    assert!(at(&open, AER).why.contains("no terms give it away"));
    let control = at(&open, EXPRESS + 8).bits.unwrap();
    assert_eq!((control.can_set, control.can_clear), (0x7b10, 0x7b10));
    let quirk = Terms {
        quirks: "f0:2:8ff0".parse().unwrap(),
        ..Terms::default()
    };
    let quirky = regions(&quirk);
    let region = at(&quirky, 0xf1);
    assert_eq!(
        (region.offset, region.bytes, region.owner),
        (0xf0, 2, ByteOwner::Quirk)
    );
    let bits = region.bits.unwrap();
    assert_eq!(
        (bits.can_set, bits.can_clear, bits.stub_could),
        (0x8ff0, 0x8ff0, 0x8ff0)
    );
    assert!(region.writes.contains("0x8ff0"), "{}", region.writes);
}

#[test]
fn bits_are_found_by_trying() {
    let regions = regions(&Terms::default());
    let bits = |offset| at(&regions, offset).bits.unwrap();
    let command = bits(0x04);
    assert_eq!(command.from_device, 0x02bc);
    assert_eq!(command.can_set, 0x0016, "memory decode, bus master, MWI");
    assert_eq!(command.can_clear, 0x0014, "decode stays on");
    assert_eq!(
        command.stub_could, 0x02bf,
        "dom0's guard allows what xen-pciback does"
    );
    let power = bits(PM + 4);
    assert_eq!(
        (power.can_set, power.can_clear),
        (0x1e03, 0x9e03),
        "a written 1 clears PME status"
    );
    let vpd = bits(VPD + 2);
    assert_eq!((vpd.can_set, vpd.can_clear & 0x8000), (0x7fff, 0x8000));
    let bar = bits(0x10);
    assert_eq!(bar.guest, 0xfebc_0000);
    assert_eq!(
        bar.kept_by_stub & 0xffff_fff0,
        0xfffe_0000 ^ 0xfebc_0000,
        "the size probe"
    );
    assert_eq!(
        (bar.from_device, bar.can_set & bar.can_clear),
        (0, 0),
        "restored only"
    );
}

/// What a stub lets through passes dom0's guard: the model has both, one behind the other.
#[test]
fn nothing_is_the_guests_that_dom0_would_refuse_a_stub() {
    for terms in [Terms::default(), permissive()] {
        let mut model = JudgementModel::new(&case(terms.clone()), &card()).unwrap();
        for (offset, byte) in model.bytes().iter().enumerate() {
            let more = (byte.can_set | byte.can_clear) & !byte.stub_could;
            // A word's rule may let several bits change that it lets no single one.
            let word = matches!(offset, 0x04 | 0x05) || (0x10..0x34).contains(&offset);
            assert!(more == 0 || word, "{terms} {offset:#x}: {byte:?}");
        }
    }
}

#[test]
fn asking_changes_nothing() {
    let mut model = JudgementModel::new(&case(permissive()), &card()).unwrap();
    let before = (model.device_bytes(), model.bytes());
    assert_eq!((model.device_bytes(), model.bytes()), before);
    assert_eq!(before.0, card());
}

#[test]
fn a_device_that_a_stub_would_refuse_is_refused_in_words() {
    let error = JudgementModel::new(&case(Terms::default()), &[0xff; 256]).unwrap_err();
    assert!(
        error.to_string().starts_with("a stub would refuse the device"),
        "{error}"
    );
    let quirk = Terms {
        quirks: "10:4:1".parse().unwrap(),
        ..Terms::default()
    };
    let error = JudgementModel::new(&case(quirk), &card()).unwrap_err();
    assert!(error.to_string().contains("quirk"), "{error}");
}

pub fn explanations() -> Explanations {
    let terms = Terms {
        quirks: "f0:2:8ff0".parse().unwrap(),
        ..Terms::default()
    };
    let mut regions = regions(&terms);
    let served = Served {
        dropped: vec![
            DroppedWrites {
                slot: "00:01.0".into(),
                offset: 0x0d,
                count: 3,
            },
            DroppedWrites {
                slot: "00:02.0".into(),
                offset: 0x06,
                count: 9,
            },
        ],
        refused: vec![RefusedWrite {
            bdf: "0000:00:05.0".into(),
            offset: 0x104,
            reason: "no".into(),
            count: 1200,
        }],
        ..Served::default()
    };
    count(
        &mut regions,
        "00:05.0".parse().unwrap(),
        Some("0000:00:01.0"),
        &served,
    );
    Explanations {
        devices: vec![Explanation {
            bdf: "0000:00:05.0".into(),
            ids: "8086:10d3".into(),
            called: Some("Intel <82574L>".into()),
            guest: Some(Holding {
                name: "web & more".into(),
                domid: 3,
                address: Some("0000:00:01.0".into()),
            }),
            unfit: vec![],
            terms: terms.to_string(),
            interrupts: interrupts(&terms, &card(), Some(&Mode::Msix(vec![(0, 55)]))),
            line: "GSI 20 is the guest's".into(),
            memory: memory(&case(terms).bars),
            reset: Some("FLR".into()),
            regions,
        }],
    }
}

#[test]
fn counters_go_to_the_registers_of_this_device() {
    let explanations = explanations();
    let regions = &explanations.devices[0].regions;
    assert_eq!(at(regions, 0x0d).dropped, 3);
    assert_eq!(at(regions, 0x06).dropped, 0, "another device's");
    assert_eq!(at(regions, 0x104).refused, 1200);
}

#[test]
fn people_read_facts_a_map_and_all_registers() {
    let text = explanations().render(80);
    let long = text.lines().find(|line| line.chars().count() > 80);
    assert_eq!(long, None, "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn a_device_without_a_guest_is_told_as_one_would_get_it() {
    let mut about = explanations().devices.remove(0);
    about.guest = None;
    about.unfit = vec!["it is in use".into()];
    let text = about.render(200);
    assert!(
        text.contains("guest        no guest has it: this is what one would get"),
        "{text}"
    );
    assert!(text.contains("NOT FIT      it is in use"), "{text}");
}

#[test]
fn the_page_is_whole_by_itself_and_escapes_what_others_wrote() {
    let page = html::render(&explanations()).unwrap();
    assert!(page.contains("Intel &#60;82574L&#62;"), "names are escaped");
    assert!(page.contains("web &#38; more"));
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    // One row for each region, one kind for each byte, and a mark for each counter in each picture that has it.
    let regions = explanations().devices[0].regions.len();
    assert_eq!(page.matches("<tr id=\"d1r").count(), regions);
    assert_eq!(page.matches("<circle").count(), 3);
    assert!(page.contains(">1k</text>") || page.matches("1200").count() >= 2);
    assert_eq!(page.matches("<svg").count(), 2);
    // For a look at it in a browser.
    if let Ok(path) = std::env::var("EXPLAIN_PAGE") {
        std::fs::write(path, page).unwrap();
    }
}
