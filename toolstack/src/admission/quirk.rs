//! Quirks: registers of which the guest may write some bits.

use super::refusal::Refusal;
use crate::config_space::capabilities::Capabilities;
use crate::function::guard::Guard;
use crate::host::sysfs::Sysfs;
use crate::terms::Terms;
use pci::bdf::Bdf;

/// Checks that the quirks of devices that are there give the guest nothing that has rules, or is dom0's or Xen's; all
/// that speaks against it is returned.
pub fn check_quirks(wanted: &[(Bdf, &Terms)], sysfs: &Sysfs) -> Vec<Refusal> {
    let quirky = wanted
        .iter()
        .filter(|(bdf, terms)| !terms.quirks.is_empty() && sysfs.exists(*bdf));
    quirky
        .filter_map(|&(bdf, terms)| check_device(bdf, terms, sysfs).err())
        .collect()
}

fn check_device(bdf: Bdf, terms: &Terms, sysfs: &Sysfs) -> Result<(), Refusal> {
    let config = sysfs.config_bytes(bdf)?;
    // The guard itself decides, so that what is admitted here is not refused later.
    let guard = Guard::new(&config, &Capabilities::find(&config), terms);
    match guard.unfit_quirks().first() {
        Some(&quirk) => Err(Refusal::Quirk { bdf, quirk }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::{A, bdf, host};

    #[test]
    fn a_quirk_for_what_is_not_the_administrators_to_give_is_refused_by_name() {
        let check = |quirks: &str| {
            let terms = Terms {
                quirks: quirks.parse().unwrap(),
                ..Terms::default()
            };
            let refusals = check_quirks(&[(bdf(A), &terms), (bdf("00:09.0"), &terms)], &host().sysfs());
            refusals.iter().map(Refusal::to_string).collect::<Vec<_>>()
        };
        assert_eq!(check(""), [""; 0]);
        assert_eq!(check("8:4:1"), [""; 0]);
        // The fixture has MSI-X at 0x70.
        for quirk in ["10:4:ff", "4:2:400", "72:2:8000"] {
            let refusals = check(&format!("8:4:1;{quirk}"));
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            let start = format!("{A}: quirk {quirk} cannot be had");
            assert!(refusals[0].starts_with(&start), "{refusals:?}");
        }
    }
}
