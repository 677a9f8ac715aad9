//! House rules that a compiler does not know: what the engine never does, who may import whom, how files open.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const CRATES: [&str; 4] = ["engine", "net", "loadgen", "bench"];
const ROLES: [&str; 4] = ["data", "meta", "session", "client"];
const LINES_MAX: usize = 900;
/// The only places of `net` that read a clock: where the loops are, and what an operator runs and waits for.
const CLOCK_ROOMS: [&str; 3] = ["net/src/io/", "net/src/ctl/", "net/src/local.rs"];

/// One Rust file: its path from the repository's root, its text, and its code without comments and literals.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn in_any(&self, rooms: &[&str]) -> bool {
        rooms.iter().any(|room| self.path.starts_with(room))
    }

    /// The code above its unit tests.
    fn shipped(&self) -> &str {
        self.code.split("#[cfg(test)]").next().unwrap_or_default()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Rust files of the crates that there are.
fn sources() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> = CRATES.iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a readable file");
                let path =
                    path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
                sources.push(Source { path, code: without_comments_and_literals(&text), text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.iter().any(|source| source.path == "engine/src/lib.rs"), "the files are found");
    sources
}

/// Blanks comments, strings and character literals. Raw strings count as ending at the first `"` with enough `#`.
fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let find = |from: usize, what: &str| text[from..].find(what).map_or(text.len(), |found| from + found);
    while at < bytes.len() {
        let rest = &text[at..];
        let before = code.chars().last().is_some_and(|last| last.is_alphanumeric() || last == '_');
        if rest.starts_with("//") {
            at = find(at, "\n");
        } else if rest.starts_with("/*") {
            at = (find(at, "*/") + 2).min(text.len());
        } else if !before && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
            if rest.as_bytes().get(1 + hashes) == Some(&b'"') {
                let end = format!("\"{}", "#".repeat(hashes));
                at = (find(at + hashes + 2, &end) + end.len()).min(text.len());
            } else {
                code.push('r');
                at += 1;
            }
        } else if bytes[at] == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at += 1;
            code.push_str("\"\"");
        } else if let Some(length) = char_literal(rest) {
            at += length;
        } else {
            let next = rest.chars().next().expect("not at the end");
            code.push(next);
            at += next.len_utf8();
        }
    }
    code
}

/// Bytes of the character literal at the start; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    let mut chars = inner.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        return inner[2..].find('\'').map(|end| end + 4);
    }
    let (after, next) = chars.next()?;
    (next == '\'').then_some(after + 2)
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

/// The names that follow `prefix::` anywhere in the code, also in braces: `crate::{a::B, c}` gives `a` and `c`.
fn names_below(code: &str, prefix: &str) -> BTreeSet<String> {
    let dense: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let wanted = format!("{prefix}::");
    let mut names = BTreeSet::new();
    for (at, _) in dense.match_indices(&wanted) {
        let before = dense[..at].chars().last();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &dense[at + wanted.len()..];
        let mut depth = 0usize;
        let mut name = String::new();
        for c in rest.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                ',' if depth == 1 => {
                    names.insert(std::mem::take(&mut name));
                    continue;
                }
                _ if c.is_alphanumeric() || c == '_' => {
                    if depth <= 1 && !name.ends_with(':') {
                        name.push(c);
                    }
                    continue;
                }
                ':' if depth <= 1 && !name.is_empty() && !name.ends_with(':') => name.push(':'),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        names.insert(name);
    }
    names
        .into_iter()
        .map(|name| name.trim_end_matches(':').to_string())
        .filter(|name| !name.is_empty())
        .collect()
}

fn complain(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_guards_themselves_see_what_they_look_for() {
    let text = "use std::{net, thread::spawn};\nlet a = 'x'; // std::time\nlet b = \"unsafe\"; fn f<'a>() {}";
    let code = without_comments_and_literals(text);
    assert_eq!(names_below(&code, "std"), BTreeSet::from(["net".into(), "thread".into()]));
    assert!(!words(&code).contains("unsafe") && !words(&code).contains("x") && words(&code).contains("f"));
    let nested = "use crate::{ a::{B, C}, d, e::F };\ncrate::g::h(); mycrate::no();";
    let names: Vec<String> = names_below(nested, "crate").into_iter().collect();
    assert_eq!(names, ["a", "d", "e", "g"]);
    assert_eq!(
        words(&without_comments_and_literals(r##"r#"unsafe " x"# y '\'' '\n' z"##)),
        BTreeSet::from(["y", "z"])
    );
}

#[test]
fn the_engine_has_no_sockets_threads_clocks_locks_waiting_or_chance() {
    let forbidden = [
        "Instant",
        "SystemTime",
        "UNIX_EPOCH",
        "Mutex",
        "RwLock",
        "Condvar",
        "async",
        "await",
        "rand",
        "unsafe",
        "thread_local",
        "RandomState",
        "HashMap",
        "HashSet",
    ];
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| source.in_any(&["engine/src/"])) {
        let words = words(source.shipped());
        for word in forbidden.iter().filter(|word| words.contains(**word)) {
            complaints.push(format!("{}: {word}", source.path));
        }
        for name in names_below(source.shipped(), "std") {
            if ["net", "thread", "time", "fs", "env", "process", "sync"].contains(&name.as_str()) {
                complaints.push(format!("{}: std::{name}", source.path));
            }
        }
    }
    complain(complaints);
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    let opens = |text: &str| text.starts_with("//!") || text.starts_with("#!");
    complain(
        sources().iter().filter(|source| !opens(&source.text)).map(|source| source.path.clone()).collect(),
    );
}

#[test]
fn no_file_gathers_everything() {
    let long = |source: &Source| source.text.lines().count() > LINES_MAX;
    complain(sources().iter().filter(|source| long(source)).map(|source| source.path.clone()).collect());
}

#[test]
fn crates_import_one_way() {
    let above = |path: &str| match path.split('/').next() {
        Some("engine") => &["slotcast_net", "slotcast_loadgen", "loadgen", "bench"][..],
        Some("net") => &["slotcast_loadgen", "loadgen", "bench"],
        Some("bench") => &["slotcast_loadgen", "loadgen"],
        _ => &["bench"],
    };
    let mut complaints = Vec::new();
    for source in sources() {
        for name in above(&source.path) {
            let own = source.path.starts_with(&format!("{name}/"));
            if !own && source.code.contains(&format!("{name}::")) && words(&source.code).contains(name) {
                complaints.push(format!("{}: {name}", source.path));
            }
        }
    }
    complain(complaints);
}

#[test]
fn a_file_of_the_engine_uses_only_rooms_listed_above_it() {
    let sources = sources();
    let lib = sources.iter().find(|source| source.path == "engine/src/lib.rs").expect("it was found before");
    let rooms: Vec<&str> =
        lib.code.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(rooms.len() > 10);
    let mut complaints = Vec::new();
    for (at, room) in rooms.iter().enumerate() {
        let path = format!("engine/src/{room}.rs");
        let Some(source) = sources.iter().find(|source| source.path == path) else { continue };
        for name in names_below(source.shipped(), "crate") {
            if !rooms[..at].contains(&name.as_str()) {
                complaints.push(format!("{path}: crate::{name}"));
            }
        }
    }
    complain(complaints);
}

#[test]
fn the_roles_do_not_know_each_other() {
    let mut complaints = Vec::new();
    for role in ROLES {
        let rooms = [format!("net/src/{role}/"), format!("net/src/{role}.rs")];
        let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
        for source in sources().iter().filter(|source| source.in_any(&rooms)) {
            for name in
                names_below(&source.code, "crate").iter().chain(&names_below(&source.code, "slotcast_net"))
            {
                if name != role && ROLES.contains(&name.as_str()) {
                    complaints.push(format!("{}: {name}", source.path));
                }
            }
        }
    }
    complain(complaints);
}

#[test]
fn net_reads_clocks_in_one_place() {
    let mut complaints = Vec::new();
    for source in
        sources().iter().filter(|source| source.in_any(&["net/src/"]) && !source.in_any(&CLOCK_ROOMS))
    {
        for call in ["Instant::now", "SystemTime::now"] {
            if source.shipped().contains(call) {
                complaints.push(format!("{}: {call}", source.path));
            }
        }
    }
    complain(complaints);
}
