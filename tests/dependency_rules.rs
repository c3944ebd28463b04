//! Holds the design's one direction: `main -> server -> net` and `server -> proto -> mask`.
//!
//! It reads every path that a source file names, from the tokens rather than the text, so that comments and
//! strings do not count, while macros and test modules do. Start at [`LAYERS`]: that is the design. It must
//! never excuse a single file; a rule that no longer fits is changed there, and in ARCHITECTURE.md.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One layer of the design, and what its files may name.
struct Layer {
    /// A top-level module, a file beside them, or the load generator.
    name: &'static str,
    /// The top-level modules of `resound` that may be named, besides its own.
    may_name: &'static [&'static str],
    /// Paths outside the crate that may not be named, as prefixes.
    never: &'static [&'static str],
}

/// What a layer without I/O leaves to others: sockets, clocks, logs, threads, random sources.
const THE_WORLD: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
    "getrandom",
    "libc",
    "log",
    "mio",
    "rand",
    "signal_hook",
    "socket2",
    "tracing",
];

const LAYERS: &[Layer] = &[
    Layer { name: "mask", may_name: &[], never: THE_WORLD },
    Layer { name: "memory", may_name: &[], never: THE_WORLD },
    Layer { name: "replies", may_name: &[], never: THE_WORLD },
    Layer { name: "proto", may_name: &["mask", "memory", "replies"], never: THE_WORLD },
    Layer { name: "net", may_name: &["memory", "replies"], never: &["httparse"] },
    Layer { name: "config", may_name: &["net", "proto"], never: &[] },
    Layer { name: "web", may_name: &[], never: THE_WORLD },
    Layer {
        name: "server",
        may_name: &["config", "mask", "memory", "net", "proto", "replies", "web"],
        never: &[],
    },
    Layer { name: "main", may_name: &["config", "server"], never: &[] },
    Layer { name: "loadtest", may_name: &["mask", "net::uring::client", "proto"], never: &[] },
];

/// Near this many lines a file has begun to hold two ideas. Reported, not enforced.
const FILE_LINES_USUAL: usize = 500;

#[test]
fn no_layer_names_one_it_may_not() {
    let mut violations = Vec::new();
    for file in source_files() {
        let Some(layer) = layer_of(&file) else { continue };
        let text = fs::read_to_string(root().join(&file)).expect("a listed file can be read");
        violations.extend(check(layer, &file, &text));
    }
    assert!(
        violations.is_empty(),
        "the layers of the design are broken:\n{}",
        violations.iter().map(|violation| format!("  {violation}\n")).collect::<String>()
    );
}

#[test]
fn every_source_file_belongs_to_a_layer() {
    let homeless: Vec<_> = source_files().into_iter().filter(|file| layer_of(file).is_none()).collect();
    assert_eq!(homeless, [PathBuf::from("src/lib.rs")], "only the map itself is above all layers");
    for layer in LAYERS {
        for name in layer.may_name {
            let top = name.split("::").next();
            assert!(LAYERS.iter().any(|other| top == Some(other.name)), "{}: no layer {name}", layer.name);
        }
    }
}

#[test]
fn long_files_are_reported() {
    let mut lengths: Vec<_> = source_files()
        .into_iter()
        .map(|file| {
            (fs::read_to_string(root().join(&file)).expect("a listed file can be read").lines().count(), file)
        })
        .collect();
    lengths.sort();
    assert!(lengths.iter().any(|(lines, _)| *lines > 0), "no source file was read");
    for (lines, file) in lengths.iter().rev().filter(|(lines, _)| *lines > FILE_LINES_USUAL) {
        println!("{lines:>5} lines: {}", file.display());
    }
}

/// A path that a file names and its layer may not.
#[derive(Debug, PartialEq)]
struct Violation {
    file: PathBuf,
    line: usize,
    layer: &'static str,
    path: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, layer, path } = self;
        write!(f, "{}:{line}: `{layer}` may not name `{path}`", file.display())
    }
}

fn check(layer: &'static Layer, file: &Path, text: &str) -> Vec<Violation> {
    let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut named = Vec::new();
    collect(&tokens.into_iter().collect::<Vec<_>>(), &module_of(file), &mut named);
    named.retain(|(path, _)| !is_allowed(layer, path));
    named
        .into_iter()
        .map(|(path, line)| Violation {
            file: file.to_owned(),
            line,
            layer: layer.name,
            path: path.join("::"),
        })
        .collect()
}

fn begins_with(path: &[String], prefix: &str) -> bool {
    let mut segments = path.iter().map(String::as_str);
    prefix.split("::").all(|segment| segments.next() == Some(segment))
}

/// `path` is resolved: what is ours begins with `crate`.
fn is_allowed(layer: &Layer, path: &[String]) -> bool {
    match path {
        [first] if first == "crate" => true,
        [first, ours @ ..] if first == "crate" => {
            ours[0] == layer.name || layer.may_name.iter().any(|allowed| begins_with(ours, allowed))
        }
        outside => !layer.never.iter().any(|banned| begins_with(outside, banned)),
    }
}

/// Adds every path in `tokens`, with the line it stands on. `module` is where the tokens are.
fn collect(tokens: &[TokenTree], module: &[String], named: &mut Vec<(Vec<String>, usize)>) {
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(word) if word == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let inner = [module, &[name.to_string()]].concat();
                    collect(&body.stream().into_iter().collect::<Vec<_>>(), &inner, named);
                    at += 2;
                }
            }
            TokenTree::Ident(word) if word == "use" => {
                let start = at + 1 + leading_separator(tokens, at + 1);
                at = tree(tokens, start, module, &[], named).max(at + 1) - 1;
            }
            TokenTree::Ident(_) if is_separator(tokens, at + 1) => {
                at = tree(tokens, at, module, &[], named) - 1;
            }
            TokenTree::Group(group) => {
                collect(&group.stream().into_iter().collect::<Vec<_>>(), module, named)
            }
            _ => {}
        }
        at += 1;
    }
}

/// Reads one path, or one tree of a `use`, that begins at `at`; returns the index behind it.
fn tree(
    tokens: &[TokenTree],
    mut at: usize,
    module: &[String],
    prefix: &[String],
    named: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.span().start().line);
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(segment)) => {
                path.push(segment.to_string());
                at += 1;
                let more = matches!(tokens.get(at + 2), Some(TokenTree::Ident(_) | TokenTree::Group(_)))
                    || is_punct(tokens.get(at + 2), '*');
                if !is_separator(tokens, at) || !more {
                    break;
                }
                at += 2;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inside: Vec<_> = group.stream().into_iter().collect();
                for branch in inside.split(|token| is_punct(Some(token), ',')) {
                    if !branch.is_empty() {
                        tree(branch, 0, module, &path, named);
                    }
                }
                return at + 1;
            }
            Some(token) if is_punct(Some(token), '*') => {
                path.push("*".to_owned());
                at += 1;
                break;
            }
            _ => break,
        }
    }
    if !path.is_empty() {
        named.push((resolve(&path, module), line));
    }
    at
}

/// `super`, `self` and the crate's own name become a path from `crate`.
fn resolve(path: &[String], module: &[String]) -> Vec<String> {
    let mut from_root = match path[0].as_str() {
        "resound" => vec!["crate".to_owned()],
        // The load generator is a crate of its own; here it is one of the layers.
        "crate" if module.get(1).is_some_and(|top| top == "loadtest") => module[..2].to_vec(),
        "crate" => vec!["crate".to_owned()],
        "self" | "super" => module.to_vec(),
        _ => return path.to_vec(),
    };
    let mut rest = path.iter().skip(usize::from(path[0] != "super")).peekable();
    while rest.next_if(|segment| *segment == "super").is_some() {
        from_root.pop();
    }
    from_root.extend(rest.filter(|segment| *segment != "self").cloned());
    from_root
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

fn leading_separator(tokens: &[TokenTree], at: usize) -> usize {
    if is_separator(tokens, at) { 2 } else { 0 }
}

/// `src/proto/handshake/mod.rs` is the module `crate::proto::handshake`, `loadtest/src/cli.rs` is
/// `crate::loadtest::cli`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module = vec!["crate".to_owned()];
    let inside = match file.strip_prefix("loadtest/src") {
        Ok(inside) => Path::new("loadtest").join(inside),
        Err(_) => file.strip_prefix("src").unwrap_or(Path::new("")).to_owned(),
    };
    let inside = inside.with_extension("");
    module.extend(inside.iter().map(|part| part.to_string_lossy().into_owned()));
    if matches!(module.last().map(String::as_str), Some("mod" | "main" | "lib")) {
        module.pop();
    }
    module
}

fn layer_of(file: &Path) -> Option<&'static Layer> {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    let name = match &parts[..] {
        [src, top, ..] if src == "src" => top.trim_end_matches(".rs"),
        [top, ..] => top,
        [] => return None,
    };
    LAYERS.iter().find(|layer| layer.name == name)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the server and of the load generator, from the root of the checkout.
fn source_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from("src"), PathBuf::from("loadtest/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("the folder is part of the checkout") {
            let path = folder.join(entry.expect("its entries can be listed").file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The checker itself: what it must find, and what it must leave alone.
mod checker {
    use super::*;

    fn violations(file: &str, text: &str) -> Vec<(usize, String)> {
        let layer = layer_of(Path::new(file)).expect("the example names a layer");
        check(layer, Path::new(file), text).into_iter().map(|found| (found.line, found.path)).collect()
    }

    #[test]
    fn a_use_of_a_layer_above_or_beside_is_found() {
        for (file, text, path) in [
            ("src/net/epoll.rs", "use crate::proto::Message;", "crate::proto::Message"),
            ("src/proto/frame.rs", "use crate::net;", "crate::net"),
            ("src/proto/frame.rs", "pub use ::resound::server as above;", "crate::server"),
            ("src/mask/mod.rs", "use crate::proto::{self};", "crate::proto"),
            ("src/mask/mod.rs", "use super::proto::Opcode;", "crate::proto::Opcode"),
            ("src/proto/handshake/mod.rs", "use super::super::net::*;", "crate::net::*"),
            ("src/net/mod.rs", "use crate::*;", "crate::*"),
            ("src/main.rs", "use resound::proto::Role;", "crate::proto::Role"),
            ("loadtest/src/client.rs", "use resound::net::bind;", "crate::net::bind"),
            ("loadtest/src/client.rs", "use resound::net::uring;", "crate::net::uring"),
            ("src/proto/utf8.rs", "use std::time::Instant;", "std::time::Instant"),
        ] {
            assert_eq!(violations(file, text), [(1, path.to_owned())], "{file}: {text}");
        }
    }

    #[test]
    fn a_nested_use_is_followed_into_its_braces() {
        let text = "use crate::{\n    mask::{self, MaskingKey},\n    server::{hub::Hub, session as s},\n};";
        let hub = (3, "crate::server::hub::Hub".to_owned());
        assert_eq!(violations("src/proto/frame.rs", text), [hub, (3, "crate::server::session".to_owned())]);
    }

    #[test]
    fn a_path_is_found_in_code_types_macros_and_inner_modules() {
        for text in [
            "fn f() { crate::net::bind(1) }",
            "fn f(x: &dyn Fn(crate::net::ConnId)) {}",
            "fn f() { debug!(\"{}\", crate::net::bind::<u8>()) }",
            "mod tests { use super::super::super::net::Backend; }",
            "impl super::super::net::Backend for Frame {}",
            "fn f() -> Option<::resound::net::ConnId> { None }",
        ] {
            let found = violations("src/proto/frame.rs", text);
            assert!(
                matches!(&found[..], [(1, path)] if path.starts_with("crate::net::")),
                "{text}: {found:?}"
            );
        }
    }

    #[test]
    fn what_the_design_allows_is_left_alone() {
        for (file, text) in [
            ("src/proto/frame.rs", "use crate::mask::{self, MaskingKey}; use super::{close, utf8::Utf8};"),
            (
                "src/proto/frame.rs",
                "/// See [`crate::net`].\n// crate::server\nconst S: &str = \"crate::net::x\";",
            ),
            ("src/proto/frame.rs", "mod tests { use super::*; fn f() { super::super::Role::Client; } }"),
            ("src/proto/frame.rs", "fn f() { Vec::<u8>::new(); std::mem::take(x); Frame { net: 1 } }"),
            (
                "src/server/mod.rs",
                "use crate::{net, proto}; use crate::config::Config; use std::time::Instant;",
            ),
            ("src/main.rs", "use resound::config::Config; fn main() { resound::server::Server::run() }"),
            ("loadtest/src/main.rs", "use resound::{mask, proto::Role};"),
            ("loadtest/src/engine/links.rs", "use super::book::Book; use crate::result::model::RunResult;"),
        ] {
            assert_eq!(violations(file, text), [], "{file}: {text}");
        }
    }
}
