//! Quirks: registers of which the guest may write some bits.

use super::Refusal;
use crate::capabilities::Capabilities;
use crate::guard::Guard;
use crate::sysfs::Sysfs;
use crate::terms::Terms;
use xenbus::bdf::Bdf;

/// Checks that the quirks of a device give the guest nothing that has rules, or is dom0's or Xen's.
pub fn check_quirks(bdf: Bdf, terms: &Terms, sysfs: &Sysfs) -> Result<(), Refusal> {
    if terms.quirks.is_empty() {
        return Ok(());
    }
    let config = sysfs.config_bytes(bdf)?;
    let guard = Guard::new(&config, &Capabilities::find(&config), terms);
    match guard.unfit_quirks().first() {
        Some(&quirk) => Err(Refusal::Quirk { bdf, quirk }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::{A, bdf, host};

    #[test]
    fn a_quirk_for_what_is_not_the_administrators_to_give_is_refused_by_name() {
        let check = |quirks: &str| {
            let terms = Terms {
                quirks: quirks.parse().unwrap(),
                ..Terms::default()
            };
            check_quirks(bdf(A), &terms, &host().sysfs()).map_err(|error| error.to_string())
        };
        assert_eq!(check(""), Ok(()));
        assert_eq!(check("8:4:1"), Ok(()));
        // The fixture has MSI-X at 0x70.
        for quirk in ["10:4:ff", "4:2:400", "72:2:8000"] {
            let error = check(&format!("8:4:1;{quirk}")).unwrap_err();
            assert!(
                error.starts_with(&format!("{A}: quirk {quirk} cannot be had")),
                "{error}"
            );
        }
    }
}
