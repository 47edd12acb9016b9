//! `emulate` from outside: its profile, its clock, its memory, its bar.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http::get_json;
use crate::harness::process::{Process, convolake};
use crate::harness::roles::Orchestrator;
use crate::harness::{ACCOUNT, free_address, until};

/// Longest time that a few conversations take in an unoptimised build.
const PLAY_LIMIT: Duration = Duration::from_secs(60);

fn sample(name: &str) -> String {
    format!("{}/deploy/profiles/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_profile_a_standing_clock_and_a_bound_reach_the_emulator() {
    let profile = sample("short-messages.json");
    let flags = [
        "--profile",
        &profile,
        "--start-time",
        "2026-03-01T12:00:00Z",
        "--keep-conversations",
        "30",
    ];
    let mut orchestrator = Orchestrator::with(40, 7, &flags).await;
    let root = format!("http://{}/emulator", orchestrator.address);
    let stats = until("the traffic ends", PLAY_LIMIT, async || {
        let stats = get_json(&format!("{root}/stats")).await;
        match stats["conversationsClosed"].as_u64() {
            Some(40) => Ok(stats),
            _ => Err(stats.to_string()),
        }
    })
    .await;
    assert_eq!(stats["evicted"], 10);
    let clock = get_json(&format!("{root}/clock")).await;
    assert_eq!(clock["now"], "2026-03-01T12:00:00Z");
    assert_eq!(clock["mode"], "STANDING");
    let truth = get_json(&format!("{root}/truth")).await;
    assert_eq!(truth["evicted"], 10);
    let conversations = truth["conversations"].as_array().unwrap();
    assert_eq!(conversations.len(), 30);
    let mut channels = BTreeSet::new();
    for conversation in conversations {
        let length = conversation["communications"].as_array().unwrap().len();
        assert!(
            (1..=9).contains(&length),
            "8, or one more after a pause: {length}"
        );
        let closed: &str = conversation["updatedAt"].as_str().unwrap();
        assert!(
            ("2026-02-28T00".."2026-03-01T13").contains(&closed),
            "{closed}"
        );
        let named = conversation["channels"].as_array().unwrap().iter();
        channels.extend(named.map(|channel| channel.as_str().unwrap().to_owned()));
    }
    let messages = ["RCS", "SMS", "WHATSAPP"].map(str::to_owned);
    assert!(channels.is_subset(&messages.into()), "{channels:?}");
    orchestrator.process.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_a_port_opens() {
    let folder = crate::harness::folder();
    let file = folder.path().join("wrong.toml");
    std::fs::write(
        &file,
        "[channels]\nSMS = 1\n\n[communications]\nshortest = 0\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for (flag, value, what) in [
        ("--profile", file, "line 4"),
        ("--profile", "/nowhere.toml", "--profile /nowhere.toml"),
        ("--partial", "1.5", "partial"),
        ("--partial-fields", "author,colour", "colour is none of"),
        ("--keep-conversations", "0", "keep-conversations"),
        ("--operation-delay", "2h", "operation-delay"),
        ("--start-time", "yesterday", "--start-time"),
        ("--rate", "0", "rate"),
    ] {
        let args = ["emulate", "--listen", "127.0.0.1:1", flag, value];
        let mut process = convolake(&args, ACCOUNT);
        let status = process.wait_exit(PLAY_LIMIT).await;
        let said = process.stderr();
        assert_eq!(status.code(), Some(2), "{flag} {value}: {said}");
        assert!(said.contains(what), "{flag} {value}: {said}");
    }
}

/// `script` of util-linux gives the program a terminal and prints what it writes there.
#[tokio::test]
async fn a_bar_is_drawn_on_a_terminal_and_nowhere_else() {
    let address = free_address();
    let flags = format!("emulate --listen {address} --conversations 4711 --rate 20 --seed 1");
    let command = format!("{} {flags}", env!("CARGO_BIN_EXE_convolake"));
    let mut script = Command::new("script");
    script.args(["-qefc", &command, "/dev/null"]);
    script.env("TERM", "xterm");
    let mut terminal = Process::spawn("script", &mut script);
    until("the bar is drawn", PLAY_LIMIT, async || {
        let written = terminal.stdout();
        match written.contains("/4711") {
            true => Ok(()),
            false => Err(written),
        }
    })
    .await;
    // It passes the signal on; that its terminal goes away would mean nothing to a program below nohup.
    terminal.sigterm();
    let gone = async || match std::net::TcpStream::connect(&address) {
        Ok(_) => Err("still listening".to_owned()),
        Err(_) => Ok(()),
    };
    until("the emulator on it ends", PLAY_LIMIT, gone).await;

    let mut piped = Orchestrator::with(3, 1, &[]).await;
    let stats = format!("http://{}/emulator/stats", piped.address);
    until("the traffic ends", PLAY_LIMIT, async || {
        let stats: Value = get_json(&stats).await;
        match stats["conversationsClosed"] == 3 {
            true => Ok(()),
            false => Err(stats.to_string()),
        }
    })
    .await;
    piped.process.stop().await;
    let said = piped.process.stderr();
    assert!(!said.contains("3/3") && !said.contains('\u{1b}'), "{said}");
}
