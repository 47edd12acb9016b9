//! The command line from outside: wrong use, help, closed pipes, exit codes.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::http::get_json;
use crate::harness::process::{arg, convolake};
use crate::harness::roles::Orchestrator;
use crate::harness::{ACCOUNT, folder, until};

/// Longest run of a command that only checks, prints or compares.
const EXIT_LIMIT: Duration = Duration::from_secs(30);
/// Longest run of `dev` with a handful of conversations.
const DEV_LIMIT: Duration = Duration::from_secs(120);
/// Part of every secret that these tests give.
const CANARY: &str = "canary5d3a";
/// Every variable that holds a secret, filled.
const SECRETS: &[(&str, &str)] = &[
    ("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000001"),
    ("TWILIO_AUTH_TOKEN", "canary5d3a-token"),
    ("TWILIO_API_KEY", "SK00000000000000000000000000000001"),
    ("TWILIO_API_SECRET", "canary5d3a-secret"),
    ("CONVOLAKE_SIGNING_KEYS", "sha1:canary5d3a-key"),
];

#[tokio::test]
async fn wrong_use_is_2_and_names_the_flag_before_any_port_opens() {
    for (role, flag) in [
        ("receive", "--public-url"),
        ("receive", "--kafka"),
        ("ingest", "--kafka"),
        ("ingest", "--lake"),
    ] {
        refused(role, Some(flag), &[], SECRETS, flag).await;
    }
    for (role, flag, value) in [
        ("receive", "--public-url", "hooks.example.test/twilio"),
        ("receive", "--public-url", "/twilio"),
        ("receive", "--public-url", "ftp://hooks.example.test/twilio"),
        ("receive", "--public-url", "https://hooks.example.test"),
        ("receive", "--listen", "nowhere"),
        ("receive", "--max-connections", "0"),
        ("receive", "--kafka-property", "sasl.password:canary5d3a"),
        ("receive", "--public-url", "https://user:canary5d3a@"),
        ("receive", "--unheard-of", "1"),
        ("ingest", "--settle", "soon"),
        ("ingest", "--flush-interval", "-1s"),
        ("ingest", "--requests-per-second", "0"),
        (
            "ingest",
            "--api-url",
            "https://user:canary5d3a@api.example.test",
        ),
        ("ingest", "--api-url", "api.example.test"),
    ] {
        // In one word, so that a value with a minus is none of its own.
        let flags = [&*format!("{flag}={value}")];
        refused(role, Some(flag), &flags, SECRETS, flag).await;
    }
    for role in ["receive", "ingest"] {
        for property in ["acks=0", "nonsense=canary5d3a", "group.id=x"] {
            let name = property.split('=').next().unwrap();
            let names = format!("convolake: --kafka-property {name}:");
            let flags = ["--kafka-property", property];
            refused(role, None, &flags, SECRETS, &names).await;
        }
    }
}

#[tokio::test]
async fn a_wrong_config_file_is_2_and_names_the_key() {
    let folder = folder();
    let file = folder.path().join("convolake.toml");
    for (role, content, names) in [
        ("receive", "lissten = \"127.0.0.1:1\"", "\"lissten\""),
        (
            "receive",
            "twilio-auth-tokn = \"canary5d3a\"",
            "\"twilio-auth-tokn\"",
        ),
        ("receive", "twilio-auth-token = \"canary5d3a", "line 1"),
        (
            "receive",
            "signing-keys = \"canary5d3a\"",
            "CONVOLAKE_SIGNING_KEYS",
        ),
        (
            "receive",
            "kafka-property = [\"nonsense=canary5d3a\"]",
            "--kafka-property nonsense",
        ),
        ("receive", "max-connections = 0", "--max-connections"),
        ("ingest", "settle = \"soon\"", "--settle"),
    ] {
        std::fs::write(&file, content).unwrap();
        // The keys come from the file alone.
        let env = [("CONVOLAKE_CONFIG", arg(&file)), ACCOUNT[0], ACCOUNT[1]];
        let env = if content.contains("twilio") {
            &env[..1]
        } else {
            &env
        };
        refused(role, None, &[], env, names).await;
        refused(role, None, &["--config", arg(&file)], &env[1..], names).await;
    }
}

#[tokio::test]
async fn missing_credentials_are_2_and_name_the_variables() {
    for (role, env, names) in [
        ("receive", &[][..], "TWILIO_AUTH_TOKEN"),
        (
            "receive",
            &[("CONVOLAKE_SIGNING_KEYS", "md5:canary5d3a")],
            "CONVOLAKE_SIGNING_KEYS",
        ),
        (
            "receive",
            &[("CONVOLAKE_SIGNING_KEYS", "sha1:")],
            "CONVOLAKE_SIGNING_KEYS",
        ),
        ("ingest", &[], "TWILIO_API_KEY"),
        (
            "ingest",
            &[("TWILIO_AUTH_TOKEN", "canary5d3a")],
            "TWILIO_ACCOUNT_SID",
        ),
        (
            "ingest",
            &[("TWILIO_API_SECRET", "canary5d3a")],
            "TWILIO_API_KEY",
        ),
    ] {
        refused(role, None, &[], env, names).await;
    }
}

/// `role`, whole but for the flag `without` and with `flags` besides, ends with 2 and says `names`: on
/// ports that are taken, without a word of a secret, and without a lake.
async fn refused(
    role: &str,
    without: Option<&str>,
    flags: &[&str],
    env: &[(&str, &str)],
    names: &str,
) {
    // Opening one of them would be the first error instead.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let folder = folder();
    let lake = folder.path().join("lake");
    let own = match role {
        "receive" => vec![
            ("--public-url", "https://hooks.example.test/twilio"),
            ("--listen", &taken),
        ],
        _ => vec![("--lake", arg(&lake))],
    };
    let both = [("--kafka", "127.0.0.1:1"), ("--ops-listen", &taken)];
    let mut args = vec![role, "--log-filter", "trace"];
    for (flag, value) in own.into_iter().chain(both) {
        if Some(flag) != without {
            args.extend([flag, value]);
        }
    }
    args.extend(flags);
    let mut process = convolake(&args, env);
    let status = process.wait_exit(EXIT_LIMIT).await;
    let said = process.stderr();
    assert_eq!(status.code(), Some(2), "{args:?}: {said}");
    assert!(said.contains(names), "{names}: {args:?}: {said}");
    assert_eq!(process.stdout(), "", "{args:?}");
    assert!(
        !said.contains(CANARY),
        "a secret was printed: {args:?}: {said}"
    );
    assert!(!lake.exists(), "{args:?}");
}

#[test]
fn help_is_what_was_reviewed() {
    for command in [
        "",
        "dev",
        "receive",
        "ingest",
        "emulate",
        "replay",
        "reconcile",
        "verify",
        "maintain",
        "sql",
    ] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_convolake"));
        let name = if command.is_empty() {
            "help".to_owned()
        } else {
            program.arg(command);
            format!("help_{command}")
        };
        let output = program
            .arg("--help")
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}");
        assert_eq!(output.stderr, b"", "{name}");
        insta::assert_snapshot!(name, String::from_utf8(output.stdout).unwrap());
    }
}

/// As for any filter before `head -1`.
#[test]
fn a_reader_that_closes_standard_output_is_no_error() {
    for args in [&["sql"][..], &["--help"], &["ingest", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut program = Command::new(env!("CARGO_BIN_EXE_convolake"));
        let child = program
            .args(args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(writer);
        let output = child.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert_eq!(output.stderr, b"", "{args:?}");
    }
}

#[tokio::test]
async fn verify_is_0_for_a_whole_lake_and_3_with_names_where_conversations_are_missing() {
    const CONVERSATIONS: usize = 5;
    let folder = folder();
    let lake = folder.path().join("lake");
    let dev = [
        "dev",
        "--conversations",
        "5",
        "--seed",
        "7",
        "--lake",
        arg(&lake),
    ];
    let mut dev = convolake(&dev, &[]);
    assert_eq!(dev.wait_exit(DEV_LIMIT).await.code(), Some(0));

    let same = closed(CONVERSATIONS, 7).await;
    let (code, text) = verify(&lake, &same.address, &[]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("5 complete, 0 partial, 0 gone, 0 missing"),
        "{text}"
    );

    let other = closed(CONVERSATIONS, 8).await;
    let truth = get_json(&format!("http://{}/emulator/truth", other.address)).await;
    let (code, text) = verify(&lake, &other.address, &[]).await;
    assert_eq!(code, Some(3), "{text}");
    let (code, json) = verify(&lake, &other.address, &["--json"]).await;
    assert_eq!(code, Some(3), "{json}");
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&report["complete"], &report["missing"]),
        (&0.into(), &5.into()),
        "{report}"
    );
    let named: Vec<&Value> = report["problems"].as_array().unwrap().iter().collect();
    assert_eq!(named.len(), CONVERSATIONS, "{report}");
    for conversation in truth["conversations"].as_array().unwrap() {
        let id = &conversation["id"];
        assert!(text.contains(id.as_str().unwrap()), "{id}: {text}");
        assert!(
            named
                .iter()
                .any(|problem| problem["conversation_id"] == *id),
            "{id}: {report}"
        );
    }
}

/// An emulator that has closed all its conversations and told nobody.
async fn closed(conversations: usize, seed: u64) -> Orchestrator {
    let orchestrator = Orchestrator::with(conversations, seed, &[]).await;
    let url = format!("http://{}/emulator/truth", orchestrator.address);
    until("all are closed", DEV_LIMIT, async || {
        match get_json(&url).await["conversations"]
            .as_array()
            .unwrap()
            .len()
        {
            all if all == conversations => Ok(()),
            some => Err(format!("{some} are closed")),
        }
    })
    .await;
    orchestrator
}

/// The exit code of `verify` and what it printed.
async fn verify(lake: &Path, api: &str, flags: &[&str]) -> (Option<i32>, String) {
    let api = format!("http://{api}");
    let own = ["verify", "--lake", arg(lake), "--api-url", &api];
    let mut process = convolake(&[&own, flags].concat(), ACCOUNT);
    let status = process.wait_exit(EXIT_LIMIT).await;
    (status.code(), process.stdout())
}
