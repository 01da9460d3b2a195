//! The version of the record of an attachment.

use crate::serde_text::json;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The version of records that this program writes. It stays the same when fields are added that an earlier
/// `bulkhead` may ignore. Since version 2 the modes may be in files.
pub const VERSION: u32 = 2;

/// The version of records that name none.
pub fn first() -> u32 {
    1
}

#[derive(Deserialize)]
struct VersionOnly {
    #[serde(default = "first")]
    version: u32,
}

/// The version of a record, by the text of its own node.
pub fn of(ends: &str) -> serde_json::Result<u32> {
    let VersionOnly { version } = serde_json::from_str(ends)?;
    Ok(version)
}

/// The text of a record's own node with the version of this program, if an earlier one has written it. Fields that are not
/// known here stay.
pub fn newer(ends: &str) -> Option<String> {
    if of(ends).ok()? >= VERSION {
        return None;
    }
    let mut ends: Map<String, Value> = serde_json::from_str(ends).ok()?;
    ends.insert("version".into(), VERSION.into());
    Some(json(&ends))
}
