//! Figures: the numbers that scenarios measure, and the file that keeps them.
//!
//! A scenario prints a figure by `figure NAME VALUE UNIT...` of `scenarios/lib.sh`. `cargo verify` keeps those of each
//! scenario's last run in `target/figures.jsonl`, a JSON object on each line.

use crate::scenario::Scenario;
use anyhow::{Context as _, Result, bail, ensure};
use images::Suite;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One number that a scenario measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The Debian release whose Xen and Linux ran.
    pub suite: String,
    /// Which scenario printed it.
    pub scenario: String,
    /// Name: lower case, with hyphens; unique within the scenario.
    pub name: String,
    /// The number.
    pub value: f64,
    /// Unit, and more words; empty for a plain count.
    pub unit: String,
    /// The command that measures it again.
    pub command: String,
}

/// Begin of a line that `figure` of `scenarios/lib.sh` prints.
const MARK: &str = "  figure ";

impl Figure {
    /// Reads all figures off the output of `scenario`.
    ///
    /// # Errors
    /// A line is marked as a figure and is none, or a name comes twice. The error quotes the line.
    pub fn all_of(suite: Suite, scenario: &Scenario, output: &str) -> Result<Vec<Self>> {
        let mut figures: Vec<Self> = Vec::new();
        for line in output.lines() {
            let Some(text) = line.strip_prefix(MARK) else {
                continue;
            };
            let figure =
                Self::parse(suite, scenario, text).with_context(|| format!("figure {}", text.trim()))?;
            ensure!(
                figures.iter().all(|earlier| earlier.name != figure.name),
                "figure {} is printed twice",
                figure.name
            );
            figures.push(figure);
        }
        Ok(figures)
    }

    fn parse(suite: Suite, scenario: &Scenario, text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let name = words.next().context("has no name")?;
        let is_kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            name.chars().all(is_kebab),
            "is to have a name of lower-case letters, digits and hyphens"
        );
        let value: f64 = words
            .next()
            .context("has no value")?
            .parse()
            .context("is to have a number after its name")?;
        if !value.is_finite() {
            bail!("is to have a finite number");
        }
        Ok(Self {
            suite: suite.to_string(),
            scenario: scenario.name.clone(),
            name: name.to_owned(),
            value,
            unit: words.collect::<Vec<_>>().join(" "),
            command: scenario.command(suite),
        })
    }
}

/// The figure of that name, if the scenario has run on the suite.
pub fn find<'a>(figures: &'a [Figure], suite: Suite, scenario: &str, name: &str) -> Option<&'a Figure> {
    figures.iter().find(|figure| {
        (
            figure.suite.as_str(),
            figure.scenario.as_str(),
            figure.name.as_str(),
        ) == (suite.name(), scenario, name)
    })
}

/// Figures in a file, ordered by suite and scenario. Those of one scenario are in the order of its output.
#[derive(Debug, Default)]
pub struct Store {
    path: PathBuf,
    figures: Vec<Figure>,
}

impl Store {
    /// Where `cargo verify` keeps them.
    pub fn default_path() -> PathBuf {
        images::store::target_dir().join("figures.jsonl")
    }

    /// Opens the file, which need not exist.
    ///
    /// # Errors
    /// The file cannot be read, or has no figures. The error names it.
    pub fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        Ok(Self {
            path: path.to_owned(),
            figures: decode(&text)
                .with_context(|| format!("read {}; if in doubt, remove it", path.display()))?,
        })
    }

    /// All figures.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// Replaces the figures of a scenario by those of its last run, and writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replace(&mut self, suite: Suite, scenario: &str, figures: Vec<Figure>) -> Result<()> {
        self.figures
            .retain(|old| (old.suite.as_str(), old.scenario.as_str()) != (suite.name(), scenario));
        self.figures.extend(figures);
        self.write()
    }

    /// Replaces figures by those of other runs, scenario by scenario, and writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn merge(&mut self, newer: &[Figure]) -> Result<()> {
        self.figures.retain(|old| {
            newer
                .iter()
                .all(|new| (&new.suite, &new.scenario) != (&old.suite, &old.scenario))
        });
        self.figures.extend_from_slice(newer);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        // The sort is stable, so figures of one scenario keep their order.
        self.figures
            .sort_by(|a, b| (&a.suite, &a.scenario).cmp(&(&b.suite, &b.scenario)));
        std::fs::write(&self.path, encode(&self.figures)?)
            .with_context(|| format!("write {}", self.path.display()))
    }
}

/// A JSON object on each line.
///
/// # Errors
/// None in practice: every figure has a form in JSON.
pub fn encode(figures: &[Figure]) -> Result<String> {
    let mut text = String::new();
    for figure in figures {
        text += &serde_json::to_string(figure)?;
        text.push('\n');
    }
    Ok(text)
}

/// Reads the output of [`encode`].
///
/// # Errors
/// A line is no figure. The error has the line's number.
pub fn decode(text: &str) -> Result<Vec<Figure>> {
    text.lines()
        .zip(1..)
        .map(|(line, number)| serde_json::from_str(line).with_context(|| format!("line {number}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(name: &str) -> Scenario {
        Scenario::named(name).unwrap()
    }

    fn read(output: &str) -> Result<Vec<Figure>> {
        Figure::all_of(Suite::Bookworm, &scenario("stub-boots"), output)
    }

    #[test]
    fn a_figure_is_a_line_of_name_value_and_unit() {
        let figures =
            read("ok: a\n  figure restart-p50 1234.5 us\r\n  figures of speech\n  figure restarts 12\n")
                .unwrap();
        let told: Vec<_> = figures
            .iter()
            .map(|figure| (figure.name.as_str(), figure.value, figure.unit.as_str()))
            .collect();
        assert_eq!(told, [("restart-p50", 1234.5, "us"), ("restarts", 12.0, "")]);
        assert_eq!(
            figures[0].command,
            "cargo verify --suite bookworm --scenario stub-boots"
        );
    }

    #[test]
    fn what_is_no_figure_is_quoted() {
        for (line, part) in [
            ("  figure ", "no name"),
            ("  figure lost", "no value"),
            ("  figure lost us", "number"),
            ("  figure lost inf", "finite"),
            ("  figure Lost 1", "lower-case"),
            ("  figure lost 1\n  figure lost 2", "lost is printed twice"),
        ] {
            let error = read(line).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{line}: {error:#}");
        }
    }

    #[test]
    fn the_last_run_of_a_scenario_replaces_the_one_before() {
        let path = std::env::temp_dir().join(format!("figures-{}.jsonl", std::process::id()));
        let mut store = Store::open(&path).unwrap();
        let figures = read("  figure b 1\n  figure a 2").unwrap();
        store.replace(Suite::Bookworm, "stub-boots", figures).unwrap();
        let again = read("  figure a 3 ms").unwrap();
        store
            .replace(Suite::Bookworm, "stub-boots", again.clone())
            .unwrap();
        store.replace(Suite::Trixie, "nic", Vec::new()).unwrap();
        let other = Figure::all_of(Suite::Trixie, &scenario("nic"), "  figure c 4").unwrap();
        store.merge(&other).unwrap();
        let read_back = Store::open(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_back.unwrap().figures(), [again, other].concat());
    }

    #[test]
    fn a_damaged_file_is_told_by_its_line() {
        let text = encode(&read("  figure a 1").unwrap()).unwrap();
        assert_eq!(decode(&text).unwrap().len(), 1);
        let error = decode(&format!("{text}rubbish\n")).unwrap_err();
        assert_eq!(error.to_string(), "line 2");
    }
}
