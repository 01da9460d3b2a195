//! The JSON documents of the commands against their description: docs/json/, one JSON Schema each, made from the types.
//!
//! To take in a change that was reviewed: run these tests with `UPDATE_SCHEMAS=1`. A field that is removed, or gets another
//! meaning, needs another `output::VERSION`.

use super::check::Report;
use super::doctor::Diagnosis;
use super::explain::Explanations;
use super::{DryRun, dry_run};
use crate::exit::{ActionReport, Exit};
use crate::output::{Document, VERSION};
use crate::status::{self, Status};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json")
}

fn schema<T: JsonSchema>(title: &str) -> Value {
    // What is printed, not what is read.
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema: Schema = generator.into_root_schema_for::<Document<T>>();
    schema.insert("title".into(), title.into());
    let mut schema = schema.to_value();
    schema["properties"]["version"] = json!({ "const": VERSION, "description": "Version of this form." });
    schema
}

/// Every document: the name of its file, and its schema.
fn schemas() -> [(&'static str, Value); 6] {
    [
        ("status", schema::<Status>("bulkhead status --json")),
        ("check", schema::<Report>("bulkhead check --json")),
        ("explain", schema::<Explanations>("bulkhead explain --json")),
        ("doctor", schema::<Diagnosis>("bulkhead doctor --json")),
        (
            "dry-run",
            schema::<DryRun>("bulkhead run|attach --dry-run --json"),
        ),
        (
            "action",
            schema::<ActionReport>(
                "bulkhead run|attach|detach|destroy|declare|undeclare|seize|release|irq|shutdown --json",
            ),
        ),
    ]
}

#[test]
fn the_documented_schemas_are_those_of_the_types() {
    for (name, schema) in schemas() {
        let path = directory().join(format!("{name}.schema.json"));
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let documented = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            documented == text,
            "{}: run this test with UPDATE_SCHEMAS=1, and look at what changes",
            path.display()
        );
    }
}

#[test]
fn the_document_about_json_names_every_schema_and_its_version() {
    let document = include_str!("../../../docs/json.md");
    for (name, _) in schemas() {
        assert!(document.contains(&format!("json/{name}.schema.json")), "{name}");
    }
    assert!(document.contains(&format!("The version is {VERSION}.")));
    let files = fs::read_dir(directory()).unwrap().count();
    assert_eq!(files, schemas().len(), "a schema of no document");
}

/// The part of a schema that a reference means, or the schema itself.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema.get("$ref").and_then(Value::as_str);
    reference
        .and_then(|path| root.pointer(path.trim_start_matches('#')))
        .unwrap_or(schema)
}

/// All property names of an object's schema. `None` if it allows others, as a map does.
fn properties<'a>(root: &'a Value, schema: &'a Value) -> Option<BTreeSet<&'a str>> {
    let schema = resolved(root, schema);
    if schema
        .get("additionalProperties")
        .is_some_and(|more| more != &json!(false))
    {
        return None;
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    if let Some(own) = schema.get("properties").and_then(Value::as_object) {
        names.extend(own.keys().map(String::as_str));
    }
    for list in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get(list).and_then(Value::as_array).into_iter().flatten() {
            names.extend(properties(root, part).unwrap_or_default());
        }
    }
    Some(names)
}

/// The schemas of a property, whichever alternative it stands in.
fn of_property<'a>(root: &'a Value, schema: &'a Value, name: &str) -> Vec<&'a Value> {
    let schema = resolved(root, schema);
    let mut found: Vec<&Value> = schema
        .get("properties")
        .and_then(|own| own.get(name))
        .into_iter()
        .chain(schema.get("additionalProperties"))
        .collect();
    for list in ["allOf", "anyOf", "oneOf"] {
        for part in schema.get(list).and_then(Value::as_array).into_iter().flatten() {
            found.extend(of_property(root, part, name));
        }
    }
    found
}

/// Fails if a document has a field that its schema does not name, or lacks one that is required.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolved(root, schema);
    match value {
        Value::Object(fields) => {
            let known = properties(root, schema);
            for (name, value) in fields {
                let here = format!("{at}/{name}");
                assert!(
                    known.as_ref().is_none_or(|known| known.contains(name.as_str())),
                    "{here} is unknown"
                );
                of_property(root, schema, name)
                    .first()
                    .iter()
                    .for_each(|part| check(root, part, value, &here));
            }
            for required in schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let name = required.as_str().unwrap();
                assert!(fields.contains_key(name), "{at}/{name} is missing");
            }
        }
        Value::Array(items) => {
            let part = schema.get("items");
            for (index, item) in items.iter().enumerate() {
                part.iter()
                    .for_each(|part| check(root, part, item, &format!("{at}/{index}")));
            }
        }
        _ => {
            if let Some(constant) = schema.get("const") {
                assert_eq!(value, constant, "{at}");
            }
        }
    }
}

fn fits<T: JsonSchema + Serialize>(document: &T) {
    let schema = schema::<T>("");
    let value = serde_json::to_value(Document::new(document)).unwrap();
    check(&schema, &schema, &value, "");
}

#[test]
fn what_is_printed_has_the_fields_of_its_schema() {
    fits(&status::tests::status());
    fits(&Status::default());
    fits(&super::check::tests::report());
    fits(&super::explain::tests::explanations());
    fits(&super::doctor::tests::diagnosis());
    fits(&dry_run::tests::dry_run());
    fits(&ActionReport::of("run", || Ok(Exit::Done)).0);
}
