//! The published schemas say what the code does: names, required fields, references.

use std::collections::BTreeSet;
use std::path::Path;

use convolake::event::{CallbackEvent, header};
use serde_json::Value;

/// The vocabulary's source: constants cannot be listed at run time, and a list kept by hand would drift
/// with the schemas it is to check.
const EVENT_SOURCE: &str = include_str!("../../src/event.rs");

#[test]
fn every_header_has_a_schema_and_the_reverse() {
    let schema = schema("record-headers.schema.json");
    let mut names = constants("header");
    assert!(names.remove(header::TYPE_PREFIX), "it is no header");
    assert_eq!(keys(&schema["properties"]), names);
    for (kind, rules) in schema["$defs"].as_object().unwrap() {
        for name in strings(&rules["required"]) {
            assert!(names.contains(&name), "{kind} requires {name}");
        }
    }
    let pattern = schema["properties"][header::CE_TYPE]["pattern"].as_str();
    let prefix = pattern.unwrap().replace('\\', "");
    assert!(prefix.starts_with(&format!("^{}", header::TYPE_PREFIX)));
}

#[test]
fn every_event_type_has_a_schema_and_an_example() {
    let schema = schema("callback-event.schema.json");
    let types = constants("event_type");
    let described = schema["allOf"].as_array().unwrap().iter();
    let described: BTreeSet<String> = described
        .flat_map(|branch| strings(&branch["if"]["properties"]["eventType"]["enum"]))
        .collect();
    assert_eq!(described, types);
    assert_eq!(
        strings(&schema["properties"]["eventType"]["examples"])
            .into_iter()
            .collect::<BTreeSet<_>>(),
        types
    );
    let examples = schema["examples"].as_array().unwrap().iter();
    let examples: BTreeSet<String> = examples
        .map(|example| example["eventType"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(examples, types);
}

/// An example is understood, and is not once any field that its schema requires is taken away.
#[test]
fn what_the_schema_requires_is_what_the_code_requires() {
    let schema = schema("callback-event.schema.json");
    for example in schema["examples"].as_array().unwrap() {
        let body = example.to_string();
        let event = CallbackEvent::parse(body.as_bytes()).unwrap();
        assert_eq!(event.event_type, *example["eventType"].as_str().unwrap());
        for field in strings(&schema["required"]) {
            refuse(&without(example, &format!("/{field}")), &field);
        }
        for field in strings(&data_rules(&schema, &event)["required"]) {
            refuse(&without(example, &format!("/data/{field}")), &field);
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for name in [
        "callback-event.schema.json",
        "record-headers.schema.json",
        "traffic-profile.schema.json",
        "asyncapi.json",
    ] {
        let document = schema(name);
        for reference in references(&document) {
            let (file, pointer) = reference.split_once('#').unwrap_or((&reference, ""));
            let target = match file.strip_prefix("./") {
                Some(file) => schema(file),
                None if file.is_empty() => document.clone(),
                None => panic!("{name}: {reference} leaves the folder"),
            };
            assert!(target.pointer(pointer).is_some(), "{name}: {reference}");
        }
    }
}

#[test]
fn the_quarantine_and_the_dead_letters_are_beside_the_events() {
    let document = schema("asyncapi.json");
    let address = |channel: &str| document["channels"][channel]["address"].as_str().unwrap();
    let events = address("events");
    assert_eq!(address("quarantine"), format!("{events}.quarantine"));
    assert_eq!(address("deadLetters"), format!("{events}.dead-letters"));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("schemas")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The values of the text constants of a module of `src/event.rs`.
fn constants(module: &str) -> BTreeSet<String> {
    let (_, rest) = EVENT_SOURCE
        .split_once(&format!("pub mod {module} {{\n"))
        .unwrap_or_else(|| panic!("src/event.rs has no module {module}"));
    let (body, _) = rest.split_once("\n}").unwrap();
    let values: BTreeSet<String> = body
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .map(|line| line.split('"').nth(1).unwrap().to_owned())
        .collect();
    assert!(!values.is_empty(), "{module}");
    values
}

/// What the schema says of `data` for this event's type.
fn data_rules<'a>(schema: &'a Value, event: &CallbackEvent<'_>) -> &'a Value {
    let branches = schema["allOf"].as_array().unwrap().iter();
    let mut branches = branches.filter(|branch| {
        strings(&branch["if"]["properties"]["eventType"]["enum"])
            .iter()
            .any(|known| *known == event.event_type)
    });
    let branch = branches.next().unwrap();
    let reference = branch["then"]["properties"]["data"]["$ref"].as_str();
    schema
        .pointer(reference.unwrap().trim_start_matches('#'))
        .unwrap()
}

fn without(example: &Value, pointer: &str) -> String {
    let mut changed = example.clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let removed = changed
        .pointer_mut(parent)
        .and_then(Value::as_object_mut)
        .and_then(|object| object.remove(field));
    assert!(removed.is_some(), "{pointer} is not in {example}");
    changed.to_string()
}

fn refuse(body: &str, field: &str) {
    assert!(
        CallbackEvent::parse(body.as_bytes()).is_err(),
        "without {field}: {body}"
    );
}

/// Every `$ref`, however deep.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => object
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(reference)) => vec![reference.clone()],
                _ => references(value),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

/// The texts of an array; none where there is no array.
fn strings(array: &Value) -> Vec<String> {
    let values = array.as_array().into_iter().flatten();
    values
        .map(|value| value.as_str().unwrap().to_owned())
        .collect()
}
