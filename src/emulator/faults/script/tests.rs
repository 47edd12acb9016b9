//! The file's format: what is read, what is refused and how it is said, and that the schema says the same.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::value::PathPattern;
use super::*;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn samples() -> Vec<(PathBuf, String)> {
    let files = std::fs::read_dir(root().join("deploy/faults")).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), std::fs::read_to_string(path).unwrap());
    paths.into_iter().map(read).collect()
}

fn refused(text: &str) -> (u64, String, String) {
    match Script::parse(text) {
        Err(BadScript::At {
            line, field, why, ..
        }) => (line, field, why),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_sample_is_read_and_uses_each_fault() {
    let samples = samples();
    assert!(samples.len() > 20);
    let mut all = String::new();
    for (path, text) in &samples {
        let script = Script::parse(text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!script.is_empty(), "{}", path.display());
        all += &serde_json::to_string(&script).unwrap();
    }
    for fault in [
        "429",
        "500",
        "503",
        "401",
        "403",
        "404",
        "\"date\"",
        "\"seconds\"",
        "hang",
        "reset",
        "truncated",
        "html",
        "wrongTypes",
        "partial",
        "stale",
        "duplicate",
        "skip",
        "loop",
        "redirect",
        "lost",
        "duplicated",
        "delayed",
        "reordered",
        "replayed",
        "wrongSignature",
        "halfBody",
        "lateClose",
        "neverCloses",
        "deletedDuringFetch",
        "changedBetweenPages",
    ] {
        assert!(all.contains(fault), "no sample has {fault}");
    }
}

#[test]
fn json_and_yaml_are_read_alike() {
    for (path, text) in samples() {
        let script = Script::parse(&text).unwrap();
        for json in [
            serde_json::to_string(&script).unwrap(),
            serde_json::to_string_pretty(&script).unwrap(),
            serde_json::to_string_pretty(&script)
                .unwrap()
                .replace("  ", "\t"),
        ] {
            let again = Script::parse(&json).unwrap_or_else(|e| panic!("{e}\n{json}"));
            assert_eq!(again, script, "{}", path.display());
        }
    }
    for nothing in ["", "# nothing\n", "{}", "null"] {
        assert!(Script::parse(nothing).unwrap().is_empty(), "{nothing:?}");
    }
}

#[test]
fn a_refusal_names_line_and_field() {
    let start = "rest:\n  - path: /v2/**\n";
    for (rest, line, field, why) in [
        ("    fault: nothing", 3, "rest[0].fault", "nothing"),
        ("    falut: reset", 3, "rest[0].falut", "falut"),
        (
            "    fault: {hang: {seconds: 0}}",
            3,
            "rest[0].fault.hang.seconds",
            "from 1 to 120",
        ),
        (
            "    fault: {hang: {seconds: 999}}",
            3,
            "rest[0].fault.hang.seconds",
            "from 1 to 120",
        ),
        ("    fault: {hang: {}}", 3, "rest[0].fault.hang", "seconds"),
        (
            "    fault: {hang: {seconds: 1, x: 1}}",
            3,
            "rest[0].fault.hang.x",
            "x",
        ),
        (
            "    fault: {status: {code: 200}}",
            3,
            "rest[0].fault.status.code",
            "from 400 to 599",
        ),
        (
            "    fault: {truncated: {keep: 1.5}}",
            3,
            "rest[0].fault.truncated.keep",
            "from 0 to 1",
        ),
        ("    fault: {page: jump}", 3, "rest[0].fault.page", "jump"),
        (
            "    when: {every: 0}\n    fault: reset",
            3,
            "rest[0].when.every",
            "from 1",
        ),
        (
            "    when:\n      nth: [1, x]\n    fault: reset",
            4,
            "rest[0].when.nth[1]",
            "",
        ),
        (
            "    when: {from: noon}\n    fault: reset",
            3,
            "rest[0].when.from",
            "2026-11-22T12:00:00Z",
        ),
        (
            "    method: get\n    fault: reset",
            3,
            "rest[0].method",
            "GET",
        ),
        (
            "    name: \"\\n\"\n    fault: reset",
            3,
            "rest[0].name",
            "visible",
        ),
    ] {
        let (at, named, said) = refused(&format!("{start}{rest}\n"));
        assert_eq!(at, line, "{rest}: {named}{said}");
        assert!(named.starts_with(field), "{rest}: {named}{said}");
        assert!(said.contains(why), "{rest}: {named}{said}");
    }
    for (text, line, why) in [
        ("rest: [", 1, ""),
        ("a: 1", 1, "a"),
        ("[]", 1, ""),
        (
            "rest:\n  - path: /v1/x\n    fault: reset",
            2,
            "/v2/Conversations",
        ),
        (
            "rest:\n  - path: /v2/**/x\n    fault: reset",
            2,
            "at its end",
        ),
        ("seed: 1\nseed: 2", 2, "seed"),
        ("callbacks:\n  - fault: {lateClose: 1}", 2, "lateClose"),
    ] {
        let (at, field, said) = refused(text);
        assert_eq!(at, line, "{text}: {field}{said}");
        assert!(said.contains(why), "{text}: {field}{said}");
    }
}

#[test]
fn a_script_has_limits() {
    let rule = "  - {path: /v2/x, fault: reset}\n";
    let many = format!("rest:\n{}", rule.repeat(MAX_RULES));
    assert_eq!(Script::parse(&many).unwrap().rest.len(), MAX_RULES);
    let (line, field, why) = refused(&format!("{many}{rule}"));
    assert!(why.contains("at most 100"), "{line} {field}{why}");
    let large = format!("# {}\n", "x".repeat(MAX_SCRIPT_BYTES));
    assert_eq!(Script::parse(&large), Err(BadScript::TooLarge));
    let deep = "[".repeat(10_000);
    assert!(Script::parse(&deep).is_err());
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nrest: [*b,*b,*b,*b,*b]\n";
    assert!(Script::parse(bomb).is_err());
}

#[test]
fn paths_match_by_segment() {
    for (pattern, path, matches) in [
        ("/v2/Conversations", "/v2/Conversations", true),
        ("/v2/Conversations", "/v2/Conversations/x", false),
        ("/v2/Conversations/*", "/v2/Conversations", false),
        ("/v2/Conversations/*", "/v2/Conversations/", false),
        ("/v2/Conversations/*", "/v2/Conversations/x", true),
        (
            "/v2/*/x/Communications",
            "/v2/Conversations/x/Communications",
            true,
        ),
        ("/v2/**", "/v2/Conversations/x/Communications", true),
        ("/v2/**", "/v2", true),
        ("/v2/Conversations/**", "/v2/ControlPlane/x", false),
    ] {
        let known = PathPattern::try_from(pattern.to_owned()).unwrap();
        assert_eq!(known.matches(path), matches, "{pattern} {path}");
    }
}

/// The failure prints the schema to write.
#[test]
fn the_schema_is_that_of_the_types() {
    let path = root().join("schemas/faults.schema.json");
    let mut schema = schemars::schema_for!(Script).to_value();
    let own = schema.as_object_mut().unwrap();
    own.insert("title".to_owned(), "Fault script of the emulator".into());
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    let generated = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let written: serde_json::Value = serde_json::from_str(&published).unwrap_or_default();
    assert!(
        written == schema,
        "{} has to be:\n{generated}",
        path.display()
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = Script::parse(&text);
    }

    #[test]
    fn no_yaml_like_text_panics(text in "([-:{}\\[\\],&*!|>#\"'%@` \n\t]|rest|fault|when|nth|reset|0|1e9|~){0,80}") {
        let _ = Script::parse(&text);
    }

    /// Pieces of real files, cut and run together: most lines are right, few files are.
    #[test]
    fn no_damaged_sample_panics(pieces in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..5)) {
        let samples = samples();
        let mut text = String::new();
        for (sample, from, to) in pieces {
            let (_, whole) = sample.get(&samples);
            let (from, to) = (from.index(whole.len()), to.index(whole.len()));
            // The samples are ASCII, so that every cut is a text.
            text += &whole[from.min(to)..from.max(to)];
        }
        if let Ok(script) = Script::parse(&text) {
            let json = serde_json::to_string(&script).unwrap();
            prop_assert_eq!(Script::parse(&json).unwrap(), script);
        }
    }
}
