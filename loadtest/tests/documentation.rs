//! docs/result-json.md names every key that a result has, docs/verdict.md every kind of finding and event of the kernel.

mod common;

use common::Scenario;
use resound_load::result::kernel_events::{EVENTS, Sign};
use resound_load::result::model::FindingKind;
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

#[test]
fn every_kind_of_finding_and_every_event_of_the_kernel_is_documented() {
    let verdict = include_str!("../../docs/verdict.md");
    for kind in FindingKind::ALL {
        let name = serde_json::to_value(kind).expect("JSON");
        let name = name.as_str().expect("a name");
        assert!(verdict.contains(&format!("`{name}`")), "{name}");
    }
    let tuning = include_str!("../../docs/tuning.md");
    for event in EVENTS {
        let sign = match event.sign {
            Sign::Counter(name) => name,
            Sign::Error(kind) => kind.name(),
        };
        let row = verdict.lines().find(|line| line.starts_with(&format!("| `{sign}` |")));
        let row = row.unwrap_or_else(|| panic!("{sign} is not in the table"));
        assert!(row.contains(event.what), "{row}: {}", event.what);
        for knob in event.knobs {
            let name = knob.split(' ').next().expect("a name");
            assert!(row.contains(&format!("`{name}`")), "{row}: {name}");
            // What scripts/tune.sh is said to show, it knows.
            assert!(
                tuning.contains(name.trim_start_matches("net.core.").trim_start_matches("net.ipv4.")),
                "{name}"
            );
        }
    }
}
