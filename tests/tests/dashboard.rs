//! The dashboard and the alerts in config/, and the expressions in docs/metrics.md: they name metrics and labels that exist, and
//! all metrics are shown.

use metrics::families::{ALL, Source};
use metrics::{Family, Kind};
use serde_json::Value;
use std::collections::BTreeSet;

const DASHBOARD: &str = include_str!("../../config/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../config/prometheus-alerts.yml");
const DOCUMENT: &str = include_str!("../../docs/metrics.md");

/// Functions and aggregations of PromQL that the expressions use.
const FUNCTIONS: [&str; 7] = [
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "rate",
    "sum",
];
/// Labels that Prometheus adds to each metric.
const ADDED: [&str; 2] = ["instance", "job"];
/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;

/// A metric in an expression.
#[derive(Debug)]
struct Selector {
    metric: String,
    /// Labels between braces.
    labels: Vec<String>,
    /// A time in brackets follows, as `rate` needs it.
    range: bool,
}

/// The names in an expression of PromQL.
#[derive(Debug, Default)]
struct Expression {
    selectors: Vec<Selector>,
    /// The labels after each `by`, the outermost one first.
    groupings: Vec<Vec<String>>,
}

/// Takes a name off the start of `text`. It is empty if there is none.
fn take_name<'a>(text: &mut &'a str) -> &'a str {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    *text = rest;
    name
}

/// Takes the names between `open` and `close` off the start of `text`; texts in quotes count for nothing.
fn take_list(text: &mut &str, open: char, close: char) -> Result<Vec<String>, String> {
    let mut rest = text
        .trim_start()
        .strip_prefix(open)
        .ok_or(format!("no {open} before {text}"))?;
    let mut names = Vec::new();
    while let Some(first) = rest.chars().next() {
        if first == close {
            *text = &rest[1..];
            return Ok(names);
        }
        if first == '"' {
            rest = rest[1..].split_once('"').ok_or("a quote without an end")?.1;
        } else if first.is_ascii_alphabetic() || first == '_' {
            names.push(take_name(&mut rest).to_owned());
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    Err(format!("no {close}"))
}

impl Expression {
    /// Finds the names in `text`. This is no parser of PromQL: promtool is one.
    fn new(text: &str) -> Result<Self, String> {
        let mut expression = Self::default();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if first.is_ascii_digit() {
                take_name(&mut rest);
            } else if first.is_ascii_alphabetic() || first == '_' {
                let name = take_name(&mut rest);
                if name == "by" {
                    expression.groupings.push(take_list(&mut rest, '(', ')')?);
                } else if !FUNCTIONS.contains(&name) {
                    let braces = rest.starts_with('{');
                    expression.selectors.push(Selector {
                        metric: name.to_owned(),
                        labels: if braces {
                            take_list(&mut rest, '{', '}')?
                        } else {
                            Vec::new()
                        },
                        range: rest.starts_with('['),
                    });
                    if rest.starts_with('[') {
                        rest = rest.split_once(']').ok_or("a bracket without an end")?.1;
                    }
                }
            } else {
                rest = &rest[first.len_utf8()..];
            }
        }
        Ok(expression)
    }

    /// Checks all names; `shown` are labels that a legend or a message names.
    fn families(&self, shown: &[String]) -> Result<Vec<&'static Family>, String> {
        let mut families = Vec::new();
        let mut common: Option<BTreeSet<&str>> = None;
        for Selector {
            metric,
            labels,
            range,
        } in &self.selectors
        {
            let mut known = BTreeSet::from(ADDED);
            // Prometheus makes this one by itself.
            if metric != "up" {
                let (family, has_bound) = find(metric).ok_or(format!("no metric {metric}"))?;
                known.extend(family.labels);
                known.extend(has_bound.then_some("le"));
                let grows = matches!(family.kind, Kind::Counter | Kind::Histogram);
                if grows != *range {
                    return Err(format!("{metric} is a {}", family.kind.name()));
                }
                families.push(family);
            }
            if let Some(label) = labels.iter().find(|label| !known.contains(label.as_str())) {
                return Err(format!("{metric} has no label {label}"));
            }
            let both = common.map_or_else(|| known.clone(), |common| &common & &known);
            common = Some(both);
        }
        let common = common.ok_or("no metric")?;
        if let Some(label) = self
            .groupings
            .iter()
            .flatten()
            .find(|label| !common.contains(label.as_str()))
        {
            return Err(format!("grouped by {label}, which is no label"));
        }
        let left = self.groupings.first();
        let is_left = |label: &String| {
            left.map_or(common.contains(label.as_str()), |grouping| {
                grouping.contains(label)
            })
        };
        match shown.iter().find(|label| !is_left(label)) {
            Some(label) => Err(format!("shows {label}, which the expression does not keep")),
            None => Ok(families),
        }
    }
}

/// The family that a sample of this name belongs to, and whether the sample has a bound.
fn find(metric: &str) -> Option<(&'static Family, bool)> {
    ALL.into_iter().find_map(|family| {
        let end = metric.strip_prefix(family.name)?;
        let fits = match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].contains(&end),
            kind => end == kind.suffix(),
        };
        fits.then_some((family, end == "_bucket"))
    })
}

/// The labels in `text` between `start` and the next braces.
fn labels_in(text: &str, start: &str) -> Vec<String> {
    let after = text.split(start).skip(1);
    let names = after.filter_map(|rest| rest.split_once("}}"));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

fn check(expression: &str, shown: &[String]) -> Result<Vec<&'static Family>, String> {
    Expression::new(expression)
        .and_then(|names| names.families(shown))
        .map_err(|error| format!("{error}: {expression}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name}: {value}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("no {pointer}: {value}"))
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

/// The panels that show something: all but the titles of rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = list(dashboard, "/panels").iter();
    all.filter(|panel| text(panel, "type") != "row").collect()
}

/// What the panels ask for.
fn targets(dashboard: &Value) -> Vec<&Value> {
    let panels = panels(dashboard).into_iter();
    panels.flat_map(|panel| list(panel, "/targets")).collect()
}

/// An alert, from the text of its rule.
struct Alert<'a> {
    name: &'a str,
    rule: &'a str,
}

impl<'a> Alert<'a> {
    /// What stands after `key` in its line, without quotes.
    fn value(&self, key: &str) -> &'a str {
        let line = self.rule.lines().find_map(|line| line.trim().strip_prefix(key));
        let value = line.unwrap_or_else(|| panic!("{}: no {key}", self.name));
        value.trim().trim_matches('"')
    }
}

fn alerts() -> Vec<Alert<'static>> {
    let rules = ALERTS.split("\n      - alert: ").skip(1);
    rules
        .map(|rule| Alert {
            name: rule.lines().next().unwrap(),
            rule,
        })
        .collect()
}

/// All expressions with the labels that are shown beside them.
fn expressions() -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    for target in targets(&dashboard()) {
        let labels = labels_in(text(target, "legendFormat"), "{{");
        all.push((text(target, "expr").to_owned(), labels));
    }
    for alert in alerts() {
        all.push((
            alert.value("expr:").to_owned(),
            labels_in(alert.rule, "{{ $labels."),
        ));
    }
    let (_, questions) = DOCUMENT.split_once("## Questions and their answers").unwrap();
    for row in questions.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let expression = row.split('`').nth(1).unwrap_or_else(|| panic!("{row}"));
        all.push((expression.to_owned(), Vec::new()));
    }
    all
}

#[test]
fn every_expression_names_metrics_and_labels_that_exist() {
    let expressions = expressions();
    assert!(expressions.len() > 40, "{}", expressions.len());
    for (expression, shown) in expressions {
        check(&expression, &shown).unwrap();
    }
}

#[test]
fn wrong_names_in_an_expression_are_noticed() {
    for (expression, shown, error) in [
        ("rate(bulkhead_stub_requests[5m])", "op", "no metric"),
        (
            "rate(bulkhead_stub_request_duration_seconds[5m])",
            "op",
            "no metric",
        ),
        ("bulkhead_stub_serves", "guest", "no metric"),
        ("1 + 2", "guest", "no metric"),
        ("bulkhead_stub_requests_total", "op", "is a counter"),
        ("rate(bulkhead_stub_served[5m])", "guest", "is a gauge"),
        (
            r#"rate(bulkhead_stub_requests_total{cause="guest"}[5m])"#,
            "op",
            "no label cause",
        ),
        ("up{guest=\"web\"}", "job", "no label guest"),
        (
            "sum by (register) (rate(bulkhead_stub_requests_total[5m]))",
            "register",
            "grouped by register",
        ),
        (
            "sum by (op) (rate(bulkhead_stub_requests_total[5m]))",
            "guest",
            "shows guest",
        ),
        ("bulkhead_held_devices", "guest", "shows guest"),
    ] {
        let found = check(expression, &[shown.to_owned()]).unwrap_err();
        assert!(found.contains(error), "{expression}: {found}");
    }
}

#[test]
fn what_dom0_and_a_stub_both_tell_is_counted_once() {
    let dashboard = dashboard();
    let shown = targets(&dashboard).into_iter().map(|target| text(target, "expr"));
    let alerts = alerts();
    let alarming = alerts.iter().map(|alert| alert.value("expr:"));
    for expression in shown.chain(alarming) {
        let families = check(expression, &[]).unwrap();
        if families.iter().any(|family| family.source == Source::Both) {
            assert!(expression.contains("max by (guest, stub"), "{expression}");
        }
    }
}

#[test]
fn the_dashboard_shows_every_metric() {
    let dashboard = dashboard();
    let shown: BTreeSet<&str> = targets(&dashboard)
        .into_iter()
        .flat_map(|target| check(text(target, "expr"), &[]).unwrap())
        .map(|family| family.name)
        .collect();
    let all: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(shown, all);
}

#[test]
fn each_panel_says_what_it_shows_and_asks_the_chosen_source() {
    let dashboard = dashboard();
    let mut titles = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for panel in list(&dashboard, "/panels") {
        assert!(titles.insert(text(panel, "title")), "{panel}");
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{panel}");
    }
    for panel in panels(&dashboard) {
        let title = text(panel, "title");
        assert!(["stat", "timeseries"].contains(&text(panel, "type")), "{title}");
        assert!(text(panel, "description").ends_with('.'), "{title}");
        assert!(
            !text(&panel["fieldConfig"]["defaults"], "unit").is_empty(),
            "{title}"
        );
        let targets = list(panel, "/targets");
        assert!(!targets.is_empty(), "{title}");
        let letters: BTreeSet<&str> = targets.iter().map(|target| text(target, "refId")).collect();
        assert_eq!(letters.len(), targets.len(), "{title}");
        for source in targets.iter().chain([panel]) {
            assert_eq!(text(&source["datasource"], "type"), "prometheus", "{title}");
            assert_eq!(text(&source["datasource"], "uid"), "${datasource}", "{title}");
        }
    }
}

#[test]
fn panels_lie_in_the_grid_and_none_covers_another() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard, "/panels") {
        let title = text(panel, "title");
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().unwrap());
        assert!(width > 0 && height > 0 && x + width <= COLUMNS, "{title}");
        for cell in (x..x + width).flat_map(|column| (y..y + height).map(move |line| (column, line))) {
            assert!(taken.insert(cell), "{title}");
        }
    }
}

#[test]
fn variables_are_declared_before_they_are_used() {
    let dashboard = dashboard();
    let mut declared = BTreeSet::from(["__rate_interval".to_owned()]);
    let used = |expression: &str, declared: &BTreeSet<String>| {
        for mut rest in expression.split('$').skip(1) {
            let name = take_name(&mut rest);
            assert!(declared.contains(name), "${name}: {expression}");
        }
    };
    for variable in list(&dashboard, "/templating/list") {
        let name = text(variable, "name");
        if text(variable, "type") == "query" {
            let query = text(variable, "query");
            assert_eq!(text(variable, "definition"), query);
            assert_eq!(text(&variable["datasource"], "uid"), "${datasource}");
            used(query, &declared);
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')'));
            let (selector, label) = inner.and_then(|inner| inner.rsplit_once(", ")).unwrap();
            assert_eq!(label, name);
            check(selector, &[label.to_owned()]).unwrap();
        }
        declared.insert(name.to_owned());
    }
    for name in ["datasource", "job", "guest", "stub"] {
        assert!(declared.contains(name), "{name}");
    }
    for target in targets(&dashboard) {
        used(text(target, "expr"), &declared);
    }
}

#[test]
fn each_alert_says_how_bad_it_is_and_what_to_do_and_stands_in_the_document() {
    let alerts = alerts();
    assert_eq!(alerts.len(), ALERTS.matches("alert: ").count());
    let (_, section) = DOCUMENT.split_once("\n## Alerts\n").unwrap();
    let documented: Vec<&str> = section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split('`').next())
        .collect();
    let names: Vec<&str> = alerts.iter().map(|alert| alert.name).collect();
    assert_eq!(documented, names);
    for alert in alerts {
        let severity = alert.value("labels:");
        assert!(
            ["{ severity: warning }", "{ severity: critical }"].contains(&severity),
            "{}",
            alert.name
        );
        assert!(!alert.value("summary:").is_empty());
        assert!(alert.value("description:").ends_with('.'), "{}", alert.name);
    }
}
