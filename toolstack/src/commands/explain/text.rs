//! An explanation as text.

use super::explanation::{Explanation, Explanations};
use super::regions::{OWNERS, Region};
use crate::layout::{Lines, Render};

/// Columns of the titles.
const TITLE: usize = 12;

impl Render for Explanations {
    fn render(&self, columns: usize) -> String {
        let sections = self.devices.iter().map(|device| device.render(columns));
        sections.collect::<Vec<_>>().join("\n")
    }
}

impl Render for Explanation {
    fn render(&self, columns: usize) -> String {
        let mut lines = Lines::new(columns);
        lines.line(format_args!(
            "{} {} {}",
            self.bdf,
            self.ids,
            self.called.as_deref().unwrap_or_default()
        ));
        for (title, text) in self.facts() {
            lines.row(2, title, TITLE, text);
        }
        let map = map(&self.regions);
        map.iter().for_each(|row| lines.line(row));
        for (owner, sign, meaning) in OWNERS {
            lines.row(2, sign, 1, format_args!("{owner}: {meaning}"));
        }
        for rule in self.rules() {
            lines.line(format_args!("{}", rule.first.owner));
            lines.row(2, "bytes", WORD, rule.places.join("; "));
            lines.row(2, "reads", WORD, &rule.first.reads);
            lines.row(2, "writes", WORD, &rule.first.writes);
            lines.row(2, "why", WORD, &rule.first.why);
        }
        lines.into_text()
    }
}

/// Bytes in a row of the map, and how many bytes it shows.
const ROW: u16 = 16;
const SHOWN: u16 = 256;

/// A sign for each of the first bytes.
fn map(regions: &[Region]) -> Vec<String> {
    let sign = |offset: u16| {
        let region = regions.iter().find(|region| region.end() > offset);
        let owner = OWNERS
            .iter()
            .find(|(owner, ..)| region.is_some_and(|region| region.owner == *owner));
        owner.map_or("?", |&(_, sign, _)| sign)
    };
    let row = |start: u16| {
        let signs: Vec<_> = (start..start + ROW).map(sign).collect();
        format!("  0x{start:03x}  {}", signs.join(" "))
    };
    (0..SHOWN).step_by(ROW.into()).map(row).collect()
}

/// Columns of the words before the parts of a rule.
const WORD: usize = 6;

/// Regions with one rule.
struct RegionRule<'a> {
    first: &'a Region,
    places: Vec<String>,
}

impl Explanation {
    /// The rules, in the order of the offsets where each stands first.
    fn rules(&self) -> Vec<RegionRule<'_>> {
        let mut rules: Vec<RegionRule<'_>> = Vec::new();
        for region in &self.regions {
            let counted = match region.counted() {
                0 => String::new(),
                count => format!(" ({count} writes refused)"),
            };
            let place = format!("{} {}{counted}", region.range(), region.name());
            let same = |rule: &&mut RegionRule<'_>| {
                let first = rule.first;
                (first.owner, &first.writes, &first.why, &first.reads)
                    == (region.owner, &region.writes, &region.why, &region.reads)
            };
            match rules.iter_mut().find(same) {
                Some(rule) => rule.places.push(place),
                None => rules.push(RegionRule {
                    first: region,
                    places: vec![place],
                }),
            }
        }
        rules
    }
}
