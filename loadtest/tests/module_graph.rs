//! The modules of `result` use each other in one direction: a circle would make them one module in several files.
//!
//! It reads the paths that begin with `super::` or `crate::result::`, without comments and test modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module of `result` names of the others.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code alone: no comments, and nothing from the test module on, which is the last thing in a file.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The first names of `{a, b::{c, d}}` or of `a::b`, whichever `rest` begins with.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    };
    let Some(list) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let (mut depth, mut names, mut begin) = (0, Vec::new(), 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(name(&list[begin..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(name(&list[begin..at]));
                begin = at + 1;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// What `text`, that many directories below `result`, names of the modules in it.
fn named(text: &str, depth: usize) -> BTreeSet<String> {
    let code = code(text);
    let up = "super::".repeat(depth + 1);
    let mut names = BTreeSet::new();
    for prefix in [up.as_str(), "crate::result::"] {
        for (at, _) in code.match_indices(prefix) {
            // Within a longer chain of them it is another directory's.
            if !code[..at].ends_with("super::") && !code[at + prefix.len()..].starts_with("super::") {
                names.extend(first_names(&code[at + prefix.len()..]));
            }
        }
    }
    names
}

fn graph() -> Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/result");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    let mut graph = Graph::new();
    for path in paths {
        let inside: Vec<String> = path
            .strip_prefix(&root)
            .expect("below it")
            .iter()
            .map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned())
            .collect();
        // The list of the modules is above them all.
        if inside == ["mod"] {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        // A directory's mod.rs is the directory's module: no deeper than a file beside it.
        let depth = inside.len() - 1 - usize::from(inside.last().is_some_and(|name| name == "mod"));
        graph.entry(inside[0].clone()).or_default().extend(named(&text, depth));
    }
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    for (module, used) in &mut graph {
        used.retain(|name| name != module && modules.contains(name));
    }
    graph
}

/// The modules that are left once those that use none of the others are taken away, again and again.
fn circles(mut graph: Graph) -> Graph {
    while let Some(leaf) = graph.iter().find(|(_, used)| used.is_empty()).map(|(name, _)| name.clone()) {
        graph.remove(&leaf);
        graph.values_mut().for_each(|used| {
            used.remove(&leaf);
        });
    }
    graph
}

#[test]
fn the_modules_of_result_have_no_circle() {
    let graph = graph();
    for (module, used) in &graph {
        println!("{module:<14} -> {}", used.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    assert!(graph.len() > 15 && graph["verdict"].contains("model"), "the sources were not read: {graph:?}");
    assert_eq!(circles(graph), Graph::new(), "these modules are in circles, or use some that are");
}

#[test]
fn the_model_uses_nothing_that_computes() {
    let used: Vec<String> = graph()["model"].iter().cloned().collect();
    assert_eq!(used, ["recorder", "sparse"]);
}

#[test]
fn paths_are_found_however_they_are_written() {
    let text = "use super::{a, b::{self, c}};\nuse super::d::E; // super::f\nfn g() { crate::result::h::i() }\n\
                #[cfg(test)]\nmod tests { use super::j; }";
    assert_eq!(named(text, 0).into_iter().collect::<Vec<_>>(), ["a", "b", "d", "h"]);
    assert_eq!(named("use super::super::{k, l};\nuse super::m;", 1).into_iter().next().as_deref(), Some("k"));
    let circle =
        Graph::from([("a".into(), BTreeSet::from(["b".into()])), ("b".into(), BTreeSet::from(["a".into()]))]);
    assert_eq!(circles(circle).len(), 2);
}
