//! An explanation as one page for a browser, which needs nothing from elsewhere: `templates/explain.html`.

use super::explanation::{Explanation, Explanations};
use super::regions::{ByteOwner, OWNERS, Region};
use askama::Template;

#[derive(Template)]
#[template(path = "explain.html")]
struct Page<'a> {
    title: String,
    version: &'static str,
    legend: &'a [(ByteOwner, &'a str, &'a str)],
    devices: Vec<PageSection<'a>>,
}

/// One device.
struct PageSection<'a> {
    number: usize,
    about: &'a Explanation,
    facts: Vec<(&'static str, String)>,
    /// The regions with refused writes, the most first.
    counted: Vec<&'a Region>,
    no_counts: &'static str,
    maps: [PageMap; 2],
}

/// A picture of the space, or of its beginning.
struct PageMap {
    title: &'static str,
    width: u32,
    height: u32,
    /// The texts above the columns, and left of the rows.
    columns: Vec<(u32, String)>,
    rows: Vec<(u32, String)>,
    runs: Vec<MapRun>,
    marks: Vec<MapMark>,
}

/// The bytes of a region within one row.
struct MapRun {
    region: usize,
    owner: ByteOwner,
    x: u32,
    y: u32,
    width: u32,
    height: u32,
    label: String,
    tip: String,
    spoken: String,
    /// True for the first of its region: the others are not stops of the keyboard.
    is_first: bool,
}

/// A counter of refused writes.
struct MapMark {
    x: u32,
    y: u32,
    radius: u32,
    text: String,
}

/// How a map is drawn.
struct MapScale {
    title: &'static str,
    /// Bytes that are drawn, and how many of them are in a row.
    bytes: u16,
    columns: u16,
    /// Pixels of a byte.
    width: u32,
    height: u32,
    /// Every so many columns and rows have a text.
    every: u16,
    /// Pixels of a letter; 0 if there is no room for names.
    letter: u32,
    radius: u32,
}

/// The beginning, where nearly all registers are, with their names; and all.
const SCALES: [MapScale; 2] = [
    MapScale {
        title: "The first 256 bytes",
        bytes: 256,
        columns: 16,
        width: 62,
        height: 26,
        every: 1,
        letter: 6,
        radius: 8,
    },
    MapScale {
        title: "All 4096 bytes",
        bytes: 4096,
        columns: 64,
        width: 15,
        height: 9,
        every: 4,
        letter: 0,
        radius: 5,
    },
];
/// Pixels left of the first column, and above the first row.
const LEFT: u32 = 48;
const ABOVE: u32 = 18;

/// The page.
pub fn render(explanations: &Explanations) -> Result<String, askama::Error> {
    let names: Vec<&str> = explanations
        .devices
        .iter()
        .map(|about| about.bdf.as_str())
        .collect();
    let page = Page {
        title: format!("What a guest can see and change of {}", names.join(", ")),
        version: env!("CARGO_PKG_VERSION"),
        legend: &OWNERS,
        devices: explanations
            .devices
            .iter()
            .zip(1..)
            .map(|(about, number)| PageSection::new(number, about))
            .collect(),
    };
    page.render()
}

impl<'a> PageSection<'a> {
    fn new(number: usize, about: &'a Explanation) -> Self {
        let mut counted: Vec<&Region> = about
            .regions
            .iter()
            .filter(|region| region.counted() > 0)
            .collect();
        counted.sort_by_key(|region| std::cmp::Reverse(region.counted()));
        Self {
            number,
            about,
            facts: about.facts(),
            counted,
            no_counts: if about.guest.is_some() {
                "None by now."
            } else {
                "No guest has the device."
            },
            maps: SCALES.map(|scale| scale.draw(&about.regions)),
        }
    }
}

impl MapScale {
    fn draw(&self, regions: &[Region]) -> PageMap {
        let rows = self.bytes / self.columns;
        let x = |column: u16| LEFT + u32::from(column) * self.width;
        let y = |row: u16| ABOVE + u32::from(row) * self.height;
        let digits = if self.letter > 0 { 1 } else { 2 };
        let columns = (0..self.columns)
            .step_by(self.every.into())
            .map(|column| (x(column) + self.width / 2, format!("{column:0digits$x}")));
        let labels = (0..rows).step_by(self.every.into()).map(|row| {
            (
                y(row) + self.height / 2 + 4,
                format!("0x{:03x}", row * self.columns),
            )
        });
        let mut map = PageMap {
            title: self.title,
            width: x(self.columns) + 2,
            height: y(rows) + 2,
            columns: columns.collect(),
            rows: labels.collect(),
            runs: Vec::new(),
            marks: Vec::new(),
        };
        for (number, region) in regions.iter().enumerate() {
            let end = region.end().min(self.bytes);
            let mut at = region.offset;
            while at < end {
                let row = at / self.columns;
                let stop = end.min((row + 1) * self.columns);
                let width = u32::from(stop - at) * self.width;
                map.runs.push(MapRun {
                    region: number,
                    owner: region.owner,
                    x: x(at % self.columns),
                    y: y(row),
                    width,
                    height: self.height,
                    label: self.label(region, width),
                    tip: region.tip(),
                    spoken: format!("{} {}: {}", region.range(), region.name(), region.owner),
                    is_first: at == region.offset,
                });
                at = stop;
            }
            if region.counted() > 0 && region.offset < self.bytes {
                // In the corner, so that the name stays legible.
                let bytes = region.bytes.min(self.columns - region.offset % self.columns);
                map.marks.push(MapMark {
                    x: x(region.offset % self.columns) + u32::from(bytes) * self.width - self.radius,
                    y: y(region.offset / self.columns) + self.radius,
                    radius: self.radius,
                    text: shortened(region.counted()),
                });
            }
        }
        map
    }

    /// As much of a region's name as there is room for.
    fn label(&self, region: &Region, width: u32) -> String {
        let Some(room) = (width.saturating_sub(8)).checked_div(self.letter) else {
            return String::new();
        };
        // The name of a capability stands where that begins: elsewhere it would only fill the picture.
        let capability = region.capability.filter(|_| region.begins_capability);
        let quirk = (region.owner == ByteOwner::Quirk).then_some("quirk");
        let Some(name) = region.register.or(quirk).or(capability) else {
            return String::new();
        };
        let room = room as usize;
        if name.chars().count() <= room {
            name.to_owned()
        } else {
            let cut: String = name.chars().take(room.saturating_sub(1)).collect();
            format!("{}…", cut.trim_end())
        }
    }
}

impl Region {
    /// How many writes were dropped or refused.
    pub fn counted(&self) -> u64 {
        self.dropped + self.refused
    }

    /// A value of it, with as many digits as it has.
    fn hex(&self, value: &u32) -> String {
        format!("0x{value:0width$x}", width = 2 * usize::from(self.bytes))
    }

    fn tip(&self) -> String {
        let counted = match self.counted() {
            0 => String::new(),
            count => format!("\n{count} writes were dropped or refused"),
        };
        format!(
            "{} {}: {}\nA guest reads: {}\nA guest's write is: {}\nWhy: {}{counted}",
            self.range(),
            self.name(),
            self.owner,
            self.reads,
            self.writes,
            self.why
        )
    }
}

/// Three digits at most.
fn shortened(count: u64) -> String {
    match count {
        0..=999 => count.to_string(),
        1000..=99_999 => format!("{}k", count / 1000),
        _ => "∞".into(),
    }
}
