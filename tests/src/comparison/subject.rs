//! What is compared, and the differences in it.

use std::fmt;

/// One difference between the two backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<Place, Value> {
    /// Where it was seen.
    pub place: Place,
    /// What xen-pciback gave there.
    pub pciback: Value,
    /// What Bulkhead gave there.
    pub bulkhead: Value,
}

impl<Place: fmt::Display, Value: fmt::Display> fmt::Display for Difference<Place, Value> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} by xen-pciback, {} by Bulkhead",
            self.place, self.pciback, self.bulkhead
        )
    }
}

/// The differences of one subject.
pub type DifferenceOf<S> = Difference<<S as Subject>::Place, <S as Subject>::Value>;

/// A difference that is meant: one row of a table.
#[derive(Debug)]
pub struct Known<Pattern> {
    /// Where it shows.
    pub at: Pattern,
    /// What xen-pciback does.
    pub pciback: &'static str,
    /// What Bulkhead does.
    pub bulkhead: &'static str,
    /// Why that is right.
    pub reason: &'static str,
}

/// What two backends are compared in.
pub trait Subject: Sized + 'static {
    /// Where a difference can be seen.
    type Place;
    /// What a backend gives there.
    type Value;
    /// Where a row of the table says that a difference shows.
    type Pattern: 'static;

    /// Headings of the columns that a row's pattern fills.
    const COLUMNS: &'static [&'static str];

    /// The table. Where two rows fit one difference, the first one counts.
    fn table() -> &'static [Known<Self::Pattern>];

    /// Whether a difference is the one that a row means.
    fn covers(known: &Known<Self::Pattern>, difference: &DifferenceOf<Self>) -> bool;

    /// The cells of a row that its pattern fills, one for each of [`Self::COLUMNS`].
    fn cells(pattern: &Self::Pattern) -> Vec<String>;

    /// The cell that says what a backend does.
    fn behaviour(text: &'static str) -> String {
        text.to_owned()
    }

    /// What is wrong with Bulkhead's answers even if xen-pciback gives the same.
    fn fault(&self) -> Option<String> {
        None
    }
}
