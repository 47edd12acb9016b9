//! `--faults`: a whole pipeline under the samples of `deploy/faults`, and scripts that are refused.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::harness::folder;
use crate::harness::process::{arg, convolake};

/// Longest run of `dev` with a handful of conversations, retries and pauses included.
const DEV_LIMIT: Duration = Duration::from_secs(180);
/// Longest run of a command that only checks.
const EXIT_LIMIT: Duration = Duration::from_secs(30);

/// One run of `dev` under a sample: exit code, what it printed before the summary, and the summary.
async fn dev(sample: &str, conversations: u64) -> (Option<i32>, String, Value) {
    let folder = folder();
    let lake = folder.path().join("lake");
    let script = samples().join(sample).with_extension("yaml");
    let conversations = conversations.to_string();
    let mut process = convolake(
        &[
            "dev",
            "--conversations",
            &conversations,
            "--seed",
            "7",
            "--lake",
            arg(&lake),
            "--faults",
            arg(&script),
            "--json",
        ],
        &[],
    );
    let status = process.wait_exit(DEV_LIMIT).await;
    let printed = process.stdout();
    let (text, summary) = match printed.trim_end().rsplit_once('\n') {
        Some((text, summary)) => (text.to_owned(), summary),
        None => (String::new(), printed.trim_end()),
    };
    let summary = serde_json::from_str(summary)
        .unwrap_or_else(|error| panic!("{sample}: {error}: {printed:?}"));
    (status.code(), text, summary)
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/faults")
}

async fn complete(sample: &str, conversations: u64) -> Value {
    let (code, text, summary) = dev(sample, conversations).await;
    assert_eq!(code, Some(0), "{sample}: {text}{summary}");
    assert_eq!(summary["verify"]["complete"], conversations, "{sample}");
    assert_eq!(summary["callbacks"]["refused"], 0, "{sample}: {summary}");
    summary
}

#[tokio::test]
async fn repeated_late_and_broken_callbacks_change_nothing() {
    for sample in [
        "delayed-callbacks",
        "reordered-callbacks",
        "wrong-signatures",
        "half-bodies",
    ] {
        complete(sample, 10).await;
    }
    for sample in ["duplicated-callbacks", "replayed-callbacks"] {
        let summary = complete(sample, 10).await;
        let duplicates = summary["callbacks"]["duplicate"].as_u64().unwrap();
        assert!(duplicates >= 10, "{sample}: {summary}");
    }
}

#[tokio::test]
async fn a_close_that_nobody_announced_is_named() {
    let (code, text, summary) = dev("lost-callbacks", 10).await;
    assert_eq!(code, Some(3), "{text}{summary}");
    let verdict = &summary["verify"];
    assert_eq!(
        (&verdict["complete"], &verdict["missing"]),
        (&8.into(), &2.into())
    );
    let named = text
        .lines()
        .filter(|line| line.ends_with("missing: no callback announced its close"));
    assert_eq!(named.count(), 2, "{text}");
}

#[tokio::test]
async fn a_bad_day_ends_whole() {
    let summary = complete("weather", 40).await;
    assert!(
        summary["callbacks"]["duplicate"].as_u64().unwrap() > 0,
        "{summary}"
    );
}

#[tokio::test]
async fn a_bad_script_is_2_and_names_line_and_field_before_any_port_opens() {
    let folder = folder();
    let file = folder.path().join("faults.yaml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (text, says) in [
        (
            "rest:\n  - path: /v2/**\n    fault: {hang: {seconds: 0}}\n",
            "line 3, column 29: rest[0].fault.hang.seconds: a whole number from 1 to 120\n",
        ),
        (
            "{\"callbacks\": [\n{\"fault\": \"lots\"}]}",
            "line 2, column 11: callbacks[0].fault",
        ),
        ("rest:\n  - pth: /v2/**\n", "line 2, column 5: rest[0].pth"),
    ] {
        std::fs::write(&file, text).unwrap();
        // With the port taken, a role that had tried to open it would say so instead.
        for role in [
            &["emulate", "--listen", &*address][..],
            &["dev", "--ops-listen", &*address],
        ] {
            let mut process = convolake(&[role, &["--faults", arg(&file)]].concat(), &[]);
            let status = process.wait_exit(EXIT_LIMIT).await;
            let said = process.stderr();
            assert_eq!(status.code(), Some(2), "{said}");
            let says = format!("convolake: --faults {}: {says}", file.display());
            assert!(said.contains(&says), "{says}\n{said}");
        }
    }
    std::fs::remove_file(&file).unwrap();
    let mut process = convolake(&["emulate", "--faults", arg(&file)], &[]);
    assert_eq!(process.wait_exit(EXIT_LIMIT).await.code(), Some(2));
}
