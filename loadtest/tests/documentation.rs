//! docs/result-json.md names every key that a result has.

mod common;

use common::Scenario;
use resound_load::result::recorder::{ErrorKind, Metric};
use resound_load::result::verdict;
use serde_json::Value;

/// Names of keys at every depth, but not below maps whose keys are data.
fn keys(value: &Value, found: &mut Vec<String>) {
    const DATA: [&str; 9] = [
        "sysctls",
        "kernel_deltas",
        "kernel_levels",
        "counters_before",
        "counters_after",
        "levels_before",
        "levels_after",
        "errors",
        "latency_ns",
    ];
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            found.push(key.clone());
            if !DATA.contains(&key.as_str()) {
                keys(value, found);
            }
        }),
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn every_key_of_a_result_is_documented() {
    let text = include_str!("../../docs/result-json.md");
    let mut result =
        Scenario { stall_at_s: Some(1), measured_s: 2, rate_per_s: 500, ..Scenario::default() }.result();
    verdict::judge(&mut result, &["p99<5ms".parse().expect("valid")]);
    let mut found = Vec::new();
    keys(&serde_json::to_value(&result).expect("JSON"), &mut found);
    found.extend(Metric::ALL.map(|metric| metric.name().to_owned()));
    found.extend(ErrorKind::ALL.map(|kind| kind.name().to_owned()));
    found.sort();
    found.dedup();
    assert!(found.len() > 100, "{}", found.len());
    // Percentiles are documented as a range.
    let documented =
        |key: &String| text.contains(&format!("`{key}`")) || (key.starts_with('p') && key.ends_with("_ns"));
    let missing: Vec<&String> =
        found.iter().filter(|key| !documented(key) && !text.contains(&format!("\"{key}\""))).collect();
    assert_eq!(missing, Vec::<&String>::new());
}
