//! The description of the API: the same in the program and in `docs/openapi.json`, whole, and what the page reads is in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::appliance::Appliance;
use crate::http::Request;
use crate::release::Release;

/// Set to write `docs/openapi.json` anew: `REFIT_WRITE_DOCS=1 cargo test --test suite openapi::`.
const WRITE: &str = "REFIT_WRITE_DOCS";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn description() -> Value {
    serde_json::to_value(refit::api::description()).expect("JSON")
}

#[test]
fn the_file_is_what_the_program_says() {
    let path = root().join("docs/openapi.json");
    let said = format!("{:#}\n", description());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &said).expect("written");
    }
    let file = fs::read_to_string(&path).expect("docs/openapi.json is there");
    assert!(file == said, "docs/openapi.json is not what the program says; write it anew with {WRITE}=1 and this test");
}

#[test]
fn a_running_appliance_describes_itself() {
    let appliance = Appliance::new(&Release::bare("1.0.0").member("one", &["a"], "")).start();
    let answer = Request::new(&appliance.socket(), "GET", "/api/v1/openapi.json").send();
    assert_eq!((answer.status, answer.json()), (200, description()));
}

#[test]
fn every_route_of_the_api_is_described() {
    let described = description();
    for (method, path, permission) in refit::api::routes_with_permissions() {
        let operation = &described["paths"][path][method.to_lowercase()];
        let is_page = !path.starts_with("/api/") && path != "/healthz" && path != "/metrics";
        assert_eq!(operation.is_object(), !is_page, "{method} {path}");
        if !is_page {
            let said = operation["description"].as_str().expect("a description");
            assert!(said.contains(permission), "{method} {path}: {said}");
        }
    }
}

/// Calls `look` with every object of the schemas that has properties, and where it is.
fn each_object(value: &Value, at: &str, look: &mut impl FnMut(&str, &Value)) {
    if value["properties"].is_object() {
        look(at, value);
    }
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| each_object(field, &format!("{at}/{name}"), look))
        }
        Value::Array(list) => list.iter().for_each(|item| each_object(item, at, look)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_field_has_its_meaning_and_an_example() {
    let mut wanting = Vec::new();
    each_object(&description()["components"]["schemas"], "", &mut |at, object| {
        for (name, field) in object["properties"].as_object().expect("properties") {
            let text = field.to_string();
            // The schema of a type of its own has the examples, and what may be any JSON needs none.
            let is_any = field.get("type").is_none();
            let needs_none = text.contains("\"$ref\"") || is_any || field.get("properties").is_some();
            let has_example = field.get("example").is_some() || field.get("examples").is_some();
            if !text.contains("\"description\":\"") || !(needs_none || has_example) {
                wanting.push(format!("{at}.{name}"));
            }
        }
    });
    assert!(wanting.is_empty(), "fields without meaning or example:\n{}", wanting.join("\n"));
}

/// Names that the page gives things itself, or that the browser does, and that look like fields of the API.
const OF_THE_PAGE: [&str; 1] = ["secret_missing"];

#[test]
fn every_field_that_the_page_reads_is_in_the_description() {
    let mut known = BTreeSet::new();
    each_object(&description(), "", &mut |_, object| {
        known.extend(object["properties"].as_object().expect("properties").keys().cloned());
    });
    // Only the API's names have an underscore: in a script of a browser all others are in camel case.
    let mut unknown = BTreeSet::new();
    for script in ["app.js", "lib.js", "package.js", "tables.js"] {
        let text = fs::read_to_string(PathBuf::from("src/web/assets").join(script)).expect("a script of the page");
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
            let is_field = word.contains('_') && word.starts_with(|c: char| c.is_ascii_lowercase());
            if is_field && !known.contains(word) && !OF_THE_PAGE.contains(&word) {
                unknown.insert(format!("{script}: {word}"));
            }
        }
    }
    assert!(unknown.is_empty(), "the page reads what the API does not have: {unknown:?}");
    for name in
        ["status", "release", "components", "state", "health", "listeners", "faults", "update", "phase", "staged"]
    {
        assert!(known.contains(name), "{name}, which the page reads");
    }
}
